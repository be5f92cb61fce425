"""explain: tell what an initializer, a selector, an adapter, a check, a scheme or a parametrization does."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchinit._text import format_table
from torchinit.checkpoints.adapters import ADAPTERS
from torchinit.cli import options
from torchinit.cli.arguments import ExplainedArgument, arguments_of, without_roles
from torchinit.cli.errors import UsageError
from torchinit.cli.examples import examples_of
from torchinit.initializers.functions import hint
from torchinit.linting import known_checks
from torchinit.probing import PROBE_CHECKS
from torchinit.recipes import load_recipe, schemes
from torchinit.recipes.files import read_scheme
from torchinit.recipes.forms import NEEDED
from torchinit.rules.catalog import INITIALIZERS, SELECTORS
from torchinit.transfer import PARAMETRIZATIONS, TRANSFER_CHECKS


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="an initializer, selector, adapter, check, scheme or parametrization (mup), see `torchinit list`",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what the class's docstring and its fields tell."""
    explanation = _explain(arguments.name)
    return options.show(arguments, dataclasses.asdict(explanation), explanation)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a name: what it does, in paragraphs, what it takes, what it gives, and rules by language."""

    name: str
    text: tuple[str, ...]
    arguments: tuple[ExplainedArgument, ...] = ()
    example: str = ""
    rules: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [": ".join([self.name, *self.text[:1]]), *self.text[1:]]
        if self.arguments:
            parts.append(_indented("Arguments", "\n".join(map(str, self.arguments))))
        parts += [
            _indented(f"As {'a ' * (language == 'command')}{language}", text) for language, text in self.rules.items()
        ]
        if self.example:
            parts.append(_indented("Example", self.example))
        return "\n\n".join(parts)


def _indented(title: str, text: str) -> str:
    return "\n".join([title, *(f"  {line}".rstrip() for line in text.splitlines())])


def _explain(name: str) -> Explanation:
    shipped, checks = (
        schemes(),
        {
            word: check
            for check in (*PROBE_CHECKS.values(), *TRANSFER_CHECKS.values(), *known_checks().values())
            for word in (check.code, check.name)
        },
    )
    if name in PARAMETRIZATIONS:
        title, table, *told = PARAMETRIZATIONS[name].blocks()
        ways = {
            "Python": f'torchinit.transfer.Transfer(model, base, parametrization="{name}")',
            "command": f"torchinit transfer MODEL --base BASE --parametrization {name}",
        }
        return Explanation(name, (title, table, "\n".join(told)), rules=ways)
    if name in shipped:
        return _explain_scheme(name)
    if name in checks:
        check = checks[name]
        text = [_without_markup(part) for part in check.text.split("\n\n")]
        tail = f"At worst: {check.severity}. Way out: {check.remedy}."
        code = check.code
        ways = {
            "Python": f'torchinit.lint(model, select=["{code}"])',
            "command": f"torchinit check MODEL --select {code}",
        }
        if code in PROBE_CHECKS:
            ways = {"Python": "torchinit.probe(model)", "command": "torchinit probe MODEL"}
        if code in TRANSFER_CHECKS:
            ways = {"Python": "transfer.lint(model, optimizer)"}
        return Explanation(f"{code} {check.name}", (*text, tail), rules=ways)
    rooms = (SELECTORS, ADAPTERS, INITIALIZERS)
    words = {known.casefold(): (known, registry) for registry in rooms for known in registry}
    offered = ((name, room) for room in rooms for point in room.plugins() if point.name == name)
    known, registry = words.get(name.casefold()) or next(offered, (name, INITIALIZERS))
    try:
        explanation = describe(known, registry.get(known))
    except KeyError:
        plugins = (point.name for room in rooms for point in room.plugins())
        near = hint(name, [*INITIALIZERS, *plugins, *SELECTORS, *ADAPTERS, *shipped, *checks, *PARAMETRIZATIONS])
        raise UsageError(
            f"there is no initializer, selector, adapter, check, scheme or parametrization {name!r}{near}"
        ) from None
    return dataclasses.replace(explanation, rules=examples_of(known, registry))


def _explain_scheme(name: str) -> Explanation:
    """The explanation of a scheme: what it claims, where it is from, its rules by default, its arguments."""
    data, rules = read_scheme(name), load_recipe(name)
    rows = [(rule.label, str(rule.where), str(rule.init) if rule.label != NEEDED else "-") for rule in rules]
    table = format_table(("rule", "where", "what"), rows)
    text = (data["about"], data["claims"].strip(), f"Source: {data['source']}", table)
    arguments = tuple(_scheme_argument(*item) for item in data.get("arguments", {}).items())
    ways = {"Python": f'torchinit.initialize(model, "{name}", seed=0)', "command": f"torchinit plan MODEL {name}"}
    return Explanation(name, text, arguments, rules=ways)


def _scheme_argument(name: str, declared: Mapping[str, Any]) -> ExplainedArgument:
    bounds = ["{:g} to {:g}".format(*declared["bounds"])] if "bounds" in declared else []
    return ExplainedArgument(
        name, str(declared["default"]), tuple(declared.get("choices", bounds)), declared["meaning"]
    )


def describe(name: str, cls: type[Any]) -> Explanation:
    """The explanation that a class's docstring and fields give.

    >>> from torchinit import Normal
    >>> explanation = describe("Normal", Normal)
    >>> explanation.text[0], [argument.name for argument in explanation.arguments]
    ('The normal distribution N(mean, std²).', ['mean', 'std'])
    """
    paragraphs = [part for part in re.split(r"\n\s*\n", inspect.getdoc(cls) or "") if part.strip()]
    examples = [part for part in paragraphs if part.startswith(">>>")]
    text = tuple(_without_markup(part) for part in paragraphs if part not in examples)
    return Explanation(name, text, arguments_of(cls), "\n".join(examples).rstrip())


_SYMBOLS = {
    "beta": "β", "gamma": "γ", "sigma": "σ", "varphi": "φ", "phi": "φ", "Phi": "Φ",
    "cdot": "·", "sim": "~", "quad": " ", "top": "T", "mathbb{E}": "E",
}  # fmt: skip


def _without_markup(paragraph: str) -> str:
    """A paragraph of a docstring as a terminal can show it; TeX that is not known here stays as it is."""
    # Not a parser: a group is the innermost braces, so a root within a fraction comes out right, and not the reverse.
    if not paragraph.startswith(".. math::"):
        return without_roles(paragraph)
    text = re.sub(r"\\(?:mathrm|text)\{([^{}]*)\}", r"\1", paragraph.removeprefix(".. math::").strip())
    text = re.sub(r"\\([bB]ig+|left|right)\b", "", text)
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1) / (\2)", text)
    return "  " + re.sub(r"\\(mathbb\{E\}|[a-zA-Z]+)", lambda match: _SYMBOLS.get(match[1], match[0]), text)
