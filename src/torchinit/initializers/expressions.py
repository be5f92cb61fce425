"""Expressions: numbers given as arithmetic over what is known of a site, ``"0.02 / sqrt(2 * depth)"``."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, TypeAlias, final

import torchinit._limits as limits
from torchinit._text import did_you_mean
from torchinit.initializers.base import Fill, block_of, why_not
from torchinit.model.layouts import Layout
from torchinit.model.sites import Convention, Site
from torchinit.serialization.reading import argument_types, construct, is_integer_type, is_number_type
from torchinit.serialization.registry import Deferred
from torchinit.serialization.schema import check_choice

Lookup: TypeAlias = Callable[[str], float]
"""A function that gives the facts of a site by their names."""

CONSTANTS: Final = {"pi": math.pi, "e": math.e, "inf": math.inf}

_OPERATORS: Final[dict[type[ast.AST], Callable[..., float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,  # of floats, so that 9**9**9 is an error at once and not a number of 370 million digits
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: Final[dict[str, Callable[..., float]]] = {
    function.__name__: function for function in (math.sqrt, math.log, math.exp, min, max, abs)
}


def _tower(site: Site) -> tuple[int, int]:
    if site.tower is None and block_of(site):
        raise ValueError(f"the blocks around {site.name!r} are one of several lists in each stage")
    return site.tower or block_of(site)


def _dimension(site: Site, axis: int) -> int:
    if len(site.shape) <= axis:
        raise ValueError(f"{site.name!r} has shape {site.shape}")
    return site.shape[axis]


FACTS: Final[dict[str, Callable[[Site, Convention], float]]] = {
    "depth": lambda site, _: block_of(site)[1],
    "index": lambda site, _: block_of(site)[0],
    "total_depth": lambda site, _: _tower(site)[1],
    "total_index": lambda site, _: _tower(site)[0],
    "fan_in": lambda site, fans: (site.weight or site).fans(fans)[0],
    "fan_out": lambda site, fans: (site.weight or site).fans(fans)[1],
    "numel": lambda site, _: site.numel,
    "ndim": lambda site, _: len(site.shape),
    "rows": lambda site, _: _dimension(site, 0),
    "columns": lambda site, _: _dimension(site, 1),
    "groups": lambda site, _: (site.layout or Layout()).groups,
}
"""The facts that an expression may ask of a site: number of blocks around it and its own place among them (from 0), the
same over all stages, fans (of a bias those of its weight), number of elements and of dimensions, sizes of the first two
dimensions, groups of a convolution."""


RESERVED_NAMES: Final = frozenset({*FACTS, *CONSTANTS, *_FUNCTIONS})
"""The names that stand for something in every expression."""


class Expression(NamedTuple):
    """An expression that has been read: its value, once facts are known, and the facts that it asks for."""

    value: Callable[[Lookup], float]
    facts: frozenset[str]


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Read an expression. Raises ValueError for whatever is not arithmetic over the tables above."""
    tree = _tree(text)
    names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return Expression(_compile(tree, text), names & FACTS.keys())


def _tree(text: str) -> ast.expr:
    if len(text) > (most := limits.EXPRESSION_LENGTH):
        raise ValueError(f"an expression has at most {most} characters, but this one has {len(text)}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is not an arithmetic expression") from None


def bind(text: str, values: Mapping[str, object]) -> str:
    """An expression with values in the place of names; a value may be an expression itself.

    Raises ValueError for a name that stands for no number.

    >>> bind("beta * 2 ** -layers", {"beta": 0.5, "layers": "2 * depth"})
    '0.5 * 2 ** (-(2 * depth))'
    """
    tree = _tree(text)
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    if len(text) + sum(len(str(values.get(name, ""))) for name in names) > 2 * limits.EXPRESSION_LENGTH:
        raise ValueError(f"with its arguments, {text[:20]!r}... is too long")
    for name in sorted({*names}):
        _check_known("name", name, [*RESERVED_NAMES, *values], text)
        value = values.get(name)
        if isinstance(value, bool) or (isinstance(value, str) and why_not(parse, value)):
            raise ValueError(f"{text!r}: {name} is {value!r}, which is not a number")

    class Binder(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return _tree(str(values[node.id])) if node.id in values else node

    # Through the tree, not by replacing text: a negative number, or a sum, gets its brackets where it needs them.
    return text if values.keys().isdisjoint(names) else ast.unparse(Binder().visit(tree))


def _compile(node: ast.expr, text: str, depth: int = 0) -> Callable[[Lookup], float]:
    """A tree of arithmetic as a function of the facts.

    A recipe may come from a stranger, so `eval` is out: only what is in the tables becomes code of ours, and all else,
    attributes and comparisons, text, calls of other functions, is refused here, before anything is computed.
    """
    if depth > limits.EXPRESSION_LEVELS:
        raise ValueError(f"an expression has at most {limits.EXPRESSION_LEVELS} levels, but {text[:20]!r}... has more")
    match node:
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            return lambda _: value
        case ast.Name(name):
            _check_known("name", name, [*FACTS, *CONSTANTS], text)
            return lambda facts: CONSTANTS[name] if name in CONSTANTS else facts(name)
        case ast.BinOp(left, symbol, right) if type(symbol) in _OPERATORS:
            function, operands = _OPERATORS[type(symbol)], [left, right]
        case ast.UnaryOp(symbol, operand) if type(symbol) in _OPERATORS:
            function, operands = _OPERATORS[type(symbol)], [operand]
        case ast.Call(ast.Name(name), operands, []):
            _check_known("function", name, _FUNCTIONS, text)
            function = _FUNCTIONS[name]
        case _:
            raise ValueError(f"{text!r}: {ast.get_source_segment(text.strip(), node)!r} is not arithmetic")
    parts = [_compile(operand, text, depth + 1) for operand in operands]
    return lambda facts: function(*(part(facts) for part in parts))


def _check_known(kind: str, name: str, known: Collection[str], text: str) -> None:
    if name not in known:
        raise ValueError(f"{text!r}: unknown {kind} {name!r}{did_you_mean(name, known)}")


def evaluate(text: str, facts: Lookup = CONSTANTS.__getitem__) -> float:
    """The value of an expression; ValueError where it has none: a division by zero, a fact that a site lacks."""
    try:
        return float(parse(text).value(facts))
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"{text!r}: {error}") from None


