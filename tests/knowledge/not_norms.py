"""Layers that are not norms, and norms that cannot be asked."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.knowledge.norms import WIDTH, Scale, rms


class LayerScale(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class ResidualScale(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight * x


class Pooled(Scale):
    """A residual branch that averages neighbours: it mixes, and is no norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight * (x.roll(1, -1) + x.roll(-1, -1)) / 2


class Gate(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.weight) * x


class Slope(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.weight * x)


class DynamicTanh(nn.Module):
    """https://arxiv.org/abs/2503.10622: takes a norm's place, and normalizes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x) * self.weight + self.bias


class Query(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight.expand_as(x)


class Small(Scale):
    """Divides by the length: at 1 all is sqrt(width) times too small."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.weight


class Half(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return rms(x) * (0.5 + self.weight)


class FromBuffer(Scale):
    """What it computes hangs on the values of a buffer, which a model on the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.offset: Tensor
        self.register_buffer("offset", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return rms(x) * (self.weight + self.offset)


class Adaptive(Scale):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y: Tensor = rms(x) * self.weight * self.linear(condition)
        return y


class Branch(Scale):
    """A block: its scale is that of a residual branch with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.weight * self.up(rms(x))
        return y


class Rest(Scale):
    """A block of vectors alone: the scale of a branch, beside a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.weight * self.ln(x)
        return y


class Raises(Scale):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("only on a GPU")


class Exits(Scale):
    def forward(self, x: Tensor) -> Tensor:
        raise SystemExit("out")


class Endless(Scale):
    def forward(self, x: Tensor) -> Tensor:
        while True:
            x = x + 0


class Draws(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return rms(x + torch.randn_like(x)) * self.weight


class Twisted(Scale):
    """Its forward holds on to the model's own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: Callable[[Tensor], Tensor] = lambda x: x * self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(rms(x))


class NoForward(Scale):
    pass


class Returns(Scale):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": rms(x) * self.weight}


DECLINED: dict[str, Callable[[], nn.Module]] = {
    cls.__name__: cls
    for cls in (
        LayerScale, ResidualScale, Rest, Pooled, Gate, Slope, DynamicTanh, Query, Small, Half, FromBuffer, Adaptive,
        Branch, Raises, Exits, Endless, Draws, Twisted, NoForward, Returns,
    )
}  # fmt: skip
DECLINED |= {
    "PReLU": lambda: nn.PReLU(WIDTH),
    "Linear": lambda: nn.Linear(8, 8),
    "weight-normed Linear": lambda: parametrizations.weight_norm(nn.Linear(8, 8)),
    "ParameterList": lambda: nn.ParameterList([nn.Parameter(torch.ones(8))]),
}
