"""Inputs: what is made, what is taken as given, and what is said where neither will do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.probing.nets import Wired, mlp
from torchinit import ProbeError, probe
from torchinit.probing.inputs import given, made


class Named(nn.Module):
    """A model with names in its signature."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        y: Tensor = self.layer(left + right) * scale
        return y


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Linear(7, 3)), "64 samples of random vectors of 7"),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)), "3x256"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 31 * 31, 2)), "3x64x64"),
        (nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 2)), "24 random ids below 30"),
        (nn.LSTM(5, 8, batch_first=True), "50 random steps of 5, batch first"),
        (nn.GRU(5, 8), "50 random steps of 5, steps first"),
        (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), "24 random vectors of 16"),
        (Named(), "random vectors of 4"),
    ],
)
def test_inputs_are_made_from_the_first_layer(model: nn.Module, said: str) -> None:
    if any(isinstance(each, nn.modules.lazy.LazyModuleMixin) for each in model.modules()):
        model(torch.randn(2, 3, 256))
    result = probe(model)
    assert said in result.measurement.inputs
    assert said in str(result)


def test_a_model_for_which_none_can_be_made_says_what_it_takes() -> None:
    model = Wired(lambda self, x: self.layer(x["deep"]), layer=nn.Linear(4, 2))
    with pytest.raises(
        ProbeError, match=r"Wired takes x, and what was made for it does not fit; give batch="
    ) as caught:
        probe(model)
    assert "random vectors of 4" in caught.value.problems[0]
    assert probe(model, ({"deep": torch.randn(8, 4)},)).measurement.samples == 8


