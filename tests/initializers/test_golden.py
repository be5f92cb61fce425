"""Golden matrices: the digests that were kept are those of the exact matrices; see tests/initializers/golden.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import linalg

from tests.initializers.golden import DTYPES, FILE, FILLS, Case, digest, is_apart, rounded

ROWS = json.loads(FILE.read_text(encoding="utf-8"))["cases"]
KEPT = [(Case(**{key: value for key, value in row.items() if key != "digest"}), row["digest"]) for row in ROWS]


@pytest.mark.parametrize(("case", "kept"), KEPT, ids=str)
def test_matrices_have_the_digests_that_were_kept(case: Case, kept: str) -> None:
    assert case.digest() == kept


@pytest.mark.skipif(bool(np.finfo(np.longdouble).eps > 1e-18), reason="this machine has no extended precision")
@pytest.mark.parametrize(("case", "kept"), KEPT, ids=str)
def test_they_are_the_exact_matrices_rounded(case: Case, kept: str) -> None:
    """And no value is near another rounding, so that what another library errs does not show."""
    exact = case.exact()
    if exact is None:
        assert case.fill == "sparse"
    else:
        assert is_apart(case, exact)
        assert digest(rounded(exact, DTYPES[case.dtype])) == kept


@pytest.mark.parametrize(
    ("case", "kept"), [one for one in KEPT if one[0].fill == "orthogonal" and len(one[0].shape) == 2], ids=str
)
def test_another_library_comes_to_them(case: Case, kept: str) -> None:
    """SciPy's factorization has other bits in double precision, and the same where they are rounded."""
    gaussian = case.gaussian()
    wide = gaussian.shape[0] < gaussian.shape[1]
    q, r = linalg.qr(gaussian.T if wide else gaussian, mode="economic")
    signs = np.diagonal(r) / np.abs(np.diagonal(r))
    assert digest(rounded((q * signs).T if wide else q * signs, DTYPES[case.dtype])) == kept


def test_every_fill_that_factorizes_is_there() -> None:
    assert {case.fill for case, _ in KEPT} == set(FILLS)
