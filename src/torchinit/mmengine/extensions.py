"""Extensions: what an entry of an ``init_cfg`` may say beyond MMEngine, which works within what MMEngine does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import and_
from typing import Any, Final

from torchinit.errors import ConfigError
from torchinit.initializers.composed import Blocks
from torchinit.initializers.elementwise import Initializer
from torchinit.mmengine.registry import InitCfgTypeError
from torchinit.model.sites import Convention
from torchinit.recipes.entries import EntryOptions, any_within, several, stacked
from torchinit.rules.rule import SCHEMA
from torchinit.rules.selectors import Layer, Leaf, Name, Regex, Selector
from torchinit.serialization.reading import argument_types


@dataclass(frozen=True, slots=True)
class Extension(EntryOptions):
    """The words of an entry that MMEngine does not have. Each default leaves the entry as MMEngine reads it.

    ``label`` is the text in the log; ``fans`` chooses how the connections in a formula are counted
    (:meth:`torchinit.model.Site.fans`). ``padding`` leaves the padding row of an embedding zero. ``param`` names what
    is written instead of ``weight`` and ``bias``. ``name`` and ``regex`` narrow an entry with a ``layer``; without one
    they select parameters of any name, buffers as well with ``buffers``. The others are those of an entry of a recipe.
    """

    # An added word must not change how the others are read: two dialects in one entry, told by which words it has, was
    # tried, and `fans="torch"`, which is the default, then decided whether an LSTM was written.

    fans: Convention = "torch"
    padding: bool = False

    @classmethod
    def taken_from(cls, words: dict[str, Any], source: str) -> Extension:
        """Take the words of an extension out of those of an entry; raises ConfigError with every mistake in them."""
        own = {key: words.pop(key) for key in WORDS & words.keys()}
        # An empty list is how plain data say that there are no names.
        given: Mapping[str, Any] = {key: value for key, value in own.items() if value not in (None, "", [])}
        extension: Extension = SCHEMA.decode(given, Extension, source)
        return extension

    @property
    def selects(self) -> bool:
        """Whether the entry names sites, so that without a ``layer`` it is for some."""
        return any((self.name, self.regex, self.param, self.within))

    def by_name(self, layers: Sequence[Any]) -> bool:
        """Whether the entry is for parameters by their own names, whatever they are to their modules."""
        return bool(self.param or ((self.name or self.regex) and not layers))

    def where(self, layers: Sequence[str] = (), *, whole: bool = False) -> Selector | None:
        """Select the entry's sites, None for all; ``whole`` is a part of a model with all below it, as in overrides."""
        selectors = [
            *([self._layers(layers)] if layers or not (whole or self.selects) else ()),
            *([Name(*several(self.name))] if self.name else ()),
            *([Regex(self.regex)] if self.regex else ()),
            *([any_within(several(self.within))] if self.within else ()),
            *([~Name(*several(self.exclude))] if self.exclude else ()),
            *([Leaf(*several(self.param))] if self.param else ()),
        ]
        return reduce(and_, selectors) if selectors else None

    def _layers(self, names: Sequence[str]) -> Layer:
        layer = Layer(subclasses=self.subclasses)
        object.__setattr__(layer, "names", tuple(names))  # Layer refuses *, which matches nothing in MMEngine
        return layer

    def shaped(self, init: Initializer, kind: str) -> Initializer:
        """Let an initializer count connections as ``fans`` says, part by part.

        Raises TypeError where it counts none, ConfigError for parts that cannot be.
        """
        if self.fans != "torch":
            if "fans" not in argument_types(type(init)):
                raise InitCfgTypeError(f"{kind} counts no connections, so that it has no use for fans={self.fans!r}")
            init = replace(init, fans=self.fans)  # type: ignore[type-var]  # every formula is a dataclass
        try:
            init = init if self.blocks is None else Blocks(init, self.blocks)
            return init if self.batch_axes is None else stacked(init, several(self.batch_axes))
        except ValueError as error:
            raise ConfigError(f"{kind}: {error}") from None


WORDS: Final = frozenset(field.name for field in fields(Extension)) - {"layer", "role", "trainable"}
