"""`torchinit explain`: what an initializer or adapter does (formula, arguments), a check finds, a scheme holds."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from torchinit import load_recipe
from torchinit._text import columns
from torchinit.checkpoints.adapters import ADAPTERS
from torchinit.cli import options
from torchinit.cli.errors import UsageError
from torchinit.errors import did_you_mean
from torchinit.linting import CHECKS, Check
from torchinit.recipes import schemes
from torchinit.rules.catalog import INITIALIZERS

if TYPE_CHECKING:
    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("explain", help="tell what an initializer, an adapter, a check or a scheme does")
    parser.add_argument(
        "name", metavar="NAME", help="an initializer, adapter, check or scheme; `torchinit list` names them"
    )
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints what the class's docstring and its fields tell."""
    found = _found(arguments.name)
    print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False) if arguments.json else found)
    return 0


def _found(name: str) -> Explanation:
    shipped, checks = schemes(), {word: one for one in CHECKS.values() for word in (one.code, one.name)}
    if name in shipped:
        return _scheme(name, shipped[name])
    if name in checks:
        return _check(checks[name])
    words = {known.casefold(): (known, registry) for registry in (ADAPTERS, INITIALIZERS) for known in registry}
    known, registry = words.get(name.casefold(), (name, INITIALIZERS))
    try:
        return describe(known, registry.get(known))
    except KeyError:
        near = did_you_mean(name, [*INITIALIZERS, *ADAPTERS, *shipped, *checks])
        raise UsageError(f"there is no initializer, adapter, check or scheme {name!r}{near}") from None


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a class, its default as text (empty: it must be given), and its choices."""

    name: str
    default: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of a name: what it does, in paragraphs, what it takes, and an example that runs."""

    name: str
    text: tuple[str, ...]
    arguments: tuple[Argument, ...] = ()
    example: str = ""

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.text[0]}" if self.text else self.name, *self.text[1:]]
        if self.arguments:
            parts.append(self._arguments())
        if self.example:
            parts.append(f"Example\n{_indented(self.example)}")
        return "\n\n".join(parts)

    def _arguments(self) -> str:
        rows = [(item.name, item.default or "(required)", ", ".join(item.choices)) for item in self.arguments]
        return f"Arguments\n{_indented(columns(('name', 'default', 'choices'), rows))}"


def describe(name: str, cls: type[Any]) -> Explanation:
    """What a class tells about itself.

    >>> from torchinit import Normal
    >>> found = describe("Normal", Normal)
    >>> found.text[0], found.arguments[1]
    ('The normal distribution N(mean, std²).', Argument(name='std', default='1.0', choices=()))
    """
    paragraphs = [part for part in re.split(r"\n\s*\n", inspect.getdoc(cls) or "") if part.strip()]
    examples = [part for part in paragraphs if part.startswith(">>>")]
    text = tuple(plain(part) for part in paragraphs if part not in examples)
    return Explanation(name, text, _arguments_of(cls), "\n".join(examples).rstrip())


def _check(one: Check) -> Explanation:
    text = tuple(plain(part) for part in one.text.split("\n\n"))
    return Explanation(f"{one.code} {one.name}", (*text, f"At worst: {one.severity}. Way out: {one.remedy}."))


def _scheme(name: str, about: str) -> Explanation:
    rules = columns(
        ("rule", "where", "what"), [(rule.label, str(rule.where), str(rule.init)) for rule in load_recipe(name)]
    )
    return Explanation(name, (about, rules))


def _arguments_of(cls: type[Any]) -> tuple[Argument, ...]:
    if not dataclasses.is_dataclass(cls):
        return ()
    try:
        hints = get_type_hints(cls)
    except NameError:  # a plug-in that names its types for type checkers only
        hints = {}
    fields = [field for field in dataclasses.fields(cls) if field.init]
    return tuple(Argument(field.name, _default(field), _choices(hints.get(field.name))) for field in fields)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


def _choices(hint: object) -> tuple[str, ...]:
    return tuple(map(str, get_args(hint))) if get_origin(hint) is Literal else ()


def plain(paragraph: str) -> str:
    r"""A paragraph of a docstring without its markup.

    >>> plain("``std`` is :func:`gain`'s")
    "std is gain's"
    >>> plain(r".. math:: \mathrm{std} = 1 / \sqrt{\mathrm{fan}}")
    '  std = 1 / sqrt(fan)'
    """
    if paragraph.startswith(".. math::"):
        return f"  {_formula(paragraph.removeprefix('.. math::').strip())}"
    return re.sub(r":\w+:`([^`]*)`|``([^`]*)``", lambda found: found[1] or found[2], paragraph)


_SYMBOLS = {
    "beta": "β", "gamma": "γ", "sigma": "σ", "varphi": "φ", "phi": "φ", "Phi": "Φ",
    "cdot": "·", "sim": "~", "quad": " ", "top": "T", "mathbb{E}": "E",
}  # fmt: skip


def _formula(tex: str) -> str:
    """TeX as a terminal can show it; what is not known here stays as it is."""
    text = re.sub(r"\\(?:mathrm|text)\{([^{}]*)\}", r"\1", tex)
    text = re.sub(r"\\([bB]ig+|left|right)\b", "", text)
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1) / (\2)", text)
    return re.sub(r"\\(mathbb\{E\}|[a-zA-Z]+)", lambda found: _SYMBOLS.get(found[1], found[0]), text)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
