"""Reader of fuzzed files: reads one, and says what is wrong with how it was read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from torchinit import CheckpointError, ConfigError, RunError, initialize, load_recipe, open_checkpoint
from torchinit._text import plain
from torchinit.checkpoints.pretrained import Pretrained
from torchinit.cli.commands import inspect
from torchinit.rules.rule import Rule
from torchinit.rules.selectors import Name

RECIPES = (".json", ".toml", ".yaml")


def complaint(path: Path) -> str:
    """Nothing for a file that is read, or refused by an error of ours; those of other kinds are let through."""
    if path.suffix in RECIPES:
        return _recipe(path)
    try:
        checkpoint = open_checkpoint(path)
        for key in checkpoint:
            info = checkpoint.info(key)
            if info.nbytes < 1 << 24 and (info.shape, info.dtype) != _read(checkpoint.read(key)):
                return f"{key} is not what was said of it"
        return _shown(inspect.table(inspect.describe(checkpoint, path, hashes=False))) or _loaded(path)
    except CheckpointError as error:
        return _shown(str(error))


def _shown(text: str) -> str:
    return "" if plain(text) == text else f"shows what a terminal would obey: {text!r}"


def _read(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    tensor.clone()
    return tuple(tensor.shape), tensor.dtype


def _loaded(path: Path) -> str:
    net = nn.Module()
    for number in range(3):
        net.register_parameter(f"w{number}", nn.Parameter(torch.full((4, 3), 7.0)))
    try:
        initialize(net, Rule(Name("**"), Pretrained(str(path), expect_missing=("**",))))
    except (CheckpointError, RunError):
        if any(parameter.ne(7).any() for parameter in net.parameters()):
            return "is loaded by half"
    return ""


def _recipe(path: Path) -> str:
    try:
        str(load_recipe(path))
    except ConfigError as error:
        return _shown(str(error))
    return ""
