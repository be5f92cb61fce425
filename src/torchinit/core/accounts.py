"""Accounts: what became of a checkpoint: what was taken from it, what not and why, and what nobody asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torchinit.core.tables import columns, some
from torchinit.errors import count


@dataclass(frozen=True, slots=True)
class Account:
    """What a rule takes from a checkpoint, name by name.

    ``loaded`` are the sites whose values are taken as they are, ``adapted`` those that an adapter makes,
    ``declined`` those that are in the file and left alone on purpose, ``expected`` those that are not in the
    file and need not be, ``missing`` those that should be, ``bare`` those of them that no other rule
    writes. ``mismatched`` do not fit. ``unexpected`` are keys of the file that nothing in the model is
    called, ``casts`` the changes of dtype, ``idle`` what the rule says of sites that are not there.
    ``elements`` counts those of ``loaded`` and ``adapted``, and of all sites that were looked for. ``notes``
    says how names were found, ``hints`` how more of them would be; ``failure`` why the file could not be read.

    >>> account = Account("resnet50.pth", loaded=("conv1.weight",), missing=("fc.weight",), elements=(90, 100))
    >>> print(account)
    resnet50.pth: 90.0 % of the elements loaded, 1 of 2 sites, 1 missing
      ...
      missing: fc.weight
    """

    source: str
    part: str = ""
    loaded: tuple[str, ...] = ()
    adapted: tuple[tuple[str, str], ...] = ()
    declined: tuple[tuple[str, str], ...] = ()
    expected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, str], ...] = ()
    unexpected: tuple[str, ...] = ()
    casts: tuple[tuple[str, str], ...] = ()
    idle: tuple[str, ...] = ()
    elements: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    failure: str = ""

    def __str__(self) -> str:
        return self.table()

    @property
    def found(self) -> int:
        """How many sites get their values from the file."""
        return len(self.loaded) + len(self.adapted)

    @property
    def wanted(self) -> int:
        """How many sites were looked for."""
        return self.found + sum(map(len, (self.declined, self.expected, self.missing, self.mismatched)))

    @property
    def complete(self) -> bool:
        """Whether everything that was looked for is there and fits."""
        return not (self.failure or self.missing or self.mismatched) and self.found > 0

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps a plan from being carried out."""
        if self.failure:
            return (self.failure,)
        if not self.found:
            return ("\n    ".join([self._nothing(), *self.hints]),)
        found = [f"{self.source}: {name} {why}" for name, why in self.mismatched]
        if self.bare:
            found.append("\n    ".join([self._bare(), *self.hints]))
        return (*found, *self._idle()) if found else ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not there and stays with its other rules."""
        left = [name for name in self.missing if name not in set(self.bare)]
        if not left:
            return self._idle()
        text = f"{self.source}: {count(len(left), 'site')} not in the file, left to other rules: {some(left)}"
        return (" ".join([f"{text}. Say so with expect_missing if that is intended.", *self.hints]), *self._idle())

    def _idle(self) -> tuple[str, ...]:
        return tuple(f"{self.source}: {text}" for text in self.idle)

    def _nothing(self) -> str:
        text = f"{self.source}: 0 of {self.wanted} tensors match the model."
        why = [f"{name} {why}" for name, why in (*self.mismatched, *self.declined)][:3]
        return "\n    ".join([text, *why])

    def _bare(self) -> str:
        names, verb = some(self.bare), "is" if len(self.bare) == 1 else "are"
        return (
            f"{self.source}: {count(len(self.bare), 'site')} of {self.wanted} {verb} not in the file, and no other rule"
            f" writes {'it' if len(self.bare) == 1 else 'them'}: {names}. Give such a rule, narrow this one, or name"
            " what may be missing in expect_missing"
        )

    def percent(self) -> float:
        """How much of what was looked for is taken from the file, in elements."""
        taken, all_of_them = self.elements
        return 100 * taken / all_of_them if all_of_them else 0.0

    def headline(self) -> str:
        """The account in one line, what counts most first."""
        if self.failure:
            return self.failure
        lists = {
            "adapted": self.adapted, "declined": self.declined, "missing as expected": self.expected,
            "missing": self.missing, "mismatched": self.mismatched, "unexpected": self.unexpected,
        }  # fmt: skip
        parts = [f"{len(names)} {what}" for what, names in lists.items() if names]
        where = f"{self.source}, part {self.part!r}" if self.part else self.source
        head = f"{where}: {_floor(self.percent())} % of the elements loaded, {self.found} of {self.wanted} sites"
        return ", ".join([head, *parts])

    def table(self) -> str:
        """The account as plain text: the percentages, a line a part of the model, then the names."""
        lines = [self.headline()]
        rows = self._rows()
        if len(rows) > 1 or self.found < self.wanted:
            head = ("part", "loaded", "adapted", "declined", "expected", "missing", "mismatched")
            lines += columns(head, rows).splitlines()
        lines += self._details()
        return "\n  ".join(line.rstrip() for line in lines)

    def summary(self) -> str:
        """The account without its table."""
        return "\n  ".join([self.headline(), *self._details()])

    def _details(self) -> Iterator[str]:
        yield from self.notes
        for what in ("adapted", "declined", "mismatched"):
            yield from (f"{what} {name}: {why}" for name, why in getattr(self, what))
        for what in ("missing", "unexpected"):
            if names := getattr(self, what):
                yield f"{what}: {some(names, 10)}"
        casts = Counter(how for _, how in self.casts)
        yield from (f"cast {how}: {count(number, 'site')}" for how, number in casts.items())
        yield from (*self.idle, *self.hints)

    def _rows(self) -> list[tuple[str, ...]]:
        """How the sites of each part of the model fared."""
        fates = {
            "loaded": self.loaded,
            "adapted": [name for name, _ in self.adapted],
            "declined": [name for name, _ in self.declined],
            "expected": self.expected,
            "missing": self.missing,
            "mismatched": [name for name, _ in self.mismatched],
        }
        depth = _depth([name for names in fates.values() for name in names])
        counts: dict[str, Counter[str]] = {}
        for fate, names in fates.items():
            for name in names:
                counts.setdefault(_part(name, depth), Counter())[fate] += 1
        return [(part, *(str(one[fate] or "-") for fate in fates)) for part, one in counts.items()]

    def to_dict(self) -> dict[str, object]:
        """The account as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Account:
        """The account that :meth:`to_dict` made, also after a way through JSON.

        >>> account = Account("a.pth", adapted=(("w", "InputChannels"),), elements=(1, 2))
        >>> Account.from_dict(account.to_dict()) == account
        True
        """
        known = [field.name for field in fields(cls) if field.name in data]
        return cls(**{name: _frozen(data[name]) for name in known})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _depth(names: list[str]) -> int:
    """How many parts of a name tell the parts of a model apart: one, or more where all begin alike."""
    paths = [name.split(".")[:-1] for name in names]
    depth = 1
    while paths and all(len(path) > depth for path in paths) and len({tuple(path[:depth]) for path in paths}) == 1:
        depth += 1
    return depth


def _part(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:-1][:depth]) or "(top)"


def _floor(percent: float) -> str:
    """A percentage that says 100 only where nothing is left out."""
    return "100" if percent == 100 else f"{int(percent * 10) / 10:.1f}"
