"""Passes: a model run forward and back for its loss and its gradients, and left as it was."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.spectral_norm import SpectralNorm

from torchinit._text import dtype_name, with_article
from torchinit.errors import ProbeError
from torchinit.model.dtensor import is_distributed
from torchinit.model.names import normalize
from torchinit.noise.torch_generator import seeded_generators
from torchinit.probing.inputs import Inputs, forward
from torchinit.probing.measurement import Objective
from torchinit.probing.moments import first_floating, parts_of

Gradients: TypeAlias = Mapping[str, Tensor | None]
Loss: TypeAlias = Callable[[Any, Any], Tensor]


_APART = 0x7461726765
"""What keeps random labels apart from made inputs of the same seed: ids would be their own labels."""


class ReentrantError(Exception):
    """A model that computes parts of itself again during the backward pass, which `grad` cannot do."""


class Passes:
    """The passes of a model over its inputs, all to the same loss: the user's, the model's own, or one that fits.

    Without a ``loss`` it is the model's own (``output.loss``), the cross entropy of logits, the squared error of a
    target of the output's shape, or else the mean of the output times fixed noise, which lets all of it count alike. A
    target that nobody gave is drawn from the seed. Gradients are taken by ``backward`` if ``by_backward`` is set.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, loss: Loss | None = None, prior: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.model: nn.Module = model
        self.inputs: Inputs = inputs
        self.trained: dict[str, Tensor] = {
            normalize(name): each for name, each in model.named_parameters() if each.requires_grad
        }
        self.by_backward: bool = False
        self._loss, self._seed = loss, seed
        self._prior = math.nan if prior is None else _entropy(prior)

    def gradients(self, between: Callable[[], list[Tensor]] = list) -> tuple[Gradients, Objective]:
        """The gradients by name, None where the loss does not depend on a parameter, and the objective with the loss.

        ``between`` is called when the loss is known, and returns other tensors whose gradients their hooks wait for.
        Gradients that the parameters hold are left alone. Raises ReentrantError where ``by_backward`` is needed.
        """
        value, objective = self.forward()
        others = between()
        name = type(self.model).__name__
        if not value.requires_grad and not self.trained:
            raise ProbeError(f"no parameter of {name} requires a gradient, so nothing of it is trained")
        if not value.requires_grad:
            raise ProbeError(f"the loss does not depend on any trained parameter of {name}; is its output detached?")
        return self._back(value, others), replace(objective, loss=float(value.detach()))

    def _back(self, loss: Tensor, others: list[Tensor]) -> Gradients:
        # `grad` is the first choice, since it triggers nothing: `backward` would run optimizers that step within it,
        # and what waits to reduce gradients. Reentrant checkpointing and FSDP know `backward` alone.
        values = list(self.trained.values())
        if self.by_backward or any(map(is_distributed, values)):
            return _by_backward(loss, self.trained)
        try:
            found = torch.autograd.grad(loss, [*values, *others], allow_unused=True)
        except RuntimeError as error:
            if "heckpoint" in str(error):
                raise ReentrantError from error
            raise
        return dict(zip(self.trained, found, strict=False))

    def forward(self) -> tuple[Tensor, Objective]:
        """The loss, and its description, in which its value is still to come."""
        output = forward(self.model, self.inputs)
        logits, sure = self._logits(output)
        value, text = self._value(output, logits)
        if value.numel() != 1:
            raise ProbeError(f"the loss is not a scalar, but has shape {tuple(value.shape)}; take its mean")
        value = value.reshape(())
        odd = _odd_part(output)
        if logits is None or not text.startswith(("cross entropy", "the model")):
            return value, Objective(text, math.nan, odd=odd)
        classes = logits.shape[-1]
        best = math.log(classes) if math.isnan(self._prior) else self._prior
        rms = float(logits.detach().float().square().mean().sqrt())
        return value, Objective(text, math.nan, classes, rms, best, sure, odd)

    def _value(self, output: Any, logits: Tensor | None) -> tuple[Tensor, str]:
        if self._loss is not None:
            try:
                value: Any = self._loss(output, self.inputs.batch)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                raise ProbeError("loss= is a function of the output and the batch, and raised", [problem]) from error
            if not isinstance(value, Tensor) or value.is_complex():
                found = "complex" if isinstance(value, Tensor) else with_article(type(value).__name__)
                raise ProbeError(f"the loss is {found}, not a tensor of one number")
            return value, "the given loss"
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, Tensor):
            return own.mean(), "the model's own loss"
        tensor = logits if logits is not None else first_floating(output)
        if tensor is None:
            raise ProbeError(f"{type(self.model).__name__} returned {_kind(output)}, which holds no tensor of numbers")
        return self._value_for(tensor, logits)

    def _value_for(self, tensor: Tensor, logits: Tensor | None) -> tuple[Tensor, str]:
        target, generator = self.inputs.target, torch.Generator().manual_seed(self._seed ^ _APART)
        if target is not None and target.shape == tensor.shape and target.is_floating_point():
            return F.mse_loss(tensor.float(), target.float()), "the mean squared error of the target"
        if logits is not None:
            flat = logits.reshape(-1, logits.shape[-1]).float()
            text = f"cross entropy of {flat.shape[1]} classes"
            if target is not None and target.numel() == len(flat) and not target.is_floating_point():
                return F.cross_entropy(flat, target.reshape(-1)), text
            labels = torch.randint(flat.shape[1], (len(flat),), generator=generator, device="cpu").to(flat.device)
            return F.cross_entropy(flat, labels), f"{text}, random labels"
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu").to(tensor)
        return (tensor * noise).mean(), "the output times fixed noise"

    def _logits(self, output: Any) -> tuple[Tensor | None, bool]:
        """The logits in an output, and whether they are that for sure."""
        found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        if isinstance(found, Tensor) and found.dim() > 1 and found.shape[-1] > 1:
            return found, True
        tensor, target = first_floating(output), self.inputs.target
        if tensor is None or tensor.dim() not in (2, 3) or tensor.shape[-1] < 2:
            return None, False
        if target is not None:
            is_label = not target.is_floating_point() and target.numel() == tensor.numel() // tensor.shape[-1]
            return (tensor, True) if is_label else (None, False)
        tables = {each.num_embeddings for each in self.model.modules() if isinstance(each, nn.Embedding)}
        if tensor.shape[-1] in tables:
            return tensor, True
        is_same = any(tensor.shape == each.shape for each in self.inputs.tensors)  # an autoencoder's
        is_class = tensor.dim() == 2 and len(tensor) == self.inputs.samples and not is_same
        return (tensor, False) if is_class else (None, False)


