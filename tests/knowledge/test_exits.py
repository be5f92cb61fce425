"""Exits: blocks that pass on what comes once these are zero, and blocks that do not, whatever their names say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchinit.knowledge.exits import with_exits
from torchinit.knowledge.role_rules import with_roles
from torchinit.model.sites import sites


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, None]:
        raise RuntimeError("it needs a mask")


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("it is not run")


class Block(nn.Module):
    """Attention and feed-forward around which ``how`` says where the norms are."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.norm1, self.norm2, self.how = nn.LayerNorm(width), nn.LayerNorm(width), how
        self.attn, self.mlp = Attention(width), Mlp(width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.how == "pre":
            values = values + self.attn(self.norm1(values), None)[0]
            return values + self.mlp(self.norm2(values))  # type: ignore[no-any-return]
        if self.how == "parallel":
            normal = self.norm1(values)
            out, _ = self.attn(normal, None)
            return values + out + self.mlp(normal)  # type: ignore[no-any-return]
        if self.how == "post":
            values = self.norm1(values + self.attn(values, None)[0])
            return self.norm2(values + self.mlp(values))  # type: ignore[no-any-return]
        if self.how == "last":
            values = values + self.attn(self.norm1(values), None)[0]
            return self.norm2(values + self.mlp(values))  # type: ignore[no-any-return]
        if self.how == "scaled":
            return 0.5 * values + self.mlp(self.norm1(values))  # type: ignore[no-any-return]
        if self.how == "none":
            return self.mlp(self.norm1(values))  # type: ignore[no-any-return]
        raise RuntimeError("cannot be run")


def exits(model: nn.Module) -> dict[str, str]:
    found = with_exits(model, with_roles(model, sites(model)))
    return {site.name: site.exit for site in found if site.exit is not None}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("how", "passes"),
    [
        ("pre", True),
        ("parallel", True),
        ("post", False),
        ("last", False),
        ("scaled", False),
        ("none", False),
        ("broken", True),
    ],
)
def test_by_where_the_norms_are(how: str, passes: bool, device: str) -> None:
    with torch.device(device):
        model = nn.ModuleDict({"layers": nn.ModuleList(Block(8, how) for _ in range(2))})
    before = {name: vars(module).copy() for name, module in model.named_modules()}
    found = exits(model)
    assert {*found} == {
        f"layers.{number}.{way}.{leaf}"
        for number in range(2)
        for way in ("attn.o_proj", "mlp.down_proj")
        for leaf in ("weight", "bias")
    }
    assert all((why == "") is passes for why in found.values())
    assert passes or "post-norm" in found["layers.0.mlp.down_proj.weight"]
    assert before == {name: vars(module) for name, module in model.named_modules()}


@pytest.mark.parametrize("first", [True, False])
def test_torch_s_own_block_has_both_under_the_same_names(first: bool) -> None:
    model = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, norm_first=first) for _ in range(2))
    assert {bool(why) for why in exits(model).values()} == {not first}


class Masked(Block):
    """A block that must be given more than what passes, and perhaps lets a layer add that."""

    def forward(self, values: torch.Tensor, mask: object) -> torch.Tensor:  # type: ignore[override]
        return self.mlp(values) if self.how == "inside" else super().forward(values)


@pytest.mark.parametrize(("how", "passes"), [("pre", True), ("post", False), ("inside", True)])
def test_what_a_block_must_be_given_does_not_matter(how: str, passes: bool) -> None:
    """DeBERTa's needs a mask; Bloom's, whose layers add what passes themselves, is taken at its role's word."""
    found = exits(nn.ModuleList(Masked(8, how) for _ in range(2)))
    assert found and all((why == "") is passes for why in found.values())


class Behind(nn.Module):
    """OLMo 2's order: a norm behind each branch, before the sum, and norms of all queries and of all keys."""

    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn, self.mlp = Attention(width), Mlp(width)
        self.attn.q_norm, self.attn.key_layernorm = norm(width), norm(width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = values + self.norm1(self.attn(values, None)[0])
        return values + self.norm2(self.mlp(values))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("norm", "passes"), [(nn.RMSNorm, True), (nn.LayerNorm, False)])
def test_norms_of_queries_and_keys_are_a_part_of_the_attention(norm: type[nn.Module], passes: bool) -> None:
    """They hide nothing of what passes; the shift of a LayerNorm behind a branch is added to it."""
    found = exits(nn.ModuleList(Behind(8, norm) for _ in range(2)))
    assert found and all((why == "") is passes for why in found.values())


def test_hooks_are_not_run() -> None:
    def hook(*_: Any) -> None:
        raise AssertionError("it was run")

    model = nn.ModuleList(Block(8, "pre") for _ in range(2))
    model[0].register_forward_pre_hook(hook)
    model[0].norm1.register_forward_hook(hook)  # type: ignore[union-attr]
    assert {*exits(model).values()} == {""}


def test_what_stands_in_no_block_is_no_way_out_of_one() -> None:
    assert exits(Mlp(4)) == {}
