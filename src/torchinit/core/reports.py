"""Reports: what happened: one record a site, and whether it is what was planned."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from torchinit.core.moments import Moments
from torchinit.core.tables import columns, shape_text, some
from torchinit.errors import ReportError, count, did_you_mean

_CHUNK = 1 << 16
_SIGMAS = 6.0


@dataclass(frozen=True, slots=True)
class Record:
    """What happened to one site: who wrote what, what was expected, what was measured.

    ``seconds`` is the time of the write, ``bytes`` the memory that it filled. ``expected`` or ``measured``
    is None where it is not known or was not asked for.

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

    @property
    def problems(self) -> tuple[str, ...]:
        """In what the values differ from what was expected of them, by more than chance and rounding."""
        if self.measured is None:
            return ()
        return tuple(f"{self.name}: {text}" for text in deviations(self.expected, self.measured, self))


@dataclass(frozen=True, slots=True)
class Report:
    """What happened: ``records`` of the sites written, and what was left out and why.

    ``report["layers.0.weight"]`` is the record of a site, by any of its names.

    >>> report = Report((Record("w", (2,), "float32", "Constant(val=1.0)", "all"),), untouched=("b",))
    >>> report["w"].fill, report.untouched
    ('Constant(val=1.0)', ('b',))
    """

    records: tuple[Record, ...] = ()
    untouched: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    noise: str = ""
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, name: str) -> Record:
        for record in self.records:
            if name == record.name or name in record.aliases:
                return record
        names = [name for record in self.records for name in (record.name, *record.aliases)]
        raise KeyError(f"no record of {name!r}{did_you_mean(name, names)}")

    def __str__(self) -> str:
        return self.table()

    @property
    def problems(self) -> tuple[str, ...]:
        """Every difference between the values and what was expected of them."""
        return tuple(problem for record in self.records for problem in record.problems)

    def assert_ok(self, *, complete: bool = False) -> Report:
        """The report itself, if every value is as planned; else ReportError with all that is not.

        Means and standard deviations may be off by six standard errors, bounds by the rounding of the
        dtype. ``complete`` makes a site without a record a problem, too.
        """
        found = list(self.problems)
        if complete:
            found += [f"{name}: not written" for name in self.untouched]
        if found:
            raise ReportError(f"{count(len(found), 'site')} not as planned", found)
        return self

    def table(self) -> str:
        """The report as plain text, a line a site."""
        head = ("name", "shape", "dtype", "fill", "mean", "std", "planned std", "rule")
        return columns(head, [_row(record) for record in self.records]) + "\n" + self.summary()

    def summary(self) -> str:
        """What was written and what was not, in a few lines."""
        elements = sum(math.prod(record.shape) for record in self.records)
        size = sum(record.bytes for record in self.records)
        written = f"{count(len(self.records), 'site')} written: {elements:,} elements, {size / 2**20:.1f} MiB"
        lines = [f"{written}, {self.seconds:.2f} s, {self.noise or 'no noise'}"]
        if self.untouched:
            lines.append(f"{count(len(self.untouched), 'site')} untouched: {some(self.untouched)}")
        lines += [f"skipped {name}: {why}" for name, why in self.skipped]
        lines += [f"unused: {hint}" for hint in self.unused]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """The report as plain data."""
        return asdict(self)

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as JSON; :meth:`from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that :meth:`to_json` wrote.

        >>> report = Report((Record("w", (2,), "float32", "Constant(val=1.0)", "all"),), untouched=("b",))
        >>> Report.from_json(report.to_json()) == report
        True
        """
        data = json.loads(text)
        return cls(
            records=tuple(_record(item) for item in data["records"]),
            untouched=tuple(data["untouched"]),
            skipped=tuple((name, why) for name, why in data["skipped"]),
            unused=tuple(data["unused"]),
            noise=data["noise"],
            seconds=data["seconds"],
        )


def _record(data: dict[str, object]) -> Record:
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    for key in ("expected", "measured"):
        value = fields[key]
        fields[key] = Moments(**value) if isinstance(value, dict) else None
    return Record(**fields)  # type: ignore[arg-type]  # the keys are those that asdict wrote


def _row(record: Record) -> tuple[str, ...]:
    measured, expected = record.measured or Moments(), record.expected or Moments()
    return (
        record.name,
        shape_text(record.shape),
        record.dtype,
        record.fill,
        _figure(measured.mean),
        _figure(measured.std),
        _figure(expected.std),
        " ".join(filter(None, (record.origin, record.rule))),
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def measure(tensor: Tensor) -> Moments | None:
    """Mean, population standard deviation, smallest and largest value; None of an empty or a meta tensor.

    Sums are carried in float64, chunk by chunk, so that no copy of the tensor is made. Of a complex tensor
    the real and imaginary parts are taken together.

    >>> measure(torch.tensor([1.0, 3.0]))
    Moments(mean=2.0, std=1.0, min=1.0, max=3.0, kurtosis=3.0)
    """
    if not tensor.numel() or tensor.is_meta:
        return None
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    total = square = 0.0
    low, high = math.inf, -math.inf
    shift = float(values[(0,) * values.dim()])  # sums of squares around a value of the data cancel less
    for chunk in _chunks(values):
        wide = chunk.double()
        small, large = torch.aminmax(wide)
        low, high = _least(low, float(small)), -_least(-high, -float(large))
        wide -= shift
        total += float(wide.sum())
        square += float(wide.dot(wide))
    mean = total / values.numel()
    spread = square / values.numel() - mean * mean
    return Moments(shift + mean, math.sqrt(spread) if spread > 0 else spread * 0.0, low, high)


def _least(one: float, other: float) -> float:
    """The smaller number; NaN if either is, which ``min`` forgets."""
    return other if other < one or math.isnan(other) else one


def _chunks(values: Tensor) -> Iterator[Tensor]:
    if values.is_contiguous():
        flat = values.detach().view(-1)
        yield from (flat[at : at + _CHUNK] for at in range(0, len(flat), _CHUNK))
    else:
        for part in values.detach().unbind(0) if values.dim() > 1 else (values.detach(),):
            yield part.reshape(-1)


def deviations(expected: Moments | None, measured: Moments, record: Record) -> list[str]:
    """Where measured moments leave the tolerance around the expected ones."""
    seen = (measured.mean, measured.std, measured.min, measured.max)
    if any(value is None or not math.isfinite(value) for value in seen):
        return ["holds NaN or Inf"]
    if expected is None or expected.mean is None or expected.std is None:
        return []
    mean, std, low, high = (value or 0.0 for value in seen)
    rounding = 2 * torch.finfo(getattr(torch, record.dtype)).eps
    floor = torch.finfo(getattr(torch, record.dtype)).tiny
    root = math.sqrt(math.prod(record.shape))
    reach = max(abs(expected.mean), expected.std)
    error = _SIGMAS * expected.std / root
    slack_mean = error + rounding * reach + floor
    slack_std = error * math.sqrt(max(expected.kurtosis - 1, 0.5)) / 2 + rounding * reach + floor
    found = []
    if abs(mean - expected.mean) > slack_mean:
        found.append(f"mean is {mean:.6g}, planned {expected.mean:.6g} ± {slack_mean:.2g}")
    if abs(std - expected.std) > slack_std:
        found.append(f"std is {std:.6g}, planned {expected.std:.6g} ± {slack_std:.2g}")
    if expected.min is not None and low < expected.min - rounding * abs(expected.min) - floor:
        found.append(f"smallest value is {low:.6g}, planned {expected.min:.6g}")
    if expected.max is not None and high > expected.max + rounding * abs(expected.max) + floor:
        found.append(f"largest value is {high:.6g}, planned {expected.max:.6g}")
    return found
