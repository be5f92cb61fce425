"""Telling: a write of our own, of which those who watch hear as one operation instead of seeing each of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from torchinit.model.sandbox import OperationMode
from torchinit.tracing.observer import Observer
from torchinit.tracing.uninitialized import WATCHED

_Result = TypeVar("_Result")

# An operation under two of torch's modes costs more than the draw that it makes, and a write of ours may take five;
# even to ask a tensor for its shape goes through one. All that an observer keeps of them is the last, so it is told of
# that one, and torch's modes are off while we write. The numbers in a formula are tensors to torch, whose memory the
# watch on allocations need not look at.


def unseen(watchers: Sequence[Observer], code: Callable[..., _Result], *args: Any) -> _Result:
    """Run code of ours past the modes of those who watch, whom it tells of what it writes; as it is if there are none.

    Then whoever else watches sees each of its operations.
    """
    if not watchers:
        return code(*args)
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction(), torch._C._ExcludeDispatchKeyGuard(WATCHED):
        return code(*args)


def watchers_of(tensor: Tensor) -> Sequence[Observer]:
    """Those whose modes are in place, and may be told of a write; none if some want to see more, or are not known."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return ()
    modes = _get_current_dispatch_mode_stack()
    if not modes:
        return ()
    owners = [getattr(mode.carry_out, "__self__", None) for mode in modes if type(mode) is OperationMode]
    known = [each for each in owners if isinstance(each, Observer) and each.is_brief]
    return known if len(known) == len(modes) == torch._C._len_torch_function_stack() else ()
