"""Torch's own generator as a noise that makes the calls of hand-written code, and its state for a while."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from torchinit.errors import RunError
from torchinit.model.shards import Shard
from torchinit.noise.base import Distribution, Noise
from torchinit.noise.distributions import check_parameters

_FULL = (torch.float32, torch.float64, torch.complex64, torch.complex128)


@final
@dataclass(frozen=True, slots=True)
class Global(Noise):
    """Torch's generator: every draw is the call that ``torch.nn.init`` makes, so the bits are the same.

    ``truncation`` chooses the algorithm for truncated normals: ``"rejection"`` is torch's,
    ``"inverse_cdf"`` that of MMEngine 0.10.7 (``mmengine/model/weight_init.py``), which draws another
    number of random bits.

    >>> import torch
    >>> from torchinit.model.shards import Shard
    >>> ours, theirs = torch.empty(3), torch.empty(3)
    >>> _ = torch.manual_seed(0)
    >>> Global().fill(Shard.whole("weight", ours), "normal", (0.0, 0.02))
    >>> _ = torch.manual_seed(0)
    >>> _ = torch.nn.init.normal_(theirs, 0.0, 0.02)
    >>> torch.equal(ours, theirs)
    True
    """

    generator: torch.Generator | None = None
    truncation: Literal["rejection", "inverse_cdf"] = "rejection"
    is_stateful: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.truncation not in ("rejection", "inverse_cdf"):
            raise ValueError(f"truncation is 'rejection' or 'inverse_cdf', got {self.truncation!r}")

    def fill(self, shard: Shard, distribution: Distribution, params: tuple[float, ...], index: int = 0) -> None:
        """Draw the shard, which must be all of its region; ``index`` does not matter here."""
        _refuse_part(shard)
        check_parameters(distribution, params)
        if shard.local.is_complex() and distribution != "normal":
            raise ValueError(f"{shard.name} is complex, and {distribution} has no complex form; use a normal")
        with torch.no_grad():
            self._draw(shard.local, distribution, params)

    def order(self, shard: Shard, index: int = 0) -> Tensor:
        """One ``torch.randperm`` a column, as ``torch.nn.init.sparse_`` does."""
        _refuse_part(shard)
        rows, columns = shard.region.shape
        home = self.generator.device if self.generator else torch.get_default_device()
        device = "cpu" if home.type == "meta" else home  # elsewhere as torch does
        drawn = [torch.randperm(rows, generator=self.generator, device=device) for _ in range(columns)]
        return torch.stack(drawn, dim=1) if drawn else torch.empty(rows, 0, dtype=torch.int64, device=device)

    def linalg_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype itself where torch can factorize in it, else float32."""
        return dtype if dtype in _FULL else torch.complex64 if dtype.is_complex else torch.float32

    def _draw(self, out: Tensor, distribution: Distribution, params: tuple[float, ...]) -> None:
        source = self.generator
        match distribution, params:
            case "normal", (mean, std):
                nn.init.normal_(out, mean, std, generator=source)
            case "uniform", (low, high):
                nn.init.uniform_(out, low, high, generator=source)
            case "truncated", (mean, std, low, high) if self.truncation == "rejection":
                nn.init.trunc_normal_(out, mean, std, low, high, generator=source)
            case "truncated", (mean, std, low, high):
                self._inverse_cdf(out, mean, std, low, high)
            case "bernoulli", (p,):
                out.bernoulli_(p, generator=source)
            case "integer", (low, high):
                out.random_(int(low), int(high), generator=source)
            case _:
                out.bernoulli_(0.5, generator=source).mul_(2).sub_(1)

    def _inverse_cdf(self, out: Tensor, mean: float, std: float, low: float, high: float) -> None:
        if not low - 2 * std <= mean <= high + 2 * std:
            warnings.warn(
                f"the mean {mean} is more than 2 std outside of [{low}, {high}]: "
                "this way of truncating may give a distorted distribution",
                UserWarning,
                stacklevel=5,
            )
        # Every operation, its order and the tensor's own dtype are part of the promise of equal bits.
        below, above = _normal_cdf((low - mean) / std), _normal_cdf((high - mean) / std)
        out.uniform_(2 * below - 1, 2 * above - 1, generator=self.generator)
        out.erfinv_().mul_(std * math.sqrt(2.0)).add_(mean).clamp_(min=low, max=high)


def _normal_cdf(x: float) -> float:
    return (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0


def _refuse_part(shard: Shard) -> None:
    region, here = shard.region, tuple(shard.local.shape)
    if (here, shard.start) != (region.shape, region.start):
        raise RunError(
            f"{shard.name}: only {list(here)} of {list(region.shape)} is here, and torch's generator cannot "
            "draw a part of a tensor alone; give a seed"
        )


@contextmanager
def drawing_from(generator: torch.Generator, devices: Iterable[torch.device]) -> Iterator[Global]:
    """Let a generator take the place of torch's own within the block, so that user code draws from it, too.

    Raises RunError where it is not of all the devices.
    """
    home = generator.device
    others = [device for device in devices if (device.type, device.index or 0) != (home.type, home.index or 0)]
    if others:
        raise RunError(f"the generator lies on {home}, and the model on {others[0]}: give one of the same device")
    torchs = torch.default_generator if home.type == "cpu" else torch.cuda.default_generators[home.index or 0]
    before = torchs.get_state()
    torchs.set_state(generator.get_state())
    try:
        yield Global()
    finally:
        generator.set_state(torchs.get_state())
        torchs.set_state(before)


@contextmanager
def seeded_generators(number: int, *devices: torch.device) -> Iterator[None]:
    """Seed torch's generator, and those of other devices, with a number; afterwards they are as they were.

    >>> import torch
    >>> with seeded_generators(7):
    ...     first = torch.rand(2)
    >>> with seeded_generators(7):
    ...     torch.equal(torch.rand(2), first)
    True
    """
    others = [device for device in dict.fromkeys(devices) if device.type not in ("cpu", "meta")]
    kind = {"device_type": others[0].type} if others else {}
    with torch.random.fork_rng(devices=others, **kind):
        torch.default_generator.manual_seed(number)
        for device in others:
            module = torch.get_device_module(device)
            every = getattr(module, "default_generators", None)  # of a backend with several devices, one for each
            index = module.current_device() if every and device.index is None else device.index
            (every[index] if every else module).manual_seed(number)
        yield
