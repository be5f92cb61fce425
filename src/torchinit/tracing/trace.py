"""The trace of a model: its writes, each of which tells what one line of code did to one tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias, final

from torchinit._text import columns, count, did_you_mean, some
from torchinit.model.sandbox import ALLOCATING
from torchinit.model.shards import Box, replaced
from torchinit.serialization.schema import Schema, parse

Region: TypeAlias = Box | Literal["part"] | None
"""Which elements: None for all of them, a box, or ``"part"`` for some that make no box."""

UNSEEN = "unseen"
"""The operation of a write that no operation of torch's made: only its outcome was found."""

_FORMAT = "torchinit-trace-1"

_ALLOCATING = frozenset(operation.__name__ for operation in ALLOCATING)
_OVERWRITING = frozenset(
    {"zero_", "fill_", "normal_", "uniform_", "exponential_", "cauchy_", "geometric_", "log_normal_"}
)


@final
@dataclass(frozen=True, slots=True)
class Write:
    """The writes of one line of code to one site, by one operation.

    ``operation`` is torch's (``"normal_"``), with its ``arguments`` as text; ``call`` is the function of
    torch's that the line called for it, where that is another (``"nn.init.kaiming_normal_"``). Besides
    operations there are ``"data ="`` (the tensor was given other memory), ``"assigned"`` (another tensor was
    put in its place) and ``"unseen"`` (the values changed, and no operation of torch's did it). ``line`` is
    the first line outside of torch and torchinit, ``module`` the name of the module whose code ran, None
    where no module's did. A line that writes a site again is one record with a ``count``; ``order`` is the
    turn of the first, ``last`` that of the last among all writes.

    >>> print(Write("fc.weight", "normal_", "mean=0, std=0.02", line="model.py:12"))
    fc.weight: normal_(mean=0, std=0.02) at model.py:12
    """

    site: str
    operation: str
    arguments: str = ""
    region: Region = None
    line: str = ""
    module: str | None = None
    call: str = ""
    order: int = 0
    last: int = 0
    count: int = 1

    @property
    def what(self) -> str:
        """The operation with its arguments."""
        return f"{self.operation}({self.arguments})" if self.arguments else self.operation

    @property
    def allocates(self) -> bool:
        """Whether it gave the site memory without values."""
        return self.operation in _ALLOCATING

    @property
    def overwrites(self) -> bool:
        """Whether it left nothing of what was there: it filled or drew the whole."""
        return self.operation in _OVERWRITING and self.region is None

    @property
    def is_default(self) -> bool:
        """Whether it is a layer's own initialization, as it was constructed or by ``reset_parameters``."""
        return self.call.endswith((".__init__", ".reset_parameters", "._reset_parameters"))

    def __str__(self) -> str:
        times = f" {self.count} times" if self.count > 1 else ""
        return f"{self.site}{region_text(self.region)}: {self.what}{times} at {self.line or 'no known line'}"


def region_text(region: Region) -> str:
    """A region as an index.

    >>> region_text(Box((0, 2), (4, 1))), region_text("part"), region_text(None)
    ('[0:4, 2:3]', '[part]', '')
    """
    if region is None or region == "part":
        return "[part]" if region else ""
    spans = (f"{start}:{start + size}" for start, size in zip(region.start, region.shape, strict=True))
    return f"[{', '.join(spans)}]"


