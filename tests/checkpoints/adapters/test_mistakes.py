"""Mistakes: what is wrong with the adapters of a rule is said when the plan is made, with the near name."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from torchinit import CheckpointError, Name, Normal, Pretrained, Rule, RunError, initialize, plan, sites
from torchinit.checkpoints.adapters import (
    Adapter,
    Fuse,
    InputChannels,
    ResizePatches,
    ResizePositions,
    ResizeRelativeBias,
    ResizeVocabulary,
    Rows,
    Split,
    Stack,
    Transpose,
)
from torchinit.checkpoints.tensor_fill import Loaded
from torchinit.model import Shard
from torchinit.plans import make_plan


class Attention(nn.Module):
    """One weight for query, key and value, and a stack of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12, bias=False), nn.Linear(4, 4, bias=False)
        self.experts = nn.ParameterDict({"up": torch.empty(2, 4, 4)})


FILE = {f"{name}.weight": torch.full((4, 4), float(number)) for number, name in enumerate(("q", "k", "v", "out"))}
FILE |= {f"experts.{number}.up.weight": torch.ones(4, 4) for number in range(2)}
FUSE, STACK = Fuse("qkv", ("q", "k", "v")), Stack("experts.up", "experts.*.up.weight", 2)


def test_nothing_is_wrong() -> None:
    initialize(
        model := Attention(), Rule(Name("**"), Pretrained(FILE, adapt={"qkv.weight": FUSE, "experts.up": STACK}))
    )
    assert model.qkv.weight[:, 0].tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4


@pytest.mark.parametrize(
    ("adapt", "text"),
    [
        (
            {"qkv.weight": Fuse("qkv", ("q", "key", "v"))},
            r"qkv\.weight needs key\.weight for Fuse\('qkv', \('q', 'key', 'v'\)\), which the file lacks; did you mean",
        ),
        (
            {"qkv.weight": Fuse("qvk", ("q", "k", "v"))},
            r"qkv\.weight cannot be made by Fuse\('qvk', .*\): 'qkv\.weight' has no part 'qvk'; did you mean 'qkv'\?",
        ),
        (
            {"out.weight": Split("whole", ("out", "in"))},
            r"out\.weight needs whole\.weight for Split\(.*\), which the file lacks; it has 'out\.weight' itself",
        ),
        (
            {"qkv.weight": FUSE, "experts.up": Stack("experts.up", "experts.*.up", 2)},
            r"(?s)experts\.up\. .*\bup needs experts\.0\.up, .* for Stack.*'experts\.0\.up\.weight'",
        ),
        (
            {"qkv.weight": FUSE, "expert.up": STACK},
            r"(?s)experts\.up\. .*adapt: 'expert\.up' matches no site; did you mean 'experts\.up'\?$",
        ),
        (
            {"qkv.weight": FUSE, "experts.up": STACK, "out.weight": Rows((7, 1, 2, 3))},
            r"out\.weight Rows\(indices=\(7, 1, 2, 3\)\) needs at least 8 rows for a site of \[4, 4\]",
        ),
    ],
)  # fmt: skip
def test_it_is_said(adapt: Mapping[str, Adapter], text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        plan(Attention(), Rule(Name("**"), Pretrained(FILE, adapt=adapt)))


def test_what_an_adapter_looked_for_is_said_where_other_rules_take_the_site() -> None:
    rule = Rule(Name("**"), Pretrained(FILE, adapt={"qkv.weight": FUSE, "experts.up": Stack("up", "*.out", 2)}))
    made = plan(Attention(), [Rule(Name("**"), Normal(std=1.0)), rule])
    assert made["experts.up"].fill == Normal(std=1.0)
    offer, hint = made.loads[0].hints
    assert offer == f"with adapt={{'experts.up': {STACK}}} 1 more would be found"
    assert hint.startswith("experts.up needs experts.0.out, experts.1.out for Stack('up', '*.out', 2), which the file")


def test_an_adapter_with_nothing_to_change_is_said() -> None:
    state = {"weight": torch.ones(1, 17, 4)}
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.zeros(1, 17, 4)))
    for adapter, idle in (
        (ResizePositions(), True),
        (ResizePositions(1, (4, 4), (2, 8)), False),
        (InputChannels(), True),
        (Rows(axis=1), True),
        (Rows(tuple(range(17)), axis=1), False),
    ):
        account = initialize(model, Rule(Name("**"), Pretrained(state, adapt={"**": adapter}))).loads[0]
        assert account.adapted == (("weight", f"{adapter}{', which has nothing to change' if idle else ''}"),)


def test_resizing_to_the_same_size_is_nothing() -> None:
    for adapter, shape in ((ResizeVocabulary(), (9, 2)), (ResizeRelativeBias(), (9, 2)), (ResizePatches(), (2, 3, 3))):
        table = torch.randn(shape)
        assert not adapter.changes([shape], shape)
        assert torch.equal(adapter.adapt([table], shape, "w"), table)
    assert ResizeRelativeBias(file=(2, 2), site=(1, 5)).changes([(9, 2)], (9, 2))


def test_square_weights_among_transposed_ones_are_pointed_out() -> None:
    """All of GPT-2's layers keep their weights transposed, and the shape of the square ones does not show it."""
    model = nn.ModuleDict({"fc": nn.Linear(4, 6, bias=False), "proj": nn.Linear(4, 4, bias=False)})
    state = {"fc.weight": torch.randn(4, 6), "proj.weight": torch.randn(4, 4)}
    note = "square, so they fit transposed or not, and are taken as they are: proj.weight"
    for rules, notes in (
        ({"fc.weight": Transpose()}, (note,)),
        ({}, (note,)),
        ({"**": Transpose()}, ()),
    ):
        made = make_plan(sites(model), [Rule(Name("**"), Pretrained(state, adapt=rules))])
        assert made.loads[0].notes == notes


def test_a_file_that_changed_since_the_plan() -> None:
    fill = Loaded({"w": torch.ones(4, 2)}, ("w",), "w", Transpose())
    with pytest.raises(ValueError, match=r"^Transpose\(\) makes \[2, 4\] of \[4, 2\], but the site has \[4, 2\]$"):
        fill.prepare(Shard.whole("w", torch.empty(4, 2)))


def test_only_what_is_read_is_looked_at() -> None:
    """NaN in rows that the model has not got is nobody's business; in one that it has it is found first."""
    table = torch.ones(6, 2)
    table[4] = torch.nan
    layer = nn.Linear(2, 4, bias=False)
    initialize(layer, Rule(Name("**"), Pretrained({"weight": table}, adapt={"**": Rows()})))
    assert layer.weight.isfinite().all()
    with pytest.raises(RunError, match=r"weight: weight holds NaN or infinity in dict in memory"):
        initialize(layer, Rule(Name("**"), Pretrained({"weight": table}, adapt={"**": Rows((0, 4, 1, 2))})))
