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
from torchinit.recipes.entries import Sizes, Words, any_within, several, stacked
from torchinit.rules.catalog import SCHEMA
from torchinit.rules.selectors import Layer, Leaf, Name, Regex, Selector
from torchinit.serialization.hints import hints_of


@dataclass(frozen=True, slots=True)
class Extension:
    """The words of an entry that MMEngine does not have. Each default leaves the entry as MMEngine reads it.

    ``label`` is the text in the log; ``optional`` allows the entry to match nothing; ``fans`` chooses how the
    connections in a formula are counted (:meth:`torchinit.model.Site.fans`); ``blocks`` and ``batch_axes`` treat a fused or
    stacked weight in parts. ``padding`` leaves the padding row of an embedding zero, ``subclasses`` lets ``layer``
    match every class below. ``within`` (modules) and ``exclude`` (globs) narrow the entry. ``param`` names what is
    written instead of ``weight`` and ``bias``. ``name`` (globs) and ``regex`` narrow an entry with a ``layer``;
    without one they select parameters of any name, buffers as well with ``buffers``.
    """

    label: str = ""
    optional: bool = False
    fans: Convention = "torch"
    subclasses: bool = False
    name: Words = ()
    regex: str = ""
    param: Words = ()
    within: Words = ()
    exclude: Words = ()
    blocks: Sizes | None = None
    batch_axes: Sizes | None = None
    padding: bool = False
    buffers: bool = False

    @property
    def selects(self) -> bool:
        """Whether it says which sites, so that an entry without a ``layer`` is for some."""
        return any((self.name, self.regex, self.param, self.within))

    def by_name(self, layers: Sequence[Any]) -> bool:
        """Whether the entry is for parameters by their own names, whatever they are to their modules."""
        return bool(self.param or ((self.name or self.regex) and not layers))

    def where(self, layers: Sequence[str] = (), *, whole: bool = False) -> Selector | None:
        """What the entry is for, None for all; ``whole`` is a part of the model with all below it, as in overrides."""
        found = [
            *([Layer(*layers, subclasses=self.subclasses)] if layers or not (whole or self.selects) else ()),
            *([Name(*several(self.name))] if self.name else ()),
            *([Regex(self.regex)] if self.regex else ()),
            *([any_within(several(self.within))] if self.within else ()),
            *([~Name(*several(self.exclude))] if self.exclude else ()),
            *([Leaf(*several(self.param))] if self.param else ()),
        ]
        return reduce(and_, found) if found else None

    def shaped(self, init: Initializer, kind: str) -> Initializer:
        """An initializer that counts connections as ``fans`` says, part by part.

        Raises TypeError where it counts none, ConfigError for parts that cannot be.
        """
        if self.fans != "torch":
            if "fans" not in hints_of(type(init)):
                raise InitCfgTypeError(f"{kind} counts no connections, so that it has no use for fans={self.fans!r}")
            init = replace(init, fans=self.fans)  # type: ignore[type-var]  # every formula is a dataclass
        try:
            init = init if self.blocks is None else Blocks(init, self.blocks)
            return init if self.batch_axes is None else stacked(init, several(self.batch_axes))
        except ValueError as error:
            raise ConfigError(f"{kind}: {error}") from None


WORDS: Final = frozenset(field.name for field in fields(Extension))


def take_extension(said: dict[str, Any], source: str) -> Extension:
    """Take the words of an extension out of what an entry says; raises ConfigError with every mistake in them.

    >>> said = {"std": 0.1, "label": "head", "name": "head.*"}
    >>> take_extension(said, "Normal").label, said
    ('head', {'std': 0.1})
    """
    words = {key: said.pop(key) for key in WORDS & said.keys()}
    # An empty list is how plain data say that there are no names.
    given: Mapping[str, Any] = {key: value for key, value in words.items() if value not in (None, "", [])}
    found: Extension = SCHEMA.decode(given, Extension, source)
    return found
