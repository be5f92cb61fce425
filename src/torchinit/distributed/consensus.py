"""Consensus: whether the ranks that share a model are about to do the same with it, and hold it in the same way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from torchinit._text import dtype_name
from torchinit.distributed.allocation import module_tensors
from torchinit.distributed.collectives import (
    abridged,
    exchanged,
    joined,
    over_model,
    ranks_text,
    run_collectively,
)
from torchinit.distributed.replicas import compare_replicas
from torchinit.errors import RunError
from torchinit.model.dtensor import is_distributed
from torchinit.model.ranks import Spread
from torchinit.noise import Keyed, Noise
from torchinit.noise.keyed import STREAM
from torchinit.plans.fingerprint import hashed
from torchinit.plans.observers import noise_in_use
from torchinit.plans.origin import steps_of
from torchinit.plans.plan import Plan
from torchinit.plans.report import Report
from torchinit.plans.run import Agree


class RankIntent(NamedTuple):
    """What a rank is about to do: what it was told, in a word each, and what it will do to each tensor, by name.

    ``optional`` are the names that other ranks need not have.
    """

    told: Mapping[str, str]
    steps: Mapping[str, str]
    optional: Collection[str] = ()


def intent_of(
    model: nn.Module,
    steps: Mapping[str, str],
    noise: Noise,
    options: Mapping[str, object],
    *,
    only_spread: bool = False,
) -> RankIntent:
    """What a rank was told, what it will do to each tensor, and in what shape, dtype and layout it holds each.

    Plain tensors that a rank holds beside may be its own; with ``only_spread``, those that have a step, too, as the
    experts of a rank do.
    """
    noise = noise_in_use(noise)
    seed = str(noise.seed) if isinstance(noise, Keyed) else "none"
    words = {"the stream": STREAM, "the seed": seed, **{name: str(value) for name, value in options.items()}}
    held, plain = {}, []
    for entry in module_tensors(model):
        name, tensor = f"{entry.name} is held", entry.tensor
        held[name] = f"as {dtype_name(tensor.dtype)} {() if is_lazy(tensor) else list(tensor.shape)}"
        if is_distributed(tensor):
            held[name] += f", {tensor.placements} on a mesh of shape {tuple(tensor.device_mesh.shape)}"
        else:
            plain += [name, entry.name] if only_spread else [name]
    return RankIntent(words, {**steps, **held}, frozenset(plain))


def initialize_together(
    model: nn.Module,
    ready: Callable[[], Plan],
    write: Callable[[Plan, Agree], Report],
    noise: Noise,
    options: Mapping[str, object],
) -> Report | None:
    """Make a plan and write it on all ranks that hold parts of a model; None where this one alone does.

    A rank that fails raises its own error, the others RunError with what it was.
    """
    spread = over_model(model)
    if spread is None:
        return None

    def planned() -> tuple[Plan, RankIntent]:
        plan = ready()
        return plan, intent_of(model, steps_of(plan), noise, options, only_spread=True)

    def agree(texts: Sequence[str]) -> list[str]:
        return joined(exchanged(tuple(texts), spread))

    plan, intent = run_collectively(planned, "the plan", spread, own=True)
    check_consensus(intent, spread)
    report = run_collectively(lambda: write(plan, agree), "the initialization", spread, own=True)
    if options["verify"]:
        compare_replicas(model, spread, {record.name for record in report})
    return report


def check_seed(model: nn.Module, noise: Noise) -> None:
    """Raise RunError on all ranks that hold parts of a model unless they have one seed. All of them have to call this."""
    if spread := over_model(model):
        check_consensus(intent_of(model, {}, noise, {})._replace(steps={}), spread)


def check_consensus(intent: RankIntent, spread: Spread, remedy: str = "") -> None:
    """Raise RunError on every rank unless all ranks of the spread have one intent. All of them have to call this.

    Digests are sent; where they differ, one for each name, and intents only where those differ.
    """
    steps = intent.steps
    starts = spread({**intent.told, "": hashed(*map(str, steps.items()))})
    problems = [
        f"{noun} is {_by_value({rank: start.get(noun, 'not told') for rank, start in starts.items()})}"
        for noun in dict.fromkeys(noun for start in starts.values() for noun in start if noun)
        if len({start.get(noun) for start in starts.values()}) > 1
    ]
    if len({start[""] for start in starts.values()}) > 1:
        digests = spread({name: (name in intent.optional, hashed(text)) for name, text in steps.items()})
        doubtful = [
            name
            for name in dict.fromkeys(name for each in digests.values() for name in each)
            if _differs(name, digests)
        ]
        texts = spread({name: steps[name] for name in doubtful if name in steps})
        problems += abridged(
            [
                f"{name}: {_by_value({rank: each.get(name, 'nothing') for rank, each in texts.items()})}"
                for name in doubtful
            ]
        )
    if problems:
        raise RunError(f"the ranks do not start alike; nothing was written{remedy}", problems)


def _differs(name: str, digests: Mapping[int, Mapping[str, tuple[bool, str]]]) -> bool:
    """Whether the ranks differ in a name, or some of them lack it although they should not."""
    found = [each.get(name) for each in digests.values()]
    known = [each for each in found if each is not None]
    is_lacking = len(known) < len(found) and not all(optional for optional, _ in known)
    return is_lacking or len({digest for _, digest in known}) > 1


def _by_value(values: Mapping[int, str]) -> str:
    holders: dict[str, list[int]] = defaultdict(list)
    for rank, value in values.items():
        holders[value].append(rank)
    return ", ".join(f"{value} on {ranks_text(those)}" for value, those in holders.items())
