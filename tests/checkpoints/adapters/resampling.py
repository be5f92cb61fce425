"""Resampling: bicubic matrices from the definition of the kernel, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.floating[Any]]


def cubic(x: Matrix, a: float) -> Matrix:
    """Keys' kernel (1981): 1 at 0, 0 at 1 and 2 and beyond."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def bicubic_matrix(old: int, new: int, antialias: bool) -> Matrix:
    """The matrix that resizes a line of ``old`` points to ``new``; points are the middles of equal cells.

    With antialiasing the kernel is widened to the new cells and what lies outside is left out; without it the
    outermost points are repeated. The parameter a is -0.5 and -0.75, as PIL and OpenCV have it.
    """
    middles = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    if antialias:
        weights = cubic((np.arange(old)[None] - middles) / max(1.0, old / new), -0.5)
        normed: Matrix = weights / weights.sum(1, keepdims=True)
        return normed
    made = np.zeros((new, old))
    for offset in range(-1, 3):
        points = np.floor(middles[:, 0]).astype(int) + offset
        np.add.at(made, (np.arange(new), np.clip(points, 0, old - 1)), cubic(points - middles[:, 0], -0.75))
    return made


def resized(table: Any, old: tuple[int, int], new: tuple[int, int], antialias: bool) -> Matrix:
    """Rows that lie row by row on the old grid, resampled to the new one."""
    rows, columns = (bicubic_matrix(o, n, antialias) for o, n in zip(old, new, strict=True))
    return np.kron(rows, columns) @ np.asarray(table, dtype=np.float64)
