"""Entries: one table of a recipe, and the rules that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import and_, or_
from reprlib import repr as short
from typing import Any, Final, Literal, TypeAlias

from torchinit.initializers.composed import Blocks, Stacked
from torchinit.initializers.elementwise import Initializer
from torchinit.initializers.source import is_verbatim
from torchinit.initializers.variance_scaling import Prior
from torchinit.rules.catalog import TEXT
from torchinit.rules.rule import Rule
from torchinit.rules.selectors import Kinds, Layer, Leaf, Name, Regex, Selector, Within
from torchinit.serialization.annotations import is_sequence
from torchinit.serialization.schema import INVALID, Data, Reader, join

Words: TypeAlias = str | tuple[str, ...]
Sizes: TypeAlias = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """What an entry of a recipe says besides its initializer: which sites, and how to treat them.

    ``layer`` holds class names (also of a direct base; with ``subclasses`` of any), ``name`` globs of
    qualified names, ``regex`` a pattern for the whole name, ``param`` last parts of names, ``within``
    modules; a site must fit all that are given, and no glob of ``exclude``. ``blocks`` treats each block
    of a fused weight, ``batch_axes`` each weight of a stack, as a tensor of its own. The others are those
    of :class:`torchinit.Rule`.
    """

    layer: Words = ()
    subclasses: bool = False
    name: Words = ()
    regex: str = ""
    param: Words = ()
    exclude: Words = ()
    within: Words = ()
    blocks: Sizes | None = None
    batch_axes: Sizes | None = None
    label: str = ""
    optional: bool = False
    padding: bool = True
    buffers: bool = False


ENTRY_WORDS: Final = frozenset(field.name for field in fields(Entry))
OTHER_WORDS: Final = frozenset({"type", "bias", "bias_prob", "override"})
SELECTING: Final = frozenset({"layer", "within", "name", "regex", "param"})
_OVERRIDE_WORDS: Final = ("name", "blocks", "batch_axes", "label", "optional", "padding", "type", "bias", "bias_prob")
_NOT_INHERITED: Final = ENTRY_WORDS - {"blocks", "batch_axes", "label"} | {"override"}
_BIAS: Final = Literal["keep"] | Initializer | None


def entry_rules(data: Mapping[Any, Data], path: str, reader: Reader) -> tuple[Rule, ...]:
    """The rules of one entry; what is wrong with it is noted in the reader.

    An entry with ``where`` and ``init`` is one rule. Any other has a ``type``, the initializer's arguments,
    and the words of :class:`Entry`. Its rules come in the order in which they are written: the
    initializer's, the biases', the overrides'. The ``origin`` of each is its path.
    """
    if "where" in data:
        rule = reader.read(data, Rule, path)
        return () if rule is INVALID else (replace(rule, origin=path),)
    return _EntryReader(data, path, reader).rules()


class _EntryReader:
    """One entry on its way to rules."""

    def __init__(self, data: Mapping[str, Data], path: str, reader: Reader) -> None:
        self.data = data
        self.path = path
        self.reader = reader

    def rules(self) -> tuple[Rule, ...]:
        before = len(self.reader.mistakes)
        said = {key: value for key, value in self.data.items() if key in ENTRY_WORDS}
        entry: Entry = self.reader.record(Entry, said, self.path)
        init = self._initializer()
        bias = self._bias(init)
        if entry is INVALID:
            return ()
        init, where = self._parted(entry, init), self._where(entry)
        sound = len(self.reader.mistakes) == before
        overrides = self._overrides(entry, sound)
        own = self._own_rules(entry, where, init, bias) if sound and where is not None else []
        return (*own, *overrides)

    def _mistake(self, key: str, text: str) -> Any:
        return self.reader.mistake(f"{self.path}.{key}" if key else self.path, text)

    def _try(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` makes; a mistake at this word of the entry if it raises."""
        try:
            return make()
        except (TypeError, ValueError) as error:
            return self._mistake(key, str(error))

    def _initializer(self) -> Any:
        cls = self.reader.word(self.data, Initializer, self.path)
        if cls is INVALID:
            return INVALID
        words = ENTRY_WORDS | OTHER_WORDS
        arguments = {key: value for key, value in self.data.items() if key not in words}
        return self.reader.record(cls, arguments, self.path, TEXT, also=words)

    def _bias(self, init: Any) -> Any:
        """The initializer of the biases; None leaves them alone."""
        if "bias" in self.data and "bias_prob" in self.data:
            return self._mistake("", "takes 'bias' or 'bias_prob', not both")
        if self._says_bias and is_verbatim(init):
            return self._mistake("bias", f"is loaded with the rest by {self.data['type']}; give it a rule of its own")
        if "param" in self.data and self._says_bias:
            return self._mistake("param", "names what is written; a bias needs an entry of its own")
        if "bias_prob" in self.data:
            return self.reader.bare(Prior, "prob", self.data["bias_prob"], f"{self.path}.bias_prob", TEXT)
        bias = self.reader.read(self.data.get("bias", 0.0), _BIAS, f"{self.path}.bias")
        return None if bias == "keep" else bias

    @property
    def _says_bias(self) -> bool:
        return "bias" in self.data or "bias_prob" in self.data

    def _parted(self, entry: Entry, init: Any) -> Any:
        """The initializer as it applies to each block of a fused weight, to each weight of a stack."""
        parts, axes = entry.blocks, several(entry.batch_axes)
        if is_verbatim(init):
            for key in self.data.keys() & {"blocks", "batch_axes"}:
                self._mistake(key, f"means nothing beside {self.data['type']}, which loads a tensor as it is")
            return init
        if init is not INVALID and parts is not None:
            init = self._try("blocks", lambda: Blocks(init, parts))
        if init is not INVALID and entry.batch_axes is not None:
            part = init
            init = self._try("batch_axes", lambda: stacked(part, axes))
        return init

    def _where(self, entry: Entry) -> Selector | None:
        """What the entry selects; None where only its overrides select something."""
        found = [
            *self._selector("layer", lambda: Layer(*several(entry.layer), subclasses=entry.subclasses)),
            *self._selector("within", lambda: any_within(several(entry.within))),
            *self._selector("name", lambda: Name(*several(entry.name))),
            *self._selector("regex", lambda: Regex(entry.regex)),
            *self._selector("param", lambda: Leaf(*several(entry.param))),
        ]
        besides = self._selector("exclude", lambda: ~Name(*several(entry.exclude)))
        if entry.subclasses and "layer" not in self.data:
            self._mistake("subclasses", "means something only beside 'layer'")
        if not self.data.keys() & SELECTING and (besides or "override" not in self.data):
            how = "give layer, name, regex, within or param; name = '**' selects every parameter"
            self._mistake("", f"selects nothing: {how}")
        return reduce(and_, [*found, *besides]) if found else None

    def _selector(self, key: str, make: Callable[[], Selector]) -> list[Selector]:
        """The selector that a word of the entry stands for, if the entry has the word."""
        if key not in self.data:
            return []
        texts = several(self.data[key])
        selector = self._try(key, make) if texts and all(texts) else self._mistake(key, "must not be empty")
        return [] if selector is INVALID else [selector]

    def _own_rules(self, entry: Entry, where: Selector, init: Initializer, bias: Initializer | None) -> list[Rule]:
        rule = Rule(where, init, entry.label, entry.optional, entry.padding, entry.buffers, self.path)
        by_name = bool(entry.name or entry.regex) and not entry.layer
        if is_verbatim(init):
            return [rule]
        if entry.param or (by_name and not self._says_bias):
            return [rule]
        weights = ~Kinds("bias") if by_name else Kinds("weight")
        rules = [replace(rule, where=where & weights)]
        if bias is not None:
            rules.append(replace(rule, where=where & Kinds("bias"), init=bias, optional=True))
        return rules

    def _overrides(self, entry: Entry, sound: bool) -> list[Rule]:
        """The rules of all overrides."""
        said = self.data.get("override", ())
        path = f"{self.path}.override"
        listed = is_sequence(said)
        items = {f"{path}[{number}]": item for number, item in enumerate(said)} if listed else {path: said}
        # What is inherited from an entry with mistakes would only repeat them.
        inheriting = {path for path, item in items.items() if isinstance(item, Mapping) and "type" not in item}
        readers = [self._override(item, entry, path) for path, item in items.items() if sound or path not in inheriting]
        return [rule for reader in readers if reader for rule in reader.rules()]

    def _override(self, said: Data, entry: Entry, path: str) -> _EntryReader | None:
        """An override as an entry of its own: for one submodule, with the initializer that it does not name itself."""
        found = len(self.reader.mistakes)
        own = _override_words(said, path, self.reader)
        names = several(self.reader.read(own.pop("name", ""), Words, f"{path}.name"))
        if len(self.reader.mistakes) > found:
            return None
        if "type" not in own:
            biases = {"bias", "bias_prob"} if own.keys() & {"bias", "bias_prob"} else set()
            inherited = {key: value for key, value in self.data.items() if key not in _NOT_INHERITED | biases}
            own = {**inherited, **own}
        own["within"] = [join(outer, name) for outer in several(entry.within) or [""] for name in names]
        return _EntryReader(own, path, self.reader)


