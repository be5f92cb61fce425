"""Selectors: predicates of sites, frozen, that combine with ``&``, ``|`` and ``~``."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, final, get_args

import torch
from torch import nn

from torchinit._text import dtype_name, full_name
from torchinit.knowledge.role_rules import check_role, role_matches
from torchinit.model.layouts import ParameterKind
from torchinit.model.names import check_glob, glob_matches
from torchinit.model.sites import Site
from torchinit.rules.regex import check_pattern, matches_whole


class Selector(ABC):
    """A predicate of sites. ``a & b``, ``a | b`` and ``~a`` are selectors, too; the repr rebuilds them.

    >>> (Leaf("weight") & ~Name("head.**")).matches(Site("body.weight", (2, 2)))
    True
    """

    __slots__ = ()

    @abstractmethod
    def matches(self, site: Site) -> bool:
        """Whether the site is one of them."""

    def __and__(self, other: Selector) -> Selector:
        return All(*_flat(All, self), *_flat(All, other))

    def __or__(self, other: Selector) -> Selector:
        return AnyOf(*_flat(AnyOf, self), *_flat(AnyOf, other))

    def __invert__(self) -> Selector:
        return Not(self)


def _flat(kind: type[All | AnyOf], where: Selector) -> tuple[Selector, ...]:
    return where.of if isinstance(where, kind) else (where,)


class _Positional(Selector):
    """Selectors of one value or of a list of values, which read ``Within('a')`` and ``Name('a', 'b')``."""

    __slots__ = ()

    def _set(self, values: tuple[object, ...], check: Callable[[Any], None]) -> None:
        for value in values:
            check(value)
        object.__setattr__(self, fields(self)[0].name, values)  # type: ignore[arg-type]  # all are dataclasses

    def _check_combines(self, where: object) -> None:
        if not isinstance(where, Selector):
            raise TypeError(f"{type(self).__name__} combines selectors, but got {where!r}")

    def __repr__(self) -> str:
        value = getattr(self, fields(self)[0].name)  # type: ignore[arg-type]  # all are dataclasses
        values = value if isinstance(value, tuple) else (value,)
        return f"{type(self).__name__}({', '.join(map(repr, values))})"


@dataclass(frozen=True, init=False, repr=False, slots=True)
class _Combination(_Positional):
    of: tuple[Selector, ...]

    def __init__(self, *of: Selector) -> None:
        self._set(of, self._check_combines)


@final
class All(_Combination):
    """The sites that every one of these selects.

    >>> Name("head.**") & ~Leaf("bias")
    All(Name('head.**'), Not(Leaf('bias')))
    """

    __slots__ = ()

    def matches(self, site: Site) -> bool:
        return all(where.matches(site) for where in self.of)


@final
class AnyOf(_Combination):
    """The sites that at least one of these selects.

    >>> Name("head.**") | Leaf("bias")
    AnyOf(Name('head.**'), Leaf('bias'))
    """

    __slots__ = ()

    def matches(self, site: Site) -> bool:
        return any(where.matches(site) for where in self.of)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Not(_Positional):
    """The sites that this does not select.

    >>> ~~Leaf("bias")
    Leaf('bias')
    """

    where: Selector

    def __post_init__(self) -> None:
        self._check_combines(self.where)

    def __invert__(self) -> Selector:
        return self.where

    def matches(self, site: Site) -> bool:
        return not self.where.matches(site)


@final
@dataclass(frozen=True, init=False, repr=False, slots=True)
class Name(_Positional):
    """Sites by qualified name. ``*`` stands for any text within one part, ``**`` for any number of parts.

    >>> Name("layers.*.attn.**").matches(Site("layers.3.attn.q.weight", (1,)))
    True
    >>> Name("**.weight").matches(Site("weight", (1,))), Name("*.weight").matches(Site("a.b.weight", (1,)))
    (True, False)
    """

    globs: tuple[str, ...]

    def __init__(self, *globs: str) -> None:
        self._set(globs, check_glob)

    def matches(self, site: Site) -> bool:
        return any(glob_matches(glob, site.name) for glob in self.globs)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Regex(_Positional):
    """Sites whose whole qualified name matches a regular expression of Python's.

    Raises ValueError for text that is not one; ConfigError in a plan, where it takes more than a second for a name.

    >>> Regex(r"layers[.](0|1)[.].*").matches(Site("layers.1.weight", (1,)))
    True
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            check_pattern(self.pattern)
        except re.error as error:
            raise ValueError(f"{self.pattern!r} is not a regular expression: {error}") from None

    def matches(self, site: Site) -> bool:
        return matches_whole(self.pattern, site.name)


