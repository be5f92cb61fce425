"""Telling: a write of our own, of which those who watch hear as one operation instead of seeing each of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from torchinit.model.sandbox import OperationMode
from torchinit.tracing.observer import Observer

# An operation under two of torch's modes costs more than the draw that it makes, and a write of ours may take five. All
# that an observer keeps of them is the last, so it is told of that one, and torch's modes are off while we write.


def write_as(write: Callable[[], None], operation: torch._ops.OpOverload, *args: Any) -> None:
    """Make a write, of which ``operation`` with ``args``, the written tensor first, is all that is to be known.

    Where anybody watches who wants to see more, or whom we do not know, the write is seen as it is.
    """
    watchers = _watchers() if type(args[0]) in (Tensor, nn.Parameter) else None
    if not watchers:
        write()
        return
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        write()
        for watcher in watchers:
            watcher.tell(operation, args)


def _watchers() -> Sequence[Observer] | None:
    """Those whose modes are in place; None if there are others, or some who have to see each operation."""
    modes = _get_current_dispatch_mode_stack()
    owners = [getattr(mode.carry_out, "__self__", None) for mode in modes if type(mode) is OperationMode]
    known = [each for each in owners if isinstance(each, Observer) and each.is_brief]
    return known if len(known) == len(modes) == torch._C._len_torch_function_stack() else None
