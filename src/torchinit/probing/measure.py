"""Measure: a pass forward and back through a model, a few steps after it, and what a start promises before any."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from torchinit._text import dtype_name
from torchinit.api import plan, sites
from torchinit.errors import ProbeError
from torchinit.model.dtensor import local_part
from torchinit.model.names import module_name
from torchinit.model.parametrizations import sets_scale
from torchinit.model.sites import Site
from torchinit.probing.expectations import known_of, sizes_of
from torchinit.probing.inputs import Together, forward, inputs_of
from torchinit.probing.measurement import Measurement, Output, ParameterGradient, chains_among
from torchinit.probing.moments import not_finite_in, rms
from torchinit.probing.passes import Gradients, Passes, ReentrantError, is_batch_norm, probing_mode, values_kept
from torchinit.probing.recorder import PassRecorder
from torchinit.recipes import RecipeLike

Optimizer: TypeAlias = Callable[..., torch.optim.Optimizer]

_SIGN_STEPS, _SIGN_SIZE = 4, 1e-3
_SMALL_BATCH: Final = 16
_ALIKE: Final = 1e-4


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured besides a pass: steps of an optimizer, the dtype of the training, until when there is time."""

    optimizer: Optimizer | None = None
    lr: float | None = None
    steps: int = 0
    dtype: torch.dtype | None = None
    end: float = math.inf
    together: Together | None = None

    @property
    def late(self) -> bool:
        """Whether there is no time left for more, on one of the ranks."""
        late = time.monotonic() > self.end
        return late if self.together is None else bool(self.together.largest(late))


def measure(passes: Passes, options: MeasureOptions) -> Measurement:
    """The measurement of a model within :func:`kept` and :func:`probing_mode`."""
    subject = _Subject(passes, options)
    try:
        return subject.measure()
    except ReentrantError:
        passes.by_backward = True
        return subject.measure()


class _Subject:
    def __init__(self, passes: Passes, options: MeasureOptions) -> None:
        self.passes, self.options = passes, options
        self.model, self.inputs, self.trained = passes.model, passes.inputs, passes.trained
        dtypes = (parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())
        self.dtype = options.dtype or next(dtypes, torch.float32)
        self.layers = [site for site in sites(self.model) if site.layout and len(site.shape) > 1]
        self.series: tuple[tuple[str, ...], ...] = ()

    def measure(self) -> Measurement:
        structure = [name for name, _ in self.model.named_parameters()]
        known = known_of(self.model, sizes_of(self.model), self.inputs)
        with PassRecorder(self.model, self.inputs.samples, known) as recorder:
            gradients, objective = self.passes.gradients(recorder.stop)
        if structure != [name for name, _ in self.model.named_parameters()]:
            name = type(self.model).__name__
            raise ProbeError(f"{name} changes its parameters while it runs; run it once on an example before")
        outputs = recorder.outputs()
        self.series = recorder.series(outputs)
        measured = Measurement(
            self.inputs.text, self.inputs.samples, objective, outputs,
            chains_among(self.model, outputs, self.series), recorder.units(), recorder.attentions(),
            self._parameters(gradients), recorder.time_steps(),
            small_batch=self.inputs.samples < _SMALL_BATCH and any(map(is_batch_norm, self.model.modules())),
            dtype=dtype_name(self.dtype), largest=torch.finfo(self.dtype).max, fans=_fans(self.layers),
            not_finite=not_finite_in(self.model, self.inputs.tensors), fixed=_fixed(self.model, self.layers),
        )  # fmt: skip
        return self._after_steps(self._awake(measured, gradients), gradients)

    def _parameters(self, gradients: Gradients) -> tuple[ParameterGradient, ...]:
        tiny = torch.finfo(self.dtype).tiny if self.dtype == torch.float16 else 0.0
        units = {site.name: site.layout.out_axes[0] for site in self.layers if site.layout and site.layout.out_axes}
        found = []
        for name, parameter in self.trained.items():
            values, gradient = local_part(parameter.detach()), gradients[name]
            slope = None if gradient is None else local_part(gradient)
            found.append(
                ParameterGradient(
                    name, tuple(parameter.shape), rms(values), None if slope is None else rms(slope), False,
                    slope is not None
                    and _are_alike(units.get(name, 0), values, slope)
                    and bool(slope.any() or values.any()),
                    float((slope.abs() < tiny).float().mean()) if slope is not None and tiny else 0.0,
                )
            )  # fmt: skip
        return tuple(found)

    # --- a few steps more --------------------------------------------------------------------------------------------

    def _awake(self, measured: Measurement, gradients: Gradients) -> Measurement:
        """The measurement with the gradients that stay zero, and those of the step in which the others woke.

        A zero layer at the end of a branch, or a zero head, lets no gradient pass in the first step by design. So all
        parameters take a few steps against the signs of their gradients; what has no gradient then, has none for good.
        """
        together = self.options.together or Together(self.model)
        asleep = together.common({each.name for each in measured.parameters if each.gradient == 0})
        if not asleep or together.largest(not math.isfinite(measured.objective.loss)):
            return measured
        zero, chains = set(asleep), measured.chains
        with values_kept(self.trained.values()):
            for _ in range(_SIGN_STEPS):
                if not zero:
                    break
                if self.options.late:
                    return measured
                self._step_by_sign(gradients)
                with PassRecorder(self.model, self.inputs.samples) as recorder:
                    gradients, _ = self.passes.gradients(recorder.stop)
                now = chains_among(self.model, recorder.outputs(), self.series)
                # A model that runs other parts this time says nothing of those that it leaves out.
                here = {name for name in zero if (slope := gradients[name]) is not None and not local_part(slope).any()}
                zero = together.common(here)
                if len(now) == len(chains):
                    chains = tuple(
                        replace(chain, woken=woken.gradient) if math.isnan(chain.gradient) else chain
                        for chain, woken in zip(chains, now, strict=True)
                    )
        parameters = tuple(replace(each, stays_zero=each.name in zero) for each in measured.parameters)
        return replace(measured, parameters=parameters, chains=chains, asleep=len(asleep) - len(zero))

    def _step_by_sign(self, gradients: Gradients) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                gradient = gradients[name]
                if gradient is not None:
                    parameter.sub_(gradient.sign().nan_to_num_(), alpha=_SIGN_SIZE)

    def _after_steps(self, measured: Measurement, gradients: Gradients) -> Measurement:
        """The measurement with the losses of an optimizer's steps, and the size of its first step."""
        steps = max(self.options.steps, int((self.options.optimizer or self.options.lr) is not None))
        if not steps or self.options.late:
            return measured
        losses, before = [measured.objective.loss], {name: each.detach().clone() for name, each in self.trained.items()}
        updates: dict[str, float] = {}
        with values_kept(self.trained.values()):
            optimizer = self._optimizer()
            for _ in range(steps):
                for name, each in self.trained.items():
                    each.grad = gradients[name]
                optimizer.step()
                updates = updates or {
                    name: rms(local_part(each.detach() - before[name])) for name, each in self.trained.items()
                }
                gradients, objective = self.passes.gradients()
                losses.append(objective.loss)
                if self.options.late:
                    break
        parameters = tuple(
            replace(each, update=updates[each.name] / each.rms if each.rms else None) for each in measured.parameters
        )
        return replace(measured, parameters=parameters, losses=tuple(losses))

    def _optimizer(self) -> torch.optim.Optimizer:
        make: Optimizer = self.options.optimizer or torch.optim.Adam
        rate = {} if self.options.lr is None else {"lr": self.options.lr}
        try:
            return make(list(self.trained.values()), **rate)
        except TypeError as error:
            wanted = "a class of torch.optim, or a function of parameters that returns an optimizer"
            raise ProbeError(f"optimizer= is {wanted}: {error}") from error


