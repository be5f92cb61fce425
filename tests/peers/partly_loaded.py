"""Parts of models of transformers that are loaded in part, their checkpoints, and what a process alone would write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from torchinit import fingerprint, initialize, materialize

RULES = {"rules": [{"type": "Normal", "std": 0.02, "name": "**"}, {"type": "Ones", "layer": "LayerNorm"}]}
OTHER = {"rules": [{"type": "Uniform", "a": 1, "b": 2, "name": "**"}]}


class Config(PreTrainedConfig):
    """Settings of the models here."""

    model_type = "torchinit-test"
    tie_word_embeddings = False


class Bare(PreTrainedModel):
    """A table, layers, statistics, positions that no checkpoint holds, and no parameters of its own."""

    config_class = Config
    embed: Any

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(40, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)) for _ in range(2))
        self.stats = nn.BatchNorm1d(8)
        self.register_buffer("positions", torch.arange(4.0), persistent=False)

    def get_input_embeddings(self) -> Any:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed = value


def sites(model: nn.Module) -> dict[str, str]:
    return dict(fingerprint(model).sites)


def alone(build: Callable[[Config], Any], **settings: Any) -> dict[str, str]:
    """The weights of one process that knows nothing of transformers."""
    with torch.device("meta"):
        model = build(Config(**settings))
    if settings:
        model.tie_weights()
    materialize(model, RULES, seed=0)
    return sites(model)


def save(model: Any, folder: Path) -> Path:
    """A checkpoint of a model with other weights."""
    initialize(model, OTHER, seed=5)
    model.stats.running_var.fill_(3.0)
    model.save_pretrained(folder)
    return folder


def without(folder: Path, *names: str) -> Path:
    """The checkpoint, with some tensors taken out of it."""
    file = folder / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in state.items() if name not in names}, file, metadata={"format": "pt"})
    return folder
