"""Promises: "the same function" is promised where it is, by both models run; and what no shape tells is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from torchinit import Name, Pretrained, Rule, initialize, plan, preserves
from torchinit.checkpoints.adapters import Adapter, HyperClone, Net2Wider
from torchinit.initializers.load_report import LoadReport

IDS = torch.arange(18).view(3, 6) % 20


class GroupedAttention(nn.Module):
    """Attention several of whose queries share a key; ``slopes`` go with the number of heads."""

    def __init__(self, width: int, heads: int, keys: int, size: int) -> None:
        super().__init__()
        self.num_heads, self.keys, self.head_dim = heads, keys, size
        self.q_proj, self.o_proj = nn.Linear(width, heads * size), nn.Linear(heads * size, width)
        self.k_proj, self.v_proj = (nn.Linear(width, keys * size) for _ in range(2))

    def scores(self, count: int) -> torch.Tensor:
        return torch.zeros(self.num_heads, count, count)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(values).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = (each.repeat_interleave(self.num_heads // self.keys, 1) for each in (k, v))
        mask = self.scores(values.shape[1])
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class AlibiAttention(GroupedAttention):
    def scores(self, count: int) -> torch.Tensor:
        slopes = 2.0 ** (-8 * (1 + torch.arange(self.num_heads)) / self.num_heads)
        return -slopes[:, None, None] * torch.arange(count).expand(count, count)


class Block(nn.Module):
    def __init__(self, attention: nn.Module, width: int, *, affine: bool) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(width, elementwise_affine=affine), attention

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.attn(self.norm(values))  # type: ignore[no-any-return]


class Text(nn.Module):
    def __init__(
        self,
        width: int = 16,
        heads: int = 4,
        keys: int = 2,
        size: int = 4,
        cls: type[GroupedAttention] = GroupedAttention,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, width), nn.Linear(width, 20)
        self.layers = nn.ModuleList(Block(cls(width, heads, keys, size), width, affine=affine) for _ in range(2))
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.1, 0.7)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        values = self.embed(ids)
        for layer in self.layers:
            values = layer(values)
        return self.head(values)  # type: ignore[no-any-return]


def grown(adapter: Adapter, *, as_file: bool = False, **sizes: Any) -> tuple[LoadReport, bool]:
    """The account, and whether the larger model computes what the smaller one does."""
    kind = {key: sizes[key] for key in ("cls", "affine") if key in sizes}
    less = {"keys": sizes["fewer"]} if "fewer" in sizes else {}
    old, new = Text(**kind, **less), Text(**{key: size for key, size in sizes.items() if key != "fewer"})
    source = old.state_dict() if as_file else old
    report = initialize(new, Rule(Name("**"), Pretrained(source, adapt={"**": adapter})))
    return report.loads[0], bool(preserves(old, new, IDS))


WHOLE: list[tuple[dict[str, Any], str]] = [
    ({"width": 32, "heads": 8, "keys": 4}, ""),
    ({"heads": 8, "keys": 4}, ""),
    ({"width": 32}, ""),
    ({"heads": 8, "keys": 1, "fewer": 1}, ""),
    ({"size": 8}, "heads of 4 became heads of 8, whose scores are scaled otherwise"),
    ({"heads": 2, "keys": 1, "size": 8}, "heads of 4 became heads of 8"),
    ({"heads": 8, "keys": 4, "size": 2}, "heads of 4 became heads of 2"),
    ({"heads": 8}, "queries grow 2 times, k 1 times: other heads meet than did"),
    ({"keys": 4}, "queries grow 1 times, k 2 times"),
    ({"width": 32, "heads": 8, "keys": 4, "cls": AlibiAttention}, "its slopes (ALiBi) go with the number of heads"),
]
UNEVEN: list[tuple[dict[str, Any], str]] = [
    ({"heads": 6, "keys": 3}, ""),
    ({"width": 24, "affine": False}, "the units around it grow unevenly"),
]


@pytest.mark.parametrize(
    ("adapter", "sizes", "why"),
    [(adapter, *row) for adapter in (HyperClone(), Net2Wider()) for row in WHOLE]
    + [(Net2Wider(), *row) for row in UNEVEN],
)
def test_what_is_promised_is_true_and_what_is_not_is_told(adapter: Adapter, sizes: dict[str, Any], why: str) -> None:
    account, is_same = grown(adapter, **sizes)
    assert (account.promise == "function") == is_same == (not why)
    notes = [note for note in account.notes if "layers.0-1.attn" in note]
    assert bool(notes) == bool(why) and all(why in note for note in notes)


@pytest.mark.parametrize("count", [2, 4])
def test_torch_s_own_attention(count: int) -> None:
    """All its shapes are the same whatever the number of its heads."""

    def encoder(width: int, heads: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(width, heads, 32, norm_first=True, batch_first=True)
        body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        return nn.Sequential(nn.Embedding(20, width), body, nn.Linear(width, 9)).eval()

    old, new = encoder(8, 2), encoder(16, count)
    report = initialize(new, Rule(Name("**"), Pretrained(old, adapt={"**": HyperClone()})))
    assert (report.loads[0].promise == "function") == bool(preserves(old, new, IDS)) == (count == 4)


def test_a_file_does_not_tell_the_size_of_its_heads_so_that_is_said() -> None:
    account, is_same = grown(HyperClone(), as_file=True, width=32, heads=8, keys=4)
    told = "promised only if heads are of 4 in the file, too, and grow in number: preserves, or --proof, tells"
    assert account.promise == "conditional" and is_same and told in account.notes
    assert "\n  promise: same function, if what is told above holds" in account.summary()
    assert LoadReport.from_dict(json.loads(json.dumps(account.to_dict()))) == account
    account, is_same = grown(HyperClone(), as_file=True, width=32)
    assert account.promise == "function" and is_same and told not in account.notes  # no queries are made anew


@pytest.mark.parametrize(
    ("config", "size", "promise", "is_told"),
    [
        ({"hidden_size": 16, "num_attention_heads": 4}, 4, "function", False),
        ({"hidden_size": 16, "num_attention_heads": 4, "head_dim": 4}, 8, "none", True),
        ({"hidden_size": 32, "num_attention_heads": 8, "head_dim": 4}, 4, "conditional", True),  # the new model's
        (
            {"hidden_size": 16, "num_attention_heads": 4, "head_dim": 8},
            8,
            "conditional",
            True,
        ),  # rows of 16 are no four
        ({"hidden_size": 16, "num_attention_heads": 4, "qk_nope_head_dim": 4}, 4, "conditional", True),
        ({"hidden_size": "16", "num_attention_heads": None}, 4, "conditional", True),
        (["no table"], 4, "conditional", True),
    ],
)
def test_the_config_beside_a_file_tells(tmp_path: Path, config: object, size: int, promise: str, is_told: bool) -> None:
    save_file(Text().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    new = Text(width=32, heads=32 // size, keys=16 // size, size=size)
    rule = Rule(Name("**"), Pretrained(str(tmp_path / "model.safetensors"), adapt={"**": HyperClone()}))
    (account,) = plan(new, rule).loads
    assert account.promise == promise
    assert any("heads" in note for note in account.notes) == is_told


def test_rows_that_are_no_heads_tell_that_these_have_changed() -> None:
    account, is_same = grown(HyperClone(), as_file=True, heads=1, keys=1, size=32, fewer=4)
    assert account.promise == "none" and not is_same
    assert any("16 rows of the file are no heads of 32: their size has changed" in note for note in account.notes)


def test_new_blocks_are_no_promise_where_heads_are_others() -> None:
    old, new = Text(), Text(heads=8, keys=4, size=2)
    rule = Rule(Name("**"), Pretrained(old, layers="identity"))
    assert initialize(new, rule).loads[0].promise == "none"
    assert initialize(Text(), rule).loads[0].promise == "function"
