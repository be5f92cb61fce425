"""Operations: what is computed inside of modules, or by functions that no hook sees: activations and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from torchinit.model.sandbox import OperationMode
from torchinit.probing.measurement import Attention, Units

_ACTIVATIONS: Final = frozenset(
    ["elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "sigmoid", "silu", "sin", "softplus", "tanh"]
)
_QUERIES, _HEADS, _FEW = 64, 8, 2
_HIDDEN = 60.0
"""A logit so far below the largest of its row is masked, whatever number the mask adds."""


class Operations:
    """The activations and the attention that run within :meth:`watching`, measured on the spot and not kept.

    ``inside`` is asked for the name of the module that runs, and the module; ``activated`` is told the name of each
    activation, ``seen`` of each operation.
    """

    # Operations are seen below autograd, where relu, tanh, softmax and attention have a few names, whoever calls them:
    # nn.MultiheadAttention runs neither the hooks of its output layer nor a Python function that could be replaced.

    def __init__(
        self,
        inside: Callable[[], tuple[str, nn.Module | None]],
        activated: Callable[[str], None],
        seen: Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None],
    ) -> None:
        self.paused: bool = False  # while somebody measures, whose own operations are none of the model's
        self._inside = inside
        self._activated = activated
        self._seen = seen
        self._units: list[tuple[str, str, int, Tensor]] = []
        self._attentions: list[tuple[str, Tensor]] = []

    def watching(self) -> OperationMode:
        """The context in which operations are seen."""
        return OperationMode(self._carry_out)

    def _carry_out(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if not self.paused and getattr(func, "namespace", "") == "aten":
            self._seen(func, args, kwargs, result)
            name = func.overloadpacket.__name__
            base = name.rstrip("_")
            if base in _ACTIVATIONS and isinstance(result, Tensor) and result.numel():
                self._activated(base)
                self._count(base, result)
            elif name in ("_softmax", "_safe_softmax") and _is_attention(args[0], args[1]):
                self._attend(_few(args[0]))
            elif name.startswith("_scaled_dot_product"):
                given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
                self._attend(_logits(given))
        return result

    def _count(self, function: str, values: Tensor) -> None:
        name, module = self._inside()
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
            self._attentions.append((self._inside()[0], _attention_numbers(logits.float())))

    def units(self) -> tuple[Units, ...]:
        """The shares of dead and saturated units, in order of execution."""
        shares = to_host([share for *_, share in self._units])
        return tuple(
            Units(name, function, rows, share if function == "relu" else 0.0, 0.0 if function == "relu" else share)
            for (name, function, rows, _), share in zip(self._units, shares, strict=True)
        )

    def attentions(self) -> tuple[Attention, ...]:
        """The numbers of each softmax over positions, in order of execution."""
        numbers = to_host([each for _, each in self._attentions])
        return tuple(Attention(name, *each) for (name, _), each in zip(self._attentions, numbers, strict=True))


def to_host(numbers: list[Tensor]) -> list[Any]:
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
