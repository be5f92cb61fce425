"""Objective: the scalar whose gradients are measured, and what the output shows of its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchinit._text import dtype_name, with_article
from torchinit.errors import ProbeError
from torchinit.probing.inputs import Inputs
from torchinit.probing.measurement import Objective
from torchinit.probing.moments import first_floating

Loss: TypeAlias = Callable[[Any, Any], Tensor]


class Objectives:
    """The way from an output to a loss, the same in each pass: the user's, the model's own, or one that fits.

    Without a ``loss`` it is the model's own (``output.loss``), the cross entropy of logits, the squared error of a
    target of the output's shape, or else the mean of the output times fixed noise, which lets all of it count alike. A
    target that nobody gave is drawn from the seed.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, loss: Loss | None, prior: Sequence[float] | None, seed: int
    ) -> None:
        self.model: nn.Module = model
        self.inputs: Inputs = inputs
        self.loss: Loss | None = loss
        self.seed: int = seed
        self.prior: float = math.nan if prior is None else _entropy(prior)

    def __call__(self, output: Any) -> tuple[Tensor, Objective]:
        """The loss of an output, and its description, the value of the loss still to come."""
        logits, sure = self._logits(output)
        value, text = self._loss(output, logits)
        if value.dim() or not (value.is_floating_point() and value.numel() == 1):
            if value.numel() != 1:
                raise ProbeError(f"the loss is not a scalar, but has shape {tuple(value.shape)}; take its mean")
            value = value.reshape(())
        if logits is None or not text.startswith(("cross entropy", "the model")):
            return value, Objective(text, math.nan)
        classes = logits.shape[-1]
        best = math.log(classes) if math.isnan(self.prior) else self.prior
        rms = float(logits.detach().float().square().mean().sqrt())
        return value, Objective(text, math.nan, classes, rms, best, sure)

    def _loss(self, output: Any, logits: Tensor | None) -> tuple[Tensor, str]:
        if self.loss is not None:
            try:
                value: Any = self.loss(output, self.inputs.batch)
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
        return self._loss_of(tensor, logits)

    def _loss_of(self, tensor: Tensor, logits: Tensor | None) -> tuple[Tensor, str]:
        target = self.inputs.target
        generator = torch.Generator().manual_seed(self.seed)
        if target is not None and target.shape == tensor.shape and target.is_floating_point():
            return F.mse_loss(tensor.float(), target.float()), "the mean squared error of the target"
        if logits is not None:
            flat = logits.reshape(-1, logits.shape[-1]).float()
            text = f"cross entropy of {flat.shape[1]} classes"
            if target is not None and target.numel() == len(flat) and not target.is_floating_point():
                return F.cross_entropy(flat, target.reshape(-1)), text
            labels = torch.randint(flat.shape[1], (len(flat),), generator=generator).to(flat.device)
            return F.cross_entropy(flat, labels), f"{text}, random labels"
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
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
