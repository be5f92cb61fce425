"""Functions of a tensor as initializers: torch.nn.init's, which have twins here, and users' own."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from reprlib import repr as short
from types import FunctionType
from typing import Any, ClassVar, Final, TypeAlias, final

import torch
from torch import Tensor, nn

from torchinit._text import short_repr
from torchinit.errors import RunError
from torchinit.initializers.base import Initializer
from torchinit.initializers.elementwise import Constant, Normal, TruncNormal, Uniform
from torchinit.initializers.matrices import Dirac, Identity, Orthogonal, RegionFill, Sparse
from torchinit.initializers.statistics import magnitude
from torchinit.initializers.tables import Index, IndexFill
from torchinit.initializers.variance_scaling import Kaiming, Ones, Xavier, Zeros
from torchinit.model.shards import Shard
from torchinit.noise import Noise

Function: TypeAlias = Callable[[Tensor], object]
"""A function that fills the tensor that it is given, or returns another one in its place."""

_DRAW: Final = 4
"""The draw index of functions: fills use 0 and 1, parametrizations 2, what makes buffers 3."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Code(RegionFill):
    """The values that a function gives to a tensor: it fills the one that it gets, or returns another.

    With a seed it gets a tensor of the whole shape on the CPU, in float32 unless the site is wider, while torch's
    generator is in a state that belongs to the name; so a part of the result is the same on however many ranks. Without
    one it gets a tensor like the site, and draws as if it were called by hand. What it makes is looked at before any of
    it is written: RunError where it raises, or makes another shape, NaN, or numbers too large for the site, or leaves
    elements as they were.

    >>> Code(torch.Tensor.zero_), Code(partial(torch.Tensor.fill_, value=0.5))
    (code: TensorBase.zero_, code: partial(TensorBase.fill_, value=0.5))
    """

    function: Function
    bytes_an_element: ClassVar[int] = 12

    def __post_init__(self) -> None:
        try:
            inspect.signature(self.function).bind(None)
        except TypeError as error:
            raise TypeError(f"{self} cannot be called with one tensor: {error}") from None
        except ValueError as error:
            if "incorrect arguments" in str(error):  # those of a partial; others do not tell what they take
                raise TypeError(f"{self}: its function has no such argument") from None

    def __str__(self) -> str:
        return f"code: {_called(self.function)}"

    def __repr__(self) -> str:  # without places in memory, so that it is the same on all ranks
        return str(self)

    def __hash__(self) -> int:
        return hash(str(self))

    def compute(self, shard: Shard, noise: Noise) -> Tensor:
        local, region = shard.local, shard.region
        whole = torch.empty_like(local) if noise.is_stateful else torch.empty(region.shape, dtype=_wide(local.dtype))
        whole.fill_(torch.nan)
        # The blocks of a fused weight are tensors of their own, under one name.
        name = f"{shard.name}\0{region.start}" if any(region.start) else shard.name
        try:
            with noise.lending(name, _DRAW, local.device, local.dtype):
                result = self.function(whole)
            return _checked(whole if result is None else result, region.shape, local.dtype).to(whole.dtype)
        except Exception as error:
            fault = str(error) if isinstance(error, _FaultError) else f"raised {type(error).__name__}: {error}"
            raise RunError(f"{shard.name}: {self} {fault}; nothing of it was written") from error


def _wide(dtype: torch.dtype) -> torch.dtype:
    real = dtype.to_real()
    real = real if real.itemsize >= 4 else torch.float32
    return real.to_complex() if dtype.is_complex else real


class _FaultError(ValueError):
    """A fault in the result of a function."""


def _checked(result: object, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not isinstance(result, Tensor):
        raise _FaultError(f"returned {short(result)}, where it should fill the tensor or return one")
    if tuple(result.shape) != shape or result.is_meta:
        place = f"shape {tuple(result.shape)} on {result.device}"
        raise _FaultError(f"made a tensor of {place}, not one of {shape} with values")
    if result.is_complex() and not dtype.is_complex:
        raise _FaultError("made complex numbers, and the site holds real ones")
    if left := int(result.isnan().sum()):
        raise _FaultError(f"left {left} of {result.numel()} elements as they were, or made them NaN")
    values = result.detach() if result.is_floating_point() or result.is_complex() else result.double()
    if torch.finfo(dtype).max < (largest := magnitude(values)) < math.inf:
        raise _FaultError(f"made numbers up to {largest:.6g}, beyond the largest of {dtype}")
    return values


def _called(function: Any) -> str:
    """The name of a function, as a reader finds it again."""
    if isinstance(function, partial):
        keywords = (f"{key}={short_repr(value)}" for key, value in function.keywords.items())
        arguments = ", ".join([_called(function.func), *map(short_repr, function.args), *keywords])
        return re.sub(r" at 0x[0-9a-f]+", "", f"partial({arguments})")
    if getattr(function, "__name__", "") == "<lambda>":
        return f"lambda at {Path(function.__code__.co_filename).name}:{function.__code__.co_firstlineno}"
    named = function if hasattr(function, "__qualname__") else type(function)
    return ".".join(filter(None, (getattr(named, "__module__", None), named.__qualname__)))


@final
@dataclass(frozen=True, slots=True)
class FromIndex(IndexFill):
    """The values that a function makes of places: ``function(i, j, ...)``, a float64 tensor of indices for each axis.

    The tensors broadcast against each other; so may the result. The function must treat each element by itself, since a
    part of a tensor is given the places of the part alone. For Python only: plain data cannot hold it. ValueError (in a
    run: RunError, before anything is written) where the function fails, or makes another shape, or NaN.

    >>> FromIndex(lambda i, j: i * 10 + j).table((2, 3)).tolist()
    [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]
    """

    function: Callable[..., object]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"FromIndex needs a function of indices, but got {self.function!r}")

    def __str__(self) -> str:
        return f"FromIndex({_called(self.function)})"

    def prepare(self, shard: Shard) -> None:
        self.here(shard)

    def table(self, shape: tuple[int, ...]) -> Tensor | None:
        try:
            return IndexFill.table(self, shape)
        except ValueError:  # a run says so
            return None

    def values(self, index: Index, shape: tuple[int, ...]) -> Tensor:
        box = torch.broadcast_shapes(*(axis.shape for axis in index))
        try:
            made: Any = self.function(*(axis.double() for axis in index))
            whole = torch.as_tensor(made, dtype=torch.float64).broadcast_to(box)
        except Exception as error:
            raise ValueError(f"{self} raised {type(error).__name__}: {error}") from error
        if bool(whole.isnan().any()):
            raise ValueError(f"{self} made NaN")
        return whole


