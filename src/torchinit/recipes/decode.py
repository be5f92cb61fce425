"""Decoding: from a recipe as plain data to the rules that it stands for, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torchinit.core.plans import Recipe, Rule
from torchinit.core.vocabulary import SCHEMA
from torchinit.errors import did_you_mean
from torchinit.recipes.entries import entry_rules
from torchinit.schema import Data, Reader

_WORDS = ("about", "rules")


def decode_recipe(data: Data, source: str = "recipe") -> Recipe:
    """The rules that plain data stand for: ``{"rules": [entry, ...]}``.

    Raises ConfigError with every mistake, each with its path and the near name; ``source`` is what the
    message calls the recipe. The words of an entry stand in :class:`torchinit.recipes.entries.Entry`.

    >>> decode_recipe({"rules": [{"type": "Normal", "std": 0.02, "name": "**.weight"}]})
    (Rule(where=Name('**.weight'), init=Normal(mean=0.0, std=0.02), ...),)
    >>> decode_recipe({"rules": [{"type": "Normal", "sdt": 0.02, "name": "a"}, {"type": "Kaimng", "name": "b"}]})
    Traceback (most recent call last):
    torchinit.errors.ConfigError: 2 mistakes in recipe
      rules[0].sdt: Normal has no argument 'sdt'; did you mean 'std'?
      rules[1].type: unknown initializer 'Kaimng'; did you mean 'Kaiming'?
    """
    reader = Reader(SCHEMA.vocabularies)
    rules = tuple(_rules(data, reader))
    reader.finish(source)
    return rules


def _rules(data: Data, reader: Reader) -> Iterator[Rule]:
    if not isinstance(data, Mapping) or not isinstance(data.get("rules"), (list, tuple)):
        reader.mistake("", "a recipe is a table with a list 'rules'")
        return
    for key in data:
        if key not in _WORDS:
            reader.mistake(str(key), f"a recipe has no {key!r}{did_you_mean(key, _WORDS)}")
    reader.read(data.get("about", ""), str, "about")
    for number, entry in enumerate(data["rules"]):
        yield from entry_rules(entry, f"rules[{number}]", reader)


def recipe_to_data(recipe: Recipe) -> Data:
    """A recipe as plain data, which :func:`decode_recipe` reads back; each rule is written out in full.

    Raises ConfigError for a rule whose initializer or selector is of a class that is not registered.

    >>> from torchinit.core.fills import Normal
    >>> from torchinit.core.selectors import Leaf
    >>> recipe_to_data((Rule(Leaf("weight"), Normal(std=0.02)),))
    {'rules': [{'where': {'type': 'Leaf', 'names': ['weight']}, 'init': {'type': 'Normal', 'std': 0.02}}]}
    """
    return {"rules": [SCHEMA.encode(replace(rule, origin="", scheme=""), Rule, defaults=False) for rule in recipe]}
