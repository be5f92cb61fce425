"""Golden matrices: whole-matrix fills whose digests are kept in tests/golden, and the exact matrices to compare with.

``python -m tests.initializers.golden`` writes the file. Every value of a case lies far from the places where its dtype
would round to another number: at least 64 times as far as the factorization in double precision errs here. So another
machine's library, which errs as much in another direction, comes to the same digest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.initializers.test_elementwise import drawn
from torchinit import Normal, Orthogonal
from torchinit.initializers import DeltaOrthogonal, Fill, Sparse

FILE = Path(__file__).parent.parent / "golden" / "matrices.json"
APART = 64
"""How much farther than its error a value lies from where it would be rounded to another one."""

FILLS: dict[str, Fill] = {
    "orthogonal": Orthogonal(),
    "orthogonal, gain": Orthogonal(math.sqrt(2)),
    "orthogonal, axis": Orthogonal(axis=1),
    "delta orthogonal": DeltaOrthogonal(),
    "sparse": Sparse(0.3, 0.05),
}
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "complex64")}
_WANTED: list[tuple[str, list[int], str]] = [
    ("orthogonal", [3, 5], "float32"),
    ("orthogonal", [5, 3], "float32"),
    ("orthogonal", [64, 64], "float32"),
    ("orthogonal", [37, 100], "float32"),
    ("orthogonal", [128, 128], "float32"),
    ("orthogonal", [256, 192], "float32"),
    ("orthogonal", [300, 300], "bfloat16"),
    ("orthogonal", [200, 500], "float16"),
    ("orthogonal", [16, 24], "complex64"),
    ("orthogonal", [32, 8, 3, 3], "float32"),
    ("orthogonal, gain", [60, 50], "float32"),
    ("orthogonal, axis", [12, 20, 3], "float32"),
    ("delta orthogonal", [40, 30, 3, 3], "float32"),
    ("sparse", [100, 80], "float32"),
]


@dataclass(frozen=True)
class Case:
    """What is filled."""

    fill: str
    shape: list[int]
    dtype: str
    seed: int = 0

    def values(self, dtype: torch.dtype | None = None) -> Tensor:
        return drawn(FILLS[self.fill], tuple(self.shape), dtype or DTYPES[self.dtype], seed=self.seed)

    def gaussian(self) -> NDArray[Any]:
        """What is factorized: the draws of the stream, as they are."""
        found: NDArray[Any] = drawn(Normal(), tuple(self.shape), self.wide, seed=self.seed).numpy()
        return found

    @property
    def wide(self) -> torch.dtype:
        return torch.complex128 if DTYPES[self.dtype].is_complex else torch.float64

    def digest(self) -> str:
        """BLAKE2b-128 of the little-endian bytes of the values."""
        return digest(self.values())

    def exact(self) -> NDArray[Any] | None:
        """The matrix by another algorithm in extended precision; None where nothing is factorized."""
        fill, shape, gaussian = FILLS[self.fill], tuple(self.shape), self.gaussian()
        if isinstance(fill, Orthogonal):
            turned = np.moveaxis(gaussian, fill.axis, 0)
            made = orthonormal(turned.reshape(len(turned), -1)).reshape(turned.shape)
            return np.moveaxis(made, 0, fill.axis) * fill.gain
        if isinstance(fill, DeltaOrthogonal):
            made = np.zeros(shape, np.longdouble)
            made[:, :, 1, 1] = orthonormal(gaussian[:, :, 1, 1]) * fill.gain
            return made
        return None


def digest(values: Tensor) -> str:
    parts = torch.view_as_real(values) if values.is_complex() else values
    return blake2b(bytes(parts.reshape(-1).view(torch.uint8).tolist()), digest_size=16).hexdigest()


def orthonormal(gaussian: NDArray[Any]) -> NDArray[Any]:
    """Gram-Schmidt, each column twice: the factor whose R has a positive diagonal, in extended precision."""
    if gaussian.shape[0] < gaussian.shape[1]:
        return orthonormal(gaussian.T).T
    made: NDArray[Any] = gaussian.astype(np.clongdouble if np.iscomplexobj(gaussian) else np.longdouble)
    for at in range(made.shape[1]):
        for _ in range(2):
            made[:, at] -= made[:, :at] @ (made[:, :at].conj().T @ made[:, at])
        made[:, at] /= np.sqrt((np.abs(made[:, at]) ** 2).sum())
    return made


def spacing(values: NDArray[Any], dtype: torch.dtype) -> NDArray[Any]:
    """How far apart the numbers of a dtype are around each value."""
    info = torch.finfo(dtype)
    normal = np.maximum(np.abs(values.astype(np.float64)), info.smallest_normal)
    return np.exp2(np.floor(np.log2(normal))) * info.eps


def margin(values: NDArray[Any], dtype: torch.dtype) -> float:
    """How far the values lie from where they would round to another number of a dtype, at the least."""
    found = np.abs(reals(values))
    found = found[found > 0]  # a zero is computed by nobody
    apart = spacing(found, dtype)
    middle = np.abs(found % apart - apart / 2)
    if dtype.itemsize == 2:  # what rounds to a middle in float32 goes to the even side, whichever it was on
        middle = np.abs(middle - spacing(found, torch.float32) / 2)
    return float(middle.min())


def rounded(values: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """The values as float32 and then, if it is narrower, as the dtype."""
    parts = reals(values)
    apart = spacing(parts, torch.float32)
    exact = torch.from_numpy((np.rint(parts / apart) * apart).astype(np.float64)).to(torch.float32)
    return torch.view_as_complex(exact) if dtype.is_complex else exact.to(dtype)


def reals(values: NDArray[Any]) -> NDArray[Any]:
    return np.stack([values.real, values.imag], -1) if np.iscomplexobj(values) else values


def error(case: Case, exact: NDArray[Any]) -> float:
    """How much the fill errs before it is rounded."""
    return float(np.abs(case.values(case.wide).numpy() - exact).max())


def is_apart(case: Case, exact: NDArray[Any]) -> bool:
    return margin(exact, DTYPES[case.dtype]) > APART * error(case, exact)


def cases() -> Iterator[Case]:
    """Each with the first seed for which its values lie where they have to."""
    for wanted in _WANTED:
        for seed in count():
            case = replace(Case(*wanted), seed=seed)
            exact = case.exact()
            if exact is None or is_apart(case, exact):
                yield case
                break


def main() -> None:
    """Writes the file."""
    lines = ",\n".join(json.dumps({**asdict(case), "digest": case.digest()}) for case in cases())
    FILE.write_text(f'{{"cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
