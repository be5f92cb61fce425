"""Expressions: arithmetic and nothing else, and the initializers that wait for a site."""

from __future__ import annotations

import math
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchinit import Kaiming, Normal, Xavier
from torchinit.initializers import Blocks, Dirac, Scaled
from torchinit.initializers.expressions import FACTS, Computed, constant, evaluate, parse
from torchinit.model import LayerClass, Layout, Site

NAMES = {"pi": math.pi, "e": math.e, "sqrt": math.sqrt, "log": math.log, "exp": math.exp}
SITE = Site(
    "h.2.conv.weight",
    (6, 4, 3),
    owner=LayerClass("Conv1d"),
    layout=Layout(groups=2, stride=3),
    block=(2, 8),
    tower=(12, 20),
)


def texts() -> st.SearchStrategy[str]:
    leaves = st.sampled_from(["2", "0.5", "3.25", "1e-3", "pi", "e", "7"])

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        binary = st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        )
        calls = st.tuples(st.sampled_from(["sqrt", "log", "exp", "abs", "-", "+"]), inner).map(
            lambda t: f"{t[0]}({t[1]})"
        )
        pairs = st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})")
        return binary | calls | pairs

    return st.recursive(leaves, grow, max_leaves=6)


@given(texts())
def test_the_value_is_pythons(text: str) -> None:
    try:
        expected = eval(text, dict(NAMES))
        known = not isinstance(expected, complex) and math.isfinite(expected)
    except (ArithmeticError, ValueError):
        known, expected = False, math.nan
    if known:
        assert evaluate(text) == pytest.approx(expected, rel=1e-12)
    else:
        with pytest.raises(ValueError, match=r".+: .+"):
            evaluate(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sqroot(2)", "unknown function 'sqroot'; did you mean 'sqrt'?"),
        ("depht", "unknown name 'depht'; did you mean 'depth'?"),
        ("__import__('os')", "unknown function '__import__'"),
        ("open('/etc/passwd')", "unknown function 'open'"),
        ("depth.real", "'depth.real' is not arithmetic"),
        ("(1).__class__", "is not arithmetic"),
        ("sqrt(x=2)", r"'sqrt\(x=2\)' is not arithmetic"),
        ("sqrt(*(1,))", "is not arithmetic"),
        ("[x for x in (1, 2)]", "is not arithmetic"),
        ("'a' * 1000000000", "\"'a'\" is not arithmetic"),
        ("lambda: 1", "is not arithmetic"),
        ("1 < 2", "is not arithmetic"),
        ("True", "is not arithmetic"),
        ("1j", "is not arithmetic"),
        ("1 << 9999999", "is not arithmetic"),
        ("(x := 1)", "is not arithmetic"),
        ("1; 2", "'1; 2' is not an arithmetic expression"),
        ("", "'' is not an arithmetic expression"),
        ("(" * 300, "is not an arithmetic expression"),
        ("\x00", "is not an arithmetic expression"),
        ("9**9**9**9", "math range error"),
        ("exp(1000)", "math range error"),
        ("sqrt(-1)", "'sqrt\\(-1\\)': math domain error"),
        ("(-1) ** 0.5", "math domain error"),
        ("1 / 0", "division by zero"),
        ("min()", "min expected at least 1 argument"),
        ("9" * 400, "too large"),
        ("1" * 401, "an expression has at most 400 characters, but this one has 401"),
        ("-" * 100 + "1", "an expression has at most 50 levels"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        constant(text)


def test_a_constant_is_worked_out_at_once() -> None:
    assert constant("sqrt(2) / 2") == math.sqrt(2) / 2
    assert repr(constant("12 / 4")) == "3"
    assert constant("inf") == math.inf
    assert constant("0.02 / depth") == "0.02 / depth"


VALUES = {
    "depth": 8, "index": 2, "fan_in": 12, "fan_out": 18, "numel": 72, "ndim": 3, "rows": 6, "columns": 4, "groups": 2,
    "total_depth": 20, "total_index": 12,
}  # fmt: skip


@pytest.mark.parametrize("fact", FACTS)
def test_facts(fact: str) -> None:
    assert Computed(Normal, mean=fact).resolve(SITE) == Normal(mean=VALUES[fact])
    assert parse(f"1 + {fact}").facts == {fact}


def test_fans_are_counted_as_asked() -> None:
    true = SITE.fans("true")
    assert true != SITE.fans("torch")
    assert Computed(Normal, mean="fan_in", std="fan_out", fans="true").resolve(SITE) == Normal(*true)
    assert Computed(Kaiming, a="fan_in", fans="true").resolve(SITE) == Kaiming(a=true[0], fans="true").resolve(SITE)


def test_fans_are_named_where_they_matter() -> None:
    assert Computed(Normal, std="1 / fan_in").fans == "torch"
    assert Computed(Kaiming, a="1 / depth").fans == "torch"
    assert Computed(Normal, std="1 / depth").fans is None


@pytest.mark.parametrize(
    ("text", "site", "said"),
    [
        (
            "1 / depth",
            Site("w", (2, 2)),
            "there is no depth: 'w' stands in no ModuleList or Sequential of like blocks; leave it out .exclude = .w..",
        ),
        (
            "index",
            Site("w", (2, 2)),
            "there is no index: .*; this site has fan_in, fan_out, numel, ndim, rows, columns, groups$",
        ),
        ("total_depth", Site("w", (2, 2)), "there is no total_depth: 'w' stands in no ModuleList"),
        (
            "total_index",
            Site("w", (2, 2), block=(0, 2)),
            "there is no total_index: the blocks around 'w' are one of several lists in each stage",
        ),
        ("1 / fan_in", Site("b", (2,)), r"there is no fan_in: 'b' has shape \(2,\): fans need at least 2 dimensions"),
        (
            "1 / columns",
            Site("b", (2,)),
            r"there is no columns: 'b' has shape \(2,\); this site has numel, ndim, rows, groups$",
        ),
        ("rows", Site("s", ()), r"there is no rows: 's' has shape \(\)"),
        ("1 / (rows - 2)", Site("b", (2,)), "division by zero"),
        ("rows - 4", Site("b", (2,)), "std must be at least 0, but got -2"),
    ],
)
def test_a_site_without_the_fact(text: str, site: Site, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Computed(Normal, std=text).resolve(site)


def test_whole_numbers_must_come_out_whole() -> None:
    assert Computed(Dirac, groups="groups").resolve(SITE) == Dirac(2)
    parts = Computed(Blocks, init=Xavier(), parts="rows / 2").resolve(SITE)
    assert parts == Blocks(Xavier(), 3).resolve(SITE)
    with pytest.raises(ValueError, match=r"groups must be a whole number, but 'rows / 4' gives 1\.5"):
        Computed(Dirac, groups="rows / 4").resolve(SITE)


def test_within_another_initializer() -> None:
    inner = Computed(Normal, std="1 / rows")
    assert Scaled(inner, 3.0).resolve(SITE) == Normal(std=0.5)
    assert Computed(Scaled, init=inner, factor="depth").resolve(SITE) == Normal(std=8 / 6)
    half = Site("qk", (4, 3))
    assert Computed(Normal, std="rows").resolve(half) == Normal(std=4)
    assert Blocks(Computed(Normal, std="rows"), 2).resolve(half) == Normal(std=2)


def test_what_it_can_be_told() -> None:
    with pytest.raises(TypeError, match=r"Normal has no argument 'sdt'; did you mean 'std'\?"):
        Computed(Normal, sdt="1 / depth")
    with pytest.raises(ValueError, match="fans must be one of torch, true, but got 'ture'"):
        Computed(Normal, std="1 / depth", fans="ture")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown name 'deep'"):
        Computed(Normal, std="1 / deep")


def test_repr_rebuilds_and_str_reads() -> None:
    made = Computed(Scaled, init=Kaiming(), factor="0.02 / depth", fans="true")
    names = {"Computed": Computed, "Scaled": Scaled, "Kaiming": Kaiming}
    assert eval(repr(made), names) == made
    assert hash(eval(repr(made), names)) == hash(made)
    assert str(Computed(Normal, std="0.02 / depth")) == "Normal(std=0.02 / depth)"
    assert operator.ne(made, Computed(Scaled, init=Kaiming(), factor="0.02 / depth"))
