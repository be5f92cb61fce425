"""Decoding: from a recipe as plain data to the rules that it stands for, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from reprlib import repr as short
from typing import Any, Final

from torchinit.core.fills import Initializer
from torchinit.core.plans import Recipe, Rule
from torchinit.core.selectors import Kinds
from torchinit.core.vocabulary import SCHEMA
from torchinit.errors import ConfigError, did_you_mean
from torchinit.hints import is_sequence
from torchinit.recipes.entries import SELECTING, entry_rules
from torchinit.schema import DEEPEST, Data, Reader, join

_WORDS: Final = ("about", "rules")


def decode_recipe(data: Data, source: str = "recipe") -> Recipe:
    """The rules that plain data stand for, in any of the forms of a recipe.

    These are ``{"rules": [entry, ...]}``, a list of entries, one entry, and ``{glob: entry without a name, ...}``.
    Raises ConfigError with every mistake, each with its path and the near name; ``source`` is what the
    message calls the recipe. The words of an entry stand in :class:`torchinit.recipes.entries.Entry`.

    >>> decode_recipe({"rules": [{"type": "Normal", "std": 0.02, "name": "**.weight"}]})
    (Rule(where=Name('**.weight'), init=Normal(mean=0.0, std=0.02), ...),)
    >>> decode_recipe([{"type": "Normal", "sdt": 0.02, "name": "a"}, {"type": "Kaimng", "name": "b"}])
    Traceback (most recent call last):
    torchinit.errors.ConfigError: 2 mistakes in recipe
      rules[0].sdt: Normal has no argument 'sdt'; did you mean 'std'?
      rules[1].type: unknown initializer 'Kaimng'; did you mean 'Kaiming'?
    """
    reader = Reader(SCHEMA.vocabularies)
    try:
        rules = tuple(_rules(data, "", reader))
    except Exception as error:  # OmegaConf resolves what a config refers to when it is read
        if not (place := getattr(error, "full_key", "")):
            raise
        raise ConfigError(f"1 mistake in {source}", [f"{place}: {str(error).splitlines()[0]}"]) from error
    reader.finish(source)
    return rules


def _rules(form: Data, path: str, reader: Reader) -> Iterator[Rule]:
    """The rules of a recipe, or of an item of one; ``path`` is where it stands, nothing for the whole."""
    path = _full_key(form) or path
    if path.count("[") > DEEPEST:
        reader.mistake(path, "is nested too deeply")
    elif isinstance(form, Rule):
        yield form if form.origin or not path else replace(form, origin=path)
    elif is_sequence(form):
        for number, item in enumerate(form):
            yield from _rules(item, f"{path or 'rules'}[{number}]", reader)
    elif form is None or isinstance(form, (str, bytes, int, float)):
        reader.mistake(path, f"must be a table, but got {short(form)}")
    elif not isinstance(form, Mapping):
        yield from _rule(path, reader, Kinds("weight"), form, fitting=True)
    elif "rules" in form:
        yield from _recipe(form, path, reader)
    elif _is_entry(form) or (path and not form):
        yield from entry_rules(form, path or "rules[0]", reader)
    else:
        for glob, said in form.items():
            yield from _by_name(glob, said, f"{path or 'recipe'}[{glob!r}]", reader)


def _recipe(data: Mapping[Any, Data], path: str, reader: Reader) -> Iterator[Rule]:
    for key in data:
        if key not in _WORDS:
            reader.mistake(join(path, key), f"a recipe has no {key!r}{did_you_mean(key, _WORDS)}")
    reader.read(data.get("about", ""), str, join(path, "about"))
    if is_sequence(data["rules"]):
        yield from _rules(data["rules"], join(path, "rules"), reader)
    else:
        reader.mistake(path, "a recipe is a table with a list 'rules'")


def _is_entry(data: Mapping[Any, Data]) -> bool:
    """Whether a table is one entry, be it without its type, and not a table of initializers by name."""
    plain = not any(isinstance(item, (Mapping, Initializer)) or callable(item) for item in data.values())
    return bool({"type", "where"} & data.keys()) or (plain and bool(SELECTING & data.keys()))


def _by_name(glob: Any, said: Data, path: str, reader: Reader) -> Iterator[Rule]:
    if not isinstance(said, Mapping):
        yield from _rule(path, reader, glob, said)
    elif "name" in said:
        reader.mistake(f"{path}.name", "the key is the name already")
    else:
        yield from entry_rules({**said, "name": glob}, path, reader)


def _rule(path: str, reader: Reader, where: Any, init: Any, *, fitting: bool = False) -> Iterator[Rule]:
    try:
        yield Rule(where, init, origin=path, fitting=fitting)
    except (TypeError, ValueError) as error:
        near = did_you_mean(where, (*_WORDS, "type")) if isinstance(where, str) else ""
        reader.mistake(path, f"{error}{near}")


def _full_key(node: object) -> str:
    """Where a node of OmegaConf stands in its config; nothing for any other object."""
    tell: Any = getattr(type(node), "_get_full_key", None)
    if tell is None:
        return ""
    # What it says of a node itself is wrong for an item of a list; what it says of the node's items is not.
    return str(tell(node, "x").removesuffix("x").removesuffix(".") if isinstance(node, Mapping) else tell(node, 0)[:-3])


def recipe_to_data(recipe: Recipe) -> Data:
    """A recipe as plain data, which :func:`decode_recipe` reads back; each rule is written out in full.

    Raises ConfigError for a rule whose initializer or selector is of a class that is not registered.

    >>> from torchinit.core.fills import Normal
    >>> from torchinit.core.selectors import Leaf
    >>> recipe_to_data((Rule(Leaf("weight"), Normal(std=0.02)),))
    {'rules': [{'where': {'type': 'Leaf', 'names': ['weight']}, 'init': {'type': 'Normal', 'std': 0.02}}]}
    """
    return {"rules": [SCHEMA.encode(replace(rule, origin="", scheme=""), Rule, defaults=False) for rule in recipe]}
