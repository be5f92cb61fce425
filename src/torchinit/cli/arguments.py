"""Arguments: what a class takes, with the default, the choices and the meaning of each."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torchinit.rules.catalog import SCHEMA
from torchinit.serialization.reading import Reader, kind_of


@dataclass(frozen=True, slots=True)
class ExplainedArgument:
    """An argument of a class, its default as text (empty: it must be given), its choices, and what it means."""

    name: str
    default: str = ""
    choices: tuple[str, ...] = ()
    meaning: str = ""

    def __str__(self) -> str:
        head = f"{self.name} = {self.default}" if self.default else f"{self.name}, required"
        choices = f" ({', '.join(self.choices)})" if self.choices else ""
        return "\n".join(
            [head + choices, *textwrap.wrap(self.meaning, 94, initial_indent="  ", subsequent_indent="  ")]
        )


def arguments_of(cls: type[Any]) -> tuple[ExplainedArgument, ...]:
    """The arguments of a dataclass, in order; none of any other class.

    >>> from torchinit import Normal
    >>> arguments_of(Normal)[1]
    ExplainedArgument(name='std', default='1.0', choices=(), meaning='The standard deviation of the values.')
    """
    if not dataclasses.is_dataclass(cls):
        return ()
    try:
        hints = get_type_hints(cls)
    except NameError:  # a plug-in that names its types for type checkers only
        hints = {}
    choices = {name: tuple(map(str, get_args(hint))) for name, hint in hints.items() if get_origin(hint) is Literal}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    return tuple(
        ExplainedArgument(
            name, _default(each, fields[name]), choices.get(name, ()), _meaning(cls, name, hints.get(name))
        )
        for name, each in inspect.signature(cls).parameters.items()
        if name in fields
    )


def _default(parameter: inspect.Parameter, field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "" if parameter.default is parameter.empty else repr(parameter.default)


@cache
def _meanings() -> Mapping[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


def _meaning(cls: type[Any], name: str, hint: Any) -> str:
    """Return what an argument means: by its class, by the docstring's sentence, by its name alone, by its type."""
    # Docstrings tell arguments in sentences, most of them one each; where one tells several, the table has the words.
    own = [text for text in _sentences(cls) if re.search(rf"``{name}(``|=)", text)]
    text = _meanings().get(cls.__name__, {}).get(name) or (own[0] if own else _meanings().get(name, ""))
    if not text and hint is not None:
        text = f"{kind_of(hint).describe(Reader(SCHEMA.vocabularies, ''))}."
    text = without_roles(re.sub(rf"^(\w[\w ]*: )?``{name}`` (is|are) ", "", text))
    return text[:1].upper() + text[1:]


def _sentences(cls: type[Any]) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", inspect.getdoc(cls) or "")
    prose = [" ".join(part.split()) for part in paragraphs if not part.startswith((">>>", ".. math::"))]
    return [text for part in prose for text in re.split(r"(?<=[.!?])\s+(?=[A-Z`])|;\s+(?=``)", part)]


def without_roles(text: str) -> str:
    """The text of a docstring without the marks of names.

    >>> without_roles(":func:`gain` takes ``a``")
    'gain takes a'
    """
    return re.sub(r":\w+:`([^`]*)`|``([^`]*)``", lambda match: match[1] or match[2], text)
