"""explain: tell what an initializer, an adapter, a check or a scheme does."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torchinit._text import did_you_mean, format_table
from torchinit.checkpoints.adapters import ADAPTERS
from torchinit.cli import options
from torchinit.cli.errors import UsageError
from torchinit.linting import CHECKS
from torchinit.probing import PROBE_CHECKS
from torchinit.recipes import load_recipe, schemes
from torchinit.rules.catalog import INITIALIZERS


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("name", metavar="NAME", help="an initializer, adapter, check or scheme, see `torchinit list`")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what the class's docstring and its fields tell."""
    explanation = _explain(arguments.name)
    return options.show(arguments, dataclasses.asdict(explanation), explanation)


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a class, its default as text (empty: it must be given), and its choices."""

    name: str
    default: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a name: what it does, in paragraphs, what it takes, and an example that runs."""

    name: str
    text: tuple[str, ...]
    arguments: tuple[Argument, ...] = ()
    example: str = ""

    def __str__(self) -> str:
        parts = [": ".join([self.name, *self.text[:1]]), *self.text[1:]]
        if self.arguments:
            rows = [(each.name, each.default or "(required)", ", ".join(each.choices)) for each in self.arguments]
            parts.append(_indented("Arguments", format_table(("name", "default", "choices"), rows)))
        if self.example:
            parts.append(_indented("Example", self.example))
        return "\n\n".join(parts)


def _indented(title: str, text: str) -> str:
    return "\n".join([title, *(f"  {line}".rstrip() for line in text.splitlines())])


def _explain(name: str) -> Explanation:
    shipped, checks = (
        schemes(),
        {word: check for check in (*CHECKS.values(), *PROBE_CHECKS.values()) for word in (check.code, check.name)},
    )
    if name in shipped:
        rules = [(rule.label, str(rule.where), str(rule.init)) for rule in load_recipe(name)]
        return Explanation(name, (shipped[name], format_table(("rule", "where", "what"), rules)))
    if name in checks:
        check = checks[name]
        text = [_without_markup(part) for part in check.text.split("\n\n")]
        tail = f"At worst: {check.severity}. Way out: {check.remedy}."
        return Explanation(f"{check.code} {check.name}", (*text, tail))
    words = {known.casefold(): (known, registry) for registry in (ADAPTERS, INITIALIZERS) for known in registry}
    known, registry = words.get(name.casefold(), (name, INITIALIZERS))
    try:
        return describe(known, registry.get(known))
    except KeyError:
        near = did_you_mean(name, [*INITIALIZERS, *ADAPTERS, *shipped, *checks])
        raise UsageError(f"there is no initializer, adapter, check or scheme {name!r}{near}") from None


def describe(name: str, cls: type[Any]) -> Explanation:
    """The explanation that a class's docstring and fields give.

    >>> from torchinit import Normal
    >>> explanation = describe("Normal", Normal)
    >>> explanation.text[0], explanation.arguments[1]
    ('The normal distribution N(mean, std²).', Argument(name='std', default='1.0', choices=()))
    """
    paragraphs = [part for part in re.split(r"\n\s*\n", inspect.getdoc(cls) or "") if part.strip()]
    examples = [part for part in paragraphs if part.startswith(">>>")]
    text = tuple(_without_markup(part) for part in paragraphs if part not in examples)
    return Explanation(name, text, tuple(_arguments(cls)), "\n".join(examples).rstrip())


def _arguments(cls: type[Any]) -> list[Argument]:
    if not dataclasses.is_dataclass(cls):
        return []
    try:
        hints = get_type_hints(cls)
    except NameError:  # a plug-in that names its types for type checkers only
        hints = {}
    choices = {name: tuple(map(str, get_args(hint))) for name, hint in hints.items() if get_origin(hint) is Literal}
    fields = [field for field in dataclasses.fields(cls) if field.init]
    return [Argument(field.name, _default(field), choices.get(field.name, ())) for field in fields]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


_SYMBOLS = {
    "beta": "β", "gamma": "γ", "sigma": "σ", "varphi": "φ", "phi": "φ", "Phi": "Φ",
    "cdot": "·", "sim": "~", "quad": " ", "top": "T", "mathbb{E}": "E",
}  # fmt: skip


def _without_markup(paragraph: str) -> str:
    """A paragraph of a docstring as a terminal can show it; TeX that is not known here stays as it is."""
    # Not a parser: a group is the innermost braces, so a root within a fraction comes out right, and not the reverse.
    if not paragraph.startswith(".. math::"):
        return re.sub(r":\w+:`([^`]*)`|``([^`]*)``", lambda match: match[1] or match[2], paragraph)
    text = re.sub(r"\\(?:mathrm|text)\{([^{}]*)\}", r"\1", paragraph.removeprefix(".. math::").strip())
    text = re.sub(r"\\([bB]ig+|left|right)\b", "", text)
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1) / (\2)", text)
    return "  " + re.sub(r"\\(mathbb\{E\}|[a-zA-Z]+)", lambda match: _SYMBOLS.get(match[1], match[0]), text)
