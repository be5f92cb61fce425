"""Diffs: what differs between two plans, reports, fingerprints or files of weights, as a plan of terraform shows it."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeVar, final

from torchinit._folding import Column, Row, RowGroup, fold, fold_names, rounded_apart, starts_as, to_digits
from torchinit._tables import Table, Tabular
from torchinit._text import count

_Item = TypeVar("_Item")
_SIGNS: Final = {"changed": "~", "added": "+", "removed": "-"}
_COLUMNS: Final = (Column(""), Column("", "range", exact=True), Column("", spare=1))


@dataclass(frozen=True, slots=True)
class Change:
    """A difference between two plans: what a site got before, what it gets after, and by which rule.

    ``gist`` is the change in short: only what differs, to as many digits as it takes; empty where all that differs is
    the rounding of numbers.

    >>> print(Change("head.weight", "changed", "Constant(val=0.0)", "Constant(val=1.0)"))
    changed head.weight: Constant(val=0.0) -> Constant(val=1.0)
    """

    name: str
    verb: Literal["added", "removed", "changed"]
    before: str = ""
    after: str = ""
    gist: str = ""
    why: str = ""

    @property
    def is_rounding(self) -> bool:
        """Whether nothing but the rounding of numbers differs."""
        return self.verb == "changed" and not self.gist

    def __str__(self) -> str:
        arrow = " -> " if self.verb == "changed" else ""
        return f"{self.verb} {self.name}: {self.before}{arrow}{self.after}"


@final
class Diff(Tabular, tuple[Change, ...]):
    """The changes from one plan or fingerprint to another, by site; ``same`` names the sites without one.

    Printed, like changes are one line: ``+`` appears, ``~`` changes, ``-`` goes.

    >>> print(Diff.between({"a": 1, "b": 2, "c": 0}, {"b": 3, "c": 0}))
    -  a  1
    ~  b  2 → 3
    <BLANKLINE>
    1 kind changes (1 tensor), 1 goes; 1 kind is the same.
    """

    same: tuple[str, ...] = ()

    @classmethod
    def of(cls, changes: Iterable[Change], same: Iterable[str] = ()) -> Diff:
        """The diff of these changes beside sites that are the same."""
        diff = cls(changes)
        diff.same = tuple(same)
        return diff

    @classmethod
    def between(
        cls,
        before: Mapping[str, _Item],
        after: Mapping[str, _Item],
        *,
        agree: Callable[[_Item, _Item], bool] = operator.eq,
        facts: Callable[[_Item], Sequence[str]] = lambda item: (str(item),),
        gist: Callable[[Sequence[str], Sequence[str]], str] | None = None,
        why: Callable[[str], str] = lambda name: "",
    ) -> Diff:
        """The changes from one mapping to another, in their order: ``facts`` of an item, one by one, as text.

        ``gist`` makes the short text of the facts before and after, ``why`` the reason that is shown for a name.
        """
        summarize = gist or _gist
        changes: list[Change] = []
        same: list[str] = []
        for name in dict.fromkeys((*before, *after)):
            old, new = (tuple(facts(items[name])) if name in items else () for items in (before, after))
            if old and new and agree(before[name], after[name]):
                same.append(name)
                continue
            verb: Literal["added", "removed", "changed"] = "changed" if old and new else "added" if new else "removed"
            changes.append(Change(name, verb, _joined(old), _joined(new), summarize(old, new), why(name)))
        return cls.of(changes, same)

    def to_dict(self) -> dict[str, object]:
        """The changes, and the names of what is the same, as plain data."""
        return {"changes": [asdict(change) for change in self], "same": list(self.same)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """The diff as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def _table(self, *, full: bool = False) -> Table:
        told = [change for change in self if full or not change.is_rounding]
        rows = (Row(each.name, (_SIGNS[each.verb], each.gist, each.why)) for each in told)
        groups = fold(rows, _COLUMNS, among=(*self.same, *(change.name for change in self)), full=full)
        return Table(
            "", _COLUMNS, groups, foot=("", self._summary(groups)) if groups else (self._summary(groups),), before=1
        )

    def _headline(self, groups: Sequence[RowGroup]) -> str:
        return f"Diff: {self._summary(groups)}"

    def _summary(self, groups: Sequence[RowGroup]) -> str:
        """The last line: how many kinds of sites change, and how many do not."""
        if not self:
            return "no difference"
        parts: list[str] = []
        for sign, one, many in (("~", "changes", "change"), ("+", "appears", "appear"), ("-", "goes", "go")):
            if kinds := [group for group in groups if group.cells[0] == sign]:
                noun = "" if parts else " kind" if len(kinds) == 1 else " kinds"
                tensors = f" ({count(sum(len(group.names) for group in kinds), 'tensor')})" if sign == "~" else ""
                parts.append(f"{len(kinds)}{noun} {one if len(kinds) == 1 else many}{tensors}")
        near = fold_names(change.name for change in self if change.is_rounding)
        verb = "differs" if len(near) == 1 else "differ"
        parts += [f"{count(len(near), 'kind')} {verb} by rounding alone"] if near else []
        alike = len(fold_names(self.same))
        return f"{', '.join(parts)}; {count(alike, 'kind')} {'is' if alike == 1 else 'are'} the same."


def _joined(facts: Sequence[str]) -> str:
    return " ".join(filter(None, facts))


def _gist(before: Sequence[str], after: Sequence[str]) -> str:
    """What differs between the facts; all of one side where there is no other."""
    if not (before and after):
        return to_digits(_joined([*map(starts_as, (*before, *after))]))
    pairs = [rounded_apart(old, new) for old, new in zip(before, after, strict=True) if old != new]
    return ", ".join(_arrow(starts_as(old), starts_as(new)) for old, new in pairs if old != new)


def _arrow(old: str, new: str) -> str:
    """``std 0.1 → 0.2`` where both texts begin with the same word."""
    word, _, rest = new.partition(" ")
    is_named = word.isalpha() and old.startswith(f"{word} ") and rest
    return f"{old} → {rest}" if is_named else f"{old} → {new}"
