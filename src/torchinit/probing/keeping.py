"""Keeping: a model as it was, whatever is done to it in between."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from torchinit.noise.torch_generator import seeded_generators


@contextmanager
def kept(model: nn.Module, seed: int) -> Iterator[None]:
    """Within it a model may be run in any way; at the end, also of an error, it is as it was.

    So are buffers with their values, attributes, modes of training, and the states of the random generators, which
    within it start from the seed. Parameters keep their values by :func:`values_kept`; hooks are left to who puts them
    on.
    """
    with ExitStack() as undo:
        for module in model.modules():
            undo.callback(_attributes_of(module))
        for buffer in model.buffers():
            undo.callback(_values_of(buffer))
        for parameter in model.parameters():
            undo.callback(_flags_of(parameter))
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        undo.enter_context(seeded_generators(seed, *devices))
        undo.callback(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):
            undo.callback(numpy.random.set_state, numpy.random.get_state())
        yield


@contextmanager
def values_kept(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Within it the values of parameters may change; at the end they are those of the beginning, bit for bit."""
    with ExitStack() as undo:
        for parameter in parameters:
            undo.callback(_values_of(parameter))
        yield


@contextmanager
def probing_mode(model: nn.Module) -> Iterator[None]:
    """Within it the model computes as at the start of its training, without dropout: norms over batches alone train.

    In evaluation they would divide by running statistics that have seen nothing yet. Compiled modules run as they were
    before, gradients are on, and cuDNN, which has no gradients of recurrent layers in evaluation, is off for those.
    """
    model.eval()
    has_steps = False
    for module in model.modules():
        module.training = is_batch_norm(module)
        has_steps |= isinstance(module, nn.RNNBase)
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(mode=False))
        modes.enter_context(torch.enable_grad())
        modes.enter_context(torch.compiler.set_stance("force_eager"))
        modes.enter_context(torch.backends.cudnn.flags(enabled=False) if has_steps else nullcontext())
        yield


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module normalizes over the samples of a batch."""
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm) or "BatchNorm" in type(module).__name__
    return norm and not isinstance(module, nn.SyncBatchNorm)


def _values_of(tensor: Tensor) -> Callable[[], None]:
    before = tensor.detach().clone()

    def restore() -> None:
        if tensor.is_meta or torch.equal(tensor, before):  # to write what is there would be counted as a write
            return
        with torch.no_grad():  # some writes are not counted: those of a batch norm to its statistics
            tensor.detach().copy_(before)

    return restore


def _flags_of(parameter: Tensor) -> Callable[[], None]:
    gradient, is_trained = parameter.grad, parameter.requires_grad

    def restore() -> None:
        parameter.grad = gradient
        if parameter.requires_grad != is_trained:
            parameter.requires_grad_(is_trained)

    return restore


def _attributes_of(module: nn.Module) -> Callable[[], None]:
    """A function that gives a module back its attributes, and what they held one level below."""
    held = vars(module)
    before = dict(held)
    inside: dict[str, Any] = {key: type(value)(value) for key, value in held.items() if type(value) in (dict, list)}

    def restore() -> None:
        if held.keys() != before.keys() or any(held[key] is not value for key, value in before.items()):
            held.clear()
            held.update(before)
        for key, items in inside.items():
            value = before[key]
            if not _is_same(value, items):
                value.clear()
                value.update(items) if isinstance(value, dict) else value.extend(items)

    return restore


def _is_same(value: Any, items: Any) -> bool:
    if isinstance(value, dict):
        return [*value] == [*items] and all(value[key] is items[key] for key in items)
    return len(value) == len(items) and all(one is other for one, other in zip(value, items, strict=True))