@final
class Trace:
    """The writes to the parameters and buffers of a model, in order; while the code runs, so far.

    ``parameters`` and ``buffers`` are the names of the sites, those that came during the trace included;
    ``added`` and ``removed`` say which came and which went. ``aliases`` leads the other names of tied tensors
    to the site's. ``error`` is what ended the traced code early, if anything did.

    >>> trace = Trace([Write("a", "zero_", line="model.py:3")], parameters=("a", "b"))
    >>> trace.of("a")[0].line, trace.unwritten
    ('model.py:3', ('b',))
    """

    def __init__(
        self,
        writes: Iterable[Write] = (),
        *,
        parameters: Iterable[str] = (),
        buffers: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
        added: Iterable[str] = (),
        removed: Iterable[str] = (),
        error: str = "",
    ) -> None:
        self._writes: dict[object, Write] = dict(enumerate(writes))
        self.parameters = tuple(parameters)
        self.buffers = tuple(buffers)
        self.aliases = dict(aliases or {})
        self.added = tuple(added)
        self.removed = tuple(removed)
        self.error = error
        self._turn = max((write.last + 1 for write in self._writes.values()), default=0)

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def writes(self) -> tuple[Write, ...]:
        """All writes, by the order of the first that each stands for."""
        return tuple(sorted(self._writes.values(), key=lambda write: write.order))

    def of(self, site: str) -> tuple[Write, ...]:
        """The writes to a site, by any of its names; raises KeyError for a name that no site has."""
        name = self.aliases.get(site, site)
        known = {*self.parameters, *self.buffers, *self.removed}
        if name not in known:
            raise KeyError(f"no site is called {site!r}{did_you_mean(site, known | self.aliases.keys())}")
        return tuple(write for write in self.writes if write.site == name)

    @property
    def unwritten(self) -> tuple[str, ...]:
        """The parameters that nothing was written to."""
        return self._without_write(self.parameters)

    @property
    def unwritten_buffers(self) -> tuple[str, ...]:
        """The buffers that nothing was written to."""
        return self._without_write(self.buffers)

    def _without_write(self, names: tuple[str, ...]) -> tuple[str, ...]:
        written = {write.site for write in self._writes.values()}
        return tuple(name for name in names if name not in written)

    def __len__(self) -> int:
        return len(self._writes)

    def __iter__(self) -> Iterator[Write]:
        return iter(self.writes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trace) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return id(self)  # a trace grows while it runs

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The writes as plain text, a line each, then what was not written."""
        head = ("site", "operation", "times", "line", "call", "module")
        return "\n".join([columns(head, [_row(write) for write in self.writes]), self.summary()])

    def summary(self) -> str:
        """A few lines: what was written and what was not."""
        times = sum(write.count for write in self._writes.values())
        sites = {write.site for write in self._writes.values()}
        lines = [f"{count(times, 'write')} to {count(len(sites), 'site')}"]
        for kind, names in (("parameter", self.unwritten), ("buffer", self.unwritten_buffers)):
            lines += [f"{count(len(names), kind)} not written: {some(names)}"] if names else []
        lines += [f"{change}: {some(names)}" for change in ("added", "removed") if (names := getattr(self, change))]
        return "\n".join([*lines, *([f"ended early: {self.error}"] if self.error else [])])

    # --- plain data ----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain data."""
        return {"format": _FORMAT, **Schema({}).encode(_Stored.of(self), _Stored)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """The trace as JSON; :meth:`from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The trace that :meth:`to_json` wrote; raises ConfigError with every mistake for any other text.

        >>> trace = Trace([Write("a", "zero_", line="model.py:3")], parameters=("a", "b"))
        >>> Trace.from_json(trace.to_json()) == trace
        True
        """
        stored: _Stored = Schema({}).decode(parse(text, "a trace", _FORMAT), _Stored, "the trace")
        return cls(**{each.name: getattr(stored, each.name) for each in fields(stored)})

    # --- writing -------------------------------------------------------------------------------------------

    def add(self, key: object, write: Write, shape: tuple[int, ...] = ()) -> None:
        """Take in a write to a site of this shape; it becomes part of an earlier one with the same key."""
        turn, self._turn = self._turn, self._turn + 1
        before = self._writes.get(key)
        if before is None:
            self._writes[key] = replace(write, order=turn, last=turn)
            return
        self._writes[key] = replace(
            before,
            last=turn,
            count=before.count + 1,
            arguments=write.arguments if before.arguments == write.arguments else "various",
            region=_union(before.region, write.region, shape),
        )


@dataclass(frozen=True, slots=True)
class _Stored:
    """A trace as plain data."""

    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    aliases: Mapping[str, str]
    error: str
    writes: tuple[Write, ...]

    @classmethod
    def of(cls, trace: Trace) -> _Stored:
        return cls(**{each.name: getattr(trace, each.name) for each in fields(cls)})


def _union(region: Region, other: Region, shape: tuple[int, ...]) -> Region:
    """The region of two writes to a tensor of this shape: a box where they lie side by side."""
    if region is None or other is None:
        return None
    if region == "part" or other == "part":
        return "part"
    if region == other:
        return region
    (axis, *more) = [a for a in range(len(region.start)) if _span(region, a) != _span(other, a)]
    (low, end), (begin, high) = sorted([_span(region, axis), _span(other, axis)])
    if more or begin > end:
        return "part"
    joined = Box(replaced(region.start, axis, low), replaced(region.shape, axis, max(end, high) - low))
    return None if joined.shape == shape else joined


def _span(box: Box, axis: int) -> tuple[int, int]:
    return box.start[axis], box.start[axis] + box.shape[axis]


def _row(write: Write) -> tuple[str, ...]:
    module = "-" if write.module is None else write.module or "the model"
    site = f"{write.site}{region_text(write.region)}"
    return site, write.what, str(write.count), write.line or "-", write.call or "-", module