def constant(text: str) -> float | str:
    """The value of an expression that asks for no fact; other expressions as they are."""
    if parse(text).facts:
        return text
    value = evaluate(text)
    return int(value) if value.is_integer() else value


@final
@dataclass(frozen=True, init=False, repr=False, slots=True)
class Computed(Deferred):
    """An initializer some of whose numbers are expressions, worked out for each site.

    ``fans`` says how ``fan_in`` and ``fan_out`` count connections: :meth:`torchinit.model.Site.fans`.
    Raises ValueError (in a plan: PlanError) for a site that lacks a fact.

    >>> from torchinit.initializers.elementwise import Normal
    >>> init = Computed(Normal, std="0.02 / sqrt(2 * depth)")
    >>> init.resolve(Site("h.2.proj.weight", (8, 8), block=(2, 8)))
    Normal(mean=0.0, std=0.005)
    >>> init
    Computed(Normal, std='0.02 / sqrt(2 * depth)')
    """

    target: type
    arguments: tuple[tuple[str, Any], ...]
    fans: Convention | None

    def __init__(self, target: type, /, *, fans: Convention | None = None, **arguments: Any) -> None:
        known = argument_types(target)
        if fans is not None:
            check_choice("fans", fans, Convention)
        for name in arguments:
            if name not in known:
                raise TypeError(f"{target.__name__} has no argument {name!r}{did_you_mean(name, known)}")
        asked = {fact for _, text in _texts(target, arguments) for fact in parse(text).facts}
        matters = "fans" in known or asked & {"fan_in", "fan_out"}
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "arguments", tuple(arguments.items()))
        object.__setattr__(self, "fans", fans or ("torch" if matters else None))

    def __repr__(self) -> str:
        arguments = (f", {name}={value!r}" for name, value in self.target_and_arguments()[1].items())
        return f"Computed({self.target.__name__}{''.join(arguments)})"

    def __str__(self) -> str:
        arguments = (f"{name}={value}" for name, value in self.target_and_arguments()[1].items())
        return f"{self.target.__name__}({', '.join(arguments)})"

    def target_and_arguments(self) -> tuple[type, Mapping[str, object]]:
        fans = {"fans": self.fans} if self.fans == "true" else {}
        return self.target, {**dict(self.arguments), **fans}

    def resolve(self, site: Site) -> Fill | None:
        values, known = dict(self.arguments), argument_types(self.target)
        for name, text in _texts(self.target, values):
            number = evaluate(text, partial(self._fact, site))
            if is_integer_type(known[name]) and not number.is_integer():
                raise ValueError(f"{name} must be a whole number, but {text!r} gives {number:g}")
            values[name] = int(number) if is_integer_type(known[name]) else number
        if "fans" in known:
            values["fans"] = self.fans
        fill: Fill | None = construct(self.target, values).resolve(site)
        return fill

    def _fact(self, site: Site, name: str) -> float:
        fans = self.fans or "torch"
        try:
            return FACTS[name](site, fans)
        except ValueError as error:
            known = [fact for fact, value in FACTS.items() if not why_not(value, site, fans)]
            raise ValueError(f"there is no {name}: {error}; this site has {', '.join(known)}") from None


def _texts(target: type, arguments: Mapping[str, object]) -> list[tuple[str, str]]:
    """The arguments that are expressions."""
    known = argument_types(target)
    texts = [(name, value) for name, value in arguments.items() if isinstance(value, str)]
    return [(name, text) for name, text in texts if is_number_type(known[name])]
