"""Hints: a name of torch.nn.init, Keras, JAX or MMEngine, however misspelt, leads to a line that gives the same."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchinit
from torchinit.errors import ConfigError, TorchinitError
from torchinit.initializers.functions import Synonym, hint, spelling, synonyms
from torchinit.mmengine import WEIGHT_INITIALIZERS
from torchinit.recipes import INITIALIZERS

OUT, IN = 300, 200
CUT = 0.8796256610342398
"""The deviation of a standard normal that is cut at two."""

# Of torch.nn.init: the arguments that a call cannot do without.
ARGUMENTS: dict[str, dict[str, Any]] = {"constant_": {"val": 0.0}, "sparse_": {"sparsity": 0.1}}

# What the documentation of each function says: mean, standard deviation, the largest absolute value (0: no bound).
FAN_IN, FAN_OUT, FAN_AVG = 1 / math.sqrt(IN), 1 / math.sqrt(OUT), math.sqrt(2 / (IN + OUT))
TWO = math.sqrt(2)


def cut(std: float) -> tuple[float, float, float]:
    return 0.0, std, 2 * std / CUT


def flat(std: float) -> tuple[float, float, float]:
    return 0.0, std, math.sqrt(3) * std


ONES, ZEROS = (1.0, 0.0, 1.0), (0.0, 0.0, 0.0)
DOCUMENTED: dict[tuple[str, str], tuple[float, float, float]] = {
    ("Constant", "Keras"): ZEROS,
    ("Ones", "Keras"): ONES,
    ("Zeros", "Keras"): ZEROS,
    ("RandomNormal", "Keras"): (0.0, 0.05, 0.0),
    ("RandomUniform", "Keras"): flat(0.05 / math.sqrt(3)),
    ("TruncatedNormal", "Keras"): cut(0.05 * CUT),
    ("glorot_normal", "Keras and JAX"): cut(FAN_AVG),
    ("glorot_uniform", "Keras and JAX"): flat(FAN_AVG),
    ("he_normal", "Keras and JAX"): cut(TWO * FAN_IN),
    ("he_uniform", "Keras and JAX"): flat(TWO * FAN_IN),
    ("lecun_normal", "Keras and JAX"): cut(FAN_IN),
    ("lecun_uniform", "Keras and JAX"): flat(FAN_IN),
    ("variance_scaling", "Keras and JAX"): cut(FAN_IN),
    ("constant", "JAX"): ZEROS,
    ("kaiming_normal", "JAX"): cut(TWO * FAN_IN),
    ("kaiming_uniform", "JAX"): flat(TWO * FAN_IN),
    ("normal", "JAX"): (0.0, 0.01, 0.0),
    ("ones", "JAX"): ONES,
    ("truncated_normal", "JAX"): cut(0.01 * CUT),
    ("uniform", "JAX"): (0.005, 0.01 / math.sqrt(12), 0.01),
    ("xavier_normal", "JAX"): cut(FAN_AVG),
    ("xavier_uniform", "JAX"): flat(FAN_AVG),
    ("zeros", "JAX"): ZEROS,
    ("Caffe2XavierInit", "MMEngine"): flat(FAN_IN),
    ("ConstantInit", "MMEngine"): ZEROS,
    ("KaimingInit", "MMEngine"): (0.0, TWO * FAN_OUT, 0.0),
    ("NormalInit", "MMEngine"): (0.0, 1.0, 0.0),
    ("TruncNormalInit", "MMEngine"): cut(CUT),
    ("UniformInit", "MMEngine"): (0.5, 1 / math.sqrt(12), 1.0),
    ("XavierInit", "MMEngine"): (0.0, FAN_AVG, 0.0),
    ("bias_init_with_prob", "MMEngine"): (-math.log(0.99 / 0.01), 0.0, math.log(0.99 / 0.01)),
    ("lecun_normal_", "timm"): cut(FAN_IN),
    ("trunc_normal_tf_", "timm"): cut(CUT),
    ("variance_scaling_", "timm"): (0.0, FAN_IN, 0.0),
    ("c2_msra_fill", "Detectron"): (0.0, TWO * FAN_OUT, 0.0),
    ("c2_xavier_fill", "Detectron"): flat(FAN_IN),
    ("gaussian", "the literature"): (0.0, 1.0, 0.0),
    ("glorot", "the literature"): flat(FAN_AVG),
    ("he", "the literature"): (0.0, TWO * FAN_IN, 0.0),
    ("msra", "the literature"): (0.0, TWO * FAN_IN, 0.0),
}

# Each named by one that is compared with torch's function, or loads a file, which tests/checkpoints do.
ELSEWHERE = {"Identity", "Orthogonal", "orthogonal", "delta_orthogonal", "PretrainedInit", "calculate_gain"}

ROWS = [row for rows in synonyms().values() for row in rows]


def lines(text: str) -> Iterator[str]:
    """The lines that a hint says to write."""
    yield from re.findall(r": write (type=.*?)(?=; |$)", text)


def weights(entry: dict[str, Any], seed: int | None = 0) -> torch.Tensor:
    """A weight that an entry has written."""
    weight = nn.Parameter(torch.empty(OUT, IN))
    torchinit.initialize(nn.ParameterDict({"weight": weight}), {**entry, "name": "weight"}, seed=seed)
    return weight.detach()


def entry_of(line: str) -> dict[str, Any]:
    return tomllib.loads(f"entry = {{{line}}}")["entry"]  # type: ignore[no-any-return]


def names_of_torch() -> list[str]:
    return [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]


@pytest.mark.parametrize("name", names_of_torch())
def test_a_name_of_torch_gives_the_bits_of_the_function(name: str) -> None:
    shape = (4, 4, 3) if name == "dirac_" else (OUT, IN)
    text = hint(name, INITIALIZERS)
    line = next(lines(text), "") or f"type={text.split('did you mean ')[1].strip('?')}"
    function: Callable[..., torch.Tensor] = getattr(nn.init, name)
    expected, layer = torch.empty(shape), nn.ParameterList([torch.empty(shape)])
    state = torch.get_rng_state()
    function(expected, **ARGUMENTS.get(name, {}))
    torch.set_rng_state(state)
    torchinit.initialize(layer, {**entry_of(line), "name": "0"})
    assert torch.equal(layer[0], expected)


@pytest.mark.parametrize(("row", "stated"), DOCUMENTED.items(), ids=lambda value: " ".join(map(str, value)))
def test_a_name_of_another_library_gives_what_that_documents(
    row: tuple[str, str], stated: tuple[float, float, float]
) -> None:
    (synonym,) = [each for each in ROWS if (each.name, each.library) == row]
    mean, std, bound = stated
    tensor = weights(entry_of(synonym.data))
    # Six standard errors of the mean and the deviation, of a kurtosis of 3 at most.
    slack = 6 * std / math.sqrt(tensor.numel()) + 1e-5
    assert abs(tensor.mean().item() - mean) <= slack
    assert abs(tensor.std().item() - std) <= slack
    assert not bound or 0.9 * bound <= tensor.abs().max().item() <= bound * (1 + 1e-6)
    assert not std or bound or tensor.abs().max().item() > 3.5 * std


def test_every_row_is_compared_with_something() -> None:
    compared = {name for name, _ in DOCUMENTED} | set(names_of_torch()) | ELSEWHERE
    assert {row.name for row in ROWS} == compared


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Identity", nn.init.eye_), ("Orthogonal", nn.init.orthogonal_), ("orthogonal", nn.init.orthogonal_)],
)
def test_matrices_are_those_of_torch(name: str, kind: Callable[..., torch.Tensor]) -> None:
    (row,) = [each for each in ROWS if each.name == name]
    expected, state = torch.empty(OUT, IN), torch.get_rng_state()
    kind(expected)
    torch.set_rng_state(state)
    assert torch.equal(weights(entry_of(row.data), None), expected)


def test_delta_orthogonal_is_orthogonal_at_its_centre() -> None:
    conv = nn.Conv1d(4, 6, 3)
    torchinit.initialize(
        conv,
        {
            **entry_of(
                next(lines(hint("jax.nn.initializers.delta_orthogonal", ["DeltaOrthogonal"])), 'type="DeltaOrthogonal"')
            ),
            "name": "weight",
        },
    )
    centre = conv.weight[:, :, 1]
    torch.testing.assert_close(centre.T @ centre, torch.eye(4))


def misspelt(name: str) -> Iterator[str]:
    """A name in the usual wrong ways: case, underscores, the library in front, an ending, a letter less."""
    yield from (name.lower(), name.upper(), name.replace("_", ""), f"{name.rstrip('_')}_", name.replace("_", "-"))
    yield from (f"tf.keras.initializers.{name}", f"{name}_init", f"{name}Initializer")
    for at in range(1, len(name) - 1) if len(name) > 4 else ():
        yield name[:at] + name[at + 1 :]


@pytest.mark.parametrize("row", [row for row in ROWS if row.type in INITIALIZERS], ids=lambda row: row.name)
def test_a_misspelt_name_gets_its_line(row: Synonym) -> None:
    for name in misspelt(row.name):
        text = hint(name, INITIALIZERS)
        found = [entry_of(line) for line in lines(text)]
        own = {"type": row.type} if f"did you mean {row.type!r}?" in text else None
        exact = any(name == other.name and name.endswith("_") and other is not row for other in ROWS)
        is_ours = own and name[:1].isupper() and spelling(name) != spelling(row.name)
        assert exact or is_ours or {"type": row.type, **row.arguments} in [*found, own], (name, text)


UNKNOWN = [
    ({"type": "he_normal", "layer": "Linear"}, 'he_normal of Keras and JAX: write type="VarianceScaling", scale=2.0'),
    ({"type": "eye_", "layer": "Linear"}, 'eye_ of torch.nn.init: write type="Identity"'),
    ({"type": "XavierUniform", "layer": "Linear"}, 'JAX: write type="Xavier", distribution="uniform"'),
    ({"type": "truncated_normal", "layer": "Linear"}, 'of Keras: write type="TruncNormal", std=0.05, a=-0.1, b=0.1; '),
]


@pytest.mark.parametrize(("entry", "text"), UNKNOWN)
@pytest.mark.parametrize("initialize", [torchinit.initialize, torchinit.mmengine.initialize])
def test_recipes_and_init_cfgs_say_it(initialize: Any, entry: dict[str, Any], text: str) -> None:
    with pytest.raises(TorchinitError) as raised:
        initialize(nn.Linear(4, 4), entry)
    assert text in str(raised.value)


@pytest.mark.parametrize("row", [row for row in ROWS if row.type in INITIALIZERS], ids=lambda row: row.name)
def test_the_line_runs_as_an_init_cfg(row: Synonym) -> None:
    if row.type not in ("Pretrained", "DeltaOrthogonal"):
        layer = nn.Conv2d(4, 4, 3) if row.type == "Dirac" else nn.Linear(4, 4)
        config = eval(f"dict({row.data}, layer='{type(layer).__name__}')")
        assert torchinit.mmengine.initialize(layer, config)["weight"].fill


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_attributes_of_the_package_say_it(row: Synonym) -> None:
    with pytest.raises(AttributeError) as raised:
        getattr(torchinit.initializers, f"its.{row.name}")  # what no module has, even if the name alone is known
    offered = f"did you mean {row.type!r}?" if not row.arguments else f": write {row.call}"
    assert offered in str(raised.value) or f": write {row.call}" in str(raised.value)
    assert type(eval(row.call)).__name__ == (row.type if row.type in INITIALIZERS else "float")


def test_a_missing_attribute() -> None:
    with pytest.raises(
        AttributeError, match=r"^module 'torchinit' has no attribute 'xavier_uniform_'; xavier_uniform_ of"
    ):
        torchinit.xavier_uniform_  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'Kaimng'; did you mean 'Kaiming'\?$"):
        torchinit.Kaimng  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"^module 'torchinit.initializers' has no attribute '_hidden'$"):
        torchinit.initializers._hidden  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(torchinit, "nothing_like_it")


@pytest.mark.parametrize("kind", [nn.init.xavier_uniform_, "torch.nn.init.xavier_uniform_"])
def test_a_function_of_torch_in_an_init_cfg(kind: object) -> None:
    text = 'has no argument \'layer\'; xavier_uniform_ of torch.nn.init: write type="Xavier", distribution="uniform"'
    with pytest.raises(TypeError, match=text):
        torchinit.mmengine.initialize(nn.Linear(2, 2), {"type": kind, "layer": "Linear"})


@pytest.mark.parametrize(
    "name",
    [*INITIALIZERS, "he_normal", "nn.init.xavier_uniform_", "kaiming_normal", "Kaimng", "xavier_unform_", "eye_"],
)
def test_an_initializer_in_the_place_of_a_recipe(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"of an initializer, not of a recipe; write|for an initializer, write"
    ) as raised:
        torchinit.initialize(nn.Linear(4, 4), name)
    for entry in re.findall(r"or (\{.*?\}) as data", str(raised.value)):
        (rule,) = torchinit.recipes.to_rules(eval(entry))
        assert repr(type(rule.init).__name__) in entry


def test_a_name_that_is_like_none_has_no_hint() -> None:
    assert hint("", INITIALIZERS) == hint("Mine", INITIALIZERS) == hint("x" * 100_000, INITIALIZERS) == ""
    assert "eye_" not in hint("Siren", INITIALIZERS)


def test_types_are_names_of_initializers_of_both_dialects() -> None:
    assert {row.type for row in ROWS} - set(INITIALIZERS) == {"gain"}
    assert "Kaiming" in WEIGHT_INITIALIZERS
    assert len({(spelling(row.name), row.library) for row in ROWS}) == len(ROWS)


def test_every_row_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/recipes.md").read_text("utf-8").splitlines()
    for row in ROWS:
        call = row.call if row.type == "gain" else row.call[row.call.index(f"{row.type}(") :]
        assert any(line.startswith(f"| `{call}` |") and f"`{row.name}` ({row.library})" in line for line in page), row
