"""Explain: what names stand for, which there are, what a model's parameters are for, and what a shell should know."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import indent
from typing import Any

from torch import nn

from torchinit import initializers
from torchinit._folding import Column, Row, fold
from torchinit._tables import Table
from torchinit._text import count, did_you_mean, format_table
from torchinit.checkpoints.adapters import ADAPTERS
from torchinit.cli import frame, models
from torchinit.cli.catalogue import catalogue, key, names_of, texts_of, ways_of
from torchinit.cli.classes import ExplainedArgument, arguments_of, examples_of, without_roles
from torchinit.cli.frame import UsageError, command, option
from torchinit.errors import MissingExtraError
from torchinit.initializers.functions import hint
from torchinit.knowledge import roles
from torchinit.knowledge.gains import gain, nonlinearities
from torchinit.knowledge.role_rules import known_roles
from torchinit.linting import Check, known_checks
from torchinit.model.layouts import known_layers
from torchinit.probing import PROBE_CHECKS
from torchinit.recipes import load_recipe, schemes
from torchinit.recipes.files import read_scheme
from torchinit.recipes.forms import NEEDED
from torchinit.rules.rule import INITIALIZERS, SELECTORS
from torchinit.serialization.registry import ClassRegistry, described
from torchinit.transfer import PARAMETRIZATIONS, TRANSFER_CHECKS

_CLASSES: Mapping[str, ClassRegistry] = {"selectors": SELECTORS, "adapters": ADAPTERS, "initializers": INITIALIZERS}


def _checks() -> dict[str, Check]:
    return dict(sorted({**known_checks(), **PROBE_CHECKS, **TRANSFER_CHECKS}.items()))


# --- explain ---------------------------------------------------------------------------------------------------------

_NAME = (
    "an initializer, selector, adapter, check, scheme or parametrization (mup), see `torchinit list`; or a paper's name"
)


@command("explain", option("name", metavar="NAME", help=_NAME), "--json")
def run_explain(arguments: Namespace) -> None:
    """Print what the class's docstring and its fields tell."""
    explanation = _explain(arguments.name)
    frame.show(arguments, str(explanation), dataclasses.asdict(explanation))


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a name: what it does, in paragraphs, what it takes, what it gives, and rules by language."""

    name: str
    text: tuple[str, ...]
    arguments: tuple[ExplainedArgument, ...] = ()
    example: str = ""
    rules: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rules = {f"As {'a ' * (language == 'command')}{language}": text for language, text in self.rules.items()}
        parts = {"Arguments": "\n".join(map(str, self.arguments)), **rules, "Example": self.example}
        head = ": ".join([self.name, *self.text[:1]])
        below = (f"{title}\n{indent(text, '  ')}" for title, text in parts.items() if text)
        return "\n\n".join([head, *self.text[1:], *below])


def _explain(name: str) -> Explanation:
    checks = {word: check for check in _checks().values() for word in (check.code, check.name)}
    if name in PARAMETRIZATIONS:
        title, table, *told = PARAMETRIZATIONS[name].blocks()
        ways = {
            "Python": f'torchinit.transfer.Transfer(model, base, parametrization="{name}")',
            "command": f"torchinit transfer MODEL --base BASE --parametrization {name}",
        }
        return Explanation(name, (title, table, "\n".join(told)), rules=ways)
    if name in schemes():
        return _explain_scheme(name)
    if name in checks:
        return _explain_check(checks[name])
    rooms = [*_CLASSES.values()]
    words = {known.casefold(): (known, registry) for registry in rooms for known in registry}
    plugins = {point.name: registry for registry in reversed(rooms) for point in registry.plugins()}
    known, registry = words.get(name.casefold()) or (name, plugins.get(name, INITIALIZERS))
    try:
        explanation = describe(known, registry.get(known))
    except KeyError:
        if known in initializers.__all__ and isinstance(cls := getattr(initializers, known), type):
            return describe(known, cls)  # which plain data cannot name, as it holds a function
        ours = {key(each): each for each in (*schemes(), *PARAMETRIZATIONS)}
        if key(name) in ours:
            return _explain(ours[key(name)])
        if entries := catalogue().get(key(name)):
            return _explain_entries(entries)
        names = (known for known, _ in words.values())
        near = hint(name, [*names, *plugins, *schemes(), *checks, *PARAMETRIZATIONS])
        near = near or did_you_mean(name, [each for one in catalogue().values() for each in names_of(one[0])])
        raise UsageError(
            f"there is no initializer, selector, adapter, check, scheme or parametrization {name!r}{near}"
        ) from None
    return dataclasses.replace(explanation, rules=examples_of(known, registry))


def _explain_entries(entries: Sequence[Mapping[str, Any]]) -> Explanation:
    """The explanation of what the catalogue calls so, which may be several things."""
    first, *others = entries
    ways = ways_of(first)
    for entry in others:
        ways |= {f"{language}, {entry['name']}": text for language, text in ways_of(entry).items()}
    more = [f"{entry['name']}: {' '.join(texts_of(entry))}" for entry in others]
    return Explanation(first["name"], (*texts_of(first), *more), rules=ways)


def _explain_check(check: Check) -> Explanation:
    """The explanation of a check: its text, how severe it is, what to do, how it is run."""
    code = check.code
    text = [_without_markup(part) for part in check.text.split("\n\n")]
    ways = {"Python": f'torchinit.lint(model, select=["{code}"])', "command": f"torchinit check MODEL --select {code}"}
    if code in PROBE_CHECKS:
        ways = {"Python": "torchinit.probe(model)", "command": "torchinit probe MODEL"}
    if code in TRANSFER_CHECKS:
        ways = {"Python": "transfer.lint(model, optimizer)"}
    tail = f"At worst: {check.severity}. Way out: {check.remedy}."
    return Explanation(f"{code} {check.name}", (*text, tail), rules=ways)


def _explain_scheme(name: str) -> Explanation:
    """The explanation of a scheme: what it claims, where it is from, its rules by default, its arguments."""
    data, rules = read_scheme(name), load_recipe(name)
    rows = [(rule.label, str(rule.where), str(rule.init) if rule.label != NEEDED else "-") for rule in rules]
    table = format_table(("rule", "where", "what"), rows)
    text = (data["about"], data["claims"].strip(), f"Source: {data['source']}", table)
    arguments = []
    for argument, declared in data.get("arguments", {}).items():
        bounds = ["{:g} to {:g}".format(*declared["bounds"])] if "bounds" in declared else []
        choices = tuple(declared.get("choices", bounds))
        arguments.append(ExplainedArgument(argument, str(declared["default"]), choices, declared["meaning"]))
    ways = {"Python": f'torchinit.initialize(model, "{name}", seed=0)', "command": f"torchinit plan MODEL {name}"}
    return Explanation(name, text, tuple(arguments), rules=ways)


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


# --- list ------------------------------------------------------------------------------------------------------------

KINDS = {
    "initializers": ("initializer", "what it does"),
    "selectors": ("selector", "which sites"),
    "adapters": ("adapter", "what it does"),
    "layers": ("layer", "class"),
    "roles": ("role", "of whose rules"),
    "schemes": ("scheme", "what it is"),
    "checks": ("check", "what it finds"),
    "nonlinearities": ("nonlinearity", "gain"),
}
"""The kinds of names, with the heads of their table."""


@command(
    "list", option("kind", nargs="?", choices=[*KINDS], default="initializers", help="default: initializers"), "--json"
)
def run_list(arguments: Namespace) -> None:
    """Print each name with what it means in a line."""
    meanings = _meanings(arguments.kind)
    frame.show(arguments, format_table(KINDS[arguments.kind], [*meanings.items()]), meanings)


def _meanings(kind: str) -> Mapping[str, str]:
    match kind:
        case "layers":
            return _layers()
        case "roles":
            return known_roles()
        case "schemes":
            return schemes()
        case "checks":
            return {f"{code} {check.name}": check.summary for code, check in _checks().items()}
        case "nonlinearities":
            return {name: f"{gain(name):.6g}" for name in nonlinearities()}
    return _summaries(_CLASSES[kind])


def _summaries(registry: ClassRegistry) -> dict[str, str]:
    texts = {name: describe(name, registry.get(name)).text for name in registry}
    # A plug-in is named with its package, and not imported: that would run code only to list it.
    offers = {point.name: described(point) for point in registry.plugins()}
    return offers | {name: " ".join(text[0].split()) if text else "" for name, text in texts.items()}


def _layers() -> dict[str, str]:
    """The layers whose axes are known, those of torch.nn one by one; a subclass is known with its base."""
    known = set(known_layers())
    rows = {name.rpartition(".")[2]: name for name in known}
    for name, layer in vars(nn).items():
        if isinstance(layer, type) and known & {f"{base.__module__}.{base.__qualname__}" for base in layer.__mro__}:
            rows[name] = f"torch.nn.{name}"
    return {name: rows[name] for name in sorted(rows) if not name.startswith("_")}


# --- roles -----------------------------------------------------------------------------------------------------------

_COLUMNS = (Column("role"), Column("why", "range", spare=1))


@command(
    "roles MODEL --device --json --all",
    option("--unsure", action="store_true", help="only those whose role nobody knows"),
)
def run_roles(arguments: Namespace) -> None:
    """Print the roles of the parameters, a line for those of like blocks, and how many are not known."""
    every = {
        name: role
        for name, role in roles(models.model_of(arguments, arguments.device)).items()
        if role.name != "buffer"
    }
    found = {name: role for name, role in every.items() if not (arguments.unsure and role.sure)}
    rows = (Row(name, (role.name, role.why)) for name, role in found.items())
    groups = fold(rows, _COLUMNS, among=every, full=arguments.all)
    unsure = sum(not role.sure for role in found.values())
    last = f"{count(len(found), 'parameter')}{f': {unsure} unsure' if unsure else ''}"
    table = Table("tensor", _COLUMNS, groups, foot=(last,), tree=not arguments.all)
    frame.show(arguments, table, {name: role._asdict() for name, role in found.items()})


# --- completion ------------------------------------------------------------------------------------------------------


@command("completion", option("shell", choices=("bash", "zsh", "fish"), help="the shell that will read it"))
def run_completion(arguments: Namespace) -> None:
    """Print the code; it is made by shtab of the parser, so it knows what this version of torchinit takes."""
    try:
        import shtab
    except ImportError:
        raise MissingExtraError("shell completion", "cli") from None
    parser = arguments.full_parser()
    for action in _actions(parser):
        if action.nargs != 0 and not action.choices:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own attribute
    print(shtab.complete(parser, arguments.shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument of a parser, and of those below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
