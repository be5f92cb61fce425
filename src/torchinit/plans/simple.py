"""Simple steps: whole tensors of ordinary memory that get draws or constants under a seed, without a shard for each."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from torchinit._frozen import collector_paused
from torchinit.initializers.base import Blockwise, Fill, Wrapper
from torchinit.initializers.elementwise import Constant, Normal, TruncNormal, Uniform, write_constants
from torchinit.initializers.functions import Code, FromIndex
from torchinit.initializers.mapped import MappedFill
from torchinit.initializers.statistics import measure_simple
from torchinit.noise import Keyed, Noise
from torchinit.noise.engines.dispatch import chosen_kernel
from torchinit.noise.engines.tasks import is_simple
from torchinit.noise.keyed import Alike
from torchinit.plans.plan import Plan
from torchinit.plans.report import Record, Texts

_DRAWN: Final = frozenset((Normal, Uniform, TruncNormal))
_CODE: Final = (Code, FromIndex, MappedFill)


@dataclass(slots=True)
class SimpleSteps:
    """The simple steps of a plan, the tensors that they write to, and the seconds that it took.

    They are written before all others. That is no matter to these: a draw under a seed depends on its name alone, no
    other site lies in the tensors' memory, and no code of anybody else's runs meanwhile, which could look at them.
    """

    drafts: list[Any] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def among(
        cls, drafts: Collection[Any], tensors: Mapping[str, Tensor], noise: Noise
    ) -> tuple[SimpleSteps, frozenset[str]]:
        """The simple ones among steps or drafts, and the names of the other sites.

        ``tensors`` are those that are wholly here, by name.
        """
        fills = {id(draft.fill): draft.fill for draft in drafts}
        simple, others = cls(), list[str]()
        is_ours = type(noise) is Keyed and chosen_kernel() is not None and all(map(_is_formula, fills.values()))
        is_written = {key: is_ours and _is_written(fill) for key, fill in fills.items()}
        for draft in drafts:
            site = draft.site
            out = tensors.get(site.name) if is_written[id(draft.fill)] else None
            # What is read of a tensor last takes the longest.
            if (
                out is not None
                and out.dtype is site.dtype
                and is_simple(out)
                and not site.shares
                and out.shape == site.shape
            ):
                simple.drafts.append(draft)
                simple.tensors.append(out)
            else:
                others.append(site.name)
        if not _have_memory(simple.tensors):
            return cls(), frozenset(draft.site.name for draft in drafts)
        return simple, frozenset(others)

    def write(self, noise: Noise) -> None:
        """Write all of them; nothing is written if one cannot be."""
        if not self.drafts:
            return
        assert isinstance(noise, Keyed)
        begun = time.perf_counter()
        alike: dict[tuple[int, torch.dtype], list[int]] = defaultdict(list)  # of one fill and dtype
        for number, draft in enumerate(self.drafts):
            alike[id(draft.fill), draft.site.dtype].append(number)
        drawn: list[Alike] = []
        constants: list[tuple[Constant, list[Tensor]]] = []
        for numbers in alike.values():
            fill, those = self.drafts[numbers[0]].fill, [self.tensors[number] for number in numbers]
            if isinstance(fill, Constant):
                constants.append((fill, those))
            else:
                drawn.append(Alike(fill.draw, 0, [self.drafts[number].site.name for number in numbers], those))
        noise.fill_simple(drawn)
        for fill, those in constants:
            write_constants(fill, those)
        self.seconds = time.perf_counter() - begun

    def records(self, plan: Plan, *, stats: bool) -> Callable[[], list[Record]]:
        """The function that makes the records, of the values that are there now."""
        # The texts of rules at once, since these may hold other people's objects, which can change: there are few.
        texts = Texts()
        rules = {id(draft.rule): draft.rule for draft in (*self.drafts, *plan.overwritten)}
        rules |= {id(rule): rule for draft in self.drafts for rule in getattr(draft, "over", ())}
        for rule in rules.values():
            texts.of(rule)
        names, seconds = [draft.site.name for draft in self.drafts], self.seconds
        moments = measure_simple(self.tensors) if stats else None

        def made() -> list[Record]:
            by_name = {step.site.name: step for step in plan.steps}
            steps = [by_name[name] for name in names]
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


def _have_memory(outs: Iterable[Tensor]) -> bool:
    """Whether there is memory to write to in all of them; stand-ins within transforms have none."""
    try:
        return 0 not in [out.data_ptr() for out in outs]
    except RuntimeError:
        return False
