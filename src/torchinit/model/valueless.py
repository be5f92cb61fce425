"""Tensors without values of their own: fake ones, and all within a transform; refused by name before torch fails."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from torchinit.errors import RunError

_functorch = torch._C._functorch
_ORDINARY: Final = frozenset((Tensor, nn.Parameter))
_tracing, _modes = torch._C._get_tracing_state, torch._C._len_torch_dispatch_stack
_MODES: Final = {
    "FakeTensorMode": torch._C._TorchDispatchModeKey.FAKE,
    "FunctionalTensorMode": torch._C._TorchDispatchModeKey.FUNCTIONAL,
    "make_fx": torch._C._TorchDispatchModeKey.PROXY,
}


def refuse_transforms() -> None:
    """Raise RunError within ``torch.func.grad``, ``vmap`` and their like, and within ``torch.jit.trace``.

    There the model's tensors are stand-ins: reading their memory fails, in ``functionalize`` with the process.
    """
    transform = _functorch.peek_interpreter_stack()
    if transform is not None:
        _refuse(f"a transform of torch.func ({transform.key().name.lower()})")
    if torch._C._get_tracing_state() is not None:
        _refuse("torch.jit.trace")


def refuse_fakes() -> None:
    """Raise RunError where :func:`refuse_transforms` does, and within modes in which tensors hold nothing."""
    refuse_transforms()
    for name, key in _MODES.items() if torch._C._len_torch_dispatch_stack() else ():
        if torch._C._get_dispatch_mode(key) is not None:
            _refuse(name)


def _refuse(where: str) -> None:
    raise RunError(f"within {where} tensors are stand-ins, with no values to read or write: call this outside of it")


def check_values(name: str, tensor: Tensor) -> None:
    """Raise RunError for a tensor that has no values to read or write, here or at all."""
    if _functorch.peek_interpreter_stack() is not None or _tracing() is not None or _modes():  # nearly never
        refuse_fakes()
    if type(tensor) not in _ORDINARY and isinstance(tensor, (FakeTensor, FunctionalTensor)):
        advice = "build the model outside of its mode, or on the meta device for torchinit.materialize"
        raise RunError(f"{name}: is a {type(tensor).__name__}, which holds no values; {advice}")
    if _functorch.is_functorch_wrapped_tensor(tensor) or torch._is_functional_tensor(tensor):
        raise RunError(f"{name}: is a stand-in within a transform of torch.func, which holds no values of its own")
