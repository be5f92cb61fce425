"""Entries: reads one table of a recipe as the rules that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial, reduce
from operator import and_
from reprlib import repr as short
from typing import Any, Final, Literal, TypeAlias

from torchinit.initializers.composed import Blocks, Stacked
from torchinit.initializers.elementwise import Initializer
from torchinit.initializers.source import is_verbatim
from torchinit.initializers.variance_scaling import Prior
from torchinit.knowledge.role_rules import BIAS, UNSURE, role_matches
from torchinit.recipes.arguments import RecipeReader
from torchinit.rules.rule import TEXT, Rule
from torchinit.rules.selectors import All, AnyOf, Is, Kinds, Layer, Leaf, Name, Regex, Roles, Selector, Within
from torchinit.serialization.reading import INVALID, Data, Reader, is_sequence, join

Words: TypeAlias = str | tuple[str, ...]
Sizes: TypeAlias = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EntryOptions:
    """The keys of an entry besides its initializer, as docs/reference/recipes.md tells: which sites, and how."""

    layer: Words = ()
    subclasses: bool = False
    name: Words = ()
    regex: str = ""
    param: Words = ()
    exclude: Words = ()
    within: Words = ()
    role: Words = ()
    trainable: bool | None = None
    blocks: Sizes | None = None
    batch_axes: Sizes | None = None
    label: str = ""
    optional: bool = False
    padding: bool = True
    buffers: bool = False


ENTRY_KEYS: Final = frozenset(field.name for field in fields(EntryOptions))
OTHER_KEYS: Final = frozenset({"type", "bias", "bias_prob", "override", "when"})
SELECTING: Final = frozenset({"layer", "within", "name", "regex", "param", "role"})
_OVERRIDE_KEYS: Final = ("name", "blocks", "batch_axes", "label", "optional", "padding", "type", "bias", "bias_prob")
_NOT_INHERITED: Final = ENTRY_KEYS - {"blocks", "batch_axes", "label"} | {"override", "when"}
_BIAS_KEYS: Final = frozenset({"bias", "bias_prob"})
_BIAS: Final = Literal["keep"] | Initializer | None


def entry_rules(data: Mapping[Any, Data], path: str, reader: RecipeReader) -> tuple[Rule, ...]:
    """The rules of one entry; what is wrong with it is noted in the reader.

    An entry with ``where`` and ``init`` is one rule. Any other has a ``type``, the initializer's arguments, and the
    keys of :class:`EntryOptions`. Its rules come in the order in which they are written: the initializer's, the
    biases', the overrides'. The ``origin`` of each is its path.
    """
    if "when" in data:
        holds = reader.holds(data["when"], join(path, "when"))
        rules = entry_rules({key: item for key, item in data.items() if key != "when"}, path, reader)
        return rules if holds else ()
    if "where" in data:
        rule = reader.read(data, Rule, path)
        return () if rule is INVALID else (replace(rule, origin=path),)
    return _EntryReader(data, path, reader).rules()


@dataclass(frozen=True, slots=True)
class _EntryReader:
    """One entry on its way to rules."""

    data: Mapping[str, Data]
    path: str
    reader: Reader

    def rules(self) -> tuple[Rule, ...]:
        before = len(self.reader.mistakes)
        values = {key: value for key, value in self.data.items() if key in ENTRY_KEYS}
        options: EntryOptions = self.reader.record(EntryOptions, values, self.path)
        init = self._initializer()
        bias = self._bias(init)
        if options is INVALID:
            return ()
        init, where = self._parted(options, init), self._where(options)
        is_sound = len(self.reader.mistakes) == before
        overrides = tuple(self._overrides(options, is_sound))
        own = self._own_rules(options, where, init, bias) if is_sound and where is not None else []
        return (*own, *overrides)

    def _mistake(self, key: str, text: str) -> Any:
        return self.reader.mistake(f"{self.path}.{key}" if key else self.path, text)

    def _try(self, key: str, build: Callable[..., Any], *arguments: object) -> Any:
        """Build something; a mistake at this key of the entry if that raises."""
        try:
            return build(*arguments)
        except (TypeError, ValueError) as error:
            return self._mistake(key, str(error))

    def _initializer(self) -> Any:
        cls = self.reader.named_class(self.data, Initializer, self.path)
        if cls is INVALID:
            return INVALID
        keys = ENTRY_KEYS | OTHER_KEYS
        arguments = {key: value for key, value in self.data.items() if key not in keys}
        return self.reader.record(cls, arguments, self.path, TEXT, also=keys)

    def _bias(self, init: Any) -> Any:
        """The initializer of the biases; None leaves them alone."""
        given = self.data.keys() & _BIAS_KEYS
        if len(given) > 1:
            return self._mistake("", "takes 'bias' or 'bias_prob', not both")
        if given and is_verbatim(init):
            return self._mistake("bias", f"is loaded with the rest by {self.data['type']}; give it a rule of its own")
        if given and "param" in self.data:
            return self._mistake("param", "names what is written; a bias needs an entry of its own")
        if "bias_prob" in self.data:
            return self.reader.shorthand(Prior, "prob", self.data["bias_prob"], f"{self.path}.bias_prob", TEXT)
        bias = self.reader.read(self.data.get("bias", 0.0), _BIAS, f"{self.path}.bias")
        return None if bias == "keep" else bias

    def _parted(self, options: EntryOptions, init: Any) -> Any:
        """The initializer as it applies to each block of a fused weight, to each weight of a stack."""
        if is_verbatim(init):
            for key in self.data.keys() & {"blocks", "batch_axes"}:
                self._mistake(key, f"means nothing beside {self.data['type']}, which loads a tensor as it is")
            return init
        if init is not INVALID and options.blocks is not None:
            init = self._try("blocks", Blocks, init, options.blocks)
        if init is INVALID or options.batch_axes is None:
            return init
        return self._try("batch_axes", stacked, init, several(options.batch_axes))

    def _where(self, options: EntryOptions) -> Selector | None:
        """The selector of the entry's own sites; None where only its overrides select something."""
        builders: Mapping[str, Callable[..., Selector]] = {
            "layer": partial(Layer, subclasses=options.subclasses),
            "within": lambda *modules: any_within(modules),
            "name": Name,
            "regex": Regex,
            "param": Leaf,
            "role": Roles,
        }
        selectors = [selector for key, build in builders.items() for selector in self._selector(key, build)]
        others = self._selector("exclude", lambda *globs: ~Name(*globs))
        if options is not INVALID and options.trainable is not None:
            others.append(Is("trainable" if options.trainable else "frozen"))
        if options.subclasses and "layer" not in self.data:
            self._mistake("subclasses", "means something only beside 'layer'")
        if not self.data.keys() & SELECTING and (others or "override" not in self.data):
            remedy = "give layer, name, regex, within, param or role; name = '**' selects every parameter"
            self._mistake("", f"selects nothing: {remedy}")
        return reduce(and_, [*selectors, *others]) if selectors else None

    def _selector(self, key: str, build: Callable[..., Selector]) -> list[Selector]:
        """The selector that a key of the entry stands for, if the entry has the key."""
        if key not in self.data:
            return []
        texts = several(self.data[key])
        is_full = bool(texts) and all(texts)
        selector = self._try(key, build, *texts) if is_full else self._mistake(key, "must not be empty")
        return [] if selector is INVALID else [selector]

    def _own_rules(self, options: EntryOptions, where: Selector, init: Any, bias: Any) -> list[Rule]:
        rule = Rule(where, init, options.label, options.optional, options.padding, options.buffers, self.path)
        by_name = bool(options.name or options.regex) and not (options.layer or options.role)
        if is_verbatim(init) or options.param or (by_name and not self.data.keys() & _BIAS_KEYS):
            return [rule]
        weights = ~Kinds("bias") if by_name else Kinds("weight")
        pair: tuple[Selector, Selector | None] = (where & weights, where & Kinds("bias"))
        own, of_biases = _by_role(where, several(options.role)) if options.role else pair
        rules = [replace(rule, where=own)]
        if bias is not None and of_biases is not None:
            rules.append(replace(rule, where=of_biases, init=bias, optional=True))
        return rules

    def _overrides(self, options: EntryOptions, is_sound: bool) -> Iterator[Rule]:
        data, path = self.data.get("override", ()), f"{self.path}.override"
        items = {f"{path}[{n}]": item for n, item in enumerate(data)} if is_sequence(data) else {path: data}
        for place, item in items.items():
            # What is inherited from an entry with mistakes would only repeat them.
            if is_sound or not isinstance(item, Mapping) or "type" in item:
                yield from self._override(item, options, place)

    def _override(self, data: Data, options: EntryOptions, path: str) -> tuple[Rule, ...]:
        """The rules of an override: an entry of one submodule, which may inherit the initializer."""
        if not isinstance(data, Mapping):
            self.reader.mistake(path, f"must be a table or a list of tables, but got {short(data)}")
            return ()
        before = len(self.reader.mistakes)
        for key in sorted((ENTRY_KEYS | OTHER_KEYS).difference(_OVERRIDE_KEYS) & data.keys()):
            self.reader.mistake(f"{path}.{key}", f"an override has no {key!r}; it is for the whole submodule 'name'")
        if "name" not in data:
            self.reader.mistake(path, "an override needs 'name', the submodule that it is for")
        names = several(self.reader.read(data.get("name", ""), Words, f"{path}.name"))
        if len(self.reader.mistakes) > before:
            return ()
        own = {key: value for key, value in data.items() if key != "name"}
        if "type" not in own:
            others = _NOT_INHERITED | (_BIAS_KEYS if own.keys() & _BIAS_KEYS else set())
            own = {key: value for key, value in self.data.items() if key not in others} | own
        outers = several(options.within) or ("",)
        self.reader.spend(len(outers) * len(names))
        own["within"] = [join(outer, name) for outer in outers for name in names]
        return _EntryReader(own, path, self.reader).rules()


