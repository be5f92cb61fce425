"""Depth: which blocks are taken, bit for bit; new ones that pass on what comes; what is refused, and what is told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import torchinit
from torchinit import (
    CheckpointError,
    Name,
    Normal,
    Plan,
    PlanError,
    Pretrained,
    Roles,
    Rule,
    Zeros,
    initialize,
    plan,
    preserves,
)
from torchinit.checkpoints.depth import _chosen, stacks_of
from torchinit.model.sites import sites
from torchinit.plans import make_plan
from torchinit.recipes import decode_recipe

WIDTH = 16


def encoder(depth: int, *, first: bool = True) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, norm_first=first, batch_first=True)
    encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).eval()
    for parameter in encoder.parameters():  # torch's are copies of one layer
        nn.init.normal_(parameter, std=0.2)
    return encoder


def taken(new: nn.Module, layers: Any, old: nn.Module, **options: Any) -> Any:
    return initialize(new, Rule(Name("**"), Pretrained(old, layers=layers, **options)))


def layers_of(model: nn.Module) -> list[dict[str, Tensor]]:
    return [layer.state_dict() for layer in model.get_submodule("layers").children()]


def assert_blocks(new: nn.Module, old: nn.Module, numbers: list[int]) -> None:
    theirs, ours = layers_of(old), layers_of(new)
    assert len(ours) == len(numbers)
    for number, block in zip(numbers, ours, strict=True):
        assert block.keys() == theirs[number].keys()
        assert all(torch.equal(block[key], theirs[number][key]) for key in block)


@pytest.mark.parametrize(
    ("layers", "depth", "numbers"),
    [
        ([0, 2, 4], 3, [0, 2, 4]),
        ((5, 0), 2, [5, 0]),
        ([0, 0, 1], 3, [0, 0, 1]),
        ("first", 4, [0, 1, 2, 3]),
        ("even", 3, [0, 2, 5]),
        ("stack", 12, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]),
        ("interleave", 12, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        ({"lay*": [1, 2]}, 2, [1, 2]),
        ({"**": "first", "layers": [4]}, 1, [4]),
    ],
)
def test_blocks_are_those_of_the_file_bit_for_bit(layers: Any, depth: int, numbers: list[int]) -> None:
    old, new = encoder(6), encoder(depth)
    report = taken(new, layers, old)
    assert_blocks(new, old, numbers)
    (account,) = report.loads
    assert account.promise == "none"
    assert not account.warnings  # what is left is left on purpose
    assert len(account.spare) == 12 * len({*range(6)} - {*numbers})


def test_as_many_blocks_are_the_same_function() -> None:
    old, new = encoder(3), encoder(3)
    assert taken(new, "stack", old).loads[0].promise == "function"
    assert_blocks(new, old, [0, 1, 2])


def test_distilbert_takes_these_of_twelve() -> None:
    """Sanh et al. 2019 take one of two; those of the scripts of transformers are 0, 2, 4, 7, 9, 11."""
    assert _chosen("even", 12, 6, "")[0] == [0, 2, 4, 7, 9, 11]


@given(st.integers(1, 12), st.integers(0, 20))
def test_new_blocks_stand_evenly_behind_those_they_copy(have: int, more: int) -> None:
    sources, new = _chosen("identity", have, have + more, "")
    assert [source for at, source in enumerate(sources) if at not in new] == [*range(have)]
    assert len(new) == more
    assert sources == sorted(source for source in sources if source is not None)
    copies = np.bincount([source for source in sources if source is not None], minlength=have)
    assert copies.max() - copies.min() <= 1
    assert more == 0 or sources[-1] == have - 1  # LLaMA Pro puts one behind each group


@pytest.mark.parametrize("depth", [4, 5, 6, 8, 11])
def test_identity_blocks_keep_the_function(depth: int) -> None:
    old, new = encoder(4), encoder(depth)
    report = taken(new, "identity", old)
    assert report.loads[0].promise == "function"
    proof = preserves(old, new, torch.randn(3, 5, WIDTH))
    assert proof
    assert proof.apart == 0.0
    assert len(report.loads[0].adapted) == 4 * (depth - 4)


def test_post_norm_cannot_pass_on_what_comes() -> None:
    old, new = encoder(2, first=False), encoder(4, first=False)
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(
        CheckpointError, match=r"layers='identity': layers\.1\.\* cannot pass on what comes: .*post-norm"
    ):
        taken(new, "identity", old)
    assert all(torch.equal(before[key], value) for key, value in new.state_dict().items())


def test_blocks_of_unknown_ways_out_are_refused() -> None:
    def net(depth: int) -> nn.Module:
        return nn.ModuleDict(
            {
                "stack": nn.ModuleList(
                    nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(depth)
                )
            }
        )

    with pytest.raises(
        CheckpointError,
        match=r"stack\.1\.\* cannot pass on .*no role says what leads out of it, or as the roles of .* a rule Zeros",
    ):
        taken(net(2), "identity", net(1))


@pytest.mark.parametrize(
    ("layers", "depth", "text"),
    [
        ([0, 6], 2, r"layers: the file has 6 blocks of layers\.\*, so there is no block 6"),
        ([0, 1, 2], 2, r"layers: 3 for the 2 blocks of layers\.\*, one for each is needed"),
        ("even", 7, r"layers='even' takes some .* has 6 of layers\.\*, but the model 7; 'stack', 'interleave'"),
        ("first", 7, r"layers='first' takes some"),
        ("stack", 8, r"layers='stack' makes more blocks in a whole multiple, but .* has 6 and the model 8; a list"),
        ("interleave", 3, r"layers='interleave' makes more blocks in a whole multiple"),
        ("identity", 3, r"layers='identity' makes more blocks, but"),
        ({"layer": [0]}, 2, r"layers: 'layer' is no list of like blocks of the model; did you mean 'layers'\?"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(layers: Any, depth: int, text: str) -> None:
    old, new = encoder(6), encoder(depth)
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(CheckpointError, match=text):
        taken(new, layers, old)
    assert all(torch.equal(before[key], value) for key, value in new.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "kind", "text"),
    [
        (
            "stak",
            ValueError,
            r"or one of first, even, .*got 'stak'; did you mean 'stack'\?",
        ),
        (3, TypeError, r"layers is a list of numbers, or one of first, even"),
        ([0, -1], ValueError, r"layers are numbers from 0, or 'new' for a block of other rules, but got -1"),
        ([0, "old"], ValueError, r"but got 'old'"),
        ({"a..b": [0]}, ValueError, r"layers: "),
    ],
)
def test_arguments_are_looked_at_when_the_rule_is_made(layers: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        Pretrained({"weight": torch.ones(1)}, layers=layers)


def test_a_new_block_is_left_to_its_other_rules() -> None:
    old, new = encoder(2), encoder(3)
    rules = [
        Rule(Name("**"), Normal(std=0.02)),
        Rule(Roles("attn.out", "mlp.out") | Roles("attn.out.bias", "mlp.out.bias"), Zeros()),
        Rule(Name("**"), Pretrained(old, layers=[0, "new", 1])),
    ]
    report = initialize(new, rules, seed=0)
    assert preserves(old, new, torch.randn(2, 3, WIDTH))
    assert report.loads[0].promise == "none"  # for it says nothing of other rules
    assert dict(report.loads[0].declined)["layers.1.linear1.weight"] == "in a new block"
    assert not report.loads[0].warnings


def test_one_of_other_rules_needs_one() -> None:
    with pytest.raises(PlanError, match=r"no rule for layers\.1\.linear1\.weight"):
        initialize(encoder(3), Rule(Name("**"), Pretrained(encoder(2), layers=[0, "new", 1])), complete=True)


def test_towers_each_by_their_name() -> None:
    def pair(encoders: int, decoders: int) -> nn.Module:
        return nn.ModuleDict({"encoder": encoder(encoders), "decoder": encoder(decoders)})

    old, new = pair(4, 3), pair(2, 6)
    taken(new, {"encoder.layers": [0, 3], "decoder.layers": "interleave"}, old)
    assert_blocks(new["encoder"], old["encoder"], [0, 3])  # type: ignore[index]
    assert_blocks(new["decoder"], old["decoder"], [0, 0, 1, 1, 2, 2])  # type: ignore[index]


def test_a_tower_that_is_not_named_is_loaded_as_it_is() -> None:
    def pair(encoders: int) -> nn.Module:
        return nn.ModuleDict({"encoder": encoder(encoders), "decoder": encoder(3)})

    old, new = pair(4), pair(2)
    taken(new, {"encoder.**": "first"}, old)
    assert_blocks(new["decoder"], old["decoder"], [0, 1, 2])  # type: ignore[index]


class Block(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)) for _ in range(experts))


@pytest.mark.parametrize("experts", [1, 2, 3])
def test_the_number_is_that_of_the_block_not_of_an_expert_or_a_stage(experts: int) -> None:
    model = nn.ModuleDict(
        {
            "stages": nn.ModuleList(
                nn.ModuleDict({"blocks": nn.ModuleList(Block(experts) for _ in range(3))}) for _ in range(2)
            )
        }
    )
    found = {stack.start: stack.numbers for stack in stacks_of(sites(model))}
    assert found == {"stages.0.blocks.": (0, 1, 2), "stages.1.blocks.": (0, 1, 2)}


def test_blocks_that_are_called_otherwise() -> None:
    def net(depth: int) -> nn.Module:
        blocks = {
            f"b{number}": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for number in range(1, depth + 1)
        }
        return nn.ModuleDict({"net": nn.ModuleDict(blocks)})

    old, new = net(4), net(2)
    taken(new, [1, 3], old)
    for ours, theirs in (("b1", "b2"), ("b2", "b4")):
        first, second = new["net"][ours].state_dict(), old["net"][theirs].state_dict()  # type: ignore[index]
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_after_prefix_and_renames(tmp_path: Path) -> None:
    old, new = encoder(4), encoder(2)
    state = {f"model.{key.replace('layers', 'h')}": value for key, value in old.state_dict().items()}
    save_file(state, tmp_path / "old.safetensors")
    recipe = {
        "rules": [
            {
                "type": "Pretrained", "name": "**", "checkpoint": str(tmp_path / "old.safetensors"),
                "prefix": "model", "rename": [["^h[.]", "layers."]], "layers": [1, 3],
            }
        ]
    }  # fmt: skip
    made = plan(new, recipe, strict=True)
    assert str(made["layers.1.linear1.weight"].fill).startswith("model.h.3.linear1.weight of ")
    again = Plan.from_json(made.to_json())
    assert [str(step.fill) for step in again] == [str(step.fill) for step in made]
    assert again.loads == made.loads
    initialize(new, recipe)
    assert_blocks(new, old, [1, 3])


def test_a_recipe_and_back() -> None:
    choices: list[Any] = [[0, "new"], "even", {"encoder.**": "first", "decoder": [0]}]
    for layers in choices:
        data = {"rules": [{"type": "Pretrained", "name": "**", "checkpoint": "x.pth", "layers": layers}]}
        (rule,) = decode_recipe(json.loads(json.dumps(data)))
        assert isinstance(rule.init, Pretrained)
        assert rule.init.layers == (
            tuple(layers) if isinstance(layers, list) else Pretrained("x", layers=layers).layers
        )


def test_a_file_without_such_blocks_is_told_as_before() -> None:
    with pytest.raises(CheckpointError, match=r"0 of 24 tensors match"):
        taken(encoder(2), "first", nn.Linear(2, 2))


def test_sites_alone_have_the_word_of_their_roles() -> None:
    """Where there is no model, no block can be run: it is what `torchinit check` looks at."""
    known = torchinit.sites(encoder(3, first=False))
    made = make_plan(known, [Rule(Name("**"), Pretrained(encoder(2), layers="identity"))])
    assert str(made["layers.2.linear2.weight"].fill) == "Constant(0)"


def test_tensors_without_names_have_no_blocks() -> None:
    with pytest.raises(ValueError, match=r"order='parameters' is for tensors without names: .*no layers"):
        Pretrained({"weight": torch.ones(1)}, order="parameters", layers=[0])
