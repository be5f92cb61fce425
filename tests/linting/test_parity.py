"""Parity: three bugs of the field replanted in small models, others of their kind, and models without any."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchinit import ConfigError, Leaf, Normal, ReportError, Rule, RunError, assert_meta_parity
from torchinit.cli import main
from torchinit.linting import meta_parity

HERE = Path(__file__).name


class Rotary(nn.Module):
    """A table of angles, computed in the constructor and in no other place (nanochat#686)."""

    cos: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(64, 32)
        angles = torch.outer(torch.arange(16.0), 1 / 10000 ** (torch.arange(0, 8, 2) / 8))
        self.register_buffer("cos", angles.cos(), persistent=False)  # the line

    def init_weights(self) -> None:
        nn.init.normal_(self.wte.weight)


class EmbeddingScale(nn.Module):
    """An embedding that the constructor makes smaller (OLMo-core#698)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.head = nn.Linear(32, 64)
        self.embed.weight.data.mul_(32**-0.5)  # the line


class Tie(nn.Module):
    """A head that shares the embedding's weight until ``to_empty`` (Automodel#1071)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight  # the line

    def reset_parameters(self) -> None:
        self.embed.reset_parameters()
        self.head.reset_parameters()


class TiedAgain(Tie):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.head.weight = self.embed.weight


class TiedLater(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def init_weights(self) -> None:
        for layer in (self.a, self.b):
            layer.reset_parameters()
        self.b.weight = self.a.weight


class Wide(nn.Module):
    """A buffer that the initialization computes in another dtype, of another size, or not at all; one more."""

    table: torch.Tensor

    def __init__(self, init: Callable[[Any], None] = lambda self: None) -> None:
        super().__init__()
        self.init = init
        self.register_buffer("table", torch.arange(8.0).bfloat16())

    def init_weights(self) -> None:
        self.init(self)


class Holes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 8))
        self.register_buffer("index", torch.arange(6))
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))

    def init_weights(self) -> None:
        nn.init.zeros_(self.table[:2])
        self.get_buffer("index")[1:].copy_(torch.arange(1, 6))


class Unstarted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))


class Padded(nn.Module):
    """An embedding whose padding row the initialization draws."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32, padding_idx=3)

    def init_weights(self) -> None:
        nn.init.normal_(self.embed.weight)


class Seeding(nn.Module):
    """A constructor that seeds torch itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body, self.out = nn.Linear(16, 16), nn.Linear(2, 3)


class Asking(nn.Module):
    """A constructor that asks tensors for values, so that it cannot run on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        rates = [x.item() for x in torch.linspace(0, 1, 3)]
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in rates)


class Applied(nn.Module):
    """A GPT whose constructor scales one weight after `apply`, in the manner of nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.proj = nn.Linear(64, 64), nn.Linear(64, 64)
        self.apply(self._init_weights)
        nn.init.normal_(self.proj.weight, std=0.005)  # the line

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


def line_of(cls: type) -> str:
    """The line of this file on which the class's constructor says so."""
    text = Path(__file__).read_text("utf-8").split("\n")
    start = next(n for n, line in enumerate(text) if line.startswith(f"class {cls.__name__}("))
    return f"{HERE}:{next(n for n, line in enumerate(text[start:], start) if line.endswith('# the line')) + 1}"


@pytest.mark.parametrize(
    ("cls", "code", "site", "text"),
    [
        (Rotary, "forgotten", "cos", "Rotary.init_weights() does not write it"),
        (EmbeddingScale, "values", "embed.weight", "after the modules' own reset_parameters(), and 0.1"),
        (Tie, "tie", "head.weight", "is one with embed.weight in memory, and is not after Tie.reset_parameters()"),
        (Applied, "values", "proj.weight", "after apply(Applied._init_weights), and 0.00"),
    ],
)
def test_the_bugs_of_the_field_are_named_with_their_line(cls: type, code: str, site: str, text: str) -> None:
    (found,) = meta_parity(cls)
    assert (found.code, found.severity, found.site) == (code, "error", site)
    assert text in found.message
    assert found.line.endswith(line_of(cls))
    with pytest.raises(ReportError, match=rf"1 tensor from the meta device unlike in memory\n  {site}: {code} error"):
        assert_meta_parity(cls)


def model_of_many_layers() -> nn.Module:
    layers = [nn.Embedding(9, 4, padding_idx=0), nn.LSTM(3, 4), nn.MultiheadAttention(4, 2), nn.BatchNorm1d(3)]
    weight = torch.nn.utils.parametrizations.weight_norm
    return nn.Sequential(*layers, nn.Linear(3, 3), nn.Bilinear(2, 3, 4), weight(nn.Linear(4, 4)))


@pytest.mark.parametrize("factory", [TiedAgain, Seeding, lambda: nn.Linear(1, 1), nn.Identity, nn.BatchNorm2d])
def test_what_is_alike(factory: Any) -> None:
    factory = (lambda: nn.BatchNorm2d(3)) if factory is nn.BatchNorm2d else factory
    assert list(meta_parity(factory)) == []
    assert_meta_parity(factory)


def test_layers_of_torch() -> None:
    found = meta_parity(model_of_many_layers)
    # The parametrization computes the weight anew from what `reset_parameters` has not written.
    assert {one.site.partition(".")[0] for one in found} <= {"6"}


