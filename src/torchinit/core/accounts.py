"""Accounts: what became of a checkpoint: what was taken from it, what not and why, and what nobody asked for."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torchinit.core.tables import columns, percentage, some
from torchinit.errors import count

SHAPE = "has shape"
"""How the reason begins where a site and its tensor differ in shape."""
KIND = "but the file holds"
"""What the reason says where one has whole numbers, for example, and the other floats."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Arguments of a checkpoint rule, and how many tensors match with them, in name and shape.

    ``arguments`` is written so that Python and TOML read it alike, ``options`` as a command line takes it.

    >>> guess = Guess("backbone.", (("^norm[.]", "ln."),), 320, 320)
    >>> print(guess)
    with prefix='backbone.', rename=[['^norm[.]', 'ln.']] 320 of 320 match
    >>> guess.options
    "--prefix backbone. --rename '^norm[.]' ln."
    """

    prefix: str = ""
    rename: tuple[tuple[str, str], ...] = ()
    matching: int = 0
    wanted: int = 0

    def __str__(self) -> str:
        return f"with {self.arguments} {self.matching} of {self.wanted} match"

    @property
    def arguments(self) -> str:
        said = [f"prefix={self.prefix!r}"] if self.prefix else []
        said += [f"rename={[list(pair) for pair in self.rename]}"] if self.rename else []
        return ", ".join(said) or "neither prefix nor rename"

    @property
    def options(self) -> str:
        words = ["--prefix", self.prefix] if self.prefix else []
        return shlex.join([*words, *(word for pair in self.rename for word in ("--rename", *pair))])


@dataclass(frozen=True, slots=True)
class Account:
    """What a rule takes from a checkpoint, name by name.

    ``loaded`` are the sites whose values are taken as they are, ``adapted`` those that an adapter makes,
    ``declined`` those that are in the file and left alone on purpose, ``expected`` those that are not in the
    file and need not be, ``missing`` those that should be, ``bare`` those of them that no other rule
    writes. ``mismatched`` do not fit. ``unexpected`` are keys of the file that nothing in the model is
    called, ``casts`` the changes of dtype, ``idle`` what the rule says of sites that are not there.
    ``elements`` counts those of ``loaded`` and ``adapted``, and of all sites that were looked for. ``doubts`` says what
    of it may mean something else than its numbers, ``notes``
    says how names were found, ``hints`` how more of them would be, ``guess`` the same as arguments; ``failure``
    why the file could not be read.

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
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    guess: Guess | None = None
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
            why = _listed((*self.mismatched, *self.declined), 3)
            return (self._told(f"0 of {self.wanted} tensors match the model.", *why, *self._kinds(), *self.hints),)
        found = [self._misfits()] if self.mismatched else []
        found += [[self._bare()]] if self.bare else []
        if not found:
            return ()
        found[-1] += self.hints
        return (*(self._told(*lines) for lines in found), *self._idle())

    @property
    def blamed(self) -> frozenset[str]:
        """The sites that no rule writes because of the problems."""
        if not self.problems:
            return frozenset()
        lost = self.mismatched if self.found else (*self.mismatched, *self.declined)
        return frozenset((*self.bare, *(name for name, _ in lost), *(() if self.found else self.expected)))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What ought to be looked at though the plan can be carried out: lapses and doubts."""
        return (*self.lapses, *(() if self.failure else (f"{self.source}: {text}" for text in self.doubts)))

    @property
    def lapses(self) -> tuple[str, ...]:
        """What is not there and stays with its other rules, which strictness does not allow."""
        left = [name for name in self.missing if name not in set(self.bare)]
        if not left or self.failure:
            return self._idle()
        text = f"{self.source}: {count(len(left), 'site')} not in the file, left to other rules: {some(left)}"
        return (" ".join([f"{text}. Say so with expect_missing if that is intended.", *self.hints]), *self._idle())

    def _idle(self) -> tuple[str, ...]:
        return tuple(f"{self.source}: {text}" for text in self.idle)

    def _told(self, text: str, *more: str) -> str:
        return "\n    ".join([f"{self.source}: {text}", *more])

    def _misfits(self) -> list[str]:
        number = len(self.mismatched)
        lines = [f"{count(number, 'site')} of {self.wanted} {'does' if number == 1 else 'do'} not fit."]
        lines += _listed(self.mismatched, 5)
        if any(why.startswith(SHAPE) for _, why in self.mismatched):
            lines.append("on_shape='skip' leaves what has another shape to its other rules")
        return lines + self._kinds()

    def _kinds(self) -> list[str]:
        odd = any(KIND in why for _, why in self.mismatched)
        return ["numbers of another kind are not cast: exclude these sites, or give a dict of what you cast"] * odd

    def _bare(self) -> str:
        names, one = some(self.bare), len(self.bare) == 1
        return (
            f"{count(len(self.bare), 'site')} of {self.wanted} {'is' if one else 'are'} not in the file, and no other"
            f" rule writes {'it' if one else 'them'}: {names}. Give such a rule, narrow this one, or name what may be"
            " missing in expect_missing"
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
        sites = count(self.wanted, "site")
        head = f"{where}: {percentage(*self.elements)} % of the elements loaded, {self.found} of {sites}"
        return ", ".join([head, *parts])

    def table(self) -> str:
        """The account as plain text: the percentages, a line a part of the model, then the names."""
        lines = [self.headline()]
        rows = [] if self.failure else self._rows()
        if len(rows) > 1 or (rows and self.found < self.wanted):
            head = ("part", "loaded", "adapted", "declined", "expected", "missing", "mismatched")
            lines += columns(head, rows).splitlines()
        lines += self._details()
        return "\n  ".join(line.rstrip() for line in lines)

    def summary(self) -> str:
        """The account without its table."""
        return "\n  ".join([self.headline(), *self._details()])

    def _details(self) -> Iterator[str]:
        if self.failure:
            return
        yield from self.notes
        for what in ("adapted", "declined", "mismatched"):
            yield from (f"{what} {line}" for line in _listed(getattr(self, what), 10, ": "))
        for what in ("missing", "unexpected"):
            if names := getattr(self, what):
                yield f"{what}: {some(names, 10)}"
        casts = Counter(how for _, how in self.casts)
        yield from (f"cast {how}: {count(number, 'site')}" for how, number in casts.items())
        yield from (*self.idle, *self.doubts, *self.hints)

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
        known = {field.name: _frozen(data[field.name]) for field in fields(cls) if field.name in data}
        if guess := data.get("guess"):
            known["guess"] = Guess(**{name: _frozen(value) for name, value in guess.items()})
        return cls(**known)


def shortened(rows: Iterable[Sequence[str]], loads: Sequence[Account]) -> list[Sequence[str]]:
    """The rows of a table with each checkpoint called by the end of its path, as much of it as tells it apart.

    >>> shortened([("w", "w of /a/b/net.pth")], [Account("/a/b/net.pth")])
    [['w', 'w of net.pth']]
    """
    sources = {one.source for one in loads}
    names = {source: _end(source, sources) for source in sorted(sources, key=len, reverse=True) if "/" in source}
    if not names:
        return [*rows]

    def short(cell: str) -> str:
        for source, end in names.items():
            cell = cell.replace(source, end)
        return cell

    return [[*map(short, row)] for row in rows]


def _end(source: str, others: Collection[str]) -> str:
    parts = source.split("/")
    ends = ("/".join(parts[at:]) for at in range(len(parts) - 1, 0, -1))
    alone = (end for end in ends if end and sum(other.endswith(f"/{end}") or other == end for other in others) == 1)
    return next(alone, source)


def _listed(pairs: Sequence[tuple[str, str]], most: int, between: str = " ") -> list[str]:
    """The first of many sites, a line each with its reason, and how many more there are."""
    more = [f"and {len(pairs) - most} more"] if len(pairs) > most else []
    return [f"{name}{between}{why}" for name, why in pairs[:most]] + more


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
