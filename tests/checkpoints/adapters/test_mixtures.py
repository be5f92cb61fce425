"""Mixtures: experts of a dense block, whole or in parts, with noise or partly anew, their router, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, plan
from torchinit.checkpoints.adapters import Adapter, Chain, Fuse, MergeExperts, Split, Transpose, Upcycle, UpcycleRouter
from torchinit.mmengine import BaseModule

WIDTH, HIDDEN = 6, 8


class Block(nn.Module):
    """A gated block as Llama's, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(tokens)) * self.up(tokens))
        return out


class Mixture(nn.Module):
    """Stacked experts, gate and up as one, and a router whose chosen weights sum to one, or do not."""

    def __init__(self, experts: int, hidden: int, chosen: int, *, normed: bool = True) -> None:
        super().__init__()
        self.chosen, self.normed = chosen, normed
        self.router = nn.Linear(WIDTH, experts, bias=False)
        self.gate_up, self.gate_up_bias = (nn.Parameter(torch.empty(experts, 2 * hidden, *n)) for n in ((WIDTH,), ()))
        self.down, self.down_bias = (nn.Parameter(torch.empty(experts, WIDTH, *n)) for n in ((hidden,), ()))

    def forward(self, tokens: Tensor) -> Tensor:
        weights, picks = self.router(tokens).softmax(-1).topk(self.chosen)
        if self.normed:
            weights = weights / weights.sum(-1, keepdim=True)
        gate, up = (torch.einsum("ti,eoi->teo", tokens, self.gate_up) + self.gate_up_bias).chunk(2, -1)
        out = torch.einsum("teo,eio->tei", F.silu(gate) * up, self.down) + self.down_bias
        chosen: Tensor = out.gather(1, picks[..., None].expand(-1, -1, WIDTH)) * weights[..., None]
        return chosen.sum(1)


def upcycled(granularity: int, scale: float, **arguments: Any) -> dict[str, Adapter]:
    cut = {"granularity": granularity, **arguments}
    fuse = [Fuse("fused", (f"gate.{leaf}", f"up.{leaf}")) for leaf in ("weight", "bias")]
    return {
        "gate_up": Chain((fuse[0], Upcycle("gate_up", "fused", hidden=0, fused=2, **cut))),
        "gate_up_bias": Chain((fuse[1], Upcycle("gate_up_bias", "fused", hidden=0, fused=2, **cut))),
        "down": Upcycle("down", "down.weight", hidden=1, scale=scale, **cut),
        "down_bias": Upcycle("down_bias", "down.bias"),
        "router.weight": UpcycleRouter("router.weight", "down.weight", std=0.5, granularity=granularity),
    }


