"""Norms of every form, each with the values at which it does nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchinit import sites

WIDTH = 24


def facts(module: nn.Module) -> dict[str, float | None]:
    """The neutral values of a layer's parameters, where it stands in a model."""
    model = nn.ModuleDict({"layer": module})
    return {site.name.removeprefix("layer."): site.neutral for site in sites(model) if site.kind == "parameter"}


def rms(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + 1e-6)


class Scale(nn.Module):
    """One vector."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))


# --- norms -----------------------------------------------------------------------------------------------------------


class Gemma(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return rms(x) * (1 + self.weight)


class Flagged(Scale):
    def __init__(self, unit_offset: bool) -> None:
        super().__init__()
        self.unit_offset = unit_offset

    def forward(self, x: Tensor) -> Tensor:
        return rms(x) * (self.weight + self.unit_offset)


class Gated(Scale):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        assert gate is not None
        return self.weight * rms(x) * F.silu(gate)


class GatedFirst(Scale):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return (1 + self.weight) * rms(x * torch.sigmoid(gate))


class ScaledFirst(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return rms(x * (1 + self.weight))


class ScaledFirstByWeight(Scale):
    def forward(self, x: Tensor) -> Tensor:
        x = x * self.weight
        return x / x.pow(2).mean(-1, keepdim=True).sqrt()  # 0/0 at 0


class AddsResidual(Scale):
    """As in inference engines: the sum goes on, too."""

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        x = x + residual
        return rms(x) * self.weight, x


class QueriesAndKeys(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_weight, self.k_weight, self.k_bias = (nn.Parameter(torch.empty(WIDTH)) for _ in range(3))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return rms(q) * (1 + self.q_weight), rms(k) * self.k_weight + self.k_bias


class Annotated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a_2, self.b_2 = (nn.Parameter(torch.empty(WIDTH)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.b_2


class ChannelsFirst(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return rms(x, 1) * (1 + self.weight[:, None, None])


class Laid(nn.Module):
    """Its scale is laid out to be broadcast over images or over video."""

    def __init__(self, *ones: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(WIDTH, *ones))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.normalize(x, dim=1) * WIDTH**0.5 * self.gamma
        return y


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(torch.empty(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return rms(x) * (1 + self.norm_weight)


class Wrapped(Scale):
    """The normalization is a child's, the scale its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LayerNorm(WIDTH, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x) * (1 + self.weight)
        return y


class Cast(nn.Module):
    """A norm in a wrapper that runs it in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Gemma()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).type_as(x)  # type: ignore[no-any-return]


class Activated(nn.BatchNorm2d):
    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.act = nn.SiLU()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.act(super().forward(x)))  # type: ignore[no-any-return]


class OnePlus(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class Inherits(nn.LayerNorm):
    pass


class Response(nn.Module):
    """Global response normalization, https://arxiv.org/abs/2301.00808, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.empty(1, 1, 1, WIDTH)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        size = x.pow(2).sum((1, 2), keepdim=True).sqrt()
        return self.gamma * (x * size / (size.mean(-1, keepdim=True) + 1e-6)) + self.beta + x


class Exponential(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return rms(x) * self.weight.exp()


class LearnsEps(Scale):
    def __init__(self) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.full((1,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps.abs()) * self.weight


class OneNumber(nn.Module):
    """A single scale for all channels, and nothing that tells how many those are."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * self.g
        return y


class Masked(Scale):
    def forward(self, x: Tensor, mask: Tensor, *, eps: float = 1e-6, **_: object) -> Tensor:
        return x * torch.rsqrt((x * mask).pow(2).mean(-1, keepdim=True) + eps) * (1 + self.weight)


class Drops(Scale):
    """In training it draws; in evaluation it is a norm, all the same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(rms(x) * self.weight, 0.1, self.training)


class Compiled(Scale):
    @torch.compile(fullgraph=True)
    def forward(self, x: Tensor) -> Tensor:
        return rms(x) * (1 + self.weight)


class Method(Scale):
    """Its forward calls a method that was chosen when it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.compute = self.native

    def native(self, x: Tensor) -> Tensor:
        return rms(x) * (1 + self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


class OwnEps(Scale):
    """Its eps is a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = torch.tensor(1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def wide() -> nn.Module:
    norm = Gemma()
    norm.weight = nn.Parameter(torch.empty(1 << 19, device="meta"))
    return norm


NORMS: dict[str, tuple[Callable[[], nn.Module], dict[str, float | None]]] = {
    "1 + w": (Gemma, {"weight": 0}),
    "flag on": (lambda: Flagged(True), {"weight": 0}),
    "flag off": (lambda: Flagged(False), {"weight": 1}),
    "gate": (Gated, {"weight": 1}),
    "gate first": (GatedFirst, {"weight": 0}),
    "1 + w first": (ScaledFirst, {"weight": 0}),
    "w first": (ScaledFirstByWeight, {"weight": 1}),
    "two arguments, a sum": (AddsResidual, {"weight": 1}),
    "two arguments, two outputs": (QueriesAndKeys, {"q_weight": 0, "k_weight": 1, "k_bias": 0}),
    "other names": (Annotated, {"a_2": 1, "b_2": 0}),
    "channels first": (ChannelsFirst, {"weight": 0}),
    "laid out for images": (lambda: Laid(1, 1), {"gamma": 1}),
    "laid out for video": (lambda: Laid(1, 1, 1), {"gamma": 1}),
    "heads": (Heads, {"norm_weight": 0}),
    "normalized below": (Wrapped, {"weight": 0}),
    "in a wrapper": (Cast, {"norm.weight": 0}),
    "batch norm with more": (Activated, {"weight": 1, "bias": 0}),
    "a subclass": (lambda: OnePlus(WIDTH), {"weight": 0, "bias": 0}),
    "a subclass that inherits": (lambda: Inherits(WIDTH), {"weight": 1, "bias": 0}),
    "residual": (Response, {"gamma": 0, "beta": 0}),
    "exp(w)": (Exponential, {"weight": 0}),
    "an eps that is learned": (LearnsEps, {"weight": 1, "eps": None}),
    "one number": (OneNumber, {"g": 1}),
    "a mask": (Masked, {"weight": 0}),
    "dropout": (Drops, {"weight": 1}),
    "compiled": (Compiled, {"weight": 0}),
    "a bound method": (Method, {"weight": 0}),
    "a tensor as eps": (OwnEps, {"weight": 1}),
    "wide": (wide, {"weight": 0}),
}
