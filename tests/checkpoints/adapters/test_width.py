"""Width: networks of other widths that compute the same, as the papers' formulas; what no formula keeps is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, plan, preserves
from torchinit.checkpoints.adapters import Adapter, Chain, HyperClone, Net2Wider, Repeat, Transpose, WeightSelection
from torchinit.checkpoints.tensor_fill import Loaded


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))


class Net(nn.Module):
    """Convolutions with BatchNorm, one for each channel alone, and a flattening before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 2 * width, 2, stride=2), nn.MaxPool2d(4), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(2 * width * 16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.body(images)
        return self.head(features)  # type: ignore[no-any-return]


class Text(nn.Module):
    """An embedding, blocks before whose sums there is a norm, and a head that may share the table."""

    def __init__(self, width: int, *, tied: bool = False, inner: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        layer = nn.TransformerEncoderLayer(width, width // 4, inner * width, norm_first=True, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(ids)))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, width, 2, batch_first=True), nn.Linear(width, 3)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(series)[0])  # type: ignore[no-any-return]


INPUTS: dict[Any, Callable[[], torch.Tensor]] = {
    mlp: lambda: torch.randn(7, 5), Net: lambda: torch.randn(2, 3, 8, 8), Text: lambda: torch.randint(20, (3, 6)),
    Recurrent: lambda: torch.randn(2, 4, 5),
}  # fmt: skip


def trained(model: nn.Module) -> nn.Module:
    """A model whose every tensor has values of its own."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor.detach(), 0.1, 0.6) if tensor.dim() < 2 else nn.init.normal_(
                tensor.detach(), std=0.3
            )
    return model.eval()


def widened(make: Callable[..., nn.Module], old: int, new: int, adapter: Adapter, **options: Any) -> Any:
    """Both models, and the report of the second."""
    first, second = trained(make(old, **options)), trained(make(new, **options))
    report = initialize(second, Rule(Name("**"), Pretrained(first, adapt={"**": adapter})))
    return first, second, report


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (mlp, 6, 7),
        (mlp, 6, 9),
        (mlp, 6, 12),
        (mlp, 6, 13),
        (Net, 4, 6),
        (Net, 4, 5),
        (Net, 4, 12),
        (Text, 8, 16),
        (Recurrent, 4, 6),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_net2wider_keeps_the_function(make: Callable[..., nn.Module], old: int, new: int, seed: int) -> None:
    first, second, report = widened(make, old, new, Net2Wider(seed=seed))
    assert report.loads[0].promise == "function"
    assert preserves(first, second, INPUTS[make](), atol=1e-5)


@pytest.mark.parametrize(("make", "old", "new"), [(mlp, 6, 12), (Net, 4, 8), (Text, 8, 24), (Recurrent, 4, 8)])
@pytest.mark.parametrize("snr", [None, 10.0])
def test_hyperclone_keeps_the_function(make: Callable[..., nn.Module], old: int, new: int, snr: float | None) -> None:
    first, second, report = widened(make, old, new, HyperClone(snr=snr))
    assert report.loads[0].promise == "function"
    assert preserves(first, second, INPUTS[make](), atol=1e-5)


@pytest.mark.parametrize("adapter", [HyperClone(), HyperClone(snr=10.0), Net2Wider()])
@pytest.mark.parametrize("new", [16, 24])
def test_a_head_that_shares_its_table_takes_its_factor_from_the_norm(adapter: Adapter, new: int) -> None:
    first, second, _ = widened(Text, 8, new, adapter, tied=True)
    assert second.head.weight is second.embed.weight
    assert preserves(first, second, INPUTS[Text]())


def test_only_the_inner_width_may_grow_to_any_size() -> None:
    first = trained(Text(8, inner=2))
    second = trained(Text(8, inner=3))
    initialize(second, Rule(Name("**"), Pretrained(first, adapt={"**": Net2Wider()})))
    assert preserves(first, second, INPUTS[Text]())


def test_heads_and_depth_at_once() -> None:
    def deep(width: int, depth: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(width, width // 4, 2 * width, norm_first=True, batch_first=True)
        return trained(
            nn.Sequential(
                nn.Embedding(20, width),
                nn.TransformerEncoder(layer, depth, enable_nested_tensor=False),
                nn.Linear(width, 4),
            )
        )

    first, second = deep(8, 2), deep(16, 5)
    initialize(second, Rule(Name("**"), Pretrained(first, adapt={"**": HyperClone()}, layers="identity")))
    assert preserves(first, second, INPUTS[Text]())


# --- formulas --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_hyperclone_is_the_papers_block_matrix(rows: int, columns: int, outs: int, ins: int) -> None:
    weight = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    expected = np.tile(weight, (outs, ins)) / np.float32(ins)
    made = HyperClone((1,)).adapt([torch.tensor(weight)], (rows * outs, columns * ins), "w")
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-6)


def test_hyperclone_noise_is_that_of_the_paper() -> None:
    """[[W + N1, W - N1], [W + N2, W - N2]] / 2, ten decibels below W; an odd copy has none."""
    weight = torch.randn(60, 50)
    made = HyperClone((1,), snr=10.0).adapt([weight], (120, 150), "w") * 3 - weight.repeat(2, 3)
    first, second, third = made.split(50, 1)
    torch.testing.assert_close(first, -second, atol=1e-5, rtol=0)
    torch.testing.assert_close(third, torch.zeros_like(third), atol=1e-6, rtol=0)
    assert not torch.allclose(first[:60], first[60:], atol=0.1)
    ratio = float(weight.square().mean() / first.square().mean())
    n = first.numel()
    assert abs(10 * np.log10(ratio) - 10) < 5 * 10 / np.log(10) * (2 / n) ** 0.5  # the variance of a chi-square


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 3))
def test_net2wider_is_the_papers_random_map(width: int, more: int, seed: int) -> None:
    """The map is the identity, then any unit; each column of what follows is divided by how often it comes."""
    wider = width + more
    ids = torch.arange(1.0, width + 1)
    g = Net2Wider((), seed=seed).adapt([ids], (wider,), "b").long() - 1
    assert g[:width].tolist() == [*range(width)]
    assert set(g.tolist()) <= {*range(width)}
    counts = torch.bincount(g, minlength=width)
    after = Net2Wider((1,), seed=seed).adapt([ids[None]], (1, wider), "other.name")
    torch.testing.assert_close(after[0], (g + 1) / counts[g])


@given(st.sampled_from([(2, 3), (4, 6), (3, 5), (6, 9), (5, 7)]), st.integers(1, 4), st.integers(0, 3))
def test_the_choice_is_the_same_for_runs_of_units(widths: tuple[int, int], run: int, seed: int) -> None:
    old, new = widths
    units = Net2Wider((), seed=seed).adapt([torch.arange(old)], (new,), "a")
    runs = Net2Wider((), seed=seed).adapt([torch.arange(old * run)], (new * run,), "b")
    assert torch.equal(runs, (units[:, None] * run + torch.arange(run)).flatten())


def test_net2wider_noise_is_on_the_weights_of_copies_alone() -> None:
    weight = torch.randn(40, 500)
    made = Net2Wider((1,), noise=0.01).adapt([weight], (60, 500), "w")
    picks = Net2Wider((1,)).adapt([weight], (60, 500), "w")
    assert torch.equal(made[:40], weight)
    apart = (made - picks)[40:]
    n = apart.numel()
    assert abs(float(apart.std()) / 0.01 - 1) < 5 / (2 * n) ** 0.5
    assert torch.equal(Net2Wider((), noise=0.01).adapt([weight[:, 0]], (60,), "b"), picks[:, 0])
    assert Net2Wider(noise=0.01).promise == "none"


def test_weight_selection_is_the_papers_uniform_selection() -> None:
    for have, want in ((12, 4), (13, 4), (7, 7), (384, 192), (10, 1)):
        weight = torch.arange(float(have * 3)).view(have, 3)
        rows = (
            [k * (have // want) for k in range(want)] if have % want == 0 else np.round(np.linspace(0, have - 1, want))
        )
        made = WeightSelection().adapt([weight], (want, 3), "w")
        assert torch.equal(made, weight[torch.tensor(np.asarray(rows), dtype=torch.int64)])


def test_weight_selection_of_a_network() -> None:
    first, second, report = widened(Net, 8, 4, WeightSelection())
    assert report.loads[0].promise == "none"
    assert torch.equal(second.body[0].weight, first.body[0].weight[::2])
    assert torch.equal(second.body[1].running_var, first.body[1].running_var[::2])


def test_positions_over_and_over() -> None:
    table = torch.randn(4, 3)
    assert torch.equal(Repeat().adapt([table], (10, 3), "wpe.weight"), table.repeat(3, 1)[:10])


# --- what is told, what is refused -----------------------------------------------------------------------------------


def test_the_plan_shows_what_the_layer_told() -> None:
    made = plan(Text(16), Rule(Name("**"), Pretrained(Text(8), adapt={"**": HyperClone()})))
    fills = {step.site.name: step.fill for step in made}
    assert all(isinstance(fill, Loaded) for fill in fills.values())
    adapters = {name: fill.adapter for name, fill in fills.items() if isinstance(fill, Loaded)}
    assert adapters["blocks.layers.0.self_attn.in_proj_weight"] == HyperClone((1,), (1, 1, 1))
    assert adapters["blocks.layers.0.self_attn.in_proj_bias"] == HyperClone((), (1, 1, 1))
    assert adapters["embed.weight"] == HyperClone((), axis=1)
    assert "promise: same function" in made.loads[0].summary()


def test_what_is_said_comes_before_what_the_layer_tells() -> None:
    told = HyperClone((), (1,), 0)
    made = plan(mlp(12), Rule(Name("**"), Pretrained(mlp(6), adapt={"**": HyperClone(), "2.weight": told})))
    fill = made["2.weight"].fill
    assert isinstance(fill, Loaded)
    assert fill.adapter == told


def test_a_table_of_ones_own_is_told_by_its_role() -> None:
    old, new = Rows(4), Rows(8)
    initialize(new, Rule(Name("**"), Pretrained(old, adapt={"**": HyperClone()})))
    table = old.relative_position_bias_table.detach()
    assert torch.equal(new.relative_position_bias_table.detach(), table.repeat(1, 2))


def test_last_in_a_chain() -> None:
    weight = torch.randn(3, 2)
    layer = nn.Linear(6, 4, bias=False)
    rule = Rule(Name("**"), Pretrained({"weight": weight}, adapt={"**": Chain((Transpose(), HyperClone()))}))
    initialize(layer, rule)
    torch.testing.assert_close(layer.weight.detach(), weight.T.repeat(2, 2) / 2)


class Grouped(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, groups=2), nn.GroupNorm(2, width)


class Fused(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(width, 3 * width)


class Odd(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.things = nn.Parameter(torch.zeros(2, width, width))


class Mamba(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mamba_mixer = nn.ModuleDict({"in_proj": nn.Linear(width, 2 * width)})


class Rows(nn.Module):
    """Matrices of one's own: an expert's bias, a table of relative positions, a router."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.randn(5, width))


class ScaledEmbedding(nn.Embedding):
    pass


@pytest.mark.parametrize(
    ("make", "old", "new", "adapter", "text"),
    [
        (mlp, 6, 9, HyperClone(), r"HyperClone\(.*\) needs a whole multiple of each width, but got 6 to 9"),
        (mlp, 9, 6, Net2Wider(), r"makes layers wider, not 9 to 6; WeightSelection\(\) makes them narrower"),
        (mlp, 6, 9, WeightSelection(), r"takes a part of each dimension, but got \[6\] for a site of \[9\]"),
        (
            Text,
            8,
            12,
            Net2Wider(),
            r"norm over all units unless each has as many copies: 8 to 12 is no whole multiple; 16 is",
        ),
        (Grouped, 4, 8, HyperClone(), r"cannot widen each of 2 groups: let their number grow"),
        (Grouped, 4, 8, Net2Wider(), r"would mix the groups of a GroupNorm; say inputs=\[\]"),
        (Fused, 4, 8, HyperClone(), r"'query_key_value' holds q, k and v, and its shape does not tell how: say sizes="),
        (
            Mamba,
            4,
            8,
            HyperClone(),
            r"what lies side by side in mamba_mixer\.in_proj \(ssm\.in\) is not known: say inputs=",
        ),
        (Odd, 4, 8, HyperClone(), r"the layout of Odd's things is not known: say which of its axes are summed over"),
        (lambda n: ScaledEmbedding(5, n), 4, 8, HyperClone(), r"ScaledEmbedding may multiply by a number that grows"),
        (lambda n: nn.Embedding(n, 4), 4, 8, HyperClone(), r"widens layers, and dimension 0 is no width: 4 to 8"),
        (lambda n: nn.Conv2d(2, 2, n), 3, 6, HyperClone(), r"widens layers, and dimension 2 is no width: 3 to 6"),
        (lambda n: nn.Embedding(n, 4), 8, 4, Repeat(), r"Repeat\(\) makes more rows, not 8 to 4; Rows\(\) takes some"),
    ],
)
def test_what_keeps_nothing_is_refused_before_anything_is_written(
    make: Callable[[int], nn.Module], old: int, new: int, adapter: Adapter, text: str
) -> None:
    model = make(new)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=text):
        initialize(model, Rule(Name("**"), Pretrained(make(old), adapt={"**": adapter})))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_table_that_is_a_head_without_a_norm_before_it() -> None:
    class Bare(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.head, self.last = nn.Embedding(9, width), nn.Linear(width, 9), nn.Linear(width, width)
            self.head.weight = self.embed.weight

    with pytest.raises(CheckpointError, match=r"shares the table of an embedding .* untie the two"):
        plan(Bare(8), Rule(Name("**"), Pretrained(Bare(4), adapt={"**": HyperClone()})))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: HyperClone((1,), ()), r"sizes must be whole numbers from 1"),
        (lambda: Net2Wider(axis=-1), r"axis must be a whole number from 0"),
        (lambda: HyperClone(snr=float("nan")), r"snr"),
        (lambda: Net2Wider(noise=-1.0), r"noise"),
        (lambda: HyperClone((1,), (2, 1)).check([(4, 4)], (8, 4), "w"), r"cannot cut 4 and 8 into parts of \(2, 1\)"),
        (lambda: HyperClone((1,)).check([(4,)], (8, 4), "w"), r"keeps the number of dimensions"),
    ],
)
def test_arguments(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
