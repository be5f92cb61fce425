"""Writes: what one line of somebody's code did to a tensor; and the trace, which holds all of a model's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias, final

from torchinit.core.shards import Box
from torchinit.core.tables import columns, some
from torchinit.errors import count, did_you_mean
from torchinit.schema import Schema, parse

Region: TypeAlias = Box | Literal["part"] | None
"""Which elements: None for all of them, a box, or ``"part"`` for some that make no box."""

UNSEEN = "unseen"
"""The operation of a write that no operation of torch's made: only its outcome was found."""

_FORMAT = "torchinit-trace-1"


@final
@dataclass(frozen=True, slots=True)
class Write:
    """What one line of code did to one site, in one operation.

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
    """What was written to the parameters and buffers of a model, in order; while the code runs, so far.

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
        self._kept: dict[object, _Record] = {n: _Record.of(write) for n, write in enumerate(writes)}
        self.parameters = tuple(parameters)
        self.buffers = tuple(buffers)
        self.aliases = dict(aliases or {})
        self.added = tuple(added)
        self.removed = tuple(removed)
        self.error = error
        self._turn = max((record.last + 1 for record in self._kept.values()), default=0)

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def writes(self) -> tuple[Write, ...]:
        """All writes, by the order of the first that each stands for."""
        return tuple(sorted((record.whole() for record in self._kept.values()), key=lambda write: write.order))

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
        written = {record.write.site for record in self._kept.values()}
        return tuple(name for name in names if name not in written)

    def __len__(self) -> int:
        return len(self._kept)

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
        """What was written and what was not, in a few lines."""
        times = sum(record.count for record in self._kept.values())
        sites = {record.write.site for record in self._kept.values()}
        lines = [f"{count(times, 'write')} to {count(len(sites), 'site')}"]
        for what, names in (("parameter", self.unwritten), ("buffer", self.unwritten_buffers)):
            lines += [f"{count(len(names), what)} not written: {some(names)}"] if names else []
        lines += [f"{what}: {some(names)}" for what in ("added", "removed") if (names := getattr(self, what))]
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
        """Takes in a write to a site of a shape; one with the same key as an earlier one becomes part of its record."""
        turn, self._turn = self._turn, self._turn + 1
        record = self._kept.get(key)
        if record is None:
            self._kept[key] = _Record(write, turn, turn, 1, write.arguments, write.region)
            return
        record.last = turn
        record.count += 1
        if record.arguments != write.arguments:
            record.arguments = "various"
        if record.region is not None:
            record.region = _union(record.region, write.region, shape)


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


@dataclass(slots=True)
class _Record:
    """A write while others may still become part of it."""

    write: Write
    order: int
    last: int
    count: int
    arguments: str
    region: Region

    @classmethod
    def of(cls, write: Write) -> _Record:
        return cls(write, write.order, write.last, write.count, write.arguments, write.region)

    def whole(self) -> Write:
        """The write as it is by now."""
        changed = {key: getattr(self, key) for key in ("order", "last", "count", "arguments", "region")}
        return replace(self.write, **changed)


def _union(one: Region, other: Region, whole: tuple[int, ...]) -> Region:
    """The region of two writes: a box where they lie side by side."""
    if one is None or other is None:
        return None
    if one == "part" or other == "part":
        return "part"
    if one == other:
        return one
    (axis, *more) = [a for a in range(len(one.start)) if _span(one, a) != _span(other, a)]
    (low, end), (begin, high) = sorted([_span(one, axis), _span(other, axis)])
    if more or begin > end:
        return "part"
    start, shape = list(one.start), list(one.shape)
    start[axis], shape[axis] = low, max(end, high) - low
    return None if tuple(shape) == whole else Box(tuple(start), tuple(shape))


def _span(box: Box, axis: int) -> tuple[int, int]:
    return box.start[axis], box.start[axis] + box.shape[axis]


def _row(write: Write) -> tuple[str, ...]:
    module = "-" if write.module is None else write.module or "the model"
    return (
        f"{write.site}{region_text(write.region)}",
        write.what,
        str(write.count),
        write.line or "-",
        write.call or "-",
        module,
    )
