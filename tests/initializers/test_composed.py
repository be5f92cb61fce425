"""Compositions: initializers made of others, against what the parts do by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchinit
from tests.initializers.test_elementwise import assert_same_bits, drawn
from tests.strategies import elementwise_fills
from torchinit import Constant, Kaiming, Normal, Ones, Orthogonal, TruncNormal, Uniform, Xavier, Zeros, sites
from torchinit.initializers import (
    Blocks,
    Blockwise,
    DeltaOrthogonal,
    DepthScaled,
    Fill,
    Initializer,
    Padded,
    Scaled,
    Sparse,
    Stacked,
)
from torchinit.model import Layout, Site

WRONG: Any = torchinit  # without types, to say what is wrong


class Declines:
    def resolve(self, site: Site) -> Fill | None:
        return None


@given(elementwise_fills(), st.floats(-8, 8))
def test_a_scaled_fill_has_scaled_moments(fill: Fill, factor: float) -> None:
    before, after = fill.moments(), fill.scaled(factor).moments()
    assert before is not None
    assert after is not None
    assert before.mean is not None
    assert before.std is not None
    assert after.mean == pytest.approx(before.mean * factor, rel=1e-6, abs=1e-9)
    assert after.std == pytest.approx(before.std * abs(factor), rel=1e-6, abs=1e-9)
    if before.min is not None and before.max is not None and factor:
        ends = sorted((before.min * factor, before.max * factor))
        assert (after.min, after.max) == pytest.approx(tuple(ends), rel=1e-6)


@pytest.mark.parametrize("fill", [Orthogonal(2.0), Orthogonal(axis=1), Sparse(0.3, 0.1), Padded(Normal(std=0.1), 1)])
def test_scaled_values(fill: Fill) -> None:
    torch.testing.assert_close(drawn(fill.scaled(0.5), (4, 4)), drawn(fill, (4, 4)) * 0.5)


def test_scaled_kernels_and_blocks() -> None:
    kernel = DeltaOrthogonal(2.0)
    torch.testing.assert_close(drawn(kernel.scaled(-3.0), (4, 4, 3)), drawn(kernel, (4, 4, 3)) * -3)
    assert Blockwise((Normal(), Constant(1.0)), (1, 3)).scaled(2.0) == Blockwise(
        (Normal(std=2.0), Constant(2.0)), (1, 3)
    )


def test_scaled_formula() -> None:
    site = Site("w", (4, 8))
    assert Scaled(Xavier(), 0.5).resolve(site) == Xavier().resolve(site).scaled(0.5)
    assert Scaled(Declines(), 0.5).resolve(site) is None


@pytest.mark.parametrize("count", [1, 12, 48])
def test_depth_as_gpt2_has_it(count: int) -> None:
    """Residual projections start with 0.02 / sqrt(2 * layers)."""
    fill = DepthScaled(Normal(std=0.02)).resolve(Site("w", (4, 4), block=(0, count)))
    assert isinstance(fill, Normal)
    assert fill.std == pytest.approx(0.02 / math.sqrt(2 * count))


def test_depth_by_index_counts_from_one() -> None:
    stds = []
    for index in range(3):
        fill = DepthScaled(Normal(), branches=1, by="index").resolve(Site("w", (4, 4), block=(index, 3)))
        assert isinstance(fill, Normal)
        stds.append(fill.std)
    assert stds == pytest.approx([1, 1 / math.sqrt(2), 1 / math.sqrt(3)])


def test_depth_outside_of_a_block() -> None:
    with pytest.raises(ValueError, match="'head' stands in no ModuleList or Sequential of like blocks"):
        DepthScaled(Normal()).resolve(Site("head", (4, 4)))


def test_blocks_of_a_fused_projection() -> None:
    """Xavier sees each of q, k and v as (8, 8), not the (24, 8) of them together."""
    site = next(found for found in sites(nn.MultiheadAttention(8, 2)) if found.name == "in_proj_weight")
    assert Blocks(Xavier(), 3).resolve(site) == Normal(0.0, math.sqrt(2 / 16))
    assert Xavier().resolve(site) == Normal(0.0, math.sqrt(2 / 32))
    assert Blocks(Orthogonal(), 3).resolve(site) == Blockwise((Orthogonal(),) * 3, (8, 8, 8))


def test_blocks_of_grouped_queries() -> None:
    site = Site("qkv.weight", (12, 8))
    fill = Blocks((Xavier(), Xavier(), Zeros()), (8, 2, 2)).resolve(site)
    assert fill == Blockwise((Normal(0.0, math.sqrt(2 / 16)), Normal(0.0, math.sqrt(2 / 10)), Constant(0.0)), (8, 2, 2))


def test_blocks_of_a_weight_whose_outputs_run_along_dimension_1() -> None:
    """The c_attn of GPT-2: (inputs, 3 * outputs)."""
    site = Site("c_attn.weight", (4, 18), layout=Layout(in_axes=(0,), out_axes=(1,)))
    fill = Blocks(Orthogonal(), 3).resolve(site)
    assert fill == Blockwise((Orthogonal(),) * 3, (6, 6, 6), axis=1)
    for block in drawn(fill, (4, 18)).split(6, dim=1):
        torch.testing.assert_close(block @ block.T, torch.eye(4), atol=1e-6, rtol=0)
    assert Blocks(Kaiming(mode="fan_in", fans="true"), 3).resolve(site) == Normal(0.0, math.sqrt(2) / math.sqrt(4))
    assert Blocks(Kaiming(fans="true"), 3).resolve(site) == Normal(0.0, math.sqrt(2) / math.sqrt(6))
    uneven = Blocks(Kaiming(fans="true"), (12, 3, 3)).resolve(site)
    assert isinstance(uneven, Blockwise)
    assert [part.std for part in uneven.fills if isinstance(part, Normal)] == pytest.approx(
        [math.sqrt(2 / 12), math.sqrt(2 / 3), math.sqrt(2 / 3)]
    )


def test_blocks_of_a_transposed_convolution_on_torchs_generator() -> None:
    """Two blocks of outputs, each drawn as a tensor of its own."""

    def by_hand(weight: torch.Tensor) -> None:
        for block in weight.chunk(2, dim=1):
            block.copy_(nn.init.orthogonal_(torch.empty(block.shape)))

    layer = nn.ConvTranspose1d(3, 8, 2)
    fill = Blocks(Orthogonal(), 2).resolve(sites(layer)[0])
    assert isinstance(fill, Fill)
    assert_same_bits(fill, by_hand, torch.zeros(3, 8, 2))


def test_blocks_of_a_bias() -> None:
    """The forget gate of an LSTM starts open: the second of four blocks."""
    site = next(found for found in sites(nn.LSTM(3, 2)) if found.name == "bias_ih_l0")
    fill = Blocks((Zeros(), Ones(), Zeros(), Zeros()), 4).resolve(site)
    assert isinstance(fill, Fill)
    assert drawn(fill, (8,)).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_blocks_decline_where_one_part_does() -> None:
    assert Blocks((Normal(), Declines()), 2).resolve(Site("w", (4, 4))) is None


def test_stacked_experts() -> None:
    """Each expert has its own fans: 50 in, 150 out."""
    site = Site("experts", (8, 150, 50))
    assert Stacked(Xavier()).resolve(site) == Normal(0.0, 0.1)
    assert Stacked(Kaiming(mode="fan_in")).resolve(site) == Normal(0.0, 0.2)
    turned = Site("experts", (8, 50, 150))
    assert Stacked(Kaiming(mode="fan_in"), in_axis=1, out_axis=2).resolve(turned) == Normal(0.0, 0.2)
    assert Stacked(Declines()).resolve(site) is None


@pytest.mark.parametrize(("axis", "in_axis", "out_axis"), [(0, 2, 1), (0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_stacked_orthogonal(axis: int, in_axis: int, out_axis: int) -> None:
    shape = [0, 0, 0]
    shape[axis], shape[in_axis], shape[out_axis] = 4, 6, 5
    fill = Stacked(Orthogonal(), axis, in_axis, out_axis).resolve(Site("experts", tuple(shape)))
    assert isinstance(fill, Fill)
    stack = drawn(fill, tuple(shape)).permute(axis, out_axis, in_axis)
    for expert in stack:
        torch.testing.assert_close(expert @ expert.T, torch.eye(5), atol=1e-6, rtol=0)
    assert not torch.allclose(stack[0], stack[1], atol=0.1)


@pytest.mark.parametrize(
    ("init", "site", "message"),
    [
        (Blocks(Normal(), 3), Site("w", (8, 4)), "parts=3 do not make up the 8 of dimension 0 of 'w'"),
        (Blocks(Normal(), (4, 5)), Site("w", (8, 4)), r"parts=\(4, 5\) do not make up the 8"),
        (Blocks(Normal(), 2), Site("w", ()), r"'w' of shape \(\) has no output axis"),
        (
            Blocks(Normal(), 2),
            Site("w", (4,), layout=Layout((), ())),
            r"'w' of shape \(4,\) has no output axis to cut into blocks",
        ),
        (Stacked(Normal()), Site("w", (8, 4)), r"Stacked needs 3 dimensions, but 'w' has shape \(8, 4\)"),
    ],
)
def test_sites_that_do_not_fit(init: Initializer, site: Site, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        init.resolve(site)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scaled(Normal(), math.nan), "factor must not be NaN"),
        (lambda: DepthScaled(Normal(), branches=0), "branches must be above 0, but got 0"),
        (lambda: WRONG.DepthScaled(Normal(), by="width"), "by must be one of depth, index, but got 'width'"),
        (lambda: Blocks(Normal(), 0), "parts must be a whole number of at least 1, or a list of them, but got 0"),
        (lambda: Blocks(Normal(), True), "parts must be a whole number of at least 1"),
        (lambda: Blocks(Normal(), ()), "parts must be a whole number of at least 1"),
        (lambda: Blocks(Normal(), (2, 0)), "parts must be a whole number of at least 1"),
        (lambda: Blocks((Normal(), Zeros()), 3), "2 initializers do not go with 3 parts"),
        (lambda: Blocks((Normal(), Zeros()), (1, 2, 3)), "2 initializers do not go with 3 parts"),
        (lambda: Stacked(Normal(), 0, 1, 1), "axis, in_axis and out_axis must be 0, 1 and 2 in some order"),
        (lambda: Stacked(Normal(), 0, 1, 3), "axis, in_axis and out_axis must be 0, 1 and 2 in some order"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_text_for_tables() -> None:
    assert str(Scaled(Normal(std=0.02), 0.5)) == "Scaled(Normal(std=0.02), 0.5)"
    assert str(DepthScaled(Xavier())) == "DepthScaled(Xavier())"
    assert str(Blocks((Zeros(), Ones()), 2)) == "Blocks((Zeros(), Ones()), 2)"


def test_a_scaled_truncation_keeps_its_side() -> None:
    assert TruncNormal(1.0, 1.0, -1.0, 3.0).scaled(-2.0) == TruncNormal(-2.0, 2.0, -6.0, 2.0)
    assert TruncNormal(1.0, 1.0, -1.0, 3.0, "sigma").scaled(-2.0) == TruncNormal(-2.0, 2.0, -3.0, 1.0, "sigma")
    assert Uniform(-1.0, 3.0).scaled(-1.0) == Uniform(-3.0, 1.0)
