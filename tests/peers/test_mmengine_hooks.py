"""Hooks: what modules do to a checkpoint while MMEngine loads it, torchinit does as well: same values, same texts."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import interpolate
from torch import Tensor, nn

import torchinit
from tests.checkpoints.hooked import Node, cases, loaded
from torchinit import CheckpointError, Name, Pretrained, Rule
from torchinit.mmengine import load_checkpoint, load_state_dict
from torchinit.mmengine.checkpoints import load_pretrained

with warnings.catch_warnings():  # importing it uses deprecated parts of torch
    warnings.simplefilter("ignore")
    import mmengine.runner.checkpoint as theirs
    from mmpretrain.models import SwinTransformer, VisionTransformer


class Said(logging.Handler):
    """The texts that come to a logger of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.logger = logging.Logger("said")  # noqa: LOG001  # nobody else is to get it
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(cases(wrapped=True), st.booleans())
def test_any_hooks(case: tuple[Node, OrderedDict[str, Tensor]], strict: bool) -> None:
    sides = []
    for load in (theirs.load_state_dict, load_state_dict):
        said = Said()
        values, seen, result = loaded(*case, lambda module, state, load=load, said=said: load(  # type: ignore[misc]
            module, state, strict, said.logger))  # fmt: skip
        error = str(result) if isinstance(result, RuntimeError) else ""
        sides.append((values, seen, error, [text for text in said.texts if "do not match" in text]))
    (values, *rest), (our_values, *ours) = sides
    assert ours == rest
    assert all(torch.equal(our_values[name], tensor) for name, tensor in values.items())


def trained(model: nn.Module) -> dict[str, Tensor]:
    """A state in which every float tells where it was."""
    state = dict(model.state_dict())
    for number, (key, tensor) in enumerate(state.items()):
        if tensor.is_floating_point():
            state[key] = torch.arange(tensor.numel()).view(tensor.shape) / 100 + number
    return state


SWIN = {"embed_dims": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}
VIT = {"embed_dims": 16, "num_layers": 1, "num_heads": 2, "feedforward_channels": 16}
MODELS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "swin, another window": (SwinTransformer, {"arch": SWIN}, {"window_size": 5}, "relative_position_bias_table"),
    "swin, another image": (
        SwinTransformer,
        {"arch": SWIN, "use_abs_pos_embed": True},
        {"img_size": 160},
        "absolute_pos_embed",
    ),
    "vit, another image": (VisionTransformer, {"arch": VIT, "img_size": 64}, {"img_size": 96}, "pos_embed"),
}


@pytest.fixture(autouse=True)
def interp2d(monkeypatch: pytest.MonkeyPatch) -> None:
    """What mmpretrain resizes tables by, which newer versions of SciPy lack."""
    monkeypatch.setattr(
        interpolate,
        "interp2d",
        lambda x, y, z, kind: lambda dx, dy: interpolate.RectBivariateSpline(x, y, z.T)(dx, dy).T,
    )


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("prefix", [None, "backbone."])
def test_models_that_resize_what_they_are_given(case: str, prefix: str | None, tmp_path: Path) -> None:
    cls, said, other, resized = MODELS[case]
    state = {f"{prefix or ''}{key}": value for key, value in trained(cls(**said)).items()}
    torch.save({"state_dict": state}, path := tmp_path / "a.pth")
    made: list[nn.Module] = [cls(**said | other) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if prefix is None:
            theirs.load_checkpoint(made[0], str(path), "cpu", logger="silent")
        else:
            part = theirs._load_checkpoint_with_prefix(prefix, str(path), "cpu")
            theirs.load_state_dict(made[0], part, logger="silent")
        account = load_pretrained(made[1], str(path), prefix)
    first, second = (model.state_dict() for model in made)
    assert all(torch.equal(second[key], value) for key, value in first.items())
    tables = [key for key in account.loaded if resized in key]
    assert len(tables) == (4 if "window" in case else 1)
    fresh = cls(**said | other).state_dict()
    assert not any(torch.equal(second[key], fresh[key]) for key in tables)
    assert not account.mismatched
    assert all("relative_position_index" in key for key in account.missing)  # which the hook takes out


def test_a_rule_says_that_these_hooks_do_not_run(tmp_path: Path) -> None:
    torch.save(trained(SwinTransformer(arch=SWIN)), path := tmp_path / "a.pth")
    model = SwinTransformer(arch=SWIN, window_size=5)
    with pytest.raises(CheckpointError, match=r"SwinTransformer may change what .* load_checkpoint\(model, file\)"):
        torchinit.initialize(model, Rule(Name("**"), Pretrained(str(path))))
    load_checkpoint(model, str(path), logger="silent")
    assert model.state_dict()["stages.0.blocks.0.attn.w_msa.relative_position_bias_table"].min() > 1