@pytest.mark.parametrize("granularity", [1, 2, 4])
def test_the_mixture_computes_what_the_block_does(granularity: int) -> None:
    block, mixture = Block(), Mixture(3 * granularity, HIDDEN // granularity, 2 * granularity)
    initialize(mixture, Rule(Name("**"), Pretrained(block, adapt=upcycled(granularity, granularity))))
    tokens = torch.randn(50, WIDTH)
    before, after = block(tokens), mixture(tokens)
    assert (after - before).abs().max() <= 1e-5 * before.square().mean().sqrt()


@pytest.mark.parametrize(("granularity", "chosen"), [(1, 2), (2, 4), (2, 2)])
def test_routers_whose_weights_do_not_sum_to_one(granularity: int, chosen: int) -> None:
    """With a router as small as this all weights are 1 / experts: the factor makes up for it, where no bias is."""
    experts = 3 * granularity
    block, mixture = Block(), Mixture(experts, HIDDEN // granularity, chosen, normed=False)
    block.down.bias.data.zero_()
    adapt = upcycled(granularity, granularity * experts / chosen)
    initialize(mixture, Rule(Name("**"), Pretrained(block, adapt=adapt)))
    mixture.router.weight.data.mul_(1e-4)
    tokens = torch.randn(50, WIDTH)
    torch.testing.assert_close(mixture(tokens), block(tokens), atol=1e-3, rtol=1e-3)


def make(adapter: Adapter, file: Tensor, *shape: int, key: str = "mlp.experts.up") -> Tensor:
    adapter.check([tuple(file.shape)], shape, key)
    made = adapter.adapt([file], shape, key)
    assert tuple(made.shape) == shape
    return made


def test_experts_have_the_bits_of_the_block_and_parts_go_round() -> None:
    file = torch.randn(8, 6).to(torch.bfloat16)
    made = make(Upcycle("experts.up", "up", hidden=0, granularity=4, scale=1), file, 12, 2, 6)
    assert made.dtype == torch.bfloat16
    assert all(torch.equal(made[expert], file[2 * (expert % 4) :][:2]) for expert in range(12))
    made = make(Upcycle("experts.up", "up", hidden=0, granularity=2, fused=2), file, 4, 4, 6)
    assert torch.equal(made[1], torch.cat([file[2:4], file[6:8]]))


def test_listed_experts_are_the_stacked_ones() -> None:
    """Each by its number: the same parts, and the same units dropped, if other numbers in their place."""
    file = torch.randn(8, 6)
    parts = make(Upcycle("experts.up", "up", hidden=0, granularity=2, scale=1), file, 4, 4, 6)
    some = make(Upcycle("experts.up", "up", hidden=0, drop=0.5), file, 4, 8, 6)
    for number in range(4):
        key = f"mlp.experts.{number}.up"
        one = make(Upcycle("experts.*.up", "up", hidden=0, granularity=2, scale=1), file, 4, 6, key=key)
        assert torch.equal(one, parts[number])
        one = make(Upcycle("experts.*.up", "up", hidden=0, drop=0.5), file, 8, 6, key=key)
        kept = (one == file).all(1)
        assert int(kept.sum()) == 4
        assert torch.equal(kept, (some[number] == file).all(1))


def test_noise_is_normal_of_its_standard_deviation() -> None:
    file = torch.randn(100, 50)
    made = make(Upcycle("experts.up", "up", noise=0.1), file, 8, 100, 50)
    noise = (made - file).double()
    count = noise.numel()
    assert abs(noise.mean()) <= 6 * 0.1 / count**0.5
    assert abs(noise.std() - 0.1) <= 6 * 0.1 / (2 * count) ** 0.5
    assert not torch.equal(made[0], made[1])
    other = make(Upcycle("experts.up", "up", noise=0.1, seed=1), file, 8, 100, 50)
    assert not torch.equal(made, other)
    assert torch.equal(make(Upcycle("experts.up", "up", noise=0.1), file, 8, 100, 50), made)


def test_the_same_units_of_an_expert_start_anew_in_all_its_weights() -> None:
    """Drop-Upcycling: a share of the units, of the moments that their own values had, each weight by itself."""
    units, width, drop = 400, 60, 0.25
    gate, up, down = (torch.randn(units, width) * std + mean for std, mean in ((1, 0.5), (3, 0), (0.1, 0)))
    fused = make(
        Upcycle("experts.gate_up", "gate_up", hidden=0, fused=2, drop=drop),
        torch.cat([gate, up]), 3, 2 * units, width, key="mlp.experts.gate_up",
    )  # fmt: skip
    out = make(Upcycle("experts.down", "down", hidden=1, drop=drop), down.T, 3, width, units, key="mlp.experts.down")
    lost = []
    for expert in range(3):
        made = {"gate": fused[expert, :units], "up": fused[expert, units:], "down": out[expert].T}
        gone = [(made[name] != old).any(1) for name, old in (("gate", gate), ("up", up), ("down", down))]
        assert torch.equal(gone[0], gone[1])
        assert torch.equal(gone[0], gone[2])
        assert int(gone[0].sum()) == int(units * drop)
        lost.append(gone[0])
        for name, old in (("gate", gate), ("up", up), ("down", down)):
            before, after = old[gone[0]].double().numpy(), made[name][gone[0]].double().numpy()
            assert abs(after.mean() - before.mean()) <= 6 * before.std() / before.size**0.5
            assert abs(after.std() - before.std(ddof=1)) <= 6 * before.std() / (2 * before.size) ** 0.5
            assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) <= 6 / before.size**0.5
    assert not torch.equal(lost[0], lost[1])


def test_promises() -> None:
    assert Upcycle("a", "b").promise == UpcycleRouter("a", "b").promise == "function"
    assert Upcycle("a", "b", hidden=0, drop=0.5).promise == "statistics"
    assert Upcycle("a", "b", hidden=0, drop=0.5, noise=0.1).promise == Upcycle("a", "b", noise=0.1).promise == "none"
    assert MergeExperts("a", "b").promise == "none"


def test_nothing_and_all_anew() -> None:
    file = torch.randn(8, 6)
    assert torch.equal(make(Upcycle("experts.up", "up", hidden=0, drop=0.1), file, 1, 8, 6)[0], file)
    assert not (make(Upcycle("experts.up", "up", hidden=0, drop=1), file, 1, 8, 6)[0] == file).any()


def test_a_router_chooses_the_parts_of_a_block_together() -> None:
    router = UpcycleRouter("gate", "up", std=2.0, granularity=3)
    made = make(router, torch.zeros(2, 2), 600, 40, key="mlp.gate")
    rows = made[::3]
    assert torch.equal(made, rows.repeat_interleave(3, 0))
    assert abs(rows.std() - 2) <= 6 * 2 / (2 * rows.numel()) ** 0.5
    assert len({tuple(row) for row in rows.tolist()}) == 200


def test_the_mean_of_experts() -> None:
    """NumPy's, of a stack and of listed ones, and the block itself from its copies."""
    experts = torch.randn(5, 4, 3)
    expected = experts.double().numpy().mean(0)
    stacked, each = MergeExperts("up", "experts.up"), MergeExperts("up", "experts.*.up", count=5)
    assert each.wants("mlp.up") == tuple(f"mlp.experts.{number}.up" for number in range(5))
    for made in (stacked.adapt([experts], (4, 3), "mlp.up"), each.adapt(list(experts), (4, 3), "mlp.up")):
        np.testing.assert_allclose(made, expected, atol=1e-6)
    block = torch.randn(4, 3).to(torch.bfloat16)
    back = stacked.adapt([block.expand(8, 4, 3)], (4, 3), "mlp.up")
    assert torch.equal(back.to(torch.bfloat16), block)


def test_there_and_back() -> None:
    block, mixture, again = Block(), Mixture(4, HIDDEN, 2), Block()
    initialize(mixture, Rule(Name("**"), Pretrained(block, adapt=upcycled(1, 1))))
    adapt: dict[str, Adapter] = {}
    for leaf, name in (("weight", "gate_up"), ("bias", "gate_up_bias")):
        split = Split(name, ("gate", "up"), axis=1)
        adapt |= {f"{part}.{leaf}": Chain((split, MergeExperts(f"{part}.{leaf}", part))) for part in ("gate", "up")}
        adapt[f"down.{leaf}"] = MergeExperts(f"down.{leaf}", "down" if leaf == "weight" else "down_bias")
    rule = Rule(Name("**"), Pretrained(mixture, adapt=adapt, expect_unexpected="router.weight"))
    initialize(again, rule).assert_ok()
    for value, expected in zip(again.state_dict().values(), block.state_dict().values(), strict=True):
        assert torch.equal(value, expected)


def test_experts_that_lie_transposed() -> None:
    file = torch.randn(8, 6)
    chain = Chain((Transpose(), Upcycle("experts.up", "up", hidden=1, granularity=2, scale=1)))
    made = make(chain, file, 4, 6, 4)
    assert torch.equal(made[3], file[4:].T)


BLOCK = {"up": torch.ones(8, 6), "experts.0.w": torch.ones(2, 3), "experts.1.w": torch.ones(3, 3)}


@pytest.mark.parametrize(
    ("name", "shape", "adapter", "text"),
    [
        ("e", (4, 4, 6), Upcycle("e", "up"), r"makes experts of \[8, 6\] from \[8, 6\], but the site has \[4, 4, 6\]"),
        ("e", (8,), Upcycle("e", "up"), r"makes experts of \[8, 6\] from \[8, 6\], but the site has \[8\]"),
        (
            "e",
            (4, 4, 6),
            Upcycle("e", "up", hidden=0, granularity=3, scale=1),
            r"cannot cut dimension 0 of \[8, 6\] into 1 x 3",
        ),
        ("e", (4, 4, 6), Upcycle("e", "up", hidden=2), r"cannot cut dimension 2 of \[8, 6\]"),
        (
            "e",
            (3, 4, 6),
            Upcycle("e", "up", hidden=0, granularity=2, scale=1),
            r"needs whole blocks of 2 experts, but .* \[3, 4",
        ),
        ("e", (3, 6), UpcycleRouter("e", "up", granularity=2), r"needs whole blocks of 2 experts, but .* \[3, 6\]"),
        ("w", (2, 3), MergeExperts("w", "experts.*.w", 2), r"needs experts of one shape, but got \[2, 3\], \[3, 3\]"),
        ("w", (8, 6), MergeExperts("w", "up"), r"makes \[6\] of \[8, 6\], but the site has \[8, 6\]"),
        ("experts", (4, 8, 6), Upcycle("expert", "up"), r"'experts' has no part 'expert'"),
        ("e", (4, 8, 6), Upcycle("e", "upp"), r"e needs upp for Upcycle.*lacks; did you mean 'up'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    name: str, shape: tuple[int, ...], adapter: Adapter, text: str
) -> None:
    model = nn.Module()
    model.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    with pytest.raises(CheckpointError, match=text):
        plan(model, Rule(Name("**"), Pretrained(BLOCK, adapt={"**": adapter})))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Upcycle("a", "b", granularity=0), r"^granularity must be a whole number from 1, but got 0$"),
        (lambda: Upcycle("a", "b", granularity=2), r"^granularity, drop and fused need hidden, the dimension that"),
        (
            lambda: Upcycle("a", "b", hidden=1, granularity=4),
            r"^granularity needs scale, the factor .*: 4 for the way out",
        ),
        (lambda: Upcycle("a", "b", hidden=0, drop=2), r"^drop must lie in \[0, 1\], but got 2$"),
        (lambda: Upcycle("a", "b", noise=-1), r"^noise must be at least 0, but got -1$"),
        (lambda: Upcycle("a.*.*", "b"), r"^into may have one part '\*', the expert's number, but got 'a\.\*\.\*'$"),
        (
            lambda: MergeExperts("a", "b.*"),
            r"^experts has one part '\*' if there is a count, and none for a stack, but",
        ),
        (
            lambda: MergeExperts("a", "b", 2),
            r"^experts has one part '\*' if there is a count, and none for a stack, but",
        ),
        (lambda: MergeExperts("a", "b").makes([()], "a"), r"needs a stack of experts, but got \[\]$"),
    ],
)
def test_arguments(build: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()


def test_as_an_entry_of_an_init_cfg(tmp_path: Path) -> None:
    class Routed(BaseModule):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.up, self.router = nn.Parameter(torch.empty(4, 6, 3)), nn.Linear(3, 4, bias=False)

    file = torch.randn(6, 3)
    torch.save({"state_dict": {"mlp.up.weight": file}}, tmp_path / "dense.pth")
    adapt = {
        "up": {"type": "Upcycle", "into": "up", "dense": "up.weight"},
        "router.weight": {"type": "UpcycleRouter", "into": "router", "dense": "up"},
    }
    entry = {"type": "Pretrained", "checkpoint": str(tmp_path / "dense.pth"), "rename": [["^mlp.", ""]], "adapt": adapt}
    model = Routed(init_cfg=entry)
    model.init_weights()
    assert torch.equal(model.up, file.expand(4, 6, 3))
    assert model.router.weight.std() < 0.1


def test_in_pieces_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One expert of a stack may be large in itself: pieces are cut within it, too."""
    block, seen = Block(), list[dict[str, Tensor]]()
    for size in (1 << 22, 16):
        monkeypatch.setattr("torchinit.checkpoints.tensor_fill._PIECE", size)
        mixture = Mixture(4, HIDDEN // 2, 2)
        initialize(mixture, Rule(Name("**"), Pretrained(block, adapt=upcycled(2, 2.0, noise=0.1))))
        seen.append(mixture.state_dict())
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[0].items())
