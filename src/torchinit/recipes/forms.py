"""Forms: reads everything that stands for a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from torch import Tensor, nn

import torchinit._limits as limits
from torchinit._text import closest, did_you_mean, short_repr
from torchinit.errors import ConfigError
from torchinit.initializers.base import Initializer, is_initializer
from torchinit.initializers.functions import Function, meanings, spelling, synonyms
from torchinit.initializers.variance_scaling import Neutral
from torchinit.plans.plan import Plan
from torchinit.recipes.arguments import Given, RecipeReader
from torchinit.recipes.entries import ENTRY_KEYS, SELECTING, entry_rules
from torchinit.recipes.files import read_data, read_scheme, scheme_names
from torchinit.rules.rule import INITIALIZERS, SCHEMA, Recipe, Rule, Value, example_of
from torchinit.rules.selectors import Kinds, Roles, Selector, Within
from torchinit.serialization.reading import INVALID, Data, Reader, is_sequence, join

RecipeLike: TypeAlias = str | os.PathLike[str] | Rule | Initializer | Function | Mapping[Any, Any] | Iterable[Any]
"""Everything that stands for a recipe, as :func:`to_rules` reads it."""

_WORDS: Final = ("about", "arguments", "claims", "extends", "needs", "rules", "source")
_SCHEME_WORDS: Final = frozenset({"type", "name", "optional", "when", "within"})
_SCHEME_VALUES: Final = 200
"""About the values that a scheme stands for: a recipe cannot name one over and over."""

NEEDED: Final = "needed"
"""The label of rules that only say which roles a recipe needs."""


def to_rules(recipe: RecipeLike, given: Given | None = None) -> Recipe:
    """The rules that a recipe stands for, whatever its form.

    A path or the name of a scheme; a rule; an entry (``{"type": ...}``); ``{"rules": [...]}``; ``{glob: initializer}``,
    whose values may be functions of a tensor or entries without a name; a list of any of these, or an iterator; an
    initializer alone, which is for each weight that it fits: not for biases, norms and elementwise scales. Any mapping
    or sequence will do, OmegaConf's and MMEngine's among them. ``given`` are the arguments of all recipes among them.
    Raises ConfigError or TypeError for anything else.

    >>> from torch import nn
    >>> from torchinit import Kaiming, Zeros
    >>> for rule in to_rules([Kaiming(), {"head.weight": nn.init.zeros_}]):
    ...     print(rule)
    Kinds('weight') -> Kaiming()
    Name('head.weight') -> Zeros()
    """
    check_recipe(recipe)
    given = given or Given()

    def loaded(source: str | os.PathLike[str]) -> list[Rule]:
        return [replace(rule, origin=f"{source} {rule.origin}") for rule in _load(source, given)]

    if isinstance(recipe, (str, os.PathLike)):
        rules = _load(recipe, given)
    else:
        data = list(recipe) if isinstance(recipe, Iterable) and not isinstance(recipe, (Mapping, Sequence)) else recipe
        if isinstance(data, (list, tuple)):
            # Only Python names files, in a list of its own: data never name a file to read, or an object to import.
            data = [loaded(item) if isinstance(item, (str, os.PathLike)) else item for item in data]
        hint = " (an init_cfg is for torchinit.mmengine.initialize)" if is_like_init_cfg(data) else ""
        rules = _decode(data, f"recipe{hint}", given)
    given.finish()
    if not rules:
        raise ConfigError("the recipe is empty, so nothing would be written: give it a rule")
    return rules


def load_recipe(source: str | os.PathLike[str], arguments: Mapping[str, Value] | None = None, **named: Value) -> Recipe:
    """The recipe in a TOML, JSON or YAML file, or the scheme of that name that comes with the package.

    ``arguments``, or keywords, are those of the recipe. Raises ConfigError for a file that is missing, too large or
    cannot be read, with the line where that is known, and for a recipe or an argument with mistakes; TypeError for a
    keyword that is not an argument; MissingExtraError for YAML without the extra ``yaml``.

    >>> load_recipe("gtp2")
    Traceback (most recent call last):
    torchinit.errors.ConfigError: there is no file 'gtp2' and no scheme of this name; did you mean 'gpt2'?
    """
    given = Given.to("load_recipe", ("source", "arguments"), arguments, named)
    rules = _load(source, given)
    given.finish()
    return rules


def _load(source: str | os.PathLike[str], given: Given) -> Recipe:
    if "\n" in str(source):
        raise ConfigError("a recipe is the path of a file, or data, and not the text of a file: parse it first")
    path, shipped = Path(source), scheme_names()
    if str(source) in shipped and not path.is_file():
        return _decode({"type": "scheme", "name": str(source)}, str(source), given)
    if not path.exists() and (not path.suffix or spelling(str(source)) in synonyms()):
        raise ConfigError(_explain_unknown(str(source), shipped))
    return _decode(read_data(path), str(source), given)


def _explain_unknown(name: str, shipped: Iterable[str]) -> str:
    ours = {spelling(known): known for known in INITIALIZERS}
    near = closest(spelling(name), {*map(spelling, shipped), *ours, *synonyms()}) or ""
    rows = [row for row in meanings(name, near) if row.type in INITIALIZERS]
    entries = [{"type": row.type, **row.arguments, "name": "**.weight"} for row in rows]
    if near in ours:
        entries = [{"type": ours[near], **example_of(ours[near])}]
    unknown = f"there is no file {name!r} and no scheme of this name"
    if not entries:
        return unknown + did_you_mean(name, shipped)
    texts = [f"{short_repr(decode_recipe(entry)[0].init)} in Python, or {entry} as data" for entry in entries]
    instead = f"write {'; or '.join(dict.fromkeys(texts))}"
    is_initializer = f"{name!r} is the name of an initializer, not of a recipe; {instead}"
    return is_initializer if near == spelling(name) else f"{unknown}; for an initializer, {instead}"


def decode_recipe(data: Data, source: str = "recipe", arguments: Mapping[str, Value] | None = None) -> Recipe:
    """The rules that plain data stand for, in any of the forms of a recipe.

    These are ``{"rules": [entry, ...]}``, a list of entries, one entry, and ``{glob: entry without a name, ...}``.
    Raises ConfigError with every mistake, each with its path and the near name; ``source`` is the recipe's name in the
    message, ``arguments`` are its arguments. :class:`torchinit.recipes.entries.EntryOptions` has the keys of an entry.

    >>> decode_recipe({"rules": [{"type": "Normal", "std": 0.02, "name": "**.weight"}]})
    (Rule(where=Name('**.weight'), init=Normal(mean=0.0, std=0.02), ...),)
    >>> decode_recipe([{"type": "Normal", "sdt": 0.02, "name": "a"}, {"type": "Kaimng", "name": "b"}])
    Traceback (most recent call last):
    torchinit.errors.ConfigError: 2 mistakes in recipe
      rules[0].sdt: Normal has no argument 'sdt'; did you mean 'std'?
      rules[1].type: unknown initializer 'Kaimng'; did you mean 'Kaiming'?
    """
    given = Given(arguments or {})
    rules = _decode(data, source, given)
    given.finish()
    return rules


def _decode(data: Data, source: str, given: Given) -> Recipe:
    reader = RecipeReader(source, given)
    try:
        rules = tuple(_rules(data, "", reader))
    except Exception as error:  # OmegaConf resolves what a config refers to when it is read
        if not (place := getattr(error, "full_key", "")):
            raise
        raise ConfigError(f"1 mistake in {source}", [f"{place}: {str(error).splitlines()[0]}"]) from error
    reader.finish()
    return rules


def _rules(form: Data, path: str, reader: RecipeReader) -> Iterator[Rule]:
    """The rules of a recipe, or of an item of one; ``path`` is where it stands, nothing for the whole."""
    # Told apart by their shape alone. A bare dict is an entry of a recipe, whatever it looks like: MMEngine's reading
    # has a verb of its own, for the two differ in what they write. ``fitting``: an initializer alone is for the weights
    # that it fits, without norms and elementwise scales. Where somebody names a parameter, the same formula on a shape
    # that it cannot fill is an error.
    path = _full_key(form) or path
    if path.count("[") > limits.LEVELS:
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
    elif "rules" in form or "extends" in form:
        yield from _recipe(form, path, reader)
    elif _is_entry(form) or (path and not form):
        is_scheme = form.get("type") == "scheme"
        yield from _scheme(form, path, reader) if is_scheme else entry_rules(form, path or "rules[0]", reader)
    else:
        for glob, item in form.items():
            yield from _by_name(glob, item, f"{path or 'recipe'}[{glob!r}]", reader)


def _recipe(
    data: Mapping[Any, Data],
    path: str,
    reader: RecipeReader,
    scheme: str = "",
    fixed: Mapping[str, Data] = MappingProxyType({}),
) -> Iterator[Rule]:
    """The rules of a table with a list of rules; ``fixed`` are the arguments that the entry of a scheme gives."""
    for key in data:
        if key not in _WORDS:
            reader.mistake(join(path, key), f"a recipe has no {key!r}{did_you_mean(key, _WORDS)}")
    for key in ("about", "source", "claims"):
        reader.read(data.get(key, ""), str, join(path, key))
    declared = reader.arguments_of(data.get("arguments", {}), join(path, "arguments"))
    for key in fixed.keys() - declared.keys():
        reader.mistake(join(path, key), f"there is no such argument{did_you_mean(key, declared)}")
    with reader.scope(declared, fixed, path) as values:
        rules = [*_needed(data.get("needs", ()), join(path, "needs"), reader)]
        if (extends := data.get("extends")) is not None:
            table = extends if isinstance(extends, Mapping) else {"name": extends}
            rules += _scheme({**table, "type": "scheme"}, join(path, "extends"), reader)
        if is_sequence(own := data.get("rules", ())):
            rules += _rules(own, join(path, "rules"), reader)
        else:
            reader.mistake(path, "a recipe is a table with a list 'rules'")
    for rule in rules:
        is_own = scheme or not rule.scheme
        yield replace(rule, scheme=scheme, arguments={**rule.arguments, **values}) if is_own else rule


def _needed(needs: Data, path: str, reader: RecipeReader) -> Iterator[Rule]:
    """A rule for each role that a recipe needs, or for several of which one will do."""
    read = reader.read(needs, tuple[str | tuple[str, ...], ...], path)
    for roles in () if read is INVALID else read:
        try:  # it selects, and gives no values: these are not norms
            yield Rule(Roles(*([roles] if isinstance(roles, str) else roles)), Neutral(), NEEDED, origin=path)
        except ValueError as error:
            reader.mistake(path, str(error))


def _scheme(data: Mapping[Any, Data], path: str, reader: RecipeReader) -> Iterator[Rule]:
    """The rules of an entry that stands for a scheme: {type = "scheme", name = "t5", d_kv = 64, within = "encoder"}."""
    reader.spend(_SCHEME_VALUES)
    name, shipped = data.get("name"), scheme_names()  # to read them all would take longer than to plan a model
    if not isinstance(name, str) or name not in shipped:
        near = did_you_mean(name, shipped) if isinstance(name, str) else ""
        reader.mistake(join(path, "name"), f"must be the name of a scheme, but got {name!r}{near}")
        return
    holds = reader.holds(data.get("when", {}), join(path, "when"))
    optional = reader.read(data.get("optional", False), bool, join(path, "optional"))
    within = reader.read(data.get("within", ""), str, join(path, "within"))
    fixed = {key: item for key, item in data.items() if key not in _SCHEME_WORDS}
    before = len(reader.mistakes)
    rules = [*_recipe(read_scheme(name), path, reader, f"{name} within {within}" if within else name, fixed)]
    if INVALID in (optional, within) or len(reader.mistakes) > before or not holds:
        return
    for rule in rules:
        where = Within(within) & rule.where if within else rule.where
        yield replace(rule, where=where, optional=rule.optional or optional) if within or optional else rule


def _is_entry(data: Mapping[Any, Data]) -> bool:
    """Whether a table is one entry, even without its type, and not a table of initializers by name."""
    if {"type", "where"} & data.keys():
        return True
    return bool(SELECTING & data.keys()) and not any(
        isinstance(item, Mapping) or is_initializer(item) or callable(item) for item in data.values()
    )


def _by_name(glob: Any, item: Data, path: str, reader: RecipeReader) -> Iterator[Rule]:
    if not isinstance(item, Mapping):
        yield from _rule(path, reader, glob, item)
    elif "name" in item:
        reader.mistake(f"{path}.name", "the key is the name already")
    else:
        yield from entry_rules({**item, "name": glob}, path, reader)


def _rule(path: str, reader: Reader, where: Any, init: Any, *, fitting: bool = False) -> Iterator[Rule]:
    try:
        yield Rule(where, init, origin=path, fitting=fitting)
    except (TypeError, ValueError) as error:
        near = did_you_mean(where, (*_WORDS, "type")) if isinstance(where, str) else ""
        reader.mistake(path, f"{error}{near}")


def _full_key(node: object) -> str:
    """The place of a node of OmegaConf in its config; empty for any other object."""
    key_of: Any = getattr(type(node), "_get_full_key", None)
    if key_of is None:
        return ""
    # Its answer for a node itself is wrong for an item of a list; that for the node's items is not: "a.x", "a[0]".
    is_mapping = isinstance(node, Mapping)
    return str(key_of(node, "x").removesuffix("x").removesuffix(".") if is_mapping else key_of(node, 0)[:-3])


def recipe_to_data(recipe: Recipe) -> Data:
    """A recipe as plain data, which :func:`decode_recipe` reads back; each rule is written out in full.

    Raises ConfigError for a rule whose initializer or selector is of a class that is not registered.

    >>> from torchinit.initializers.elementwise import Normal
    >>> from torchinit.rules.selectors import Leaf
    >>> recipe_to_data((Rule(Leaf("weight"), Normal(std=0.02)),))
    {'rules': [{'where': {'type': 'Leaf', 'names': ['weight']}, 'init': {'type': 'Normal', 'std': 0.02}}]}
    """
    bare = (replace(rule, origin="", scheme="", arguments={}) for rule in recipe)
    return {"rules": [SCHEMA.encode(rule, Rule, defaults=False) for rule in bare]}


# --- what is not a recipe --------------------------------------------------------------------------------------

_NOT_A_RECIPE: Final = (
    "{short} is not a recipe; write the path of a file, the name of a scheme, rules, entries such as"
    " {{'type': 'Normal', 'std': 0.02, 'name': '**.weight'}}, or an initializer such as Normal(std=0.02)"
)
_A_NUMBER: Final = "{0!r} is a number, not a recipe; write Constant({0!r}), for each weight"
_REMEDIES: Final[dict[type, str]] = {
    type: "{0.__name__} is a class; write {0.__name__}()",
    nn.Module: "a {0.__class__.__name__} is a model, not a recipe; to load it, write Rule('**', Pretrained(model))",
    Selector: "{0!r} says where, and not what; write Rule({0!r}, Normal(std=0.02))",
    Plan: "this is a plan, not a recipe; torchinit.plans.run(plan, torchinit.plans.local_shards(model), noise)"
    " carries it out",
    Set: "{short} has no order, and later rules win; write a list",
    bool: _NOT_A_RECIPE,
    int: _A_NUMBER,
    float: _A_NUMBER,
    bytes: _NOT_A_RECIPE,
    Tensor: _NOT_A_RECIPE,
}


def check_recipe(recipe: object) -> None:
    """Raise TypeError where something else is given in the place of a recipe, with what to write."""
    remedy = next((text for kind, text in _REMEDIES.items() if isinstance(recipe, kind)), "")
    if is_state_dict(recipe):
        remedy = "this is a state dict, not a recipe; to load it, write Rule('**', Pretrained(state_dict))"
    elif not (remedy or isinstance(recipe, (Rule, Iterable)) or is_initializer(recipe) or callable(recipe)):
        remedy = _NOT_A_RECIPE
    if remedy:
        raise TypeError(remedy.format(recipe, short=short(recipe)))


def is_state_dict(value: object) -> bool:
    """Whether a value is a mapping of tensors."""
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def is_like_init_cfg(recipe: object) -> bool:
    """Whether the data could be an ``init_cfg``: each entry names a type, and uses no key that only recipes have."""
    entries = [recipe] if isinstance(recipe, dict) else recipe if isinstance(recipe, (list, tuple)) else []
    others = ENTRY_KEYS - {"layer"}
    return bool(entries) and all(isinstance(e, dict) and "type" in e and not others & e.keys() for e in entries)
