"""Offers: what would make a site of a tensor of another shape is named."""

from __future__ import annotations

import pytest

from torchinit.checkpoints.adapters.offers import offer


@pytest.mark.parametrize(
    ("seen", "shape", "names"),
    [
        ((64, 3, 7, 7), (64, 4, 7, 7), "InputChannels"),
        ((64, 3, 7, 7), (64, 3, 5, 7, 7), "Inflate"),
        ((768, 3, 16, 16), (768, 3, 8, 8), "ResizePatches"),
        ((768, 2304), (2304, 768), "Transpose"),
        ((3, 3, 16, 32), (32, 16, 3, 3), "Transpose(axes=(3, 2, 0, 1))"),
        ((8, 64, 96), (8, 96, 64), "Transpose(axes=(0, 2, 1))"),
        ((1, 197, 768), (1, 577, 768), "ResizePositions"),
        ((1, 196, 768), (1, 576, 768), "ResizePositions(prefix=0)"),
        ((1, 201, 768), (1, 581, 768), "ResizePositions(prefix=5)"),
        ((169, 4), (529, 4), "ResizeRelativeBias, ResizeVocabulary, Labels or Drop"),
        ((732, 12), (2212, 12), "ResizeRelativeBias(extra=3), ResizeVocabulary, Labels or Drop"),
        ((1000,), (10,), "ResizeVocabulary, Rows, Labels or Drop"),
        ((10,), (1000,), "ResizeVocabulary, Labels or Drop"),
        ((512, 512), (128, 512), "ResizeVocabulary, Rows, Labels or Drop"),
    ],
)
def test_what_would_do(seen: tuple[int, ...], shape: tuple[int, ...], names: str) -> None:
    assert offer(seen, shape) == f"; {names} can adapt it"


@pytest.mark.parametrize(
    ("seen", "shape", "name", "told"),
    [
        ((50, 768), (197, 768), "embeddings.position_embedding.weight", "ResizePositions"),
        ((512, 512), (128, 512), "model.layers.0.self_attn.k_proj.weight", "PoolHeads"),
        ((512,), (128,), "h.0.value.bias", "PoolHeads"),
        ((512, 512), (128, 512), "layers.0.attention.wv.weight", "PoolHeads"),
        ((512, 512), (384, 512), "k_proj.weight", "ResizeVocabulary, Rows, Labels or Drop"),
        ((512, 512), (128, 512), "q_proj.weight", "ResizeVocabulary, Rows, Labels or Drop"),
    ],
)
def test_what_would_do_by_the_name(seen: tuple[int, ...], shape: tuple[int, ...], name: str, told: str) -> None:
    assert offer(seen, shape, name) == f"; {told} can adapt it"


@pytest.mark.parametrize(
    ("seen", "shape"), [((), (3,)), ((3,), ()), ((4, 5), (6, 7)), ((2, 3, 4), (5, 3)), ((4, 5), (4, 7))]
)
def test_where_nothing_would(seen: tuple[int, ...], shape: tuple[int, ...]) -> None:
    for name in ("", "k_proj.weight", "pos_embed"):
        assert offer(seen, shape, name) == ""
