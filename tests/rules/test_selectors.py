"""Selectors: what each one takes, the laws of their algebra, and reprs that rebuild them."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchinit
from tests.strategies import PARTS, names, selectors, sites
from torchinit import Kinds, Layer, Leaf, Name, Regex, Roles, Rule, Shape, Within, Zeros, plan
from torchinit.model import Site
from torchinit.model.names import glob_matches
from torchinit.model.sites import layer_class
from torchinit.rules import All, AnyOf, Block, Dtype, Is, Not, Selector

WRONG: Any = torchinit.rules  # without types, to say what is wrong


@given(selectors())
def test_the_repr_rebuilds(where: Selector) -> None:
    rebuilt = eval(repr(where), vars(torchinit.rules))
    assert rebuilt == where
    assert hash(rebuilt) == hash(where)
    assert pickle.loads(pickle.dumps(where)) == where == copy.deepcopy(where)


@given(selectors(), selectors(), sites())
def test_the_operators_are_those_of_logic(one: Selector, other: Selector, site: Site) -> None:
    first, second = one.matches(site), other.matches(site)
    assert (one & other).matches(site) == (first and second)
    assert (one | other).matches(site) == (first or second)
    assert (~one).matches(site) == (not first)
    assert (~~one).matches(site) == first
    assert ~Not(one) == one
    assert (~(one & other)).matches(site) == (~one | ~other).matches(site)


@given(selectors(), selectors(), selectors())
def test_chains_are_flat(one: Selector, two: Selector, three: Selector) -> None:
    assert (one & two) & three == one & (two & three)
    assert (one | two) | three == one | (two | three)


def test_selectors_of_nothing() -> None:
    site = Site("w", (), block=(0, 1))
    assert All().matches(site)
    assert not any(where.matches(site) for where in (AnyOf(), Name(), Layer(), Leaf(), Kinds(), Block(), Roles()))


def fits(glob: list[str], name: list[str]) -> bool:
    """A glob read part by part: the oracle of the regular expression that it becomes."""
    if not glob:
        return not name
    if glob[0] == "**":
        least = 0 if len(glob) > 1 else 1
        return any(fits(glob[1:], name[cut:]) for cut in range(least, len(name) + 1))
    return bool(name) and same(glob[0], name[0]) and fits(glob[1:], name[1:])


def same(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(same(pattern[1:], text[cut:]) for cut in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and same(pattern[1:], text[1:])


@given(st.lists(PARTS | st.sampled_from(["*", "**", "conv?", "*1", "**"]), min_size=1, max_size=5), names())
def test_globs_part_by_part(glob: list[str], name: str) -> None:
    assert glob_matches(".".join(glob), name) == fits(glob, name.split("."))


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("head", ["head"], ["head.weight", "ahead"]),
        ("head.*", ["head.weight"], ["head", "head.0.weight"]),
        ("head.**", ["head.weight", "head.0.weight"], ["head", "ahead.weight"]),
        ("**.weight", ["weight", "a.weight", "a.b.weight"], ["a.weights", "weight.a"]),
        ("**", ["a", "a.b"], []),
        ("a.**.b", ["a.b", "a.x.b", "a.x.y.b"], ["a.b.c", "ab"]),
        ("conv?.weight", ["conv1.weight"], ["conv.weight", "conv12.weight"]),
        ("layers.1*.w", ["layers.1.w", "layers.12.w"], ["layers.2.w"]),
        ("a+b.[c]", ["a+b.[c]"], ["aab.c"]),
    ],
)
def test_globs(glob: str, yes: list[str], no: list[str]) -> None:
    assert [name for name in yes if not Name(glob).matches(Site(name, ()))] == []
    assert [name for name in no if Name(glob).matches(Site(name, ()))] == []


def test_several_names() -> None:
    where = Name("a.*", "b.*")
    assert [name for name in ("a.w", "b.w", "c.w") if where.matches(Site(name, ()))] == ["a.w", "b.w"]


def test_regex_matches_the_whole_name() -> None:
    where = Regex(r"layers\.\d+\.weight")
    assert where.matches(Site("layers.12.weight", ()))
    assert not where.matches(Site("layers.12.weight.x", ()))
    assert not where.matches(Site("my.layers.12.weight", ()))


class Wide(nn.Conv2d):
    pass


class Wider(Wide):
    pass


def of(layer: Any) -> Site:
    return Site("w", (), owner=layer_class(layer))


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        (Layer("Conv2d"), [nn.Conv2d, Wide]),
        (Layer("_ConvNd"), [nn.Conv1d, nn.Conv2d]),
        (Layer("Conv2d", subclasses=True), [nn.Conv2d, Wide, Wider]),
        (Layer(nn.Conv2d), [nn.Conv2d, Wide, Wider]),
        (Layer("torch.nn.Conv2d"), [nn.Conv2d, Wide, Wider]),
        (Layer("torch.nn.modules.conv.Conv2d"), [nn.Conv2d, Wide, Wider]),
        (Layer("Linear", "Conv1d"), [nn.Linear, nn.Conv1d]),
        (Layer(nn.Module), [nn.Linear, nn.Conv1d, nn.Conv2d, Wide, Wider]),
        (Layer("conv2d"), []),
    ],
)
def test_layers(where: Layer, taken: list[type[nn.Module]]) -> None:
    """By name: the class, or one whose direct base it is, as in MMEngine. By class: all below it."""
    layers: list[type[nn.Module]] = [nn.Linear, nn.Conv1d, nn.Conv2d, Wide, Wider]
    assert [layer for layer in layers if where.matches(of(layer))] == taken


def test_leaf_kind_shape_block() -> None:
    weight = Site("h.2.weight", (4, 8), parameter_kind="weight", block=(2, 3), dtype=torch.bfloat16)
    running = Site("bn.running_mean", (4,), kind="buffer")
    fixed = Site("fc.weight", (4, 8), frozen=True)
    assert [Is(kind).matches(fixed) for kind in ("parameter", "frozen")] == [True, True]
    assert [Is(kind).matches(fixed) for kind in ("trainable", "buffer")] == [False, False]
    cases: list[tuple[Selector, bool, bool]] = [
        (Leaf("weight", "bias"), True, False),
        (Leaf("running_mean"), False, True),
        (Kinds("weight", "bias"), True, False),
        (Kinds("other"), False, True),
        (Is("buffer"), False, True),
        (Is("parameter"), True, False),
        (Is("trainable"), True, False),
        (Is("frozen"), False, False),
        (Dtype("bfloat16", torch.float64), True, False),
        (Dtype("float"), False, True),
        (Shape((None, 8)), True, False),
        (Shape((4,)), False, True),
        (Shape((4, 7)), False, False),
        (Shape(ndim=2), True, False),
        (Block(2), True, False),
        (Block(-1), True, False),
        (Block(0, -2), False, False),
        (Block(-3, 2), True, False),
    ]
    for where, first, second in cases:
        assert (where.matches(weight), where.matches(running)) == (first, second), where


@pytest.mark.parametrize(
    ("globs", "taken"),
    [
        (["attn.out"], ["attn.out"]),
        (["attn.*"], ["attn.out", "attn.q"]),
        (["**"], ["attn.out", "attn.q", "conv", "expert.down[stacked]", "expert.down[listed]", "unsure"]),
        (["**.bias"], ["attn.out.bias", "conv.bias"]),
        (["attn.*.bias", "conv"], ["attn.out.bias", "conv"]),
        (["conv.*"], []),
        (["expert.down"], ["expert.down[stacked]", "expert.down[listed]"]),
        (["expert.down[listed]"], ["expert.down[listed]"]),
        (["expert.*"], ["expert.down[stacked]", "expert.down[listed]"]),
        (["*"], ["conv", "unsure"]),
        (["unsure"], ["unsure"]),
    ],
)
def test_roles(globs: list[str], taken: list[str]) -> None:
    """What stands in brackets may be left out; biases have roles of their own."""
    known = ["attn.out", "attn.q", "attn.out.bias", "conv", "conv.bias", "expert.down[stacked]", "expert.down[listed]"]
    assert [role for role in (*known, "unsure") if Roles(*globs).matches(Site("w", (), role=role))] == sorted(
        taken, key=[*known, "unsure"].index
    )
    assert not Roles(*globs).matches(Site("w", ()))


@pytest.mark.parametrize(
    ("module", "taken"),
    [
        ("a", ["a.w", "a.b.w"]),
        ("a.b", ["a.b.w"]),
        ("*", ["a.w", "a.b.w", "ab.w"]),
        ("a*", ["a.w", "a.b.w", "ab.w"]),
        ("", ["w", "a.w", "a.b.w", "ab.w"]),
        ("w", []),
    ],
)
def test_within(module: str, taken: list[str]) -> None:
    known = ["w", "a.w", "a.b.w", "ab.w"]
    assert [name for name in known if Within(module).matches(Site(name, ()))] == taken


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Name(""), ValueError, r"a name is dotted text such as 'layers\.\*\.weight', but got ''"),
        (lambda: Name("a..b"), ValueError, "a name is dotted text"),
        (lambda: Name(".a"), ValueError, "a name is dotted text"),
        (lambda: WRONG.Name(3), TypeError, "a name is text, but got 3"),
        (lambda: WRONG.Leaf(3), TypeError, "a name is text, but got 3"),
        (lambda: Leaf("a.weight"), ValueError, r"a leaf is the last part of a name, without dots, but got 'a\.weight'"),
        (lambda: Regex("("), ValueError, r"'\(' is not a regular expression: missing \)"),
        (lambda: Layer(""), TypeError, "a layer is a class or the name of one, but got ''"),
        (
            lambda: Layer("Linear", "Conv*"),
            ValueError,
            r"no class is called 'Conv\*'; name each, or a class above them",
        ),
        (lambda: Layer("torch.nn.?"), ValueError, r"a layer is named in full, and no class is called 'torch\.nn\.\?'"),
        (lambda: WRONG.Layer(nn.Linear(1, 1)), TypeError, "a layer is a class or the name of one"),
        (lambda: WRONG.Kinds("scale"), ValueError, "a kind is one of weight, bias, other, but got 'scale'"),
        (lambda: Roles("attn.ot"), ValueError, r"no rule gives the role 'attn\.ot'; did you mean 'attn\.out'\?"),
        (lambda: Roles("expert.down[stackd]"), ValueError, r"did you mean 'expert\.down\[stacked\]'\?"),
        (lambda: Roles("attn.out", "mpl.*"), ValueError, r"no rule gives the role 'mpl\.\*'; did you mean 'mlp\.\*'\?"),
        (lambda: Roles("nothing.bias"), ValueError, r"no rule gives the role 'nothing\.bias'"),
        (lambda: WRONG.Roles(3), TypeError, "a name is text, but got 3"),
        (lambda: WRONG.Is("gradient"), ValueError, "parameter, buffer, trainable, frozen, but got 'gradient'"),
        (lambda: Dtype("float23"), ValueError, "a dtype is one of torch, such as 'bfloat16', but got 'float23'"),
        (lambda: WRONG.Dtype(32), ValueError, "a dtype is one of torch, such as 'bfloat16', but got 32"),
        (lambda: Dtype("nn"), ValueError, "a dtype is one of torch, such as 'bfloat16', but got 'nn'"),
        (lambda: WRONG.Block("1"), TypeError, "a block is a whole number, but got '1'"),
        (Shape, ValueError, "Shape takes either sizes or ndim"),
        (lambda: Shape((1,), ndim=1), ValueError, "Shape takes either sizes or ndim"),
        (lambda: WRONG.Within("a..b"), ValueError, "a name is dotted text"),
        (lambda: WRONG.All(Name("a"), "b"), TypeError, "All combines selectors, but got 'b'"),
        (lambda: WRONG.AnyOf("b"), TypeError, "AnyOf combines selectors, but got 'b'"),
        (lambda: WRONG.Not("b"), TypeError, "Not combines selectors, but got 'b'"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_leaves_and_names_have_the_same_globs() -> None:
    """A leaf's glob selects what the same glob, behind any number of parts, selects by name."""
    names = [f"{path}{leaf}" for path in ("", "a.", "a.b.") for leaf in ("weight", "weight_ih_l0", "bias", "A_log")]
    for glob in ("we*", "*_l?", "w*t", "?ias", "*", "**", "weight", "W*"):
        for site in (Site(name, (1,)) for name in names):
            assert Leaf(glob).matches(site) == Name(f"**.{glob}" if glob != "**" else "**").matches(site), (glob, site)
    model = nn.LSTM(2, 3)
    for where, many in ((Leaf("weight_*"), 2), (~Leaf("weight_*"), 2), (Leaf("bias", "w*_hh_l0"), 1)):
        assert len(plan(model, Rule(where, Zeros()))) == many, where
    assert len(plan(model, {"type": "Zeros", "param": ["weight_*", "bias_?h_l0"]})) == 4


def test_a_rule_that_matches_nothing_is_told_what_is_near_to_any_of_its_names() -> None:
    for where in (Leaf("scale", "weigt"), Layer("LSTM", "Linaer"), Name("encoder.**", "0.weigth")):
        ((_, hint),) = plan(nn.Sequential(nn.Linear(2, 2)), Rule(where, Zeros())).unused
        assert "did you mean" in hint, hint


def test_selectors_of_other_arguments_differ() -> None:
    every = [Name("a"), Leaf("a"), Regex("a"), Layer("a"), Within("a"), Layer("a", subclasses=True), Not(Leaf("a"))]
    assert all(one != other for one, other in itertools.combinations(every, 2))
