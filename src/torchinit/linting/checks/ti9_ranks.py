"""TI9: ranks that should hold the same and do not, or do and should not; fans of parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torchinit._text import abbreviate
from torchinit.initializers.statistics import FEWEST
from torchinit.linting.registry import Hit, check
from torchinit.linting.target import LintedTensor, LintTarget
from torchinit.model.dtensor import is_distributed


@check(
    "TI901", "error", "ranks", "draw by names (torchinit.initialize, torchinit.seeded), or from a seed for each part"
)
def equal_parts(target: LintTarget) -> Iterator[Hit]:
    """Different parts of one weight that hold the same drawn values, each on its rank.

    Every rank that draws its own part from the same seed makes them: ``to_empty`` and ``reset_parameters`` of a model
    under FSDP2 on a CPU mesh after one ``torch.manual_seed``. Units that start equal stay equal. Decided by a digest of
    the first 4,096 values, which come in no order and are 20 or more; replicas of a part do not count.
    """
    for name, ranks in target.ranks.equal.items():
        text = abbreviate([str(rank) for rank in ranks])
        yield Hit(name, f"ranks {text} hold the same drawn values as different parts of it")


@check("TI902", "error", "ranks", "start all of them from one seed by names, or broadcast from one rank")
def unequal_replicas(target: LintTarget) -> Iterator[Hit]:
    """Replicas that are not the same: a plain tensor, or the same part of a distributed one, on several ranks.

    They drift apart in training, since gradients are added up and values are not. Compared bit for bit, as
    ``torchinit.verify_replicas`` does, among the ranks that have a tensor of the name.
    """
    for line in target.ranks.differing:
        name, _, text = line.partition(": ")
        yield Hit(name, text)


@check("TI903", "warning", "values", "draw it before it is cut, or by the fans of the whole (torchinit.initialize)")
def fan_of_a_part(target: LintTarget) -> Iterator[Hit]:
    """A distributed weight whose values fit the fans of the part that is here, and not those of the whole.

    Code that reads ``weight.to_local().shape``, or makes a layer of the part's size, takes a fan for several times
    smaller than it is. Looked for are the usual formulas: torch's own default, LeCun, Kaiming and Xavier, normal by
    their deviation and uniform by their bound, within six standard errors and the reach of so many values. Silent where
    one of them fits the whole as well, as Kaiming does on half of a fan what LeCun does on all of it.
    """
    for linted in target.drawn:
        site = linted.site
        cut = is_distributed(linted.tensor) and not linted.is_complete and len(site.shape) > 1
        if not cut or not linted.is_matrix or site.layout is None or not linted.is_drawn:
            continue
        whole, part = site.fans("true"), site.layout.fans(tuple(linted.here))
        if whole != part and not _fitting(linted, whole) and (found := _fitting(linted, part)):
            fans = f"fan_in {part[0]:g} and fan_out {part[1]:g} of the part that is here"
            yield Hit(linted.name, f"fits {found} with {fans}, and no formula with {whole[0]:g} and {whole[1]:g}")


def _fitting(linted: LintedTensor, fans: tuple[float, float]) -> str:
    """The usual formula that the values fit with these fans; empty if none does."""
    stats = linted.statistics
    number = stats.numel
    if number < FEWEST or abs(stats.mean) > 6 * stats.std / math.sqrt(number):
        return ""
    for name, variance in _variances(*fans).items():
        std = math.sqrt(variance)
        # The largest of n uniform values is short of the bound by a share of a few times 1/n.
        short = 1 - stats.reach / (std * math.sqrt(3))
        if -1e-6 <= short <= 12 / number and abs(stats.std / std - 1) <= 6 * math.sqrt(0.2 / number):
            return f"{name}, uniform,"
        is_normal = stats.reach > 1.01 * math.sqrt(3) * stats.std
        if is_normal and abs(stats.std / std - 1) <= 6 * math.sqrt(0.5 / number):
            return f"{name}, normal,"
    return ""


def _variances(fan_in: float, fan_out: float) -> Mapping[str, float]:
    return {
        "torch's default": 1 / (3 * fan_in),
        "LeCun": 1 / fan_in,
        "Kaiming": 2 / fan_in,
        "Kaiming by fan_out": 2 / fan_out,
        "Xavier": 2 / (fan_in + fan_out),
    }


@check("TI904", "note", "ranks", "what torch draws then differs between replicas: give one seed to what draws weights")
def seeds_per_rank(target: LintTarget) -> Iterator[Hit]:
    """Ranks whose torch generators were seeded otherwise, while all of them hold the same parameters whole.

    Right for dropout and data; what draws weights gives each replica others, unless rank 0's are sent to all, as
    DistributedDataParallel does. Read off ``torch.initial_seed()``. One note for the model.
    """
    seeds = target.ranks.seeds
    if len(set(seeds.values())) > 1 and target.ranks.replicated:
        told = abbreviate([f"{seed} on rank {rank}" for rank, seed in seeds.items()])
        yield Hit("", f"torch was seeded with {told}")
