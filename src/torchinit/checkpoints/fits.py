"""Fits: whether tensors of a checkpoint can become those of a site, by their kinds and shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchinit.checkpoints.adapters import Adapter
from torchinit.checkpoints.formats import Info
from torchinit.core.accounts import KIND, SHAPE
from torchinit.core.sites import Site


def check_kinds(site: Site, infos: Sequence[Info]) -> None:
    """Raises ValueError where a site cannot be written at all, or not from numbers of such a kind.

    >>> check_kinds(Site("w", (2,)), [Info((2,), torch.int64)])
    Traceback (most recent call last):
    ValueError: is float32, but the file holds whole numbers (int64)
    """
    if infos and (site.state not in ("ready", "integer") or site.missing):
        raise ValueError(site.why)
    for info in infos:
        kinds = [kind_of(info.dtype), kind_of(site.dtype)]
        if len(set(kinds)) > 1 and kinds != ["truth values", "whole numbers"]:
            raise ValueError(f"is {short(site.dtype)}, {KIND} {kinds[0]} ({short(info.dtype)})")


def misfit(site: Site, infos: Sequence[Info], key: str, adapter: Adapter | None) -> str:
    """Why the tensors do not fit a site by their shapes; nothing if they do."""
    if adapter is None:
        seen = infos[0].shape
        return "" if seen == site.shape else f"{SHAPE} {list(site.shape)}, but the file {list(seen)}"
    try:
        adapter.check([info.shape for info in infos], site.shape, key)
    except ValueError as error:
        return str(error)
    return ""


def short(dtype: torch.dtype) -> str:
    """The name of a dtype as people say it."""
    return str(dtype).removeprefix("torch.")


def kind_of(dtype: torch.dtype) -> str:
    """What kind of numbers a dtype holds; from one kind to another nothing is cast."""
    if dtype == torch.bool:
        return "truth values"
    if dtype.is_complex:
        return "complex numbers"
    return "floats" if dtype.is_floating_point else "whole numbers"
