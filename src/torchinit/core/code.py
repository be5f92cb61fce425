"""Code: functions of a tensor as initializers: torch.nn.init's, which have twins here, and anybody's own."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from reprlib import repr as short
from typing import Any, ClassVar, Final, TypeAlias, cast, final

import torch
from torch import Tensor, nn

from torchinit.core.fills import Constant, Initializer, Normal, TruncNormal, Uniform
from torchinit.core.formulas import Kaiming, Ones, Xavier, Zeros
from torchinit.core.matrices import Dirac, Identity, Orthogonal, Sparse, Whole
from torchinit.core.shards import Shard
from torchinit.core.spelling import spell
from torchinit.core.transfers import magnitude
from torchinit.errors import RunError
from torchinit.noise import Noise

Function: TypeAlias = Callable[[Tensor], object]
"""What fills the tensor that it is given, or returns another one in its place."""

_DRAW: Final = 4
"""The draw index of functions: fills use 0 and 1, parametrizations 2, what makes buffers 3."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Code(Whole):
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
        whole = torch.empty_like(local) if noise.sequential else torch.empty(region.shape, dtype=_wide(local.dtype))
        whole.fill_(torch.nan)
        # The blocks of a fused weight are tensors of their own, under one name.
        name = f"{shard.name}\0{region.start}" if any(region.start) else shard.name
        try:
            with noise.lending(name, _DRAW, local.device):
                returned = self.function(whole)
        except Exception as error:
            text = f"{shard.name}: {self} raised {type(error).__name__}: {error}; nothing of it was written"
            raise RunError(text) from error
        made = whole if returned is None else returned
        if fault := _fault(made, region.shape, local.dtype):
            raise RunError(f"{shard.name}: {self} {fault}; nothing of it was written")
        return cast("Tensor", made).detach().to(whole.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    real = dtype.to_real()
    real = real if real.itemsize >= 4 else torch.float32
    return real.to_complex() if dtype.is_complex else real


def _fault(made: object, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """What is wrong with the result of a function; nothing of one that can be written."""
    if not isinstance(made, Tensor):
        return f"returned {short(made)}, where it should fill the tensor or return one"
    if tuple(made.shape) != shape:
        return f"made a tensor of shape {tuple(made.shape)}, not {shape}"
    if made.is_meta:
        return "made a tensor on the meta device, which holds no values"
    if made.is_complex() and not dtype.is_complex:
        return "made complex numbers, and the site holds real ones"
    if left := int(made.isnan().sum()):
        return f"left {left} of {made.numel()} elements as they were, or made them NaN"
    floating = made if made.is_floating_point() or made.is_complex() else made.double()
    if torch.finfo(dtype).max < (largest := magnitude(floating.detach())) < math.inf:
        return f"made numbers up to {largest:.6g}, beyond the largest of {dtype}"
    return ""


def _called(function: Any) -> str:
    """The name of a function, as a reader finds it again."""
    if isinstance(function, partial):
        said = [*map(spell, function.args), *(f"{key}={spell(value)}" for key, value in function.keywords.items())]
        return re.sub(r" at 0x[0-9a-f]+", "", f"partial({', '.join([_called(function.func), *said])})")
    name = getattr(function, "__qualname__", "")
    if name.endswith("<lambda>"):
        where = function.__code__
        return f"lambda at {os.path.basename(where.co_filename)}:{where.co_firstlineno}"  # noqa: PTH119
    module = getattr(function, "__module__", None) if name else type(function).__module__
    return ".".join(filter(None, (module, name or type(function).__qualname__)))


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
"""What draws the bits of a function of torch.nn.init from the same arguments; deprecated ones have no ``_`` behind."""


def _twin(function: Any) -> Initializer | None:
    said: dict[str, Any] = {}
    if isinstance(function, partial) and not function.args:
        function, said = function.func, function.keywords
    every = ((name + end, make) for name, make in _TWINS.items() for end in ("_", ""))
    name, make = next(((name, make) for name, make in every if getattr(nn.init, name, None) is function), ("", None))
    if make is None:
        return None
    signature = inspect.signature(getattr(nn.init, name.rstrip("_") + "_"))
    try:
        signature.bind(None, **said)
    except TypeError as error:
        way = f"arguments are given by functools.partial(torch.nn.init.{name}, ...)"
        raise TypeError(f"torch.nn.init.{name}{signature}: {error}; {way}") from None
    if said.get("generator") is not None:
        raise TypeError(f"torch.nn.init.{name}: leave out generator, and give it as the seed of the call")
    return make(**{key: value for key, value in said.items() if key != "generator"})


def as_initializer(value: Any) -> Initializer:
    """The value, if it is an initializer; the one that a function of a tensor stands for.

    Functions of ``torch.nn.init``, and partials of them with keywords, become the initializers that draw the same bits
    without a seed; any other function is :class:`Code`. Raises TypeError for anything else, with what to write.

    >>> as_initializer(nn.init.xavier_uniform_), as_initializer(partial(nn.init.normal_, std=0.02))
    (Xavier(gain=1.0, distribution='uniform', fans='torch'), Normal(mean=0.0, std=0.02))
    >>> as_initializer(0)
    Traceback (most recent call last):
    TypeError: 0 is a number, not an initializer; write Constant(0), or {'type': 'Constant', 'val': 0} as data
    """
    # Classes and paths have a method resolve, as initializers do, and some mappings every attribute.
    if isinstance(value, Initializer) and not isinstance(value, (type, os.PathLike, Mapping)):
        return value
    if callable(value) and not isinstance(value, (type, nn.Module)):
        return _twin(value) or Code(value)
    raise TypeError(_instead(value))


def _instead(value: Any) -> str:
    match value:
        case type():
            return f"{value.__name__} is a class; write {value.__name__}()"
        case nn.Module():
            name = type(value).__name__
            return f"a {name} is a module, not an initializer; to load its values, write Pretrained(module)"
        case Tensor():
            return "a tensor is not an initializer; write a function that copies it: lambda weight: weight.copy_(it)"
        case os.PathLike():
            return f"{str(value)!r} is a path, not an initializer; write Pretrained({str(value)!r})"
        case str():
            called = value if value.isidentifier() else "Kaiming"
            return f"{value!r} is text, not an initializer; write {called}(), or {{'type': {called!r}}} as data"
        case int() | float() if not isinstance(value, bool):
            data = {"type": "Constant", "val": value}
            return f"{value!r} is a number, not an initializer; write Constant({value!r}), or {data} as data"
    return f"{short(value)} is not an initializer; write one such as Normal(std=0.02), or a function of a tensor"
