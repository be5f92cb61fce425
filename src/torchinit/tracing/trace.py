"""Traces: the writes to a model, each of which tells what one line of code did to one tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, TypeAlias, final

from torchinit._folding import Column, Row, RowGroup, fold, fold_names
from torchinit._tables import Table, Tabular
from torchinit._text import abbreviate, count, did_you_mean
from torchinit.model.sandbox import ALLOCATING
from torchinit.model.shards import Box, replaced
from torchinit.serialization.schema import Schema, parse

Region: TypeAlias = Box | Literal["part"] | None
"""Which elements: None for all of them, a box, or ``"part"`` for some that do not make a box."""

UNSEEN = "unseen"
"""The operation of a write that no operation of torch made: only its outcome was found."""

_FORMAT = "torchinit-trace-1"

_ALLOCATING = frozenset(operation.__name__ for operation in ALLOCATING)
_OVERWRITING = frozenset(
    {"zero_", "fill_", "normal_", "uniform_", "exponential_", "cauchy_", "geometric_", "log_normal_"}
)


@final
@dataclass(frozen=True, slots=True)
class Write:
    """The writes of one line of code to one site, by one operation.

    ``operation`` is torch's (``"normal_"``), with its ``arguments`` as text; ``call`` is the torch function that the
    line called for it, where that is another (``"nn.init.kaiming_normal_"``). Besides operations there are
    ``"data ="`` (the tensor was given other memory), ``"assigned"`` (another tensor was put in its place) and
    ``"unseen"`` (the values changed, and no operation of torch did it). ``line`` is the first line outside of torch
    and torchinit, ``module`` the name of the module whose code ran, None where there was none. A line that writes a
    site again is one record with a ``count``; ``order`` is the turn of the first, ``last`` that of the last among all
    writes.

    >>> print(Write("fc.weight", "normal_", "mean=0, std=0.02", region=Box((0, 2), (4, 1)), line="model.py:12"))
    fc.weight[0:4, 2:3]: normal_(mean=0, std=0.02) at model.py:12
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
        return f"{_where(self)}: {self.what}{times} at {self.line or 'no known line'}"


_COLUMNS: Final = (
    Column("operation", "range"),
    Column("times", "range", spare=2, right=True),
    Column("line"),
    Column("call"),
    Column("module", "range", spare=4),
)


@final
class Trace(Tabular):
    """The writes to the parameters and buffers of a model, in order; while the code runs, so far.

    ``parameters`` and ``buffers`` are the names of the sites, including those that came during the trace; ``added``
    and ``removed`` say which came and which went. ``aliases`` leads from the other names of tied tensors to the
    site's. ``error`` is the error that ended the traced code early, if any. ``lost`` holds the writes that left nothing
    behind: to what a parametrization had computed, which computes it anew for whoever asks next.

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
        lost: Iterable[Write] = (),
    ) -> None:
        self._writes: dict[object, Write] = dict(enumerate(writes))
        self.parameters: tuple[str, ...] = tuple(parameters)
        self.buffers: tuple[str, ...] = tuple(buffers)
        self.aliases: dict[str, str] = dict(aliases or {})
        self.added: tuple[str, ...] = tuple(added)
        self.removed: tuple[str, ...] = tuple(removed)
        self.error = error
        self.lost: tuple[Write, ...] = tuple(lost)
        self._turn = max((write.last + 1 for write in self._writes.values()), default=0)

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
        """The parameters that were not written."""
        return self._without_write(self.parameters)

    @property
    def unwritten_buffers(self) -> tuple[str, ...]:
        """The buffers that were not written."""
        return self._without_write(self.buffers)

    def _without_write(self, names: tuple[str, ...]) -> tuple[str, ...]:
        written = {write.site for write in self._writes.values()}
        return tuple(name for name in names if name not in written)

    def add(self, key: object, write: Write, shape: tuple[int, ...] = ()) -> None:
        """Add a write to a site of this shape; it becomes part of an earlier one with the same key."""
        # A loop may write a site a hundred thousand times: a record a line keeps the trace readable, and small.
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

    def __len__(self) -> int:
        return len(self._writes)

    def __iter__(self) -> Iterator[Write]:
        return iter(self.writes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trace) and _data_of(self) == _data_of(other)

    def __hash__(self) -> int:
        return id(self)  # a trace grows while it runs

    def _table(self, *, full: bool = False) -> Table:
        first, *rest = self.summary().split("\n")
        known = (*self.parameters, *self.buffers)
        groups = fold(map(_row, self.writes), _COLUMNS, among=known, full=full)
        return Table("site", _COLUMNS, groups, first, tuple(rest))

    def _headline(self, groups: Sequence[RowGroup]) -> str:
        return f"Trace of {self._numbers()}: {count(len(groups), 'kind')}, {len(self.unwritten)} parameters not written"

    def _numbers(self) -> str:
        times = sum(write.count for write in self._writes.values())
        return f"{count(times, 'write')} to {count(len({write.site for write in self._writes.values()}), 'site')}"

    def summary(self) -> str:
        """A few lines on how much was written, and what was not."""
        lines = [self._numbers()]
        for kind, names in (("parameter", self.unwritten), ("buffer", self.unwritten_buffers)):
            lines += [f"{count(len(names), kind)} not written: {abbreviate(fold_names(names))}"] if names else []
        lines += [
            f"{change}: {abbreviate(fold_names(names))}"
            for change in ("added", "removed")
            if (names := getattr(self, change))
        ]
        lines += [f"written in vain: {abbreviate([write.site for write in self.lost])}"] if self.lost else []
        return "\n".join([*lines, *([f"ended early: {self.error}"] if self.error else [])])

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain data."""
        return {"format": _FORMAT, **Schema({}).encode(_Stored(**_data_of(self)), _Stored)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """The trace as JSON; :meth:`from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read a trace that :meth:`to_json` wrote; raises ConfigError with every mistake for any other text.

        >>> trace = Trace([Write("a", "zero_", line="model.py:3")], parameters=("a", "b"))
        >>> Trace.from_json(trace.to_json()) == trace
        True
        """
        return cls(**_data_of(Schema({}).decode(parse(text, "a trace", _FORMAT), _Stored, "the trace")))


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
    lost: tuple[Write, ...] = ()


def _data_of(trace: Trace | _Stored) -> dict[str, Any]:
    return {each.name: getattr(trace, each.name) for each in fields(_Stored)}


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


def _where(write: Write) -> str:
    """The site, with the region as an index."""
    if not isinstance(write.region, Box):
        return f"{write.site}[{write.region}]" if write.region else write.site
    spans = (f"{start}:{start + size}" for start, size in zip(write.region.start, write.region.shape, strict=True))
    return f"{write.site}[{', '.join(spans)}]"


def _row(write: Write) -> Row:
    module = "-" if write.module is None else write.module or "the model"
    return Row(_where(write), (write.what, write.count, write.line or "-", write.call or "-", module))
