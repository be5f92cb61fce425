"""The stream's arithmetic against published answers, exact integers and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from torchinit.noise.distributions import Draw, DrawKind
from torchinit.noise.engines import torch_engine

CPU = torch.device("cpu")
WORD = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers_of_random123(counter: tuple[int, ...], key: tuple[int, int], answer: str) -> None:
    low = counter[0] | counter[1] << 32
    block = torch.tensor(low - (1 << 64) if low >> 63 else low)
    words = torch_engine.block((*key, counter[2], counter[3]), block)
    assert " ".join(f"{int(word):08x}" for word in words) == answer


def by_hand(key: torch_engine.Key, index: int) -> int:
    """The word of an element, in Python integers, from the specification's text."""
    counter = index // 32 * 8 + index % 8
    c = [counter & 0xFFFFFFFF, counter >> 32, key[2], key[3]]
    k = [key[0], key[1]]
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [q >> 32 ^ c[1] ^ k[0], q & 0xFFFFFFFF, p >> 32 ^ c[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[index // 8 % 4]


@given(
    key=st.tuples(WORD, WORD, WORD, WORD),
    index=st.integers(0, 2**64 - 1) | st.integers(2**63 - 40, 2**63 + 40) | st.integers(0, 100),
)
def test_word_of_any_element(key: torch_engine.Key, index: int) -> None:
    as_int64 = index - (1 << 64) if index >> 63 else index
    assert int(torch_engine.words_at(key, torch.tensor([as_int64]))) == by_hand(key, index)


@given(first=st.integers(0, 2**63 - 2000) | st.integers(0, 200), count=st.integers(0, 300))
def test_stretch_is_its_elements(first: int, count: int) -> None:
    key = (1, 2, 3, 4)
    stretch = torch_engine.words_between(key, first, count, CPU)
    assert torch.equal(stretch, torch_engine.words_at(key, torch.arange(count) + first))


@given(word=WORD, width=st.integers(0, 2**32 - 1))
def test_multiply_shift_is_exact(word: int, width: int) -> None:
    assert int(torch_engine.multiply_shift(torch.tensor(word), width)) == word * width >> 32


@given(word=WORD)
def test_signed_keeps_the_bits(word: int) -> None:
    assert int(torch_engine.signed(torch.tensor(word))) & 0xFFFFFFFF == word


def words(count: int) -> torch.Tensor:
    """Words from both ends, the middle, the border of the tails, and a spread over all."""
    edge = torch.arange(2000)
    border = torch.arange(-1000, 1000) + 0x7C000000
    spread = torch.linspace(0, 2**32 - 1, count, dtype=torch.float64).long()
    return torch.cat([edge, 2**32 - 1 - edge, 2**31 + edge, 2**31 - 1 - edge, border, 2**32 - 1 - border, spread])


def test_quantile_is_accurate_to_6e_7() -> None:
    s = torch_engine.signed(words(400_000))
    rank = s.double() + 2.0**31 + 0.5
    # Counted from the nearer end: near 1 a probability has lost the tail's digits.
    near = torch.minimum(rank, 2.0**32 - rank) / 2.0**32
    exact = special.ndtri(near.numpy()) * np.where(s.numpy() < 0, 1, -1)
    error = np.abs(torch_engine.quantile(s).double().numpy() / exact - 1)
    assert error.max() < 6.5e-7
    assert error.mean() < 2e-7


def test_quantile_is_odd_but_for_rounding_and_never_zero() -> None:
    s = torch_engine.signed(words(10_000))
    z = torch_engine.quantile(s)
    torch.testing.assert_close(torch_engine.quantile(~s), -z, rtol=1e-6, atol=0)
    assert float(z.abs().min()) > 2.9e-10
    assert float(z.abs().max()) == pytest.approx(-special.ndtri(2.0**-33), rel=1e-6)
    assert float(z.abs().max()) < 6.5


def test_outer_is_accurate_to_1e_6() -> None:
    z = np.concatenate([np.linspace(2.1, 10, 20_000), np.linspace(10, 38.5, 20_000)])
    depth = torch.tensor(-special.log_ndtr(-z), dtype=torch.float32)
    # The depth's own rounding moves the exact answer; compare at the rounded depth, to first order.
    exact = z + (depth.double().numpy() + special.log_ndtr(-z)) / z
    assert np.abs(torch_engine.outer(depth).double().numpy() / exact - 1).max() < 1e-6


def test_log_is_accurate() -> None:
    x = torch.logspace(-38, 0, 200_000, base=2.0, dtype=torch.float32)
    exact = np.log(x.double().numpy())
    assert np.abs(torch_engine.log(x).double().numpy() - exact).max() < 2e-6
    assert float(torch_engine.log(torch.ones(1))) == 0


def test_kinds_by_exact_arithmetic() -> None:
    drawn = words(1000)
    plain = [int(word) for word in drawn]

    def values(draw: Draw) -> list[float]:
        return torch_engine.values(drawn, draw).tolist()

    assert values(Draw(DrawKind.SIGN)) == [1.0 if word < 2**31 else -1.0 for word in plain]
    assert values(Draw(DrawKind.BERNOULLI, width=2**31 - 1)) == [float(word < 2**31) for word in plain]
    assert values(Draw(DrawKind.INTEGER, width=7, shift=-3.0)) == [float((word * 7 >> 32) - 3) for word in plain]
    assert values(Draw(DrawKind.UNIFORM, scale=2.0**-24)) == [(word >> 8) / 2**24 for word in plain]