@pytest.mark.parametrize(
    ("init", "code", "text"),
    [
        (lambda self: setattr(self, "table", torch.arange(8.0)), "dtype", "is float32 after .*, and bfloat16 in mem"),
        (lambda self: setattr(self, "table", torch.arange(9.0).bfloat16()), "shape", r"has shape 9 after .*, and 8 in"),
        (lambda self: delattr(self, "table"), "missing", "is not there after"),
        (lambda self: self.table.copy_(torch.arange(8) + 1), "values", r"8 of 8 values .* that at \[0\] is 1 after"),
        (lambda self: None, "forgotten", "does not write it"),
    ],
)
def test_buffers_made_otherwise(init: Callable[[Any], None], code: str, text: str) -> None:
    (found,) = meta_parity(lambda: Wide(init))
    assert (found.code, found.site) == (code, "table")
    assert re.search(text, found.message), found.message


def test_what_is_there_only_from_the_meta_device() -> None:
    def init(model: nn.Module) -> None:
        model.get_buffer("table").copy_(torch.arange(8))
        model.register_buffer("more", torch.zeros(1))

    (found,) = meta_parity(Wide, init=init)
    assert str(found).startswith("more: missing error: is there only after init(model)")


def test_holes_are_counted_and_masks_that_nobody_writes_are_found() -> None:
    found = {one.site: one.message for one in meta_parity(Holes)}
    assert found == {
        "table": "Holes.init_weights() leaves 16 of 32 values unfilled",
        "index": "Holes.init_weights() leaves 1 of 6 values unfilled",
        "mask": "Holes.init_weights() does not write it",
    }


def test_a_tie_that_only_the_initialization_makes() -> None:
    (found,) = meta_parity(TiedLater)
    assert (found.code, found.site) == ("tie", "b.weight")
    assert "is one with a.weight after TiedLater.init_weights(), and is not in memory" in found.message


def test_a_row_that_no_seed_changes() -> None:
    (found,) = meta_parity(Padded)
    assert (found.code, found.site) == ("values", "embed.weight")
    assert "of 1 row that are not drawn in memory, 32 of 32 values differ" in found.message


def test_a_constructor_that_cannot_run_on_the_meta_device() -> None:
    (note,) = meta_parity(Asking)
    assert (note.code, note.severity) == ("meta", "note")
    assert "where its constructor raises: " in note.message


def test_draws_of_any_size_stay_within_six_standard_errors() -> None:
    sizes = [1, 2, 3, 5, 8, 13, 21, 55, 144, 987]
    for seed in range(20):
        assert list(meta_parity(lambda: nn.Sequential(*(nn.Linear(n, 3) for n in sizes)), seed=seed)) == []


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_factor_is_seen(factor: float) -> None:
    def scaled() -> nn.Module:
        model = nn.Linear(64, 64)
        model.weight.data.mul_(factor)
        return model

    assert [one.site for one in meta_parity(scaled)] == ["weight"]


def test_a_recipe_goes_to_both() -> None:
    recipe = [Rule(Leaf("weight"), Normal(std=0.02))]
    assert list(meta_parity(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), init=recipe)) == []
    (found,) = meta_parity(EmbeddingScale, init=[Rule(Leaf("bias"), Normal())])
    assert (found.code, found.site) == ("values", "embed.weight")
    assert "after materialize(), and" in found.message
    assert list(meta_parity(Rotary, init=recipe)) == []  # which has the constructor make the buffer
    with pytest.raises(RunError, match="2 tensors left unwritten"):
        meta_parity(Unstarted, init=[Rule(Leaf("weight"), Normal(), optional=True)])


def test_methods_by_name() -> None:
    assert [one.site for one in meta_parity(EmbeddingScale, init="reset_parameters")] == ["embed.weight"]
    text = "init: 'init_weigths' is neither a method of Rotary or one of its modules nor a recipe"
    with pytest.raises(ConfigError, match=rf"{text}; did you mean 'init_weights'\?"):
        meta_parity(Rotary, init="init_weigths")


def test_a_factory_of_something_else() -> None:
    with pytest.raises(TypeError, match=r"3 is not a model; give a torch\.nn\.Module"):
        meta_parity(lambda: 3)  # type: ignore[arg-type, return-value]


def test_an_initialization_that_raises() -> None:
    def init(model: nn.Module) -> None:
        raise KeyError("rope")

    with pytest.raises(RunError, match=r"init\(model\) raised KeyError after to_empty\(\): 'rope'"):
        meta_parity(Rotary, init=init)


def test_the_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    meta_parity(Seeding)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(__file__).read_text("utf-8").split("\n\n\n")
    classes = [part for part in source if part.startswith(("class Rotary(", "class TiedAgain(", "class Tie("))]
    head = "import torch\nfrom torch import nn\n\n\n"
    (tmp_path / "net.py").write_text(head + "\n\n\n".join(classes), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["parity", "net.py:Rotary", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["code"], found["site"], found["line"].partition(":")[0]) == ("forgotten", "cos", "net.py")
    assert main(["parity", "net.py:Rotary"]) == 1
    assert "cos   Rotary.init_weights() does not write it" in capsys.readouterr().out
    assert main(["parity", "net.py:TiedAgain"]) == 0
    assert capsys.readouterr().out == "no findings\n"
    assert main(["parity", "net.py:Rotary", "--init", "nothing"]) == 2
    assert "torchinit parity: init: 'nothing' is neither a method of Rotary" in capsys.readouterr().err
    assert main(["parity", "net.py:Tie", "--init", "reset_parameters"]) == 1
