"""Functions as initializers, torch.nn.init's and users' own; what other libraries call the initializers here."""

from __future__ import annotations

import inspect
import math
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from reprlib import repr as short
from types import FunctionType
from typing import Any, ClassVar, Final, TypeAlias, final

import torch
from torch import Tensor, nn

from torchinit._text import closest, short_repr
from torchinit.errors import RunError
from torchinit.initializers.base import Initializer, is_initializer
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

    With a seed it gets a tensor of the whole shape on the CPU, in float32 unless the site is wider, and torch's
    generator in a state that belongs to the name; without one a tensor like the site, as if it were called by hand.
    RunError, before anything is written, where it raises, or what it makes is not fit for the site.

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
        blank = torch.empty(region.shape, dtype=_wide(local.dtype), device="cpu") if not noise.is_stateful else None
        whole = (torch.empty_like(local) if blank is None else blank).fill_(torch.nan)
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
    real = dtype.to_real() if dtype.itemsize >= (8 if dtype.is_complex else 4) else torch.float32
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
            whole = torch.as_tensor(made, dtype=torch.float64, device="cpu").broadcast_to(box)
        except Exception as error:
            raise ValueError(f"{self} raised {type(error).__name__}: {error}") from error
        if bool(whole.isnan().any()):
            raise ValueError(f"{self} made NaN")
        return whole


_TWINS: Final[Mapping[str, Callable[..., Initializer]]] = {
    **{cls.__name__: cls for cls in (Constant, Dirac, Identity, Kaiming, Normal, Ones)},
    **{cls.__name__: cls for cls in (Orthogonal, Sparse, TruncNormal, Uniform, Xavier, Zeros)},
}
"""The initializers that draw the bits of a function of torch.nn.init."""


def _twin(function: Any) -> Initializer | None:
    """The initializer that a function of torch.nn.init stands for, or a partial of one with keywords."""
    keywords: dict[str, Any] = {}
    if isinstance(function, partial) and not function.args:
        function, keywords = function.func, dict(function.keywords)
    known: dict[object, Synonym] = {}
    for row in chain.from_iterable(synonyms().values()):
        if row.library == "torch.nn.init" and row.type in _TWINS:  # deprecated names have no "_" behind
            known |= {getattr(nn.init, name, None): row for name in (row.name, row.name.removesuffix("_"))}
    twin = known.get(function) if isinstance(function, FunctionType) else None
    if twin is None:
        return None
    signature, called = inspect.signature(getattr(nn.init, twin.name)), f"torch.nn.init.{twin.name}"
    try:
        signature.bind(None, **keywords)
    except TypeError as error:
        advice = f"arguments are given by functools.partial({called}, ...)"
        raise TypeError(f"{called}{signature}: {error}; {advice}") from None
    if keywords.pop("generator", None) is not None:
        raise TypeError(f"{called}: leave out generator, and give it as the seed of the call")
    return _TWINS[twin.type](**{**twin.arguments, **keywords})


def as_initializer(value: Any) -> Initializer:
    """The value, if it is an initializer; the one that a function of a tensor stands for.

    Rules do so when they are made, so that plans can show formulas, and data hold them, wherever there is one.
    Functions of ``torch.nn.init``, and partials of them with keywords, become the initializers that draw the same bits
    without a seed; any other function is :class:`Code`. Raises TypeError for anything else, with what to write.

    >>> as_initializer(nn.init.xavier_uniform_), as_initializer(partial(nn.init.normal_, std=0.02))
    (Xavier(gain=1.0, distribution='uniform', fans='torch'), Normal(mean=0.0, std=0.02))
    """
    # Classes and paths have a method resolve, as initializers do, and some mappings every attribute.
    if is_initializer(value) and not isinstance(value, (type, os.PathLike, Mapping)):
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


# --- synonyms: what the initializers of torch.nn.init, Keras, JAX and others are called here (synonyms.toml) ------


@dataclass(frozen=True, slots=True)
class Synonym:
    """The ``name`` of an initializer in a ``library``, and the ``type`` with the arguments that give the same here."""

    name: str
    library: str
    type: str
    arguments: Mapping[str, Any]

    @property
    def data(self) -> str:
        """The keys of an entry: of a recipe in TOML between braces, of an ``init_cfg`` within ``dict(...)``."""
        return ", ".join(f"{key}={_quoted(value)}" for key, value in {"type": self.type, **self.arguments}.items())

    @property
    def call(self) -> str:
        """The expression that makes the initializer, once torchinit is imported."""
        home = "torchinit" if self.type in sys.modules["torchinit"].__all__ else "torchinit.initializers"
        return f"{home}.{self.type}({', '.join(f'{key}={_quoted(value)}' for key, value in self.arguments.items())})"


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


@cache
def synonyms() -> Mapping[str, tuple[Synonym, ...]]:
    """All synonyms by their :func:`spelling`."""
    table = tomllib.loads(Path(__file__).with_name("synonyms.toml").read_text("utf-8"))
    found: dict[str, tuple[Synonym, ...]] = {}
    for library, rows in table.items():
        for name, row in rows.items():
            synonym = Synonym(name, library, row.pop("type"), row)
            found[spelling(name)] = (*found.get(spelling(name), ()), synonym)
    return found


def spelling(name: str) -> str:
    """The letters of a name that libraries agree on.

    >>> [spelling(name) for name in ("he_normal", "keras.initializers.HeNormal", "XavierInit", "xavier_")]
    ['henormal', 'henormal', 'xavier', 'xavier']
    """
    letters = re.sub(r"[^a-z0-9]", "", name.rpartition(".")[2].casefold())
    return re.sub(r"(?<=.)init(ializer)?$", "", letters)


def meanings(name: str, key: str) -> tuple[Synonym, ...]:
    """The synonyms of a :func:`spelling`, which a name has or is near."""
    # What torch's underscore marks is torch's; without it the name may be anybody's, and each says his own.
    rows = synonyms().get(key, ())
    return tuple(row for row in rows if row.name == name.rpartition(".")[2] and name.endswith("_")) or rows


def hint(name: str, known: Iterable[str], *, as_call: bool = False) -> str:
    """The tail of an error text about an unknown initializer: the near name, or what to write as data (or a call).

    >>> hint("Kaimng", ["Kaiming", "Xavier"])
    "; did you mean 'Kaiming'?"
    >>> hint("xavier_uniform", ["Kaiming", "Xavier"])
    '; xavier_uniform_ of torch.nn.init, xavier_uniform of JAX: write type="Xavier", distribution="uniform"'
    """
    known = [*known]
    key, own = spelling(str(name)), {spelling(each): each for each in known}
    near = key if key in own or key in synonyms() else closest(key, [*own, *synonyms()])
    if near is None:
        return ""
    lines: dict[str, list[str]] = {}
    for row in meanings(name, near):
        # Where the name alone says it, or a name of ours was misspelt, it is offered already.
        more = near not in own or (row.arguments and (near == key or not name[:1].isupper()))
        if more and (as_call or row.type in known):
            lines.setdefault(row.call if as_call else row.data, []).append(f"{row.name} of {row.library}")
    first = f"; did you mean {own[near]!r}?" if near in own else ""
    return first + "".join(f"; {', '.join(names)}: write {line}" for line, names in lines.items())
