"""Recorder: what the modules of a model compute while it runs, by hooks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchinit.model.names import module_name
from torchinit.probing.expectation import Expectations
from torchinit.probing.expected import Expected
from torchinit.probing.measurement import Output, TimeSteps
from torchinit.probing.moments import BatchMoments, first_floating, moments
from torchinit.probing.operations import Operations, to_host


@dataclass(eq=False, slots=True)
class _Call:
    """A call of a module, and the numbers of its output, which stay on their device until the end."""

    module: str
    layer: nn.Module
    number: int
    shape: tuple[int, ...]
    forward: Tensor
    gradient: list[Tensor]
    hooked: bool = False
    then: str = ""
    expected: Expected | None = None


class PassRecorder:
    """Hooks on all modules, from ``with`` to its end, and a look at the operations within; no tensor is kept.

    ``size`` is the number of samples in a batch, ``known`` what is expected of its tensors and the parameters. What
    activation checkpointing computes again after :meth:`stop` is not recorded twice, only its gradients are.
    """

    # A gradient comes from a hook on the tensor, put on at once in the forward hook: full backward hooks raise where an
    # output is changed in place, as an in-place ReLU does, and the gradient is that of the value before the change.
    # Reentrant checkpointing runs forward without gradients first, and with them again during the backward pass: then
    # the hooks are put on the second time. Numbers stay tensors until they are asked for, so that a GPU never waits.

    def __init__(self, model: nn.Module, size: int, known: Mapping[int, Expected] | None = None) -> None:
        self.model: nn.Module = model
        self.size: int = size
        self.expectations: Expectations = Expectations(known or {})
        self.operations: Operations = Operations(
            lambda: self._inside[-1] if self._inside else ("", None), self._activated, self.expectations.see
        )
        self._calls: list[_Call] = []
        self._by_key: dict[tuple[str, int], _Call] = {}
        self._numbers: Counter[str] = Counter()
        self._inside: list[tuple[str, nn.Module | None]] = []
        self._last: tuple[Tensor, int, _Call] | None = None
        self._steps: dict[str, dict[str, Tensor]] = {}
        self._leaves: list[Tensor] = []
        self._running = True
        self._hooks = ExitStack()

    def __enter__(self) -> PassRecorder:
        for path, module in self.model.named_modules():
            name = module_name(path)
            if isinstance(module, nn.RNNBase) and not module.bidirectional:
                self._keep(module.register_forward_pre_hook(self._before_steps(name)))
                self._keep(module.register_forward_hook(self._after_steps(name)))
            self._keep(module.register_forward_pre_hook(self._before(name)))
            self._keep(module.register_forward_hook(self._after(name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        self._last = None

    def _keep(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    def stop(self) -> list[Tensor]:
        """The loss is known: what runs from here on runs again. Return the inputs whose gradients are wanted, too."""
        self._running = False
        self._last = None
        self._numbers.clear()
        leaves, self._leaves = self._leaves, []
        return leaves

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object) -> None:
            self._inside.append((name, module))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object, output: object) -> None:
            if self._inside:
                self._inside.pop()
            tensor = first_floating(output)
            if tensor is not None:
                self.operations.paused = True
                self._record(name, module, tensor)
                self.operations.paused = False

        return hook

    def _record(self, name: str, layer: nn.Module, tensor: Tensor) -> None:
        number = self._numbers[name]
        self._numbers[name] += 1
        if self._running:
            call = self._call(name, layer, number, tensor)
            self._calls.append(call)
            self._by_key[name, number] = call
        found = self._by_key.get((name, number))
        if found is not None and tensor.requires_grad and not found.hooked:
            found.hooked = True
            tensor.register_hook(self._with_gradient(found))

    def _call(self, name: str, layer: nn.Module, number: int, tensor: Tensor) -> _Call:
        last, self._last = self._last, None
        if last is not None and last[0] is tensor and last[1] == tensor._version:  # a container hands on its child's
            call = _Call(name, layer, number, last[2].shape, last[2].forward, last[2].gradient, last[2].hooked)
        else:
            numbers = torch.full((5,), math.nan) if tensor.is_meta else moments(tensor, self.size)
            call = _Call(name, layer, number, tuple(tensor.shape), numbers, [])
        call.expected = self.expectations.of(tensor)
        self._last = tensor, tensor._version, call
        return call

    def _with_gradient(self, call: _Call) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            call.gradient[:] = [moments(gradient, self.size)]

        return hook

    def _activated(self, name: str) -> None:
        if self._calls and not self._calls[-1].then:
            self._calls[-1].then = name

    # --- recurrent layers run all steps in one call ------------------------------------------------------------------

    def _before_steps(self, name: str) -> Callable[..., Any]:
        def hook(layer: nn.RNNBase, inputs: tuple[Any, ...]) -> Any:
            first = inputs[0] if inputs else None
            if not isinstance(first, Tensor) or first.dim() != 3:
                return None
            if not first.requires_grad:
                first = first.detach().requires_grad_()
                self._leaves.append(first)
            first.register_hook(self._by_step(name, "inputs", layer))
            return (first, *inputs[1:])

        return hook

    def _after_steps(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.RNNBase, _: object, output: Any) -> None:
            if output[0].requires_grad and output[0].dim() == 3:
                output[0].register_hook(self._by_step(name, "outputs", layer))

        return hook

    def _by_step(self, name: str, end: str, layer: nn.RNNBase) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            steps = gradient.detach().float().transpose(0, 1) if layer.batch_first else gradient.detach().float()
            top = steps.abs().amax((1, 2), keepdim=True).clamp(min=1e-38)
            self._steps.setdefault(name, {})[end] = (steps / top).square().mean((1, 2)).sqrt() * top.flatten()

        return hook

    # --- what came of it ---------------------------------------------------------------------------------------------

    def outputs(self) -> tuple[Output, ...]:
        """The outputs in order of execution, each with its gradient; what a container hands on is its child's."""
        forward = to_host([call.forward for call in self._calls])
        measured = iter(to_host([each for call in self._calls for each in call.gradient]))
        gradients = [BatchMoments(*next(measured)) if call.gradient else None for call in self._calls]
        self._pass_back(gradients)
        return tuple(
            Output(
                call.module, type(call.layer).__name__, call.number, call.shape, BatchMoments(*numbers), gradient,
                _is_weighted(call.layer), call.then, *_predicted(call.expected),
            )
            for call, numbers, gradient in zip(self._calls, forward, gradients, strict=True)
        )  # fmt: skip

    def _pass_back(self, gradients: Sequence[BatchMoments | None]) -> None:
        """Carry the gradient of the last output that has one back to all others; without any, as if it were 1."""
        pairs = [(call.expected, gradient) for call, gradient in zip(self._calls, gradients, strict=True)]
        found = [(each, gradient.rms) for each, gradient in pairs if each and gradient and 0 < gradient.rms < math.inf]
        if not any(gradients):
            found = [(each, 1.0) for each, _ in pairs if each]
        if found:
            last, rms = found[-1]
            self.expectations.pass_back(last, rms**2)

    def time_steps(self) -> tuple[TimeSteps, ...]:
        """The gradients by time step of the recurrent layers of which the loss reads the last step alone."""
        found = []
        for name, ends in self._steps.items():
            if len(ends) == 2 and not bool(ends["outputs"][:-1].any()) and len(ends["inputs"]) > 1:
                found.append(TimeSteps(name, tuple(ends["inputs"].tolist())))
        return tuple(found)


def _predicted(expected: Expected | None) -> tuple[float | None, float | None, float, float]:
    """The RMS that is expected, that of the gradient, and the standard deviations of their logarithms."""
    if expected is None:
        return None, None, math.nan, math.nan
    gradient = math.sqrt(expected.gradient) if expected.gradient else None
    return expected.rms, gradient, math.sqrt(expected.noise), math.sqrt(expected.gradient_noise)


def _is_weighted(layer: nn.Module) -> bool:
    """Whether a layer has a matrix of its own."""
    return any(parameter is not None and parameter.dim() > 1 for parameter in layer._parameters.values())
