"""Pieces: what is offered for weights that a file keeps in another division does what it says, and is sure."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from torchinit import CheckpointError, Name, Normal, Pretrained, Rule, adapters, initialize, plan
from torchinit.checkpoints.adapters import pieces as module
from torchinit.checkpoints.adapters.pieces import pieces

Size = tuple[int, ...]
QKV = ("q_proj", "k_proj", "v_proj")
FUSED: dict[str, Size] = {
    "h.0.qkv.weight": (8, 4),
    "h.0.qkv.bias": (8,),
    "h.1.qkv.weight": (8, 4),
    "h.1.qkv.bias": (8,),
}
APART: dict[str, Size] = {
    f"h.{block}.{part}.{leaf}": (rows, 4)[: 2 if leaf == "weight" else 1]
    for block in range(2)
    for part, rows in zip(QKV, (4, 2, 2), strict=True)
    for leaf in ("weight", "bias")
}
EXPERTS: dict[str, Size] = {f"experts.{n}.{part}.weight": (6, 4) for n in range(3) for part in ("w1", "w3")}
EXPERTS |= {f"experts.{n}.w2.weight": (4, 6) for n in range(3)}
STACKS: dict[str, Size] = {"experts.gate_up": (3, 12, 4), "experts.down": (3, 4, 6)}
HEAD: dict[str, Size] = {"attn.in_proj_weight": (12, 4), "attn.in_proj_bias": (12,)}
HEADS: dict[str, Size] = {f"attn.{part}.weight": (4, 4) for part in "qkv"} | {
    f"attn.{part}.bias": (4,) for part in "qkv"
}


class Net(nn.Module):
    """Parameters of these names and shapes, and one that every file has."""

    def __init__(self, shapes: Mapping[str, Size]) -> None:
        super().__init__()
        for name, shape in {**shapes, "norm": (2,)}.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(leaf, nn.Parameter(torch.randn(shape)))


@pytest.mark.parametrize(
    ("model", "file", "number"),
    [
        (FUSED, APART, 2),
        (APART, FUSED, 6),
        (STACKS, EXPERTS, 2),
        ({f"experts.{n}.w2.weight": (4, 6) for n in range(3)}, {"experts.down": (3, 4, 6)}, 1),
        (HEAD, HEADS, 2),
    ],
)
def test_an_offer_that_is_taken_loads_everything(
    model: Mapping[str, Size], file: Mapping[str, Size], number: int
) -> None:
    net, state = Net(model), Net(file).state_dict()
    with pytest.raises(CheckpointError, match="not in the file"):
        plan(net, Rule(Name("**"), Pretrained(state)))
    made = plan(net, [Rule(Name("**"), Normal(std=1.0)), Rule(Name("**"), Pretrained(state))])
    hints = made.loads[0].hints
    assert len(hints) == number
    adapt: dict[str, adapters.Adapter] = {}
    for hint in hints:
        given, _, told = hint.removeprefix("with adapt=").rpartition("} ")
        offered = eval(given + "}", vars(adapters))
        assert told.endswith(" more would be found")
        adapt |= offered
    account = initialize(net, Rule(Name("**"), Pretrained(state, adapt=adapt))).loads[0]
    assert account.complete
    assert sum(int(hint.rpartition("} ")[2].split()[0]) for hint in hints) == len(account.adapted) == len(model)


@pytest.mark.parametrize(
    ("missing", "spare"),
    [
        (FUSED, {}),
        ({"h.0.qkv.weight": (9, 4)}, APART),
        ({"h.0.qkv.weight": (8, 4)}, {"h.1.q.weight": (4, 4), "h.0.k.weight": (2, 4), "h.0.v.weight": (2, 4)}),
        # Two stacks of one shape: which is meant, nobody can tell.
        ({"experts.up": (3, 6, 4)}, EXPERTS),
        # A table is no stack of these: there are fewer of them than rows.
        ({f"h.{n}.scale": (4,) for n in range(2)}, {"h.table": (9, 4)}),
        # Two of the three are there already.
        ({"h.0.q_proj.weight": (4, 4)}, {"h.0.qkv.weight": (8, 4)}),
        ({"weight": (3,), "": (1,)}, {"0": (3,), "a": ()}),
    ],
)
def test_what_is_not_sure_is_not_offered(missing: Mapping[str, Size], spare: Mapping[str, Size]) -> None:
    assert pieces(missing, spare) == []


def test_names_in_their_thousands_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[adapters.Unstack] = []

    def unstack(whole: str, parts: str) -> adapters.Unstack:
        made.append(adapters.Unstack(whole, parts))
        return made[-1]

    monkeypatch.setattr(module, "Unstack", unstack)
    missing = {f"h.{n}.experts.{m}.w": (4,) for n in range(20) for m in range(20)}
    assert pieces(missing, {f"h.{n}.mlp.{m}.w": (20, 4) for n in range(20) for m in range(20)}) == []
    assert len(made) == 2 * len(missing)  # and not one for each pair of names