def _override_words(said: Data, path: str, reader: Reader) -> dict[str, Data]:
    """What an override says, once it is known to say nothing that an override cannot."""
    if not isinstance(said, Mapping):
        reader.mistake(path, f"must be a table or a list of tables, but got {short(said)}")
        return {}
    for key in sorted((ENTRY_WORDS | OTHER_WORDS).difference(_OVERRIDE_WORDS) & said.keys()):
        reader.mistake(f"{path}.{key}", f"an override has no {key!r}; it is for the whole submodule 'name'")
    if "name" not in said:
        reader.mistake(path, "an override needs 'name', the submodule that it is for")
    return dict(said)


def any_within(modules: Iterable[str]) -> Selector:
    """The sites within any of several modules."""
    return reduce(or_, [Within(module) for module in modules])


def stacked(init: Initializer, axes: tuple[int, ...]) -> Stacked:
    """The initializer for each weight of a stack, whose other two axes are outputs and inputs in this order."""
    others = [axis for axis in range(3) if axis not in axes]
    if len(axes) != 1 or len(others) != 2:
        raise ValueError(f"a stack has one batch axis, 0, 1 or 2, but got {list(axes)}")
    return Stacked(init, axes[0], in_axis=others[1], out_axis=others[0])


def several(value: Any) -> tuple[Any, ...]:
    """One or several, as several."""
    return tuple(value) if is_sequence(value) else () if value is None else (value,)
