"""Expressions: numbers given as arithmetic over what is known of a site, ``"0.02 / sqrt(2 * depth)"``."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, final, get_args

from torchinit.errors import did_you_mean
from torchinit.initializers.elementwise import Fill
from torchinit.model.layouts import Layout
from torchinit.model.sites import Convention, Site
from torchinit.serialization.hints import construct, hints_of, is_number, is_whole
from torchinit.serialization.schema import Unfinished

LONGEST: Final = 400
"""How many characters an expression may have."""

DEEPEST: Final = 50
"""How many levels of brackets and operators an expression may have."""

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
    "sqrt": math.sqrt,
    "log": math.log,
    "exp": math.exp,
    "min": min,
    "max": max,
    "abs": abs,
}


def _block(site: Site) -> tuple[int, int]:
    if site.block is None:
        raise ValueError(f"{site.name!r} stands in no ModuleList or Sequential of like blocks")
    return site.block


def _dimension(site: Site, axis: int) -> int:
    if len(site.shape) <= axis:
        raise ValueError(f"{site.name!r} has shape {site.shape}")
    return site.shape[axis]


FACTS: Final[dict[str, Callable[[Site, Convention], float]]] = {
    "depth": lambda site, _: _block(site)[1],
    "index": lambda site, _: _block(site)[0],
    "fan_in": lambda site, fans: site.fans(fans)[0],
    "fan_out": lambda site, fans: site.fans(fans)[1],
    "numel": lambda site, _: site.numel,
    "ndim": lambda site, _: len(site.shape),
    "rows": lambda site, _: _dimension(site, 0),
    "columns": lambda site, _: _dimension(site, 1),
    "groups": lambda site, _: (site.layout or Layout()).groups,
}
"""The facts that an expression may ask of a site: number of blocks around it and its own place among them (from 0),
fans, number of elements and of dimensions, sizes of the first two dimensions, groups of a convolution."""


@lru_cache(maxsize=1024)
def parse(text: str) -> ast.expr:
    """The expression as a tree that holds nothing but arithmetic.

    A recipe may come from a stranger, so `eval` is out, and what is not in the tables above is refused before
    anything is computed. Raises ValueError for other names, attributes, comparisons, text, calls of other functions.

    >>> parse("0.02 / sqrt(2 * deep)")
    Traceback (most recent call last):
    ValueError: '0.02 / sqrt(2 * deep)': unknown name 'deep'; did you mean 'depth'?
    """
    if len(text) > LONGEST:
        raise ValueError(f"an expression has at most {LONGEST} characters, but this one has {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is not an arithmetic expression") from None
    _check(tree, text)
    return tree


def _check(node: ast.expr, text: str, depth: int = 0) -> None:
    """Raise ValueError for anything but arithmetic, all the way down."""
    if depth > DEEPEST:
        raise ValueError(f"an expression has at most {DEEPEST} levels, but {text[:20]!r}... has more")
    for operand in _operands(node, text):
        _check(operand, text, depth + 1)


def _operands(node: ast.expr, text: str) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return [node.left, node.right]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return [node.operand]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        _check_known("function", node.func.id, _FUNCTIONS, text)
        return node.args
    if isinstance(node, ast.Name):
        _check_known("name", node.id, [*FACTS, *CONSTANTS], text)
    elif not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
        raise ValueError(f"{text!r}: {ast.get_source_segment(text.strip(), node)!r} is not arithmetic")
    return []


def _check_known(kind: str, name: str, known: Collection[str], text: str) -> None:
    if name not in known:
        raise ValueError(f"{text!r}: unknown {kind} {name!r}{did_you_mean(name, known)}")


def facts_in(text: str) -> frozenset[str]:
    """The facts of a site that an expression asks for.

    >>> sorted(facts_in("0.02 / sqrt(2 * depth * fan_in)"))
    ['depth', 'fan_in']
    """
    return frozenset(node.id for node in ast.walk(parse(text)) if isinstance(node, ast.Name)) & FACTS.keys()


def evaluate(text: str, facts: Callable[[str], float] = CONSTANTS.__getitem__) -> float:
    """The value of an expression; ``facts`` gives the facts that it asks for.

    Raises ValueError where it has none: a root of a negative number, a division by zero, a fact that a
    site does not have.

    >>> evaluate("0.02 / sqrt(2 * depth)", {"depth": 8}.__getitem__)
    0.005
    """

    def value(node: Any) -> float:
        if isinstance(node, ast.Constant):
            return node.value  # type: ignore[return-value]  # a number, parse has looked
        if isinstance(node, ast.Name):
            return CONSTANTS[node.id] if node.id in CONSTANTS else facts(node.id)
        called = isinstance(node, ast.Call)
        function = _FUNCTIONS[node.func.id] if called else _OPERATORS[type(node.op)]
        return function(*map(value, _operands(node, text)))

    try:
        return float(value(parse(text)))
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"{text!r}: {error}") from None


def constant(text: str) -> float | str:
    """The value of an expression that asks for no fact; other expressions as they are.

    >>> constant("1 / 4"), constant("1 / depth")
    (0.25, '1 / depth')
    """
    if facts_in(text):
        return text
    value = evaluate(text)
    return int(value) if value.is_integer() else value


@final
@dataclass(frozen=True, init=False, repr=False, slots=True)
class Computed(Unfinished):
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
        known = hints_of(target)
        if fans not in (None, *get_args(Convention)):
            raise ValueError(f"fans must be one of {', '.join(get_args(Convention))}, but got {fans!r}")
        for name in arguments:
            if name not in known:
                raise TypeError(f"{target.__name__} has no argument {name!r}{did_you_mean(name, known)}")
        asked = frozenset().union(*(facts_in(text) for _, text in _texts(target, arguments)))
        matters = "fans" in known or asked & {"fan_in", "fan_out"}
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "arguments", tuple(arguments.items()))
        object.__setattr__(self, "fans", fans or ("torch" if matters else None))

    def __repr__(self) -> str:
        arguments = [f"{name}={value!r}" for name, value in self.target_and_arguments()[1].items()]
        return f"Computed({', '.join([self.target.__name__, *arguments])})"

    def __str__(self) -> str:
        arguments = [f"{name}={value}" for name, value in self.target_and_arguments()[1].items()]
        return f"{self.target.__name__}({', '.join(arguments)})"

    def target_and_arguments(self) -> tuple[type, Mapping[str, object]]:
        fans = {"fans": self.fans} if self.fans == "true" else {}
        return self.target, {**dict(self.arguments), **fans}

    def resolve(self, site: Site) -> Fill | None:
        values, known = dict(self.arguments), hints_of(self.target)
        for name, text in _texts(self.target, values):
            number = evaluate(text, lambda fact: _fact(fact, site, self.fans or "torch"))
            values[name] = _whole(name, text, number) if is_whole(known[name]) else number
        if "fans" in known:
            values["fans"] = self.fans
        fill: Fill | None = construct(self.target, values).resolve(site)
        return fill


def _fact(name: str, site: Site, fans: Convention) -> float:
    try:
        return FACTS[name](site, fans)
    except ValueError as error:
        raise ValueError(f"there is no {name}: {error}") from None


def _texts(target: type, arguments: Mapping[str, object]) -> list[tuple[str, str]]:
    """The arguments that are expressions."""
    known = hints_of(target)
    return [(name, value) for name, value in arguments.items() if isinstance(value, str) and is_number(known[name])]


def _whole(name: str, text: str, number: float) -> int:
    if not number.is_integer():
        raise ValueError(f"{name} must be a whole number, but {text!r} gives {number:g}")
    return int(number)
