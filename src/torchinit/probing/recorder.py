"""Recorder: what the modules of a model compute while it runs, and the activations and attention inside of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import or_
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from torchinit.model.names import module_name
from torchinit.model.sandbox import OperationMode
from torchinit.probing.expectations import Expectations, Expected
from torchinit.probing.measurement import Attention, Output, TimeSteps, Units
from torchinit.probing.moments import BatchMoments, first_floating, moments

_ACTIVATIONS: Final = frozenset(
    ["elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "sigmoid", "silu", "sin", "softplus", "tanh"]
)
_QUERIES, _HEADS, _FEW = 64, 8, 2
_HIDDEN = 60.0
"""A logit so far below the largest of its row is masked, whatever number the mask adds."""


class PassWatch:
    """A look at a pass, from ``with`` to its end: hooks on all modules, and on ``operations`` inside of them.

    Subclasses are told of what modules return (:meth:`returned`), and of operations (:meth:`seen`, :meth:`activated`).
    Activations and attention are measured on the spot; no tensor is kept.
    """

    # Operations are seen below autograd, where relu, tanh, softmax and attention have a few names, whoever calls them:
    # nn.MultiheadAttention runs neither the hooks of its output layer nor a Python function that could be replaced.

    def __init__(self, model: nn.Module, *, operations: bool = True) -> None:
        self.model: nn.Module = model
        self._mode = OperationMode(self._carry_out) if operations else None
        self._inside: list[tuple[str, nn.Module | None]] = [("", None)]
        self._last: tuple[Tensor, int] | None = None
        self._paused = False  # while somebody measures, whose own operations are none of the model's
        self._units: list[tuple[str, str, int, Tensor]] = []
        self._attentions: list[tuple[str, Tensor]] = []
        self._hooks, self._watching = ExitStack(), ExitStack()

    def __enter__(self) -> Self:
        for path, module in self.model.named_modules():
            self._watch(module_name(path), module)
        if self._mode is not None:
            self._watching.enter_context(self._mode)
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()
        self._hooks.close()
        self._last = None

    def returned(self, name: str, module: nn.Module, tensor: Tensor, is_new: bool) -> None:
        """A module returns a tensor, a new one unless it hands on what its last child has returned."""

    def activated(self, function: str) -> None:
        """An activation is computed."""

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """An operation has been carried out."""

    def _watch(self, name: str, module: nn.Module) -> None:
        self._keep(module.register_forward_pre_hook(lambda layer, _: self._inside.append((name, layer))))
        self._keep(module.register_forward_hook(partial(self._left, name)))

    def _keep(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    def _left(self, name: str, module: nn.Module, _: object, output: object) -> None:
        self._inside.pop()
        tensor = first_floating(output)
        if tensor is None:
            return
        version = 0 if tensor.is_inference() else tensor._version
        last, self._last = self._last, (tensor, version)
        self._paused = True
        self.returned(name, module, tensor, last is None or last[0] is not tensor or last[1] != version)
        self._paused = False

    def _carry_out(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if not self._paused and getattr(func, "namespace", "") == "aten":
            self.seen(func, args, kwargs, result)
            name = func.overloadpacket.__name__
            base = name.rstrip("_")
            if base in _ACTIVATIONS and isinstance(result, Tensor) and result.numel():
                self.activated(base)
                self._count(base, result)
            elif name in ("_softmax", "_safe_softmax") and _is_attention(args[0], args[1]):
                self._attend(_few(args[0]))
            elif name.startswith("_scaled_dot_product"):
                given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
                self._attend(_logits(given))
        return result

    def _count(self, function: str, values: Tensor) -> None:
        name, module = self._inside[-1]
        if values.is_meta:
            return
        if function == "relu":
            unit = 1 if values.dim() > 3 else values.dim() - 1  # of an image the channel
            others = [axis for axis in range(values.dim()) if axis != unit]
            if others:
                share = (values.amax(others) == 0).float().mean()
                self._units.append((name, function, values.numel() // values.shape[unit], share))
        # Of a tanh inside of GELU's formula nothing passes on its own; a recurrent layer has gates.
        elif function in ("tanh", "sigmoid") and not (
            "GELU" in type(module).__name__ or isinstance(module, nn.RNNBase)
        ):
            part = values.flatten()[:: values.numel() // 32768 | 1]
            beyond = part.abs() > 0.99 if function == "tanh" else (part < 0.01) | (part > 0.99)
            self._units.append((name, function, values.numel(), beyond.float().mean()))

    def _attend(self, logits: Tensor) -> None:
        if logits.numel() and not logits.is_meta:
            self._attentions.append((self._inside[-1][0], _attention_numbers(logits.float())))

    def units(self) -> tuple[Units, ...]:
        """The shares of dead and saturated units, in order of execution."""
        shares = _to_host([share for *_, share in self._units])
        return tuple(
            Units(name, function, rows, share if function == "relu" else 0.0, 0.0 if function == "relu" else share)
            for (name, function, rows, _), share in zip(self._units, shares, strict=True)
        )

    def attentions(self) -> tuple[Attention, ...]:
        """The numbers of each softmax over positions, in order of execution."""
        numbers = _to_host([each for _, each in self._attentions])
        return tuple(Attention(name, *each) for (name, _), each in zip(self._attentions, numbers, strict=True))


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


class PassRecorder(PassWatch):
    """The numbers of a pass: of all outputs and their gradients, and of operations where ``known`` is given.

    ``size`` is the number of samples in a batch, ``known`` what is expected of its tensors and the parameters. What
    activation checkpointing computes again after :meth:`stop` is not recorded twice, only its gradients are.
    """

    # A gradient comes from a hook on the tensor, put on at once in the forward hook: full backward hooks raise where an
    # output is changed in place, as an in-place ReLU does, and the gradient is that of the value before the change.
    # Reentrant checkpointing runs forward without gradients first, and with them again during the backward pass: then
    # the hooks are put on the second time. Numbers stay tensors until they are asked for, so that a GPU never waits.

    def __init__(self, model: nn.Module, size: int, known: Mapping[int, Expected] | None = None) -> None:
        super().__init__(model, operations=known is not None)
        self.size: int = size
        self._expectations = Expectations(known or {})
        self._calls: list[_Call] = []
        self._by_key: dict[tuple[str, int], _Call] = {}
        self._numbers: Counter[str] = Counter()
        self._steps: dict[str, dict[str, Tensor]] = {}
        self._leaves: list[Tensor] = []
        self._running = True

    def stop(self) -> list[Tensor]:
        """The loss is known: what runs from here on runs again. Return the inputs whose gradients are wanted, too."""
        self._watching.close()
        self._running = False
        self._last = None
        self._numbers.clear()
        leaves, self._leaves = self._leaves, []
        return leaves

    def returned(self, name: str, module: nn.Module, tensor: Tensor, is_new: bool) -> None:
        number = self._numbers[name]
        self._numbers[name] += 1
        if self._running:
            call = self._call(name, module, number, tensor, None if is_new else self._calls[-1])
            self._calls.append(call)
            self._by_key[name, number] = call
        found = self._by_key.get((name, number))
        if found is not None and tensor.requires_grad and not found.hooked:
            found.hooked = True
            tensor.register_hook(partial(self._note_gradient, found))

    def _call(self, name: str, layer: nn.Module, number: int, tensor: Tensor, child: _Call | None) -> _Call:
        expected = self._expectations.of(tensor)
        if child is not None:
            return replace(child, module=name, layer=layer, number=number, then="", expected=expected)
        numbers = torch.full((5,), math.nan, device="cpu") if tensor.is_meta else moments(tensor, self.size)
        return _Call(name, layer, number, tuple(tensor.shape), numbers, [], expected=expected)

    def _note_gradient(self, call: _Call, gradient: Tensor) -> None:
        call.gradient[:] = [moments(gradient, self.size)]

    def activated(self, function: str) -> None:
        if self._calls and not self._calls[-1].then:
            self._calls[-1].then = function

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self._expectations.see(func, args, kwargs, result)

    # --- recurrent layers run all steps in one call ------------------------------------------------------------------

    def _watch(self, name: str, module: nn.Module) -> None:
        super()._watch(name, module)
        if isinstance(module, nn.RNNBase) and not module.bidirectional:
            self._keep(module.register_forward_pre_hook(partial(self._before_steps, name)))
            self._keep(module.register_forward_hook(partial(self._after_steps, name)))

    def _before_steps(self, name: str, layer: nn.RNNBase, inputs: tuple[Any, ...]) -> Any:
        first = inputs[0] if inputs else None
        if not isinstance(first, Tensor) or first.dim() != 3:
            return None
        if not first.requires_grad:
            first = first.detach().requires_grad_()
            self._leaves.append(first)
        first.register_hook(partial(self._note_steps, name, "inputs", layer))
        return (first, *inputs[1:])

    def _after_steps(self, name: str, layer: nn.RNNBase, _: object, output: Any) -> None:
        if output[0].requires_grad and output[0].dim() == 3:
            output[0].register_hook(partial(self._note_steps, name, "outputs", layer))

    def _note_steps(self, name: str, end: str, layer: nn.RNNBase, gradient: Tensor) -> None:
        steps = gradient.detach().float().transpose(0, 1) if layer.batch_first else gradient.detach().float()
        top = steps.abs().amax((1, 2), keepdim=True).clamp(min=1e-38)
        self._steps.setdefault(name, {})[end] = (steps / top).square().mean((1, 2)).sqrt() * top.flatten()

    # --- what came of it ---------------------------------------------------------------------------------------------

    def outputs(self) -> tuple[Output, ...]:
        """The outputs in order of execution, each with its gradient; what a container hands on is its child's."""
        forward = _to_host([call.forward for call in self._calls])
        measured = iter(_to_host([each for call in self._calls for each in call.gradient]))
        gradients = [BatchMoments(*next(measured)) if call.gradient else None for call in self._calls]
        self._pass_back(gradients)
        return tuple(
            Output(
                call.module, type_before_parametrizations(call.layer).__name__, call.number, call.shape,
                BatchMoments(*numbers), gradient, _is_weighted(call.layer), call.then, *_predicted(call.expected),
            )
            for call, numbers, gradient in zip(self._calls, forward, gradients, strict=True)
        )  # fmt: skip

    def series(self, outputs: Sequence[Output]) -> tuple[tuple[str, ...], ...]:
        """The layers with a matrix by the names of their outputs, in series of which each is made of the one before.

        The last one is left out, since heads follow other rules. What does not end there, but is made of nothing on the
        way, as an embedding of the time, is a series of its own; what is, lies in a branch: gates, queries and keys.
        """
        calls = zip(outputs, self._calls, strict=True)
        layers = [(output.name, call.expected) for output, call in calls if output.weighted][:-1]
        place = {id(expected): at for at, (_, expected) in enumerate(layers) if expected is not None}
        # What each layer is made of, as a bit for each layer; one of which nothing is known may be made of all.
        hidden = sum(1 << at for at, (_, expected) in enumerate(layers) if expected is None)
        made_of: list[int] = []
        for at, (_, expected) in enumerate(layers):
            known = range(at) if expected is None else map(place.__getitem__, expected.nearest(place))
            made_of.append(reduce(or_, (1 << each | made_of[each] for each in known if each < at), hidden))
        lines: list[list[int]] = []
        for at in reversed(range(len(layers))):
            line = next((line for line in lines if made_of[line[-1]] >> at & 1), None)
            if line is None:
                lines.append(line := [])
            line.append(at)
        main = sum(1 << at for line in lines[:1] for at in line)
        apart = [[at for at in line if not made_of[at] & main] for line in lines[1:]]
        return tuple(tuple(layers[at][0] for at in reversed(line)) for line in (*reversed(apart), *lines[:1]))

    def _pass_back(self, gradients: Sequence[BatchMoments | None]) -> None:
        """Carry the gradient of the last output that has one back to all others; without any, as if it were 1."""
        pairs = [(call.expected, gradient) for call, gradient in zip(self._calls, gradients, strict=True)]
        found = [(each, gradient.rms) for each, gradient in pairs if each and gradient and 0 < gradient.rms < math.inf]
        if not any(gradients):
            found = [(each, 1.0) for each, _ in pairs if each]
        if found:
            last, rms = found[-1]
            self._expectations.pass_back(last, rms**2)

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
    noise = math.hypot(math.sqrt(expected.gradient_noise), expected.gradient_shift)
    return expected.rms, gradient, math.sqrt(expected.noise), noise