def _fans(layers: Sequence[Site]) -> dict[str, float]:
    """The inputs of a unit of each layer that has a weight."""
    return {site.owner_name: site.fans("true")[0] for site in layers if site.layout and not site.layout.lookup}


def _fixed(model: nn.Module, layers: Sequence[Site]) -> dict[str, float]:
    """The RMS of the weights whose parametrization decides how large they are, by their layers."""
    modules = {module_name(path): each for path, each in model.named_modules()}
    held = [(modules.get(site.owner_name), site) for site in layers if site.parametrized]
    return {
        site.owner_name: rms(local_part(getattr(module, site.leaf).detach()))
        for module, site in held
        if module is not None and sets_scale(module, site.leaf)
    }


def _are_alike(axis: int, *tensors: Tensor) -> bool:
    """Whether along an axis all parts of each matrix are the same."""
    return all(each.dim() > axis and _is_alike(each.movedim(axis, 0)) for each in tensors)


def _is_alike(tensor: Tensor) -> bool:
    """Whether all rows of a matrix are the same."""
    if tensor.dim() < 2 or len(tensor) < 2 or tensor.is_complex():
        return False
    top = tensor.abs().max()
    rows = (tensor[-1:], tensor)  # the last one tells most
    return all(bool((each - tensor[0]).abs().max() <= _ALIKE * top) for each in rows)


def predict(model: nn.Module, recipe: RecipeLike | None = None, batch: Any = None) -> tuple[Output, ...]:
    """The RMS that a start promises for each output, and for the gradient that reaches it: the meta device is enough.

    The model runs once without values. The second moments of weights are those of the plan, or without a ``recipe``
    those that the weights have; the inputs' are those of the ``batch``, or 1. A layer makes E[y²] = fan_in · E[w²] ·
    E[x²] + E[b²], an activation what it makes of N(0, E[x²]), independent parts add up, a norm starts anew, attention
    lies between one value and the mean of independent ones; the gradient takes the same way back, as if it were 1 at
    the last output, but not through attention. ``predicted`` is None behind what is not known: recurrent layers,
    averages, sums of what depends on each other, a second attention without a norm between. ``noise`` and
    ``gradient_noise`` are the standard deviations of the logarithms from draw to draw (about
    sqrt(5 · depth / (4 · width)) for ReLU).

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
    inputs = inputs_of(sketch, batch)
    empty = replace(inputs, args=_on_meta(inputs.args), kwargs=_on_meta(inputs.kwargs))
    with PassRecorder(sketch, inputs.samples, known_of(sketch, sizes, empty, inputs)) as recorder:
        with torch.no_grad(), probing_mode(sketch):
            forward(sketch, empty)
        recorder.stop()
        return recorder.outputs()


def _without_values(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(local_part(tensor.detach()), device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _on_meta(value: Any) -> Any:
    return tree_map(lambda each: each.to("meta") if isinstance(each, Tensor) else each, value)
