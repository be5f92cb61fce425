"""Reports: one record a site of what was written and measured, and whether it is as planned."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

import torch

from torchinit._folding import Column, Row, RowGroup, fold, starts_as
from torchinit._frozen import Postponable, quickly_made
from torchinit._tables import Table, Tabular
from torchinit._text import by_reason, count, did_you_mean, dtype_name, shape_text, shortened
from torchinit.errors import ReportError
from torchinit.initializers.base import Fill
from torchinit.initializers.load_report import LoadReport, by_field
from torchinit.initializers.statistics import Moments, deviations
from torchinit.pages import Page, Section
from torchinit.plans.fingerprint import Fingerprint, StoredFingerprint
from torchinit.plans.origin import Origin
from torchinit.plans.plan import FROZEN, UNKNOWN, Reach, Step, counted, not_followed, remarks, sized, told
from torchinit.rules.rule import SCHEMA, Rule, Value
from torchinit.serialization.reading import Reader
from torchinit.serialization.schema import Schema, parse

_ALWAYS = ("records", "untouched", "skipped", "unused", "noise", "seconds", "buffers")
"""The keys that every report has had from the first on."""

_UNFILLED = (
    "never filled, it holds what its memory held before: cover it with a rule (a buffer: buffers = true), or call"
    " reset_parameters() of its module first"
)

AWAY: Final = (
    "on a device mesh that this rank does not belong to; nothing was written here, the ranks of the mesh have to"
    " initialize it"
)
"""The note of a site that has no part on this rank."""


@lru_cache(maxsize=256)
def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)


@quickly_made
@dataclass(frozen=True, slots=True)
class Record:
    """One written site: who wrote it, with what, over whom; what was expected of the values and what was measured.

    ``seconds`` is the time of the write, ``bytes`` the memory that it filled. ``expected`` or ``measured`` is None
    where it is not known or was not asked for. Where foreign code wrote, ``line`` and ``operation`` are those of its
    last write.

    >>> Record("w", (2,), "float32", "Constant(val=1.0)", "all").problems
    ()
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    fill: str
    rule: str
    origin: str = ""
    expected: Moments | None = None
    measured: Moments | None = None
    over: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    bytes: int = 0
    line: str = ""
    operation: str = ""
    position: int = 0

    def __post_init__(self) -> None:
        if not _is_dtype(self.dtype):
            raise ValueError(f"dtype must be the name of a dtype, but got {self.dtype!r}")

    @property
    def problems(self) -> tuple[str, ...]:
        """The differences from what was expected of the values, by more than chance and rounding."""
        if self.measured is None:
            return ()
        dtype = getattr(torch, self.dtype)
        # Only the part that is here was measured, so the tolerance goes by its number of values.
        here = self.bytes // dtype.itemsize if self.bytes else math.prod(self.shape)
        numel = here * (2 if dtype.is_complex else 1)
        return tuple(f"{self.name}: {text}" for text in deviations(self.expected, self.measured, numel, dtype))


