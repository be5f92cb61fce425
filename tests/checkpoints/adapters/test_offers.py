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
        ((1, 197, 768), (1, 577, 768), "ResizePositions"),
        ((169, 4), (529, 4), "ResizeRelativeBias, ResizeVocabulary or Drop"),
        ((1000,), (10,), "ResizeVocabulary, Rows or Drop"),
        ((10,), (1000,), "ResizeVocabulary or Drop"),
    ],
)
def test_what_would_do(seen: tuple[int, ...], shape: tuple[int, ...], names: str) -> None:
    assert offer(seen, shape) == f"; {names} can adapt it"


@pytest.mark.parametrize(("seen", "shape"), [((), (3,)), ((3,), ()), ((4, 5), (6, 7)), ((2, 3, 4), (5, 3))])
def test_where_nothing_would(seen: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert offer(seen, shape) == ""
