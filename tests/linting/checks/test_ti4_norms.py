"""Lint on norms: the right start is right, whatever a norm computes, and a wrong one is found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchinit
from tests.knowledge.norms import Annotated, Gemma, OnePlus
from tests.knowledge.not_norms import LayerScale
from torchinit import lint

WIDTH = 24


class Residual(nn.Module):
    """A branch with two norms, of which the last is the end."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.last = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.up(self.norm(x)))  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)


def found(model: nn.Module, code: str = "TI406") -> list[tuple[str, str, str]]:
    return [(one.severity, one.site, one.message) for one in lint(model, select=[code])]


def started(norm: nn.Module, value: float = 0.0) -> nn.Module:
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.fill_(value)
    return norm


@pytest.mark.parametrize("scheme", ["llama", "general"])
def test_the_right_start_is_as_planned(scheme: str) -> None:
    model = nn.ModuleDict({"norm": started(Gemma()), "final_layernorm": nn.LayerNorm(WIDTH)})
    assert lint(model, recipe=scheme, select=["TI4", "TI704"]).codes == ()
    started(model["norm"], 1)
    (wrong, off) = lint(model, recipe=scheme, select=["TI704", "TI406"])
    assert (wrong.code, wrong.severity, wrong.site) == ("TI704", "error", "norm.weight")
    assert (off.code, off.severity, off.site) == ("TI406", "warning", "norm.weight")


class Named(nn.Module):
    """A layer norm whose parameters are called w and b, or a norm with one number."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape))
        self.b = nn.Parameter(torch.zeros(shape)) if shape else None

    def forward(self, x: Tensor) -> Tensor:
        if self.b is None:
            return x * x.square().mean(-1, keepdim=True).rsqrt() * self.w
        return nn.functional.layer_norm(x, x.shape[-1:], self.w, self.b)


@pytest.mark.parametrize("shape", [(16,), ()])
def test_all_at_zero_is_an_error_whatever_the_shift_is_called(shape: tuple[int, ...]) -> None:
    norm = Named(*shape)
    ((severity, site, text),) = found(nn.Sequential(nn.Linear(16, 16), norm))
    assert (site, severity) == ("1.w", "error")
    assert "lets nothing pass" in text
    nn.init.constant_(norm.w, 1.0 if shape else 4.0)  # a single number is often the root of the width
    assert found(nn.Sequential(nn.Linear(16, 16), norm)) == []


def test_a_start_off_neutral() -> None:
    text = "is {}, but this norm {}: it is neutral at {}"
    ones = nn.Sequential(started(Gemma(), 1), nn.LayerNorm(WIDTH))
    assert found(ones) == [("warning", "0.weight", text.format(1, "computes 1 + weight", 0))]
    norm = nn.LayerNorm(WIDTH)
    nn.init.constant_(norm.weight, 2)
    nn.init.constant_(norm.bias, 0.02)
    assert found(norm) == [
        ("warning", "weight", text.format(2, "multiplies by weight", 1)),
        ("note", "bias", text.format(0.02, "adds bias", 0)),
    ]
    nn.init.constant_(norm.weight, 0.9)
    assert [severity for severity, *_ in found(norm)] == ["note", "note"]
    assert lint(norm, select=["TI406"], loaded=norm.state_dict()).codes == ()


def test_what_is_no_norm_has_no_neutral_value() -> None:
    assert found(nn.Sequential(started(LayerScale(), 1e-5), nn.PReLU(8))) == []


def test_zeros_at_the_end_of_residual_branches_are_meant() -> None:
    model = Net()
    for block in model.blocks:
        started(block.last)  # type: ignore[arg-type]
    names = "blocks.0.last.weight, blocks.1.last.weight, blocks.2.last.weight"
    assert found(model) == [("note", "", f"3 of 7 norms let nothing pass: {names}")]


def test_a_last_norm_of_zeros_is_not_meant() -> None:
    model = Net()
    started(model.norm)
    ((severity, site, message),) = found(model)
    assert (severity, site) == ("warning", "norm.weight")
    assert message.endswith("it is neutral at 1; it lets nothing pass")


@pytest.mark.parametrize(("make", "value"), [(Residual, 0), (lambda: nn.Sequential(Gemma(), OnePlus(WIDTH)), -1)])
def test_norms_that_all_let_nothing_pass_are_errors(make: type[nn.Module], value: float) -> None:
    model = make()
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.dim() == 1:
            nn.init.constant_(parameter, value)
        elif parameter.dim() == 1:
            nn.init.zeros_(parameter)
    assert [severity for severity, *_ in found(model)] == ["error", "error"]


def test_drawn_scales_are_judged_by_what_the_norm_computes() -> None:
    torch.manual_seed(0)
    centered, plain, other = Gemma(64), nn.RMSNorm(64), Annotated()
    for parameter in (centered.weight, plain.weight, other.a_2, other.b_2):
        nn.init.normal_(parameter, std=0.02)
    assert [severity for severity, *_ in found(centered, "TI402")] == ["warning"]
    assert [severity for severity, *_ in found(plain, "TI402")] == ["error"]
    assert {(severity, site) for severity, site, _ in found(other, "TI402")} == {("error", "a_2"), ("warning", "b_2")}


def test_a_scheme_leaves_nothing_to_find() -> None:
    model = nn.ModuleDict({"a": Gemma(), "b": OnePlus(WIDTH), "c": Annotated(), "d": nn.GroupNorm(2, 8), "e": Net()})
    torchinit.initialize(model, "general", seed=0)
    assert lint(model, select=["TI402", "TI406", "TI704"], recipe="general").codes == ()
