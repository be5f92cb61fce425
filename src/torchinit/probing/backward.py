"""Backward: the gradients of a loss, taken so that nothing else happens, and an error of a forward told well."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchinit._text import with_article
from torchinit.errors import ProbeError
from torchinit.model.dtensor import is_distributed
from torchinit.probing.inputs import Inputs, first_line
from torchinit.probing.measurement import Objective
from torchinit.probing.objective import Objectives

Gradients: TypeAlias = Mapping[str, Tensor | None]


def forward_and_back(
    model: nn.Module,
    inputs: Inputs,
    objectives: Objectives,
    trained: Mapping[str, Tensor],
    between: Callable[[], list[Tensor]] = list,
) -> tuple[Gradients, Objective, float]:
    """The gradients by name, None where the loss does not depend on a parameter; the objective, and the loss.

    ``between`` is called when the loss is known, and returns other tensors whose gradients their hooks wait for.
    Gradients that the parameters hold are left alone.
    """
    value, objective = objectives(forward(model, inputs))
    others = between()
    if not value.requires_grad:
        raise ProbeError(_without_gradient(model, trained))
    gradients = _gradients(value, trained, others)
    return gradients, objective, float(value.detach())


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """The output of a model; ProbeError with a hint where it raises."""
    try:
        return model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        problems = [f"{first_line(error)}{_place(error, model)}", *_hints(error, inputs, model)]
        raise ProbeError(f"the forward of {type(model).__name__} raised", problems) from error


def raised(model: nn.Module, inputs: Inputs) -> Exception | None:
    """What a model raises on its inputs."""
    try:
        with torch.no_grad():
            forward(model, inputs)
    except ProbeError as error:
        return error.__cause__ if isinstance(error.__cause__, Exception) else error
    return None


def _place(error: Exception, model: nn.Module) -> str:
    """The innermost module of a model that ran when an error was raised."""
    names = {id(module): (name, type(module).__name__) for name, module in model.named_modules() if name}
    inside = [names.get(id(frame.f_locals.get("self"))) for frame, _ in traceback.walk_tb(error.__traceback__)]
    name, kind = next((each for each in reversed(inside) if each), ("", ""))
    return f" (in {name}, {with_article(kind)})" if name else ""


def _hints(error: Exception, inputs: Inputs, model: nn.Module) -> Iterator[str]:
    """What may be behind the error of a forward: missing arguments, another dtype."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    others = {tensor.dtype for tensor in inputs.tensors if tensor.is_floating_point()} - dtypes
    if others and len(dtypes) == 1:
        mine, its = (str(each.pop()).removeprefix("torch.") for each in (others, dtypes))
        yield f"the batch is {mine} and the model {its}: convert one of them, or probe within autocast"
    if any(isinstance(each, torch.utils.data.DataLoader) for each in inputs.args):
        yield "a loader has many batches; give one of them: batch=next(iter(loader))"
    elif isinstance(error, TypeError) and "argument" in str(error):
        yield "a tuple gives positional arguments, a dict keywords: batch={'name': tensor}"


def _without_gradient(model: nn.Module, trained: Mapping[str, Tensor]) -> str:
    if trained:
        return f"the loss does not depend on any trained parameter of {type(model).__name__}; is its output detached?"
    return f"no parameter of {type(model).__name__} requires a gradient, so nothing of it is trained"


class ReentrantError(Exception):
    """A model that computes parts of itself again during the backward pass, which `grad` cannot do."""


def _gradients(loss: Tensor, trained: Mapping[str, Tensor], others: list[Tensor]) -> Gradients:
    # `grad` is the first choice, since it triggers nothing: `backward` would run optimizers that step within it, and
    # what waits to reduce gradients. Reentrant checkpointing and FSDP know `backward` alone.
    values = list(trained.values())
    if _BACKWARD or any(map(is_distributed, values)):
        return _by_backward(loss, trained)
    try:
        found = torch.autograd.grad(loss, [*values, *others], allow_unused=True)
    except RuntimeError as error:
        if "heckpoint" in str(error):
            raise ReentrantError from error
        raise
    return dict(zip(trained, found, strict=False))


_BACKWARD: list[bool] = []


@contextmanager
def by_backward() -> Iterator[None]:
    """Within it gradients are those that ``backward`` leaves, for models that know no other way."""
    _BACKWARD.append(True)
    try:
        yield
    finally:
        _BACKWARD.pop()


def _by_backward(loss: Tensor, trained: Mapping[str, Tensor]) -> Gradients:
    held = [(value, value.grad) for value in trained.values()]
    waiting = [each for value in trained.values() if (each := getattr(value, "_post_accumulate_grad_hooks", None))]
    hooks = [(each, dict(each)) for each in waiting]
    try:
        for value, _ in held:
            value.grad = None
        for each in waiting:
            each.clear()
        loss.backward()
        return {name: value.grad for name, value in trained.items()}
    finally:
        for value, before in held:
            value.grad = before
        for each, registered in hooks:
            each.update(registered)
