"""Load reports: what was taken from a checkpoint, what was not and why, and what is left over."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, TypeAlias

import torch

from torchinit._folding import Column, Row, RowGroup, fold, fold_names
from torchinit._tables import Table, Tabular
from torchinit._text import abbreviate, count, dtype_name, percentage
from torchinit.serialization.schema import Schema

Promise: TypeAlias = Literal["none", "statistics", "conditional", "function"]
"""What a model that is made of another keeps of it, the weakest first: nothing that one could count on, the mean and
variance of what its layers give, all that it computes if something holds that no tensor tells, all that it computes."""
_PROMISES: Final[dict[Promise, str]] = {
    "none": "none",
    "statistics": "same statistics",
    "conditional": "same function, if what is told above holds",
    "function": "same function",
}
_REMEDIES: Final = {
    "shape": "on_shape='skip' leaves what has another shape to its other rules",
    "kind": "numbers of another kind are not cast: exclude these sites, or give a dict of what you cast",
}


@dataclass(frozen=True, slots=True)
class Guess:
    """Arguments of a checkpoint rule, and how many tensors match with them, in name and shape.

    ``rivals`` are other arguments with which as many do, of other keys: only the user can tell which are meant.
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
    rivals: tuple[str, ...] = ()

    def __str__(self) -> str:
        tied = f", as many with {abbreviate(self.rivals, 3)}" if self.rivals else ""
        return f"with {self.arguments} {self.matching} of {self.wanted} match{tied}"

    @property
    def arguments(self) -> str:
        pairs = str([list(pair) for pair in self.rename])
        if "\\" in pairs:  # it stands twice in double quotes, for Python and for TOML
            pairs = json.dumps(self.rename, ensure_ascii=False)
        given = [f"prefix={self.prefix!r}"] * bool(self.prefix) + [f"rename={pairs}"] * bool(self.rename)
        return ", ".join(given) or "neither prefix nor rename"

    @property
    def options(self) -> str:
        words = ["--prefix", self.prefix] if self.prefix else []
        return shlex.join([*words, *(word for pair in self.rename for word in ("--rename", *pair))])


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A site that is not loaded although the file has it: ``why`` in words, and the reason that remedies go by.

    ``"shape"``: the two differ in shape, and no adapter was given. ``"kind"``: one has whole numbers, for example,
    and the other floats.
    """

    site: str
    why: str
    reason: Literal["shape", "kind", "other"] = "other"


@dataclass(frozen=True, slots=True)
class Cast:
    """A site whose values change their dtype: the file's, that to which a rule rounds them, the site's."""

    site: str
    dtypes: tuple[torch.dtype, ...]

    def __str__(self) -> str:
        return " -> ".join(map(dtype_name, self.dtypes))


@dataclass(frozen=True, slots=True, repr=False)
class LoadReport(Tabular):
    """The account of what a rule takes from a checkpoint, name by name.

    ``loaded`` are the sites whose values are taken as they are, ``adapted`` those that an adapter makes, ``declined``
    those that are in the file and left to other rules on purpose, ``expected`` those that are not in the file and need
    not be, ``missing`` those that should be, ``uninitialized`` those of them that no other rule writes. ``mismatched``
    do not fit. ``unexpected`` are keys of the file that nothing in the model is called and no rule takes, ``beside``
    those of them whose layers are loaded but for them; ``spare`` are such keys that the file was expected to have.
    ``casts`` are the changes of dtype, ``unused_patterns`` the globs of the rule that match nothing. ``elements``
    counts those of ``loaded`` and ``adapted``, and of all sites that were looked for, ``file_elements`` those of the
    file that rules take, and all that it has. ``doubts`` says which of them may mean something else than their numbers,
    ``notes`` how names were found, ``hints`` how more of them would be, ``guess`` the same as arguments; ``failure``
    why the file could not be read. ``promise`` is what the model keeps of the one in the file, where it is made of it
    and not just loaded: ``"function"``, all that it computes, ``"conditional"``, the same if what a note tells holds,
    ``"statistics"``, or ``"none"``.

    >>> account = LoadReport("resnet50.pth", loaded=("conv1.weight",), missing=("fc.weight",), elements=(90, 100))
    >>> print(account)
    resnet50.pth: 90.0 % of the elements loaded, 1 of 2 sites, 1 missing
    <BLANKLINE>
    outcome  site
    missing  fc.weight
    """

    source: str
    part: str = ""
    loaded: tuple[str, ...] = ()
    adapted: tuple[tuple[str, str], ...] = ()
    declined: tuple[tuple[str, str], ...] = ()
    expected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    uninitialized: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    unexpected: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    casts: tuple[Cast, ...] = ()
    unused_patterns: tuple[str, ...] = ()
    elements: tuple[int, int] = (0, 0)
    file_elements: tuple[int, int] = (0, 0)
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    guess: Guess | None = None
    failure: str = ""
    promise: Promise | None = None

    @property
    def found(self) -> int:
        """The number of sites that get their values from the file."""
        return len(self.loaded) + len(self.adapted)

    @property
    def wanted(self) -> int:
        """The number of sites that were looked for."""
        return self.found + sum(map(len, (self.declined, self.expected, self.missing, self.mismatched)))

    @property
    def complete(self) -> bool:
        """Whether everything that was looked for is there and fits."""
        return not (self.failure or self.missing or self.mismatched) and self.found > 0

    @property
    def problems(self) -> tuple[str, ...]:
        """The reasons why a plan cannot be carried out."""
        if self.failure:
            return (self.failure,)
        # Sites that share a reason are one problem, which names the first few. If nothing at all was found, that is the
        # only one, since the rest follows from it; otherwise there may be two, what does not fit and what nobody
        # writes. Hints go with the last.
        lost, bare = self._lost, self.uninitialized
        reasons = {mismatch.reason for mismatch in self.mismatched}
        reasons -= set() if self.found else {"shape"}  # to skip them all would leave nothing
        remedies = [text for reason, text in _REMEDIES.items() if reason in reasons]
        problems: list[list[str]] = []
        if not self.found:
            matches = f"0 of {self.wanted} tensors match the model."
            problems = [[matches, *_listed([*lost, *self.declined], 3), *remedies]]
        elif lost:
            verb = "does" if len(lost) == 1 else "do"
            problems = [[f"{count(len(lost), 'site')} of {self.wanted} {verb} not fit.", *_listed(lost, 5), *remedies]]
        if self.found and bare:
            verb, them = ("is", "it") if len(bare) == 1 else ("are", "them")
            start = f"{count(len(bare), 'site')} of {self.wanted} {verb} not in the file, and no other rule writes"
            advice = "Give such a rule, narrow this one, or name what may be missing in expect_missing"
            problems.append([f"{start} {them}: {abbreviate(bare)}. {advice}"])
        if not problems:
            return ()
        problems[-1] += self.hints
        return self._headed(*map("\n    ".join, problems), *(self.unused_patterns if self.found else ()))

    def problems_of(self, strict: bool | str) -> tuple[str, ...]:
        """The problems, with the lapses if ``strict``, and the leftovers, too, if it is True."""
        return (*self.problems, *(self.lapses if strict else ()), *(self.leftovers if strict is True else ()))

    @property
    def failed_sites(self) -> frozenset[str]:
        """The sites that no rule writes because of the problems."""
        if not self.problems:
            return frozenset()
        # Where nothing was found, sites that may be missing or were declined have no values for the same reason: they
        # are not told once more as gaps of the plan.
        left = () if self.found else (*self.expected, *(name for name, _ in self.declined))
        return frozenset((*self.uninitialized, *(name for name, _ in self._lost), *left))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lapses and doubts: what ought to be looked at though the plan can be carried out."""
        return (*self.lapses, *self.leftovers, *(() if self.failure else self._headed(*self.doubts)))

    @property
    def lapses(self) -> tuple[str, ...]:
        """The sites that are not there and stay with their other rules, which ``strict`` does not allow."""
        left = [] if self.failure else [name for name in self.missing if name not in set(self.uninitialized)]
        text = f"{count(len(left), 'site')} not in the file, left to other rules: {abbreviate(left)}. "
        advice = " ".join(["Say so with expect_missing if that is intended.", *self.hints])
        return self._headed(*([text + advice] if left else []), *self.unused_patterns)

    @property
    def leftovers(self) -> tuple[str, ...]:
        """What the file has and nobody takes, which is an error where ``strict`` is asked for."""
        if self.failure or not self.found:
            return ()
        lost = "What they do in their layers is lost: take them by rename or adapt, or give the model these parts"
        rows = (
            (self.beside, "beside what is loaded", f"{lost}; expect_unexpected says that it is intended."),
            (self._elsewhere, "that the model has no part for", "Say so with expect_unexpected if that is intended."),
        )
        texts = []
        for keys, which, advice in rows:
            if keys:
                found = f"{count(len(keys), 'key')} of the file {which}: {abbreviate(keys)}"
                texts.append(f"nothing takes {found}. {advice}")
        return self._headed(*texts)

    @property
    def _elsewhere(self) -> list[str]:
        beside = {*self.beside}
        return [key for key in self.unexpected if key not in beside]

    def _headed(self, *texts: str) -> tuple[str, ...]:
        return tuple(f"{self.source}: {text}" for text in texts)

    def headline(self) -> str:
        """The account in one line."""
        if self.failure:
            return self.failure
        fates = {**self._fates(), "unexpected": self.unexpected, "spare": self.spare, "loaded": ()}
        names = {"expected": "missing as expected", "spare": "left as expected"}
        counts = [f"{len(sites)} {names.get(fate, fate)}" for fate, sites in fates.items() if sites]
        where = f"{self.source}, part {self.part!r}" if self.part else self.source
        loaded = f"{percentage(*self.elements)} % of the elements loaded"
        used, size = self.file_elements
        share = [f"{percentage(used, size)} % of the file was used"] if 0 < used < size else []
        return ", ".join([f"{where}: {loaded}", *share, f"{self.found} of {count(self.wanted, 'site')}", *counts])

    def _table(self, *, full: bool = False) -> Table:
        fates = {} if self.failure else self._fates()
        how = dict([*self.adapted, *self.declined, *self._lost])
        sites = [(name, fate) for fate, names in fates.items() for name in names]
        rows = [Row(name, (fate, how.get(name, ""))) for name, fate in sites if full or fate != "loaded"]
        groups = fold(rows, _COLUMNS, among=[name for name, _ in sites], full=full)
        return Table("site", _COLUMNS, groups, self.headline(), tuple(self._details(told=True)), before=1)

    def _headline(self, groups: Sequence[RowGroup]) -> str:
        return f"LoadReport of {self.headline()}"

    def summary(self) -> str:
        """The account without its table."""
        return "\n  ".join([self.headline(), *self._details()])

    def _fates(self) -> dict[str, Sequence[str]]:
        """The sites by what became of them."""
        return {
            "loaded": self.loaded,
            "adapted": [name for name, _ in self.adapted],
            "declined": [name for name, _ in self.declined],
            "expected": self.expected,
            "missing": self.missing,
            "mismatched": [name for name, _ in self._lost],
        }

    @property
    def _lost(self) -> list[tuple[str, str]]:
        return [(mismatch.site, mismatch.why) for mismatch in self.mismatched]

    def _details(self, *, told: bool = False) -> Iterator[str]:
        """What is to be known beside the numbers; ``told``: but for the sites of each fate."""
        if self.failure:
            return
        yield from self.notes
        if self.promise:
            yield f"promise: {_PROMISES[self.promise]}"
        sites = (("adapted", self.adapted), ("declined", self.declined), ("mismatched", self._lost))
        for fate, pairs in () if told else sites:
            yield from (f"{fate} {line}" for line in _listed(pairs, 10, ": "))
        missing = () if told else self.missing
        unexpected = {"unexpected, beside what is loaded": self.beside, "unexpected": self._elsewhere}
        lists = {"missing": missing, **unexpected}
        yield from (f"{fate}: {abbreviate(fold_names(names), 10)}" for fate, names in lists.items() if names)
        casts = Counter(map(str, self.casts))
        yield from (f"cast {how}: {count(number, 'site')}" for how, number in casts.items())
        yield from (*self.unused_patterns, *self.doubts, *self.hints)

    def to_dict(self) -> dict[str, object]:
        """The account as plain data, as plans and reports save it."""
        data = {_SAVED.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}
        data["mismatched"] = [[site.site, site.why, site.reason] for site in self.mismatched]
        data["casts"] = [[cast.site, str(cast)] for cast in self.casts]
        return {**data, "guess": self.guess and asdict(self.guess)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LoadReport:
        """The account that :meth:`to_dict` made, also by way of JSON; raises ConfigError with every mistake."""
        account: LoadReport = Schema({}).decode(by_field(data), cls, "the account of a checkpoint")
        return account


def weakest(promises: Iterable[Promise | None]) -> Promise | None:
    """The weakest of several promises; None where there is none among them.

    >>> weakest(["function", None, "statistics"])
    'statistics'
    """
    return min((promise for promise in promises if promise), key=[*_PROMISES].index, default=None)


_SAVED: Final = {"uninitialized": "bare", "unused_patterns": "idle"}
"""The keys of fields in saved plans and reports, where they are not the names of today."""
_FIELDS: Final = {saved: name for name, saved in _SAVED.items()}
_ROWS: Final = {"mismatched": ("site", "why", "reason"), "casts": ("site", "dtypes")}
"""The fields of what is saved as rows; a mismatch had no reason at first."""


def by_field(data: Any) -> Any:
    """Saved data by the fields of today; whatever is not as it should be is left for the schema to complain of."""
    if not isinstance(data, Mapping):
        return data
    renamed = {_FIELDS.get(key, key): value for key, value in data.items()}
    for key, members in _ROWS.items():
        if isinstance(rows := renamed.get(key), (list, tuple)):
            renamed[key] = [_named(row, members) for row in rows]
    return renamed


def _named(row: Any, names: Sequence[str]) -> Any:
    """A saved row as a table of its fields; anything else as it is."""
    if not isinstance(row, (list, tuple)) or not 2 <= len(row) <= len(names):
        return row
    table = dict(zip(names, row, strict=False))
    if "dtypes" not in table:
        return table
    return {**table, "dtypes": row[1].split(" -> ")} if isinstance(row[1], str) else row


_HOW: Final = (Column("how", "range"),)
_COLUMNS: Final = (Column("outcome"), *_HOW)


def _listed(pairs: Sequence[tuple[str, str]], most: int, between: str = " ") -> list[str]:
    """The first of many sites, a line each with its reason, like ones together, and how many more there are."""
    groups = fold((Row(name, (why,)) for name, why in pairs), _HOW)
    more = [f"and {sum(len(group.names) for group in groups[most:])} more"] if len(groups) > most else []
    return [f"{group.title}{between}{group.cells[0]}" for group in groups[:most]] + more
