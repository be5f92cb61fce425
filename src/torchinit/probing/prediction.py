"""Prediction: the RMS of each output, and of its gradient, that a start promises before anything has a value."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from torchinit.api import plan
from torchinit.errors import ProbeError
from torchinit.initializers.statistics import Moments
from torchinit.model.dtensor import local_part
from torchinit.model.names import normalize
from torchinit.probing.backward import forward, raised
from torchinit.probing.expected import Expected, expected_of
from torchinit.probing.inputs import Inputs, given, made
from torchinit.probing.keeping import probing_mode
from torchinit.probing.measurement import Output
from torchinit.probing.moments import rms
from torchinit.probing.recorder import PassRecorder
from torchinit.recipes import RecipeLike


def predict(model: nn.Module, recipe: RecipeLike | None = None, batch: Any = None) -> tuple[Output, ...]:
    """The RMS that a start promises for each output, and for the gradient that reaches it: the meta device is enough.

    The model runs once without values. The second moments of weights are those of the plan, or without a ``recipe``
    those that the weights have; the inputs' are those of the ``batch``, or 1. A layer makes E[y²] = fan_in · E[w²] ·
    E[x²] + E[b²], an activation what it makes of N(0, E[x²]), independent parts add up, a norm starts anew; the
    gradient takes the same way back, as if it were 1 at the last output. ``predicted`` is None behind what is not
    known: attention, recurrent layers, averages. ``noise`` and ``gradient_noise`` are the standard deviations of the
    logarithms from draw to draw (about sqrt(5 · depth / (4 · width)) for ReLU).

    Raises ProbeError for a model that does not run on the meta device, or on it has no recipe.

    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(64, 256, bias=False), nn.ReLU(), nn.Linear(256, 256, bias=False))
    >>> for output in predict(model, {"type": "Normal", "std": 0.1, "param": "weight"})[:3]:
    ...     print(output.name, round(output.predicted, 3), round(output.predicted_gradient, 3))
    0 0.8 1.131
    1 0.566 1.6
    2 0.905 1.0
    """
    if recipe is None and any(parameter.is_meta for parameter in model.parameters()):
        raise ProbeError(f"{type(model).__name__} is on the meta device, so nothing is known of it; give recipe=")
    steps = () if recipe is None else plan(model, recipe).steps
    sizes = sizes_of(model, {step.site.name: step.fill.moments(step.site.shape) for step in steps})
    tensors = (*model.parameters(), *model.buffers())
    sketch = copy.deepcopy(model, {id(each): _without_values(each) for each in tensors})
    inputs = given(sketch, batch) if batch is not None else made(sketch, 0, 60.0, lambda each: raised(sketch, each))
    empty = replace(inputs, args=_on_meta(inputs.args), kwargs=_on_meta(inputs.kwargs))
    with PassRecorder(sketch, inputs.samples, known_of(sketch, sizes, empty, inputs)) as recorder:
        with torch.no_grad(), probing_mode(sketch), recorder.operations.watching():
            forward(sketch, empty)
        recorder.stop()
        return recorder.outputs()


def sizes_of(
    model: nn.Module, planned: Mapping[str, Moments | None] = MappingProxyType({})
) -> dict[str, tuple[float, float]]:
    """The mean and the RMS of each parameter: as planned, else as it is; of one without values none."""
    found: dict[str, tuple[float, float]] = {}
    for path, parameter in model.named_parameters():
        name, values = normalize(path), local_part(parameter.detach())
        if name in planned:
            moments = planned[name]
            if moments is not None and moments.mean is not None and moments.std is not None:
                found[name] = moments.mean, math.hypot(moments.mean, moments.std)
        elif values.is_floating_point() and not values.is_meta and values.numel():
            found[name] = float(values.mean(dtype=torch.float32)), rms(values)
    return found


def known_of(
    model: nn.Module, sizes: Mapping[str, tuple[float, float]], inputs: Inputs, measured: Inputs | None = None
) -> dict[int, Expected]:
    """What is expected of the parameters of a model and of its inputs, by the identity of their tensors."""
    known: dict[int, Expected] = {}
    for path, parameter in model.named_parameters():
        name, shape = normalize(path), tuple(parameter.shape)
        known[id(parameter)] = expected_of(*sizes.get(name, (math.nan, math.nan)), shape, weight=True)
    for tensor, values in zip(inputs.tensors, (measured or inputs).tensors, strict=True):
        if tensor.is_floating_point() and tensor.numel():
            size = (0.0, 1.0) if values.is_meta else (float(values.mean(dtype=torch.float32)), rms(values))
            known[id(tensor)] = expected_of(*size, tuple(tensor.shape), weight=False)
    return known


def _without_values(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(local_part(tensor.detach()), device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _on_meta(value: Any) -> Any:
    return tree_map(lambda each: each.to("meta") if isinstance(each, Tensor) else each, value)
