"""Simple steps: whole tensors of ordinary memory that get draws or constants under a seed, without a shard for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from torchinit._collector import collector_paused
from torchinit.initializers.base import Blockwise, Fill, Wrapper
from torchinit.initializers.elementwise import Constant, Drawn, Normal, TruncNormal, Uniform, write_constants
from torchinit.initializers.functions import Code, FromIndex
from torchinit.initializers.mapped import MappedFill
from torchinit.initializers.statistics import measure_simple
from torchinit.noise import Keyed, Noise
from torchinit.noise.distributions import Draw, resolve
from torchinit.noise.engines.dispatch import chosen_kernel
from torchinit.noise.engines.tasks import is_simple
from torchinit.plans.plan import Step
from torchinit.plans.records import Texts
from torchinit.plans.report import Record

_DRAWN: Final = frozenset((Normal, Uniform, TruncNormal))
_CODE: Final = (Code, FromIndex, MappedFill)


@dataclass(slots=True)
class SimpleSteps:
    """The simple steps of a plan, the tensors that they write to, and the seconds that it took.

    They are written before all others. That is no matter to these: a draw under a seed depends on its name alone, no
    other site lies in the tensors' memory, and no code of anybody else's runs meanwhile, which could look at them.
    """

    steps: list[Step] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def among(
        cls, steps: Sequence[Step], tensors: Mapping[str, Tensor], noise: Noise
    ) -> tuple[SimpleSteps, list[Step]]:
        """The simple steps of some, and the others; ``tensors`` are those that are wholly here, by name."""
        fills = {id(step.fill): step.fill for step in steps}
        if type(noise) is not Keyed or chosen_kernel() is None or not all(map(_is_formula, fills.values())):
            return cls(), [*steps]
        is_written = {key: _is_written(fill) for key, fill in fills.items()}
        simple, rest = cls(), list[Step]()
        add, add_tensor = simple.steps.append, simple.tensors.append
        for step in steps:
            site = step.site
            out = tensors.get(site.name)
            if (
                out is not None
                and is_written[id(step.fill)]
                and is_simple(out)
                and out.dtype is site.dtype
                and out.shape == site.shape
                and not site.shares
                and _has_memory(out)
            ):
                add(step)
                add_tensor(out)
            else:
                rest.append(step)
        return simple, rest

    def write(self, noise: Noise) -> None:
        """Write all of them; nothing is written if one cannot be."""
        if not self.steps:
            return
        assert isinstance(noise, Keyed)
        begun = time.perf_counter()
        names, outs, draws = list[str](), list[Tensor](), list[Draw]()
        constants: dict[tuple[int, torch.dtype], tuple[Constant, list[Tensor]]] = {}
        known: dict[tuple[int, torch.dtype], Draw] = {}
        for step, out in zip(self.steps, self.tensors, strict=True):
            fill = step.fill
            key = id(fill), out.dtype
            if type(fill) is Constant:
                if key not in constants:
                    constants[key] = fill, []
                constants[key][1].append(out)
            else:
                assert isinstance(fill, Drawn)
                draw = known.get(key)
                if draw is None:
                    draw = known[key] = resolve(*fill.draw, out.dtype)
                names.append(step.site.name)
                outs.append(out)
                draws.append(draw)
        noise.fill_simple(names, outs, draws)
        for fill, those in constants.values():
            write_constants(fill, those)
        self.seconds = time.perf_counter() - begun

    def records(self, *, stats: bool) -> Callable[[], list[Record]]:
        """The function that makes the records, of the values that are there now."""
        # The texts of rules at once, since these may hold other people's objects, which can change: there are few.
        texts = Texts()
        rules = {id(rule): rule for step in self.steps for rule in (step.rule, *step.over)}
        for rule in rules.values():
            texts.of(rule)
        steps, seconds = self.steps, self.seconds
        moments = measure_simple(self.tensors) if stats else None

        def made() -> list[Record]:
            measured = moments() if moments else [None] * len(steps)
            sizes = [step.site.numel for step in steps]
            elements = sum(sizes)
            with collector_paused():
                return [
                    texts.record(
                        step, step.site.dtype, size * step.site.dtype.itemsize, seconds * size / elements, found
                    )
                    for step, size, found in zip(steps, sizes, measured, strict=True)
                ]

        return made


def _is_formula(fill: Fill) -> bool:
    """Whether the fill and all that it is made of are formulas of this library, and neither code nor stored values."""
    if not type(fill).__module__.startswith("torchinit.initializers.") or isinstance(fill, _CODE):
        return False
    inner = fill.fills if isinstance(fill, Blockwise) else (fill.fill,) if isinstance(fill, Wrapper) else ()
    return all(map(_is_formula, inner))


def _is_written(fill: Fill) -> bool:
    """Whether one draw of the kernel writes the fill, or one number."""
    return type(fill) is Constant or (type(fill) in _DRAWN and not (type(fill) is TruncNormal and not fill.std))


def _has_memory(out: Tensor) -> bool:
    """Whether there is memory to write to; stand-ins within transforms have none."""
    try:
        return out.data_ptr() != 0
    except RuntimeError:
        return False
