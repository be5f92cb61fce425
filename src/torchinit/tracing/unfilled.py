"""Unfilled memory: parameters that were made without values and have got none since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from torchinit.tracing.marks import mark
from torchinit.tracing.observe import storage_of, written

_ALLOCATING = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)

_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()
_WATCHING: ContextVar[bool] = ContextVar("torchinit_watching_allocations", default=False)


class _Allocations(TorchDispatchMode):
    """The memory that was handed out empty and that no operation has written since."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The storages are held, so that the address of a freed one does not stand for another.
        self.empty: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in written(func, args, kwargs or {}) if self.empty else ():
            self.empty.pop(storage_of(tensor) or 0, None)
        if func.overloadpacket in _ALLOCATING and not result.is_meta:
            home = storage_of(result)
            if home is not None and result.numel():
                self.empty[home] = result.untyped_storage()
        return result


@contextmanager
def watching() -> Iterator[_Allocations | None]:
    """Watches the allocations of a model that is being built; the outermost of nested calls does."""
    if _WATCHING.get():
        yield None
        return
    token = _WATCHING.set(True)
    try:
        with _Allocations() as seen:
            yield seen
    finally:
        _WATCHING.reset(token)


def remember(module: nn.Module, seen: _Allocations) -> None:
    """Keeps in mind which parameters of a module that has just been built hold unfilled memory."""
    for parameter in module.parameters() if seen.empty else ():
        if storage_of(parameter) in seen.empty:
            _KNOWN[parameter] = mark(parameter)


def is_unfilled(parameter: nn.Parameter) -> bool:
    """Whether the parameter was made without values, and nothing has been written to it since.

    >>> from torchinit.modules import BaseModule
    >>> class Layer(BaseModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.weight = nn.Parameter(torch.empty(2, 2))
    ...         self.bias = nn.Parameter(torch.zeros(2))
    >>> layer = Layer()
    >>> is_unfilled(layer.weight), is_unfilled(layer.bias)
    (True, False)
    """
    known = _KNOWN.get(parameter)
    return known is not None and known == mark(parameter)