def _by_role(where: Selector, globs: Sequence[str]) -> tuple[Selector, Selector | None]:
    """The selectors of the parameters of these roles, and of the biases that belong to them, if roles of such exist."""
    # By roles, not by what a parameter is to its layer: A_log and a class token are neither weight nor bias, and the
    # shift of a norm is meant where its role is named. Whose role nobody knows has no name for its bias.
    wholes, biases = [glob for glob in globs if not glob.endswith(BIAS)], Kinds("bias")
    with_unsure = [UNSURE] if any(role_matches(glob, UNSURE) for glob in wholes) else []
    own = where & ~(Roles(UNSURE) & biases) if with_unsure else where
    parts = where.of if isinstance(where, All) else (where,)
    theirs = Roles(*(f"{glob}{BIAS}" for glob in wholes), *with_unsure)
    of_biases = reduce(and_, (theirs if isinstance(part, Roles) else part for part in parts))
    return own, (of_biases & biases if with_unsure else of_biases) if wholes else None


def any_within(modules: Iterable[str]) -> Selector:
    """The selector of the sites within any of several modules."""
    several = [Within(module) for module in modules]
    return several[0] if len(several) == 1 else AnyOf(*several)


def stacked(init: Initializer, axes: tuple[int, ...]) -> Stacked:
    """The initializer for each weight of a stack, whose other two axes are outputs and inputs in this order."""
    others = [axis for axis in range(3) if axis not in axes]
    if len(axes) != 1 or len(others) != 2:
        raise ValueError(f"a stack has one batch axis, 0, 1 or 2, but got {list(axes)}")
    return Stacked(init, axes[0], in_axis=others[1], out_axis=others[0])


def several(value: Any) -> tuple[Any, ...]:
    """A tuple of one value or of several."""
    return tuple(value) if is_sequence(value) else () if value is None else (value,)
