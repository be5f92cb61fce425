"""Tables: what stands in their cells."""

from __future__ import annotations

import torch

from torchinit._text import dtype_name, shorten_paths


def test_rows_call_a_checkpoint_by_as_much_of_its_path_as_tells_it_apart() -> None:
    paths = ["/a/x/net.pth", "/b/x/net.pth", "https://host/net.pth", "/c/other.pth", "o"]
    cells = [f"w of {path}" for path in paths]
    (row,) = shorten_paths([cells], paths)
    assert row == ["w of a/x/net.pth", "w of b/x/net.pth", "w of host/net.pth", "w of other.pth", "w of o"]
    assert shorten_paths([cells], []) == [cells]


def test_dtypes_are_called_as_people_call_them() -> None:
    assert [dtype_name(dtype) for dtype in (torch.bfloat16, torch.bool)] == ["bfloat16", "bool"]
