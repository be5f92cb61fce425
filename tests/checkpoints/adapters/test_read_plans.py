"""Parts: a box of a site has the numbers that the whole has there, whatever little of the file is read for it."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchinit.checkpoints.adapters import (
    ADAPTERS,
    Adapter,
    BatchNormAffine,
    Chain,
    Dequantize,
    FoldBatchNorm,
    Fuse,
    HyperClone,
    Inflate,
    InputChannels,
    Labels,
    LoRA,
    MergeExperts,
    Net2Wider,
    Only,
    PoolHeads,
    Rearrange,
    Repeat,
    ResizePatches,
    ResizePositions,
    ResizeRelativeBias,
    ResizeVocabulary,
    RopeOrder,
    Rows,
    Split,
    Stack,
    Transpose,
    Unstack,
    Upcycle,
    UpcycleRouter,
    WeightNorm,
    WeightSelection,
)
from torchinit.model import Box

Size = tuple[int, ...]
QKV = ("q", "k", "v")


class Case(NamedTuple):
    """An adapter and what it is to make a site of, of what; ``exact``: of no more elements than the box has."""

    adapter: Adapter
    key: str
    shapes: list[Size]
    shape: Size
    exact: bool = False


CASES = (
    Case(BatchNormAffine(), "n.bias", [(6,)] * 4, (6,)),
    Case(Dequantize(), "weight", [(5, 3), ()], (5, 3)),
    Case(Dequantize(), "weight", [(5, 3), (5,)], (5, 3)),
    Case(Dequantize(block=2), "weight", [(5, 3), (3, 2)], (5, 3)),
    Case(Dequantize(), "weight", [(4, 6, 3), (4, 3, 1)], (4, 6, 3)),
    Case(
        Chain((Dequantize(), Fuse("qkv", QKV))), "qkv.weight", [(4, 5), (4, 1), (2, 5), (2, 1), (3, 5), (3, 1)], (9, 5)
    ),
    Case(FoldBatchNorm("c", "n"), "c.weight", [(6,), (6,), (6, 3, 2)], (6, 3, 2)),
    Case(Fuse("qkv", QKV), "qkv.weight", [(4, 5), (2, 5), (3, 5)], (9, 5), exact=True),
    Case(Fuse("qkv", QKV, axis=1), "qkv.weight", [(5, 4), (5, 2), (5, 3)], (5, 9), exact=True),
    Case(Fuse("qkv", QKV, groups=3), "qkv.weight", [(12, 2), (6, 2), (3, 2)], (21, 2)),
    Case(Fuse("qkv", QKV), "qkv.bias", [(4,), (2,), (3,)], (9,), exact=True),
    Case(HyperClone((1,)), "w", [(4, 3)], (8, 9)),
    Case(HyperClone((1,), (2, 1), snr=3.0), "w", [(6, 4)], (12, 12)),
    Case(Inflate(), "w", [(4, 3, 2)], (4, 3, 5, 2)),
    Case(Inflate("centre", 0), "w", [(4, 3)], (5, 4, 3)),
    Case(InputChannels(), "w", [(4, 3, 2)], (4, 7, 2)),
    Case(InputChannels("repeat"), "w", [(4, 3, 2)], (4, 7, 2)),
    Case(Labels(("a", "b", "c", "d"), ("d", "b", "a")), "w", [(4, 2)], (3, 2)),
    Case(Labels(("a", "b"), ("b", "c"), "mean"), "w", [(2, 3)], (2, 3)),
    Case(LoRA("default", 2), "q.lora_A.default.weight", [(5, 4)], (2, 4)),
    Case(LoRA("gaussian", 2), "q.lora_B.default.weight", [(5, 4)], (5, 2)),
    Case(LoRA("orthogonal", 4), "q.lora_A.default.weight", [(5, 4)], (4, 4)),
    Case(LoRA("orthogonal", 4), "q.base_layer.weight", [(5, 4)], (5, 4), exact=True),
    Case(LoRA("pissa", 2, scaling=0.5), "q.base_layer.weight", [(5, 4)], (5, 4)),
    Case(LoRA("pissa", 2, iterations=2), "q.lora_B.default.weight", [(5, 4)], (5, 2)),
    Case(LoRA("olora", 2), "q.base_layer.bias", [(5,)], (5,), exact=True),
    Case(MergeExperts("w", "experts"), "w", [(4, 3, 2)], (3, 2)),
    Case(MergeExperts("w", "*.w", count=3), "w", [(3, 2)] * 3, (3, 2)),
    Case(Only("q", RopeOrder(3)), "q", [(24, 2)], (24, 2)),
    Case(Only("q", RopeOrder(3)), "v", [(24, 2)], (24, 2), exact=True),
    Case(Chain((Only("q", RopeOrder(2)), Fuse("qkv", QKV))), "qkv.weight", [(8, 5), (2, 5), (3, 5)], (13, 5)),
    Case(PoolHeads(6), "w", [(12, 3)], (4, 3)),
    Case(PoolHeads(6, choose=(5, 0)), "w", [(12, 3)], (4, 3)),
    Case(Rearrange((2, 3, -1), (2, 1, 0)), "w", [(12, 3)], (12, 3)),
    Case(Net2Wider((1,), seed=1), "w", [(6, 4, 2)], (9, 6, 2)),
    Case(Net2Wider((0,), (1, 2), 1, noise=0.1), "w", [(6, 9)], (9, 15)),
    Case(Repeat(), "w", [(3, 2)], (8, 2)),
    Case(ResizePatches(), "w", [(4, 2, 3, 3)], (4, 2, 5, 4)),
    Case(ResizePositions(), "w", [(1, 10, 3)], (1, 17, 3)),
    Case(ResizeRelativeBias(), "w", [(9, 3)], (25, 3)),
    Case(ResizeVocabulary(), "w", [(6, 3)], (9, 3)),
    Case(ResizeVocabulary(), "w", [(6, 3)], (4, 3), exact=True),
    Case(ResizeVocabulary(trained=4, like={5: (1, 2)}), "w", [(6, 3)], (6, 3)),
    Case(RopeOrder(3), "w", [(24, 2)], (24, 2)),
    Case(RopeOrder(2, "interleaved", 4), "w", [(14,)], (14,)),
    Case(Rows(), "w", [(6, 3)], (4, 3), exact=True),
    Case(Rows((4, 0, 4, 2), axis=1), "w", [(3, 6)], (3, 4)),
    Case(Split("qkv", QKV), "k.weight", [(9, 4)], (3, 4), exact=True),
    Case(Split("qkv", QKV, (4, 2, 1), axis=1, groups=3), "k.weight", [(2, 21)], (2, 6)),
    Case(Stack("w", "*.w", 4), "w", [(3, 2)] * 4, (4, 3, 2), exact=True),
    Case(Stack("w", "*.w", 3, axis=2), "w", [(4, 2)] * 3, (4, 2, 3), exact=True),
    Case(Transpose((2, 0, 1)), "w", [(4, 3, 5)], (5, 4, 3), exact=True),
    Case(Unstack("w", "*.w", axis=1), "2.w", [(4, 5, 3)], (4, 3), exact=True),
    Case(Upcycle("w", "up"), "w", [(4, 3)], (5, 4, 3)),
    Case(Upcycle("*.w", "up"), "2.w", [(4, 3)], (4, 3), exact=True),
    Case(Upcycle("w", "up", hidden=0, granularity=2, fused=2, scale=2), "w", [(12, 3)], (4, 6, 3)),
    Case(Upcycle("*.w", "up", hidden=1, granularity=3, scale=1), "4.w", [(2, 6)], (2, 2), exact=True),
    Case(Upcycle("w", "up", noise=0.1), "w", [(4, 3)], (5, 4, 3)),
    Case(Upcycle("w", "up", hidden=1, drop=0.5, granularity=2, scale=2, noise=0.1), "w", [(3, 8)], (4, 3, 4)),
    Case(UpcycleRouter("w", "up", granularity=2), "w", [(4, 3)], (6, 3)),
    Case(WeightNorm(), "weight", [(6, 1, 1), (6, 4, 3)], (6, 4, 3)),
    Case(WeightSelection(), "w", [(9, 6)], (4, 3)),
    Case(Chain((Transpose(), HyperClone((1,)))), "w", [(3, 4)], (8, 6)),
    Case(Chain((Transpose(), Split("qkv", QKV))), "k.weight", [(4, 9)], (3, 4), exact=True),
    Case(Chain((Fuse("gu", ("g", "u")), Stack("gu", "*.gu", 3))), "gu", [(3, 4), (2, 4)] * 3, (3, 5, 4), exact=True),
    Case(Chain((RopeOrder(2), Transpose(), Rows())), "w", [(8, 6)], (4, 8)),
    Case(Chain((Transpose(), ResizeVocabulary())), "w", [(3, 6)], (9, 3)),
)


def tensors(case: Case) -> list[torch.Tensor]:
    """Positive numbers, since there are variances among them, each of which is there once."""
    made = torch.arange(1.0, 1 + sum(torch.Size(size).numel() for size in case.shapes))
    parts = made.split([torch.Size(size).numel() for size in case.shapes])
    return [part.view(size) for part, size in zip(parts, case.shapes, strict=True)]


@st.composite
def boxes(draw: st.DrawFn, shape: Size) -> Box:
    """Any box, empty ones and all of it too."""
    ends = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    return Box(tuple(low for low, _ in ends), tuple(high - low for low, high in ends))


def read(case: Case, box: Box) -> tuple[torch.Tensor, int]:
    """The box as it is made of parts of the tensors, and how many elements those have."""
    plan = case.adapter.read_plan(case.shapes, case.shape, box, case.key)
    held = [one.of(tensor) for one, tensor in zip(plan.boxes, tensors(case), strict=True)]
    assert [tuple(tensor.shape) for tensor in held] == [one.shape for one in plan.boxes]
    return plan.combine(held), sum(one.numel for one in plan.boxes)


def test_every_adapter_is_here() -> None:
    assert {type(case.adapter).__name__ for case in CASES} == {*ADAPTERS} - {"Drop"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.adapter))
@settings(max_examples=30)
@given(data=st.data())
def test_a_box_is_that_of_the_whole(case: Case, data: st.DataObject) -> None:
    case.adapter.check(case.shapes, case.shape, case.key)
    box = data.draw(boxes(case.shape))
    whole = case.adapter.adapt(tensors(case), case.shape, case.key)
    made, count = read(case, box)
    assert torch.equal(made, box.of(whole))
    assert made.dtype == whole.dtype
    if case.exact:
        assert count == box.numel


@pytest.mark.parametrize(
    ("adapter", "seen", "shape", "box", "wanted"),
    [
        # Within a head the rows change places; no other head is read.
        (RopeOrder(4), (32, 5), (32, 5), Box((10, 1), (3, 2)), Box((9, 1), (6, 2))),
        # Three kernels of eight, whatever the number of their channels and frames.
        (InputChannels("repeat"), (8, 3, 5), (8, 9, 5), Box((2, 4, 0), (3, 2, 5)), Box((2, 1, 0), (3, 2, 5))),
        (Inflate(), (8, 3, 5), (8, 3, 4, 5), Box((2, 0, 1, 0), (3, 3, 1, 5)), Box((2, 0, 0), (3, 3, 5))),
        # From the first to the last row that is asked for.
        (Rows((7, 2, 4)), (9, 5), (3, 5), Box((1, 0), (2, 5)), Box((2, 0), (3, 5))),
        # The old rows of a larger vocabulary, but for a new one all of them.
        (ResizeVocabulary(), (9, 5), (12, 5), Box((4, 0), (5, 5)), Box((4, 0), (5, 5))),
        (ResizeVocabulary(), (9, 5), (12, 5), Box((4, 0), (6, 5)), Box((0, 0), (9, 5))),
    ],
)
def test_what_is_read(adapter: Adapter, seen: Size, shape: Size, box: Box, wanted: Box) -> None:
    assert adapter.read_plan([seen], shape, box, "w").boxes == (wanted,)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_rows_of_any_dtype_change_places(dtype: torch.dtype) -> None:
    q, k = (torch.arange(2 * rows).view(rows, 2).to(dtype) for rows in (6, 2))
    plan = Fuse("qk", ("q", "k"), groups=2).read_plan([(6, 2), (2, 2)], (8, 2), Box((2, 1), (4, 1)), "qk")
    made = plan.combine([one.of(tensor) for one, tensor in zip(plan.boxes, (q, k), strict=True)])
    assert made.dtype == dtype
    assert made.tolist() == [q[2, 1:].tolist(), k[0, 1:].tolist(), q[3, 1:].tolist(), q[4, 1:].tolist()]