_TWINS: Final[Mapping[str, Callable[..., Initializer]]] = {
    "constant": Constant,
    "dirac": Dirac,
    "eye": Identity,
    "kaiming_normal": partial(Kaiming, mode="fan_in", nonlinearity="leaky_relu"),
    "kaiming_uniform": partial(Kaiming, mode="fan_in", nonlinearity="leaky_relu", distribution="uniform"),
    "normal": Normal,
    "ones": Ones,
    "orthogonal": Orthogonal,
    "sparse": Sparse,
    "trunc_normal": TruncNormal,
    "uniform": Uniform,
    "xavier_normal": Xavier,
    "xavier_uniform": partial(Xavier, distribution="uniform"),
    "zeros": Zeros,
}
"""Initializers that draw the bits of a function of torch.nn.init; those of deprecated names have no ``_`` behind."""


def _twin(function: Any) -> Initializer | None:
    """The initializer that a function of torch.nn.init stands for, or a partial of one with keywords."""
    keywords: dict[str, Any] = {}
    if isinstance(function, partial) and not function.args:
        function, keywords = function.func, dict(function.keywords)
    known = {getattr(nn.init, name, None): twin for twin in _TWINS for name in (f"{twin}_", twin)}
    name = known.get(function) if isinstance(function, FunctionType) else None
    if name is None:
        return None
    signature, called = inspect.signature(getattr(nn.init, f"{name}_")), f"torch.nn.init.{name}_"
    try:
        signature.bind(None, **keywords)
    except TypeError as error:
        advice = f"arguments are given by functools.partial({called}, ...)"
        raise TypeError(f"{called}{signature}: {error}; {advice}") from None
    if keywords.pop("generator", None) is not None:
        raise TypeError(f"{called}: leave out generator, and give it as the seed of the call")
    return _TWINS[name](**keywords)


def as_initializer(value: Any) -> Initializer:
    """The value, if it is an initializer; the one that a function of a tensor stands for.

    Rules do so when they are made, so that plans can show formulas, and data hold them, wherever there is one.
    Functions of ``torch.nn.init``, and partials of them with keywords, become the initializers that draw the same bits
    without a seed; any other function is :class:`Code`. Raises TypeError for anything else, with what to write.

    >>> as_initializer(nn.init.xavier_uniform_), as_initializer(partial(nn.init.normal_, std=0.02))
    (Xavier(gain=1.0, distribution='uniform', fans='torch'), Normal(mean=0.0, std=0.02))
    """
    # Classes and paths have a method resolve, as initializers do, and some mappings every attribute.
    if isinstance(value, Initializer) and not isinstance(value, (type, os.PathLike, Mapping)):
        return value
    if callable(value) and not isinstance(value, (type, nn.Module)):
        return _twin(value) or Code(value)
    given, advice = short(value), "one such as Normal(std=0.02), or a function of a tensor"
    match value:
        case type():
            raise TypeError(f"{value.__name__} is a class; write {value.__name__}()")
        case nn.Module():
            given, advice = f"a {type(value).__name__}", "Pretrained(module) to load its values"
        case Tensor():
            given, advice = "a tensor", "a function that copies it: lambda weight: weight.copy_(tensor)"
        case os.PathLike():
            given = repr(str(value))
            advice = f"Pretrained({given})"
        case str():
            name = value if value.isidentifier() else "Kaiming"
            advice = f"{name}(), or {{'type': {name!r}}} as data"
        case int() | float() if not isinstance(value, bool):
            advice = f"Constant({value!r}), or {{'type': 'Constant', 'val': {value!r}}} as data"
    raise TypeError(f"{given} is not an initializer; write {advice}")
