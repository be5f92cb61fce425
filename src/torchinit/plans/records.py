"""Records made: what a step was to write, in words, and what came of it."""

from __future__ import annotations

import torch

from torchinit._text import dtype_name
from torchinit.initializers.base import Fill
from torchinit.initializers.statistics import Moments
from torchinit.plans.plan import Step
from torchinit.plans.report import Record
from torchinit.rules.rule import Rule


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
    ) -> Record:
        """The record of a step that has written so many bytes."""
        site = step.site
        dtype_text, fill, rule, origin, expected = self.of_step(step, dtype, is_known=is_known)
        over = tuple(map(self.of, step.over)) if step.over else ()
        aliases = tuple(view.name for view in site.aliases) if site.aliases else ()
        return Record(  # by position: a call of a class with so many keywords takes three times as long
            site.name, site.shape, dtype_text, fill, rule, origin,
            expected, measured, over, aliases, step.notes, seconds, size, "", "", site.position,
        )  # fmt: skip
