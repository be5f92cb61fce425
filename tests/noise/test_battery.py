"""A small run of the battery: nothing of the stream is found, and each of its tests finds what it is for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from scipy import special

from tests.noise import battery
from tests.noise.battery import Finding, across, bits, distances, draw, moments, serial
from tests.noise.feed import WAYS, words
from torchinit.noise.keyed import derive

N = 1 << 18
"""Lags are up to 2**17."""


def found(findings: Iterable[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.p < battery.LEAST]


def test_nothing_is_found() -> None:
    assert not found(battery.battery(N))


def test_a_spread_too_large_is_found() -> None:
    wide = draw(N, "normal", (0.0, 1.03))
    assert found(moments("", wide, lambda k: float(special.factorial2(k - 1)) if k % 2 == 0 else 0.0))
    assert len(found(distances("", wide, special.ndtr))) == 2


def test_a_bit_that_is_not_fair_or_not_free_is_found() -> None:
    fair = words([(derive(0, "words"), 0)], N)[0]
    assert not found(bits(fair))
    assert found(bits(fair | ((fair & (fair >> 7)) & 1) << 5))
    assert len(found(bits(np.arange(N, dtype=np.uint32) * np.uint32(0x9E3779B1)))) > 1


def test_neighbours_and_streams_that_hang_together_are_found() -> None:
    normal = draw(N, "normal", (0.0, 1.0))
    assert len(found(serial(normal + 0.03 * np.roll(normal, 32)))) == 2
    rows = normal.reshape(256, -1)
    assert not found(across("", rows))
    rows[7] = 0.8 * rows[7] + 0.6 * rows[200]
    assert found(across("", rows))


def test_anderson_darling_at_its_published_quantiles() -> None:
    for p, z in ((0.25, 1.2481), (0.10, 1.9331), (0.05, 2.4922), (0.01, 3.8781)):
        assert battery._anderson_darling(z) == pytest.approx(p, rel=0.01)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_fed_to_other_batteries(way: str) -> None:
    first = next(iter(WAYS[way]()))
    expected = {
        "draw": words([(derive(0, "weight"), 0)], first.shape[1]),
        "names": words([(derive(0, f"blocks.{n}.bias"), 0) for n in range(3)], first.shape[1]),
        "seeds": words([(derive(n, "weight"), 0) for n in range(len(first))], 3).T,
    }[way]
    assert np.array_equal(first[: len(expected)], expected)