def _is_weighted(layer: nn.Module) -> bool:
    """Whether a layer has a matrix of its own, also one that is computed of others: weight norm, spectral norm."""
    if isinstance(layer, ParametrizationList):
        return False
    made_of = layer._modules.get("parametrizations")
    own = (*layer._parameters.values(), *(made_of.parameters() if made_of is not None else ()))
    return any(parameter is not None and parameter.dim() > 1 for parameter in own)


def _to_host(numbers: list[Tensor]) -> list[Any]:
    """Numbers of one shape as Python's own, with one transfer for each device."""
    if len({each.device for each in numbers}) > 1:
        numbers = [each.cpu() for each in numbers]
    return torch.stack(numbers).tolist() if numbers else []


def _is_attention(logits: Tensor, axis: int) -> bool:
    """Whether this is a softmax over positions: not over the classes of a loss, or the experts of a router."""
    shape = logits.shape
    last = axis in (-1, logits.dim() - 1)
    return last and (logits.dim() == 4 or (logits.dim() == 3 and shape[-1] == shape[-2])) and shape[-1] > 3


def _few(logits: Tensor) -> Tensor:
    """The logits of a few samples, heads and queries."""
    most = _FEW if logits.dim() > 3 else _HEADS
    return logits[:most, ..., :: max(1, logits.shape[-2] // _QUERIES), :]


def _logits(given: dict[str, Any]) -> Tensor:
    """The logits of an attention that is computed in one operation, for a few samples, heads and queries."""
    query, key = given["query"][:_FEW].float(), given["key"][:_FEW].float()
    step = max(1, query.shape[-2] // _QUERIES)
    scale = given.get("scale") or query.shape[-1] ** -0.5
    if key.dim() > 3 and key.shape[1] != query.shape[1]:  # several heads share their keys
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits: Tensor = query[..., ::step, :] @ key.transpose(-2, -1) * scale
    mask = given.get("attn_mask", given.get("attn_bias"))
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])[..., ::step, :]
        mask = mask[:_FEW] if mask.dim() == 4 and len(mask) > 1 else mask
        hidden = ~mask if mask.dtype == torch.bool else None
        logits = logits + mask.float() if hidden is None else logits.masked_fill(hidden, -torch.inf)
    if given.get("is_causal"):
        later = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(later[::step], -torch.inf)
    return logits


def _attention_numbers(logits: Tensor) -> Tensor:
    """The standard deviation within the rows, the entropy in parts of its maximum, and the largest probability."""
    seen = logits > logits.amax(-1, keepdim=True) - _HIDDEN
    number = seen.sum(-1)
    mean = (logits.where(seen, 0.0).sum(-1) / number)[..., None]
    variance = (logits - mean).where(seen, 0.0).square().sum(-1) / number
    chances = logits.where(seen, -torch.inf).softmax(-1)
    entropy = torch.special.entr(chances).sum(-1) / number.float().log()
    several = number > 1
    if not bool(several.any()):
        return torch.tensor([torch.nan] * 3, device=logits.device)
    return torch.stack([variance[several].mean().sqrt(), entropy[several].mean(), chances.amax(-1)[several].mean()])