@dataclass(frozen=True, slots=True, repr=False)
class Report(Postponable, Tabular):
    """The ``records`` of the sites written, by any of their names as ``report["layers.0.weight"]``, and what was not.

    ``untouched`` are the parameters that no rule wrote, ``buffers`` the buffers; ``loads`` tell what was taken
    from checkpoints, ``reach`` how much of the model the rules of each scheme are for; ``fingerprint`` is that of the
    whole model afterwards, where it was asked for. ``lacking`` are the parameters that no fill can be written to
    although they should have values, each with the reason and the way out; ``unfilled`` the parameters and buffers
    that nobody has filled: they hold what their memory held before. ``arguments`` are those of each recipe.
    ``unchanged`` are the sites that ``only=`` left alone, proven to hold the bits that they held before.

    >>> report = Report((Record("w", (2,), "float32", "Constant(val=1.0)", "all"),), untouched=("b",))
    >>> report["w"].fill, report.untouched, Report.from_json(report.to_json()) == report
    ('Constant(val=1.0)', ('b',), True)
    """

    records: tuple[Record, ...] = ()
    untouched: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    noise: str = ""
    seconds: float = 0.0
    buffers: tuple[str, ...] = ()
    loads: tuple[LoadReport, ...] = ()
    fingerprint: Fingerprint | None = None
    reach: tuple[Reach, ...] = ()
    lacking: tuple[tuple[str, str], ...] = ()
    unfilled: tuple[str, ...] = ()
    arguments: Mapping[str, Mapping[str, Value]] = field(default_factory=dict, hash=False)
    origin: Origin | None = None
    unchanged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, name: str) -> Record:
        records = {name: record for record in self.records for name in (record.name, *record.aliases)}
        if name not in records:
            raise KeyError(f"no record of {name!r}{did_you_mean(name, records)}")
        return records[name]

    @property
    def problems(self) -> tuple[str, ...]:
        """Every difference between the values and what was expected of them."""
        return tuple(problem for record in self.records for problem in record.problems)

    def assert_ok(self, *, complete: bool = False) -> Report:
        """The report itself, if every value is as planned; else ReportError with all that is not.

        Means and standard deviations may be off by six standard errors, bounds by the rounding of the dtype. Memory
        that nobody has filled is a problem; with ``complete`` a parameter that was not written, too.
        """
        findings = [*self.problems, *(f"{name}: {_UNFILLED}" for name in self.unfilled)]
        if complete:
            listed = {*self.unfilled, *(name for name, _ in self.lacking)}
            findings += [f"{name}: not written" for name in self.untouched if name not in listed]
            findings += [f"{name}: {why}" for name, why in self.lacking]
        if findings:
            raise ReportError(f"{count(len(findings), 'finding')}: the values are not as planned", findings)
        return self

    def _table(self, *, full: bool = False) -> Table:
        shorten = shortened([load.source for load in self.loads])
        records = self.records if full else sorted(self.records, key=lambda record: record.position)
        left = (*self.untouched, *self.buffers, *(name for name, _ in self.skipped))
        names = (*(record.name for record in records), *left)
        groups = fold((_row(record, shorten, full=full) for record in records), _COLUMNS, among=names, full=full)
        elements = sum(math.prod(record.shape) for record in records)
        title = f"{count(len(records), 'site')} written: {sized(groups, elements)}, {self._effort}"
        foot = (*self._verdict(), *self.summary().split("\n")[1:])
        return Table("tensor", _COLUMNS, groups, title, foot, tree=not full)

    @property
    def _effort(self) -> str:
        size = sum(record.bytes for record in self.records) / 2**20
        return f"{size:.1f} MiB, {self.seconds:.2f} s, {self.noise or 'no noise'}"

    def _verdict(self) -> list[str]:
        if problems := self.problems:
            return [f"{count(len(problems), 'value')} not as planned: {problems[0]}"]
        measured = sum(record.measured is not None and record.expected is not None for record in self.records)
        return [f"{count(measured, 'tensor')} measured: as planned"] if measured else []

    def _headline(self, groups: Sequence[RowGroup]) -> str:
        sites = sized(groups, sum(math.prod(record.shape) for record in self.records))
        return f"Report of {count(len(self), 'site')}: {sites}, {count(len(self.problems), 'problem')}"

    def summary(self) -> str:
        """The report in a few lines: the sites that were written and those that were not."""
        elements = sum(math.prod(record.shape) for record in self.records)
        lines = [f"{count(len(self.records), 'site')} written: {elements:,} elements, {self._effort}"]
        lines += counted(self.untouched, "parameter", "untouched")
        lines += counted(self.buffers, "buffer", "untouched")
        lines += counted(self.unfilled, "tensor", "never filled")
        frozen = [record.name for record in self.records if FROZEN in record.notes]
        lines += counted(frozen, "frozen parameter", "written")
        lines += counted([record.name for record in self.records if AWAY in record.notes], "tensor", "of other ranks")
        lines += by_reason("skipped", self.skipped)
        lines += counted(self.unchanged, "tensor", "proven unchanged")
        lines += [f"unused: {hint}" for hint in self.unused]
        lines += [reach.summary() for reach in self.reach]
        lines += told(self.arguments)
        lines += not_followed(record.name for record in self.records if UNKNOWN in record.notes)
        lines += [load.summary() for load in self.loads]
        if self.fingerprint:
            lines.append(f"fingerprint {self.fingerprint.total}")
        return "\n".join(lines)

    def sections(self) -> Iterator[Section]:
        """The tables of a page: who wrote what, then the account of each checkpoint."""
        yield Section.of("The plan", self, "Who wrote what: like tensors in one line, each with the rule that won.")
        yield from (Section.of(f"The checkpoint {load.source}", load) for load in self.loads)

    def save_html(self, path: str | os.PathLike[str], *, subject: str = "A run") -> None:
        """Write the report as one HTML file that needs no other: whether all is as planned, and who wrote what.

        Needs jinja2, the extra ``report``: raises MissingExtraError without it.
        """
        verdict = [*self._verdict(), f"{count(len(self), 'tensor')} written"][0]
        conditions = {"noise": self.noise, "fingerprint": self.fingerprint and self.fingerprint.total}
        known = tuple((name, text) for name, text in conditions.items() if text)
        page = Page(
            subject,
            f"{verdict}.",
            "error" if self.problems else "good",
            sections=tuple(self.sections()),
            conditions=known,
        )
        page.save(path)

    def to_dict(self) -> dict[str, object]:
        """The report as plain data."""
        return {
            **Schema({}).encode(replace(self, loads=(), origin=None), Report),
            "origin": self.origin and SCHEMA.encode(self.origin, Origin),
            "fingerprint": self.fingerprint and self.fingerprint.to_dict(),
            "loads": [load.to_dict() for load in self.loads],
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as JSON; :meth:`from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that :meth:`to_json` wrote, now or before there were all the fields; else ConfigError."""
        data = parse(text, "a report")
        if isinstance(data.get("loads"), list):
            data["loads"] = [*map(by_field, data["loads"])]
        reader = Reader({}, "the report")
        for key in _ALWAYS:
            if key not in data:
                reader.mistake("", f"a report has {key!r}")
        # Two fields are read apart: a fingerprint is saved in its own form, with a total that shows a change, and an
        # origin has rules in it, for which a reader needs the words of recipes.
        stored = reader.read(data.pop("fingerprint", None), StoredFingerprint | None, "fingerprint")
        origin = data.pop("origin", None)
        report: Report = reader.record(cls, data, "")
        reader.finish()
        if origin is not None:
            report = replace(report, origin=SCHEMA.decode(origin, Origin, "the report's origin"))
        return report if stored is None else replace(report, fingerprint=stored.checked())


_COLUMNS: Final = (
    Column("shape", spare=1),
    Column("dtype", spare=4, once=True),
    Column("started as", "range"),
    Column("mean", "range", spare=5),
    Column("std", "range"),
    Column("planned std", "range", spare=3),
    Column("elements", "sum", spare=6, right=True),
    Column("rule", spare=2),
)


def _row(record: Record, shorten: Callable[[str], str], *, full: bool) -> Row:
    measured, expected = record.measured or Moments(), record.expected or Moments()
    code = record.line and f"at {record.line}: {record.operation}"
    texts = (record.origin, record.rule, code) if full else (record.rule.partition(" -> ")[0], code)
    rule = " ".join(filter(None, texts))
    facts = (shape_text(record.shape), record.dtype, shorten(starts_as(record.fill)))
    figures = (measured.mean, measured.std, expected.std, math.prod(record.shape))
    return Row(record.name, (*facts, *figures, shorten(rule)), remarks(record.aliases, record.notes, full=full))


def expected_of(fill: Fill, shape: tuple[int, ...], dtype: torch.dtype) -> Moments | None:
    """The moments to expect of a fill in a tensor, of its real and imaginary parts if it is complex."""
    return fill.parts(shape) if dtype.is_complex else fill.moments(shape)


class Texts:
    """The texts and moments of a run's rules and fills, each made once: many steps share one, and it may say much."""

    def __init__(self) -> None:
        self._by_id: dict[int, str] = {}
        self._known: dict[object, tuple[str, str, str, str, Moments | None]] = {}

    def of(self, thing: Rule | Fill) -> str:
        """The text of an object that the plan holds, so that its id stands for nothing else."""
        text = self._by_id.get(id(thing))
        if text is None:
            text = self._by_id[id(thing)] = str(thing)
        return text

    def of_step(self, step: Step, dtype: torch.dtype, *, is_known: bool) -> tuple[str, str, str, str, Moments | None]:
        """The texts of dtype, fill, rule and origin, and the moments to expect where they are known."""
        fill, rule, shape = step.fill, step.rule, step.site.shape
        # By identity: the hash of a rule would go through all its selectors and its initializer, at each step anew. Ids
        # are given again when their objects are gone, so this must not outlive the plan, which holds them.
        key = id(fill), id(rule), shape, dtype, is_known
        if (known := self._known.get(key)) is None:
            moments = expected_of(fill, shape, dtype) if is_known else None
            known = self._known[key] = dtype_name(dtype), self.of(fill), self.of(rule), rule.origin, moments
        return known

    def record(
        self,
        step: Step,
        dtype: torch.dtype,
        size: int,
        seconds: float,
        measured: Moments | None,
        *,
        is_known: bool = True,
        is_here: bool = True,
    ) -> Record:
        """The record of a step that has written so many bytes; none where no part of its site is here."""
        site = step.site
        dtype_text, fill, rule, origin, expected = self.of_step(step, dtype, is_known=is_known)
        over = tuple(map(self.of, step.over)) if step.over else ()
        aliases = tuple(view.name for view in site.aliases) if site.aliases else ()
        notes = step.notes if is_here else (*step.notes, AWAY)
        return Record(  # by position: a call of a class with so many keywords takes three times as long
            site.name, site.shape, dtype_text, fill, rule, origin,
            expected, measured, over, aliases, notes, seconds, size, "", "", site.position,
        )  # fmt: skip
