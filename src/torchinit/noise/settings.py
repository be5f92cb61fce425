"""Settings that no value may depend on: torch's modes of this thread, and how the process computes by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any, Final

import torch
from torch import overrides
from torch.utils import _python_dispatch as dispatch

from torchinit.noise.threads import one_thread

_SMALLEST: Final = 5e-324
_ALONE: Final = RLock()


@contextmanager
def plain_thread() -> Iterator[None]:
    """Let torch work in this thread as in a new one, and be as it was afterwards.

    Without other people's modes, and so without a default device; without autocast and inference mode; with subnormal
    numbers. Modes of torchinit's own stay: they only look.

    >>> with torch.device("meta"), plain_thread():
    ...     torch.zeros(2)
    tensor([0., 0.])
    """
    with ExitStack() as settings:
        if torch._C._len_torch_dispatch_stack():
            ours = [mode for mode in dispatch._get_current_dispatch_mode_stack() if _is_ours(mode)]
            settings.enter_context(dispatch._disable_current_modes())
            for mode in ours:
                dispatch._push_mode(mode)
                settings.callback(dispatch._pop_mode)
        stack = [overrides._pop_mode() for _ in range(torch._C._len_torch_function_stack())]
        for mode in stack:
            settings.callback(overrides._push_mode, mode)
        for mode in filter(_is_ours, reversed(stack)):
            overrides._push_mode(mode)
            settings.callback(overrides._pop_mode)
        accelerator = torch.accelerator.current_accelerator()
        for device in {"cpu", accelerator.type if accelerator else "cpu"}:
            if torch.is_autocast_enabled(device):
                settings.enter_context(torch.autocast(device, enabled=False))
        if torch.is_inference_mode_enabled():
            settings.enter_context(torch.inference_mode(mode=False))
        if _SMALLEST * 1.0 == 0.0:
            torch.set_flush_denormal(False)
            settings.callback(torch.set_flush_denormal, True)
            settings.enter_context(one_thread())  # torch's workers keep for good what was set when they began
        yield


def _is_ours(mode: object) -> bool:
    return type(mode).__module__.startswith("torchinit.")


@contextmanager
def plain_process(dtype: torch.dtype) -> Iterator[None]:
    """Let other people's code compute by torch's own settings; where ``dtype`` is float64, in that by default.

    Default dtype and precision of products belong to the process, as torch's generators do. So one thread at a time is
    inside; what others compute meanwhile has these settings, too, where the user has changed them.
    """
    with _ALONE, ExitStack() as settings:
        users, wanted = torch.get_default_dtype(), torch.float64 if dtype.to_real() == torch.float64 else torch.float32
        if users != wanted:
            torch.set_default_dtype(wanted)
            settings.callback(torch.set_default_dtype, users)
        backends: tuple[Any, ...] = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul  # type: ignore[attr-defined]
        for backend in backends:
            if (precision := backend.fp32_precision) not in ("none", "ieee"):
                backend.fp32_precision = "ieee"
                settings.callback(setattr, backend, "fp32_precision", precision)
        yield
