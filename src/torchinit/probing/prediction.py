"""Prediction: the RMS of each output, and of its gradient, that a start promises before anything has a value."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from torchinit.api import plan
from torchinit.errors import ProbeError
from torchinit.initializers.moments import Moments
from torchinit.model.dtensor import local_part
from torchinit.model.names import normalize
from torchinit.probing.backward import forward, raised
from torchinit.probing.expectation import Expected, expected_of
from torchinit.probing.inputs import Inputs, given, made
from torchinit.probing.keeping import kept
from torchinit.probing.measurement import Output
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
    ...     model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256))
    >>> for output in predict(model, {"type": "Normal", "std": 0.1, "leaf": "weight"})[:3]:
    ...     print(output.name, round(output.predicted, 3), round(output.predicted_gradient, 3))
    0 0.8 1.131
    1 0.566 1.6
    2 0.905 1.0
    """
    moments = _moments_of(model, recipe)
    sketch = copy.deepcopy(model, {id(each): _without_values(each) for each in (*model.parameters(), *model.buffers())})
    inputs = made(sketch, 0, 60.0, lambda inputs: raised(sketch, inputs)) if batch is None else given(sketch, batch)
    real, inputs = inputs, _on_meta(inputs)
    with kept(sketch, 0), PassRecorder(sketch, inputs.samples, known_of(sketch, inputs, real, moments)) as recorder:
        sketch.eval()
        with torch.no_grad(), recorder.operations.watching():
            forward(sketch, inputs)
        recorder.stop()
        return recorder.outputs()