def _by_backward(loss: Tensor, trained: Mapping[str, Tensor]) -> Gradients:
    values = trained.values()
    before = [value.grad for value in values]
    hooks = [each for value in values if (each := getattr(value, "_post_accumulate_grad_hooks", None))]
    waiting = [dict(each) for each in hooks]
    try:
        for value in values:
            value.grad = None
        for each in hooks:
            each.clear()
        loss.backward()
        return {name: value.grad for name, value in trained.items()}
    finally:
        for value, gradient in zip(values, before, strict=True):
            value.grad = gradient
        for each, registered in zip(hooks, waiting, strict=True):
            each.update(registered)


def _odd_part(output: object, depth: int = 4) -> str:
    """The name of the first part of an output with NaN or infinity, empty without one; masked scores hold -inf."""
    for name, part in parts_of(output, "item ") if depth else ():
        if isinstance(part, Tensor) and part.is_floating_point() and not bool((part.detach() < math.inf).all()):
            return name
        if inner := _odd_part(part, depth - 1):
            return f"{name}.{inner}"
    return ""


def _kind(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of {dtype_name(output.dtype)} of shape {tuple(output.shape)}"
    return "None" if output is None else with_article(type(output).__name__)


def _entropy(prior: Sequence[float]) -> float:
    """The entropy of a prior over the classes; ProbeError where it is not one."""
    chances = [float(chance) for chance in prior]
    if not chances or min(chances) < 0 or not math.isclose(sum(chances), 1, rel_tol=1e-3):
        raise ProbeError("prior= takes the share of each class, numbers from 0 on whose sum is 1")
    return -sum(chance * math.log(chance) for chance in chances if chance)


# --- the model as it was ---------------------------------------------------------------------------------------------


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
            undo.callback(setattr, parameter, "requires_grad", parameter.requires_grad)
            undo.callback(setattr, parameter, "grad", parameter.grad)
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
        # The older spectral norm looks for the largest singular value while it trains, and has not begun yet.
        hooks = module._forward_pre_hooks.values()
        module.training = is_batch_norm(module) or any(isinstance(hook, SpectralNorm) for hook in hooks)
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
    before, version = tensor.detach().clone(), 0 if tensor.is_inference() else tensor._version

    def restore() -> None:
        if tensor.is_meta or _is_as_before(tensor, before, version):  # to write what is there would count as a write
            return
        with torch.no_grad():  # some writes are not counted: those of a batch norm to its statistics
            (tensor.detach() if tensor.layout == torch.strided else tensor).copy_(before)  # a sparse copy is a new one

    return restore


def _is_as_before(tensor: Tensor, before: Tensor, version: int) -> bool:
    if tensor.layout != torch.strided:  # which cannot be compared
        return not tensor.is_inference() and tensor._version == version
    if torch.equal(tensor, before):
        return True
    return not bool(((tensor != before) & ~(tensor.isnan() & before.isnan())).any())


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