@final
@dataclass(frozen=True, init=False, repr=False, slots=True)
class Layer(_Positional):
    """Sites by the class of the module that holds them.

    A ``str`` is the name of the class or of one of its *direct* bases, as in MMEngine; with ``subclasses=True``
    of any class above it. A class includes its subclasses. Raises ValueError for a name with ``*`` or ``?``.

    >>> from torchinit.model.sites import layer_class
    >>> conv = Site("0.weight", (1, 1), owner=layer_class(nn.Conv2d))
    >>> Layer("Conv2d").matches(conv), Layer("_ConvNd").matches(conv), Layer("Linear").matches(conv)
    (True, True, False)
    """

    names: tuple[str, ...]
    subclasses: bool

    def __init__(self, *names: str | type[nn.Module], subclasses: bool = False) -> None:
        if wrong := [name for name in names if not (name and isinstance(name, (str, type)))]:
            raise TypeError(f"a layer is a class or the name of one, but got {wrong[0]!r}")
        texts = [full_name(name) if isinstance(name, type) else name for name in names]
        if globs := [text for text in texts if "*" in text or "?" in text]:
            remedy = "name each, or a class above them with subclasses=True"
            raise ValueError(f"a layer is named in full, and no class is called {globs[0]!r}; {remedy}")
        object.__setattr__(self, "names", tuple(texts))
        object.__setattr__(self, "subclasses", subclasses)

    def __repr__(self) -> str:
        text = _Positional.__repr__(self)  # no super(): with slots=True the class is made a second time
        return f"{text[:-1]}, subclasses=True)" if self.subclasses else text

    def matches(self, site: Site) -> bool:
        # Classes as text: a site keeps its owner's names, not the class, so that a plan can be read without the model.
        owner = site.owner
        return any(
            owner.is_a(name) if "." in name or self.subclasses else name in (owner.name, *owner.bases)
            for name in self.names
        )


