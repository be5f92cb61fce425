"""Conflicts: rules that write to one tensor, or to one memory, and may not; each text says the way out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from torchinit._text import abbreviate, count
from torchinit.initializers.base import Fill
from torchinit.initializers.source import is_verbatim
from torchinit.model.sites import Site
from torchinit.plans.plan import Step
from torchinit.rules.rule import Rule

StepNotes: TypeAlias = tuple[str, ...] | None
"""The notes of a step, where they are known."""


class Write(NamedTuple):
    """A step in the making, with the module's view of the site that the rule matched."""

    view: Site
    site: Site
    fill: Fill
    rule: Rule
    turn: int
    kind: int
    notes: StepNotes  # None: they are not those of all of this kind

    def step(self) -> Step:
        return Step(self.site, self.fill, self.rule, (), self.turn)


def unlocked(writes: Sequence[list[Write]]) -> Iterator[str]:
    """The sites that one rule loads from a checkpoint and another one writes after it, a text for each two rules."""
    # By rules, not by sites: the way out is an edit of the recipe, and a backbone has hundreds of sites.
    overwritten: dict[tuple[str, ...], tuple[Rule, list[str]]] = {}
    for several in writes:
        last = several[-1].rule
        locked = (write.rule for write in several[:-1] if write.fill.locked and write.rule is not last)
        if loaders := [*dict.fromkeys(rule.origin for rule in locked)]:
            rivals = (*(loaders if is_verbatim(last.init) else loaders[:1]), last.origin)
            overwritten.setdefault(rivals, (last, []))[1].append(several[0].site.name)
    for (*loaders, later), (rule, names) in overwritten.items():
        them, loader = "it" if len(names) == 1 else "them", " and ".join(loaders)
        load = "loads" if len(loaders) == 1 else "load"
        text = f"{loader} {load} {count(len(names), 'site')}, and {later} ({rule}) would write over {them}:"
        unlock = f"or say lock = false in {loader}"
        if not is_verbatim(rule.init):
            yield f"{text} {abbreviate(names)}. Put {loader} last, exclude {them} from {later}, {unlock}"
            continue
        # Put last, a checkpoint would write over what another one loads: so the way out goes by what is wished.
        lines = [f"{text} {abbreviate(names)}."]
        for one in (*loaders, later):
            others = " and ".join(other for other in (*loaders, later) if other != one)
            end = f", {unlock}" if one == later else ""
            lines.append(f"To keep what {one} loads, exclude {them} from {others}{end}.")
        yield "\n    ".join(lines)


def disagreement(writes: list[Write]) -> str | None:
    """A tied tensor that gets different values through the different modules that hold it."""
    # Only the last fill through each module counts: one module's rules may beat each other. The fills are compared as
    # numbers, so two formulas that come out the same agree.
    last = {write.view.name: write for write in writes}
    fills = {write.fill: (name, write) for name, write in reversed(last.items())}
    if len(fills) < 2:
        return None
    given = " and ".join(
        f"{write.rule.origin} gives {name!r} {fill}" for fill, (name, write) in reversed(fills.items())
    )
    names = ", ".join(repr(view.name) for view in writes[0].site.views)
    return f"tied weights: {given}, but they are one tensor. Add a rule that matches all of {names}"


def collisions(written: Sequence[Site]) -> list[str]:
    """Sites that lie in one memory under different shapes, so that each write spoils another."""
    names = {site.name for site in written}
    pairs = {tuple(sorted((site.name, other))) for site in written for other in site.shares if other in names}
    text = "shared memory: {!r} and {!r} are views of one memory, and what is written to one changes the other. "
    return [text.format(*pair) + "Let the rules match one of them" for pair in sorted(pairs)]
