"""TI6: ties that are broken, missing or drawn twice; weights that a parametrization computes anew."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import torchinit
from tests.linting.models import Net, apply, found, only, traced
from torchinit import Layer, Leaf, Normal, Rule, lint


def test_weight_norm_untouched_by_init() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = torch.nn.utils.weight_norm(nn.Linear(8, 8))
    nn.init.zeros_(layer.weight.data)
    assert only(lint(layer), "TI603").site == "weight"


def test_tie_broken_by_to_empty() -> None:
    def make() -> Net:
        model = Net()
        model.head.weight = model.embed.weight
        return model

    with torch.device("meta"):
        model = make()
    plan = torchinit.plan(model, Rule(Leaf("weight") & Layer("Embedding"), Normal(std=0.02)))
    model.to_empty(device="cpu")
    model.load_state_dict(make().state_dict())
    found = [one for one in lint(model, recipe=plan, ignore=["TI106", "TI704"]) if one.code == "TI601"]
    assert [one.message for one in found] == ["should be one tensor with head.weight, and is not"]


def test_tie_broken_by_deepcopy() -> None:
    model = Net()
    model.embed = nn.Embedding(50, 32)
    model.head.weight = model.embed.weight
    model.head = copy.deepcopy(model.head)
    found = only(lint(model), "TI602")
    assert found.message == "holds the same values as head.weight, in memory of its own"


class Declared(nn.Module):
    """What a transformers model tells of its ties, in the way of version 5 or of those before."""

    def __init__(self, keys: object, tie: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20)
        self.config = SimpleNamespace(tie_word_embeddings=tie)
        self._tied_weights_keys = keys

    def get_input_embeddings(self) -> nn.Module:
        return self.embed


@pytest.mark.parametrize(
    ("keys", "site", "other"),
    [
        ({"head.weight": "embed.weight"}, "head.weight", "embed.weight"),
        (["head.weight", "head.bias"], "head.weight", "embed.weight"),
    ],
)
def test_ties_that_are_declared(keys: object, site: str, other: str) -> None:
    model = Declared(keys)
    text = f"should be one tensor with {other}, and is not"
    assert found(model, "TI601") == [("error", site, text)]
    assert found(nn.Sequential(model), "TI601") == [
        ("error", f"0.{site}", text.replace(other, f"0.{other}"))
    ]  # fmt: skip
    model.head.weight = model.embed.weight
    assert found(model, "TI601") == []
    assert found(Declared(keys, tie=False), "TI601") == []
    assert found(Declared({"gone.weight": "embed.weight"}), "TI601") == []


def test_weight_norm_that_was_not_touched() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = torch.nn.utils.weight_norm(nn.Linear(8, 8))
    assert found(layer, "TI603") == []


def test_tied_weight_drawn_through_both_layers() -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(20, 16), "head": nn.Linear(16, 20, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    def table(module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)

    def alike(module: nn.Module) -> None:
        if isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight)

    found = [one for one in traced(tied(), apply(table)) if one.code == "TI604"]
    assert [one.severity for one in found] == ["warning"]
    assert "and was drawn 2 times: normal_(mean=0, std=1), normal_(mean=0, std=0.02)" in found[0].message
    assert [one.severity for one in traced(tied(), apply(alike)) if one.code == "TI604"] == ["note"]
