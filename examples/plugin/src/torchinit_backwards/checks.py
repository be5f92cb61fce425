"""A check."""

from __future__ import annotations

from collections.abc import Iterator

from torchinit.linting import Hit, LintTarget, check


@check("BW101", "warning", "values", "start it at zero, half open")
def open_gate(target: LintTarget) -> Iterator[Hit]:
    """A gate that starts wide open, or shut.

    Beyond ±4 the slope of the sigmoid is below 0.02, so that the gate hardly learns.
    """
    for each in target.drawn:
        if each.site.leaf == "openness" and each.statistics.reach > 4:
            yield Hit(each.name, f"a value of {each.statistics.reach:.3g}, where the sigmoid is flat")