@pytest.mark.parametrize(
    ("make", "samples"),
    [
        (lambda: nn.Linear(64, 8), 64),
        (lambda: nn.Linear(64, 1 << 24), 32),  # each sample makes 2^24 of the 2^29 elements
        (lambda: nn.Sequential(*[nn.Linear(1 << 14, 1 << 14)] * 100), 2),  # and takes 5.4e10 of 1.5e11 operations
    ],
)
def test_the_size_of_a_batch_is_that_of_the_model_alone(
    make: Callable[[], nn.Module], samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that runs a hundred times too fast changes nothing, but the limit, and that is said."""
    with torch.device("meta"):
        model = make()
    clock = itertools.count(0.0, 0.1)
    monkeypatch.setattr("torchinit.probing.inputs.time.monotonic", lambda: next(clock))
    few = made(model, 0, 60.0)
    assert few.samples == samples and "would take" not in few.text
    cut = made(model, 0, 0.5)
    if samples == 32:
        assert cut.text == "made: 2 samples of random vectors of 64; 32 would take more than 0.5 seconds"
    else:  # the one is so small that nothing is won, the other has the fewest already
        assert cut.text == few.text


def test_a_batch_is_taken_as_it_comes() -> None:
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    layer = nn.Linear(4, 3)
    for batch in (x, (x,), {"input": x}, (x, y), [x, y], {"input": x, "labels": y}, lambda: (x, y)):
        assert probe(layer, batch).measurement.objective.classes == 3
    assert given(layer, (x, y)).target is y
    both: Any = given(Named(), (x, x))
    assert len(both.args) == 2
    assert both.target is None
    assert given(Named(), (x, x, y)).target is y
    assert given(Named(), {"left": x, "right": x, "y": y}).target is y


def test_the_halves_of_a_batch_are_other_inputs() -> None:
    batch = given(nn.Linear(4, 3), (torch.arange(24.0).reshape(6, 4), torch.arange(6)))
    half = batch.part(1, 2)
    assert half.args[0][:, 0].tolist() == [4, 12, 20]
    assert half.target is not None
    assert half.target.tolist() == [1, 3, 5]


class Detached(nn.Linear):
    """A layer whose output has no way back."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).detach()


class Growing(nn.Module):
    """A model that makes a layer while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.second = nn.Linear(4, 2)
        y: Tensor = self.second(self.first(x))
        return y


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
LAYER = nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("model", "batch", "options", "message"),
    [
        (nn.ReLU(), X, {}, "ReLU has no parameters, so it has no start to judge"),
        (nn.ModuleList([nn.Linear(2, 2)]), X, {}, "ModuleList has no forward"),
        (LAYER, torch.randn(8, 5), {}, "(?s)the forward of Linear raised.*RuntimeError: mat1 and mat2"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(5, 3))),
            X,
            {},
            r"(?s)the forward of Sequential raised.*mat1 and mat2.*\(in 1.0, a Linear\)",
        ),
        (LAYER, X.double(), {}, "the batch is float64 and the model float32: convert one of them"),
        (LAYER, X.to("meta"), {}, r"the batch is on meta and the model on cpu; move one of them: batch.to\('cpu'\)"),
        (Named(), X, {}, "(?s)missing 1 required positional argument: 'right'.*a dict keywords"),
        (
            Named(),
            {"left": X, "rigt": X},
            {},
            "has 'rigt', which the forward of Named does not take; did you mean 'right'",
        ),
        (Wired(lambda self, x: None, a=LAYER), X, {}, "Wired returned None, which holds no tensor of numbers"),
        (Wired(lambda self, x: "text", a=LAYER), X, {}, "Wired returned a str"),
        (Detached(4, 3), X, {}, "does not depend on any trained parameter of Detached; is its output detached"),
        (nn.Linear(4, 3).requires_grad_(requires_grad=False), X, {}, "no parameter of Linear requires a gradient"),
        (LAYER, X, {"loss": lambda output, batch: output}, r"the loss is not a scalar, but has shape \(8, 3\)"),
        (LAYER, X, {"loss": lambda output, batch: 1.0}, "the loss is a float, not a tensor of one number"),
        (LAYER, X, {"loss": lambda output, batch: (output * 1j).sum()}, "the loss is complex, not a tensor of one"),
        (
            LAYER,
            X,
            {"loss": lambda output: output.sum()},
            "(?s)loss= is a function of the output and the.*Typ",
        ),
        (LAYER, X[:0], {}, r"Linear returned a tensor of float32 of shape \(0, 3\), which holds no tensor of numbers"),
        (nn.LazyLinear(3), X, {}, "weight, bias of LazyLinear: no shape yet; run it once on an example before"),
        (LAYER, DataLoader(TensorDataset(X)), {}, r"(?s)give one of them: batch=next\(iter\(loader\)\)"),
        (LAYER, X, {"prior": [0.5, 0.2]}, "prior= takes the share of each class"),
        (LAYER, X, {"optimizer": 3}, "optimizer= is a class of torch.optim, or a function"),
        (LAYER, lambda: 1 / 0, {}, "the function that makes the batch raised ZeroDivisionError"),
        (Growing(), X, {}, "Growing changes its parameters while it runs; run it once on an example before"),
    ],
)
def test_what_cannot_be_probed_says_so(model: nn.Module, batch: object, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        probe(model, batch, **options)


def test_a_model_that_holds_nan_is_told() -> None:
    model = mlp(0, depth=3)
    nn.init.constant_(model.get_parameter("2.weight"), torch.nan)
    found = {each.code: each.site for each in probe(model).findings.errors}
    assert found["TI815"] == "2"


def test_structure_that_grew_is_taken_back() -> None:
    model = Growing()
    with pytest.raises(ProbeError):
        probe(model, X)
    assert [name for name, _ in model.named_children()] == ["first"]


class Branch(nn.Module):
    """A block that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(self.up(x))
        return y


def test_a_model_that_leaves_out_what_it_ran_before_is_not_stuck() -> None:
    calls = itertools.count()

    def forward(model: Any, x: Tensor) -> Any:
        for block in model.blocks if next(calls) == 0 else ():
            x = block(x)
        return model.head(x)

    model = Wired(forward, blocks=nn.ModuleList(Branch() for _ in range(6)), head=nn.Linear(4, 3))
    assert probe(model, X).healthy
    assert next(calls) > 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_not_a_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"probe takes a torch\.nn\.Module, but got a function"):
        probe(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed is a whole number, but got True"):
        probe(LAYER, seed=True)
    for options in ({"steps": -1}, {"steps": "2"}, {"limit": float("nan")}, {"limit": -1.0}):
        with pytest.raises(ValueError, match="steps= is a whole number and limit= seconds, from 0 on"):
            probe(LAYER, X, **options)
    for dtype in ("float16", torch.int64):
        with pytest.raises(TypeError, match=r"dtype is that of the training, such as torch.bfloat16, but got"):
            probe(LAYER, X, dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match="a scripted module takes no hooks"):
        probe(torch.jit.trace(LAYER, X))
    shared = mlp(0, depth=1)
    shared.register_buffer("odd", torch.zeros(2, requires_grad=True) * 1)
    with pytest.raises(ProbeError, match="Sequential cannot be copied: RuntimeError"):
        probe(shared, recipe="general")