@final
@dataclass(frozen=True, init=False, repr=False, slots=True)
class Leaf(_Positional):
    """Sites by the last part of their name, in which ``*`` stands for any text.

    >>> Leaf("weight_*", "bias").matches(Site("rnn.weight_hh_l0", (1,)))
    True
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        self._set(names, check_glob)
        if dotted := [name for name in names if "." in name]:
            raise ValueError(f"a leaf is the last part of a name, without dots, but got {dotted[0]!r}")

    def matches(self, site: Site) -> bool:
        return any(glob_matches(name, site.leaf) for name in self.names)


@final
@dataclass(frozen=True, init=False, repr=False, slots=True)
class Kinds(_Positional):
    """Sites by what they are to their layer: ``"weight"``, ``"bias"`` or ``"other"``.

    The weights of an LSTM (``weight_ih_l0`` ...) and of attention (``in_proj_weight``) are weights, too.

    >>> Kinds("weight").matches(Site("rnn.weight_ih_l0", (8, 2), parameter_kind="weight"))
    True
    """

    kinds: tuple[ParameterKind, ...]

    def __init__(self, *kinds: ParameterKind) -> None:
        self._set(kinds, lambda kind: _check_choice("kind", kind, get_args(ParameterKind)))

    def matches(self, site: Site) -> bool:
        return site.parameter_kind in self.kinds


@final
@dataclass(frozen=True, init=False, repr=False, slots=True)
class Roles(_Positional):
    """Sites by what they are for in the model: ``"attn.out"``, ``"mlp.*"``, ``"unsure"``; :func:`torchinit.roles`.

    ``*`` stands for any text within one part, ``**`` for any number of parts. Biases are meant by ``"attn.out.bias"``
    alone; ``"expert.down"`` is ``"expert.down[stacked]"`` as well as ``"expert.down[listed]"``. Raises ValueError for
    a role that no rule gives, those of :func:`torchinit.knowledge.register_roles` included.

    >>> where = Roles("attn.*", "expert.down")
    >>> [where.matches(Site("w", (1,), role=role)) for role in ("attn.q", "attn.q.bias", "expert.down[stacked]")]
    [True, False, True]
    """

    globs: tuple[str, ...]

    def __init__(self, *globs: str) -> None:
        self._set(globs, check_role)

    def matches(self, site: Site) -> bool:
        role = site.role
        return role is not None and any(role_matches(glob, role) for glob in self.globs)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Within(_Positional):
    """Sites of the module with this name, or of a module below it; the name may be a glob.

    >>> Within("backbone.layer*").matches(Site("backbone.layer1.0.conv.weight", (1,)))
    True
    """

    module: str

    def __post_init__(self) -> None:
        if self.module:
            check_glob(self.module)

    def matches(self, site: Site) -> bool:
        return not self.module or glob_matches(f"{self.module}.**", site.name)


@final
@dataclass(frozen=True, slots=True)
class Shape(Selector):
    """Sites by their shape (None stands for any size) or by their number of dimensions.

    >>> Shape((None, 768)).matches(Site("w", (50257, 768))), Shape(ndim=1).matches(Site("b", (768,)))
    (True, True)
    """

    sizes: tuple[int | None, ...] | None = None
    ndim: int | None = None

    def __post_init__(self) -> None:
        if (self.sizes is None) == (self.ndim is None):
            raise ValueError("Shape takes either sizes or ndim")

    def matches(self, site: Site) -> bool:
        if self.sizes is None:
            return len(site.shape) == self.ndim
        pairs = zip(self.sizes, site.shape, strict=False)
        return len(self.sizes) == len(site.shape) and all(wanted in (None, size) for wanted, size in pairs)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Is(_Positional):
    """Parameters, or buffers; of the parameters those that learn, or those that are frozen (``requires_grad=False``).

    >>> Is("buffer").matches(Site("bn.running_mean", (4,), kind="buffer")), Is("frozen").matches(Site("w", (4,)))
    (True, False)
    """

    kind: Literal["parameter", "buffer", "trainable", "frozen"]

    def __post_init__(self) -> None:
        _check_choice("site", self.kind, ("parameter", "buffer", "trainable", "frozen"))

    def matches(self, site: Site) -> bool:
        return self.kind in (site.kind, site.learning)


@final
@dataclass(frozen=True, init=False, repr=False, slots=True)
class Dtype(_Positional):
    """Sites by their dtype: ``"bfloat16"``, or ``torch.bfloat16``.

    >>> Dtype("float32", torch.float64), Dtype("float32").matches(Site("w", (4,)))
    (Dtype('float32', 'float64'), True)
    """

    names: tuple[str, ...]

    def __init__(self, *names: str | torch.dtype) -> None:
        known = [getattr(torch, name, name) if isinstance(name, str) else name for name in names]
        if wrong := [name for name, dtype in zip(names, known, strict=True) if not isinstance(dtype, torch.dtype)]:
            raise ValueError(f"a dtype is one of torch, such as 'bfloat16', but got {wrong[0]!r}")
        object.__setattr__(self, "names", tuple(map(dtype_name, known)))

    def matches(self, site: Site) -> bool:
        return dtype_name(site.dtype) in self.names


@final
@dataclass(frozen=True, init=False, repr=False, slots=True)
class Block(_Positional):
    """Sites in the blocks with these numbers; negative ones count from the last.

    >>> Block(-1).matches(Site("h.11.proj.weight", (4, 4), block=(11, 12)))
    True
    """

    numbers: tuple[int, ...]

    def __init__(self, *numbers: int) -> None:
        self._set(numbers, _check_block)

    def matches(self, site: Site) -> bool:
        if site.block is None:
            return False
        index, count = site.block
        return any(index == (number if number >= 0 else count + number) for number in self.numbers)


def _check_block(number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"a block is a whole number, but got {number!r}")


def _check_choice(noun: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"a {noun} is one of {', '.join(map(str, choices))}, but got {value!r}")


def as_selector(where: object) -> Selector:
    """A selector itself; that of the names that fit a glob, or one of several. Raises TypeError for anything else.

    >>> as_selector("fc.*"), as_selector(["a.weight", "b.weight"])
    (Name('fc.*'), Name('a.weight', 'b.weight'))
    """
    if isinstance(where, Selector):
        return where
    if isinstance(where, type):
        remedy = f"Layer({where.__name__})" if issubclass(where, nn.Module) else f"{where.__name__}(...)"
        raise TypeError(f"{where.__name__} is a class, not a selector; write {remedy}")
    globs = (where,) if isinstance(where, str) else where
    if not (isinstance(globs, (list, tuple)) and globs and all(isinstance(glob, str) for glob in globs)):
        raise TypeError(f"a selector is Name('head.**') and the like, or globs of names as text, but got {where!r}")
    return Name(*globs)
