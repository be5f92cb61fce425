"""Consensus: whether the ranks that share a model are about to do the same with it, and hold the same bits of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy

from torchinit._text import count, dtype_name
from torchinit.distributed.allocation import module_tensors
from torchinit.distributed.collectives import (
    abridged,
    ending_together,
    exchanged,
    joined,
    over_group,
    over_model,
    run_collectively,
)
from torchinit.errors import ReportError, RunError
from torchinit.initializers.statistics import is_shuffled
from torchinit.model.dtensor import cut_dimensions, is_distributed, local_part, piece_here
from torchinit.model.names import normalize
from torchinit.model.ranks import Spread, by_value, ranks_text, replicated_in
from torchinit.model.shards import Shard
from torchinit.noise import Keyed, Noise
from torchinit.noise.keyed import STREAM
from torchinit.plans.digest import digest
from torchinit.plans.fingerprint import digest_tensors, hashed, sources_of
from torchinit.plans.observers import noise_in_use
from torchinit.plans.origin import steps_of
from torchinit.plans.plan import Plan
from torchinit.plans.report import Report
from torchinit.plans.run import Agree

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Digests: TypeAlias = dict[str, str]
_SAMPLE = 4096


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
    spread: Spread,
    ready: Callable[[], Plan],
    write: Callable[[Plan, Agree], Report],
    noise: Noise,
    options: Mapping[str, object],
) -> Report:
    """Make a plan and write it on all ranks that hold parts or replicas of a model.

    A rank that fails raises its own error, the others RunError with what it was.
    """

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


def check_start(
    model: nn.Module, seed: int | None, doing: str, steps: Callable[[], Mapping[str, str]]
) -> AbstractContextManager[None]:
    """Raise RunError on all ranks that hold parts of a model unless they have one seed, and the same ``steps``.

    All of them have to call this, and do the work within the context that it returns, which they leave together. Only
    the steps that several ranks have are compared.
    """
    if spread := over_model(model, doing):
        told = steps()
        check_consensus(RankIntent({"the seed": "none" if seed is None else repr(seed)}, told, told), spread)
    return ending_together(model, spread, doing)


def check_consensus(intent: RankIntent, spread: Spread, remedy: str = "") -> None:
    """Raise RunError on every rank unless all ranks of the spread have one intent. All of them have to call this.

    Digests are sent; where they differ, one for each name, and intents only where those differ.
    """
    steps = intent.steps
    starts = spread({**intent.told, "": hashed(*map(str, steps.items()))})
    problems = [
        f"{noun} is {_by_value(starts, noun, 'not told')}"
        for noun in dict.fromkeys(chain.from_iterable(starts.values()))
        if noun and len({start.get(noun) for start in starts.values()}) > 1
    ]
    if len({start[""] for start in starts.values()}) > 1:
        digests = spread({name: (name in intent.optional, hashed(text)) for name, text in steps.items()})
        doubtful = [name for name in dict.fromkeys(chain.from_iterable(digests.values())) if _differs(name, digests)]
        texts = spread({name: steps[name] for name in doubtful if name in steps})
        problems += abridged([f"{name}: {_by_value(texts, name, 'nothing')}" for name in doubtful])
    if problems:
        raise RunError(f"the ranks do not start alike; nothing was written{remedy}", problems)


def _differs(name: str, digests: Mapping[int, Mapping[str, tuple[bool, str]]]) -> bool:
    """Whether the ranks differ in a name, or some of them lack it although they should not."""
    known = [each[name] for each in digests.values() if name in each]
    is_lacking = len(known) < len(digests) and not all(optional for optional, _ in known)
    return is_lacking or len({digest for _, digest in known}) > 1


def _by_value(held: Mapping[int, Mapping[str, str]], name: str, missing: str) -> str:
    ranks = by_value({rank: each.get(name, missing) for rank, each in held.items()})
    return ", ".join(f"{value} on {those}" for value, those in ranks)


def _ranks_by_value(values: Mapping[int, str]) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = defaultdict(list)
    for rank, value in values.items():
        ranks[value].append(rank)
    return ranks


# --- replicas --------------------------------------------------------------------------------------------------------


def verify_replicas(model: nn.Module, *, group: ProcessGroup | None = None) -> None:
    """Compare the local parts of a model, bit for bit, with those of other ranks that should hold the same.

    A plain tensor, as in DistributedDataParallel, should be equal on all ranks of the ``group`` (None: all there are)
    that have one of its name; a part of a DTensor on all that have the same part of a tensor of its name. A rank
    without the name is not asked, since a stage of a pipeline has its own. All ranks of the group have to call this.
    Nothing but digests is sent, and those of single sites only where there is a difference.

    Raises ReportError on every rank, with the sites that differ, the first one first, and on which ranks; RunError on
    every rank where one of them has tensors that cannot be looked at, and where there is no process group.

    >>> from torch import distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> verify_replicas(nn.Linear(2, 3))
    >>> dist.destroy_process_group()
    """
    compare_replicas(model, over_group(group, "torchinit.verify_replicas"))


def compare_replicas(model: nn.Module, spread: Spread, only: Container[str] | None = None) -> None:
    """Compare replicas as :func:`verify_replicas` does; ``only`` names the parts and replicas to look at."""
    if problems := differing_replicas(model, spread, only):
        raise ReportError(f"{count(len(problems), 'site')} not the same on all replicas", abridged(problems))


def differing_replicas(model: nn.Module, spread: Spread, only: Container[str] | None = None) -> list[str]:
    """A line for each site that is not the same on all ranks that should hold the same part of it."""
    # Parts are compared by name and part, not by mesh: data parallelism holds meshes side by side that know nothing
    # of each other.
    parts = run_collectively(lambda: _parts(model, only), "the comparison of replicas", spread)
    totals = spread({place: hashed(*map(str, sites.items())) for place, sites in parts.items()})
    seen: dict[str, set[str]] = defaultdict(set)
    for place, total in chain.from_iterable(each.items() for each in totals.values()):
        seen[place].add(total)
    doubtful = {place for place, found in seen.items() if len(found) > 1}
    details = spread({place: sites for place, sites in parts.items() if place in doubtful}) if doubtful else {}
    return list(_differences(details))


def _differences(details: Mapping[int, Mapping[str, _Digests]]) -> Iterator[str]:
    """A line for each site that has more than one digest in one place."""
    known = [(place, name) for here in details.values() for place, sites in here.items() for name in sites]
    for place, name in dict.fromkeys(known):
        held = {rank: here[place][name] for rank, here in details.items() if name in here.get(place, {})}
        holders = _ranks_by_value(held).values()
        if len(holders) > 1:
            # Blamed are those that hold other bits than most, or than the first rank where there is no majority.
            most = max(holders, key=lambda ranks: (len(ranks), -ranks[0]))
            odd = sorted(set(held).difference(most))
            verb = "holds" if len(odd) == 1 else "hold"
            yield f"{name}: {ranks_text(odd, 16)} {verb} other bits than {ranks_text(most, 16)}"


def _parts(model: nn.Module, only: Container[str] | None) -> dict[str, _Digests]:
    """The digest of each site that is here, by its place: which part of the whole it is."""
    replicated = set() if only is None else {*map(id, replicated_in(model))}

    def is_part(tensor: Any) -> bool:
        return is_distributed(tensor) and tensor.device_mesh.get_coordinate() is not None

    def is_meant(name: str, tensors: Sequence[Any]) -> bool:
        return only is None or (name in only and all(is_part(each) or id(each) in replicated for each in tensors))

    sources = [(name, tensors) for name, tensors in sources_of(model).each if is_meant(name, tensors)]
    looks, problems = digest_tensors(sources)
    if problems:
        raise RunError(f"{count(len(problems), 'site')} without elements to look at", problems)
    texts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for look in looks:
        texts[_place(look.distributed)][look.name].append(look.text(look.sums))
    return {place: {name: hashed(*lines) for name, lines in sites.items()} for place, sites in texts.items()}


def _place(tensor: Any) -> str:
    """Which part of a tensor is here; a text that is the same on meshes side by side."""
    if tensor is None:
        return ""
    mesh = tensor.device_mesh
    return " ".join(f"{tensor.placements[i]} {piece_here(mesh, i)}/{mesh.shape[i]}" for i in cut_dimensions(tensor))


def verify_stages(model: nn.Module, *, group: ProcessGroup | None = None) -> None:
    """Find drawn values that ranks have in common where each should have its own: stages, or parts of a weight.

    Compared are all parameters of the ranks of the ``group`` (None: all there are), whatever their names. Replicas are
    the ranks of a mesh that have one part of a DTensor, or a plain tensor beside DTensors; of a model without any each
    rank should have its own. Only values that come in no order count, and are at least 20. All ranks of the group have
    to call this; digests are sent.

    Raises ReportError on every rank, with what is held by which of them, what is tied across stages too; RunError for a
    model on the meta device.

    >>> from torch import distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> verify_stages(nn.Linear(8, 8))
    >>> dist.destroy_process_group()
    """
    spread = over_group(group, "torchinit.distributed.verify_stages")

    def compared() -> dict[str, tuple[str, str, str]]:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise RunError("the model is on the meta device: compare stages after their start")
        return _drawn(model)

    drawn = spread(run_collectively(compared, "the comparison of stages", spread))
    holders: dict[str, dict[tuple[str, object], set[int]]] = defaultdict(lambda: defaultdict(set))
    for rank, here in drawn.items():
        for name, (values, meshes, part) in here.items():
            holders[values][name, f"{meshes} {part}" if meshes else rank].add(rank)
    alike = []
    for parts in holders.values():
        ranks = sorted(set[int]().union(*parts.values()))
        if len(parts) > 1 and len(ranks) > 1:
            names = " and ".join(dict.fromkeys(name for name, _ in parts))
            alike.append(f"{names}: the same on {ranks_text(ranks, 16)}")
    if alike:
        remedy = "put each stage under its name in the whole model, or give it a seed of its own"
        headline = f"{count(len(alike), 'tensor')} with the drawn values of another rank's; {remedy}"
        raise ReportError(headline, abridged(alike))


def _drawn(model: nn.Module, most: int | None = None) -> dict[str, tuple[str, str, str]]:
    """The digest of each drawn parameter's (``most`` first) values here, the model's meshes, and which part it is."""
    # Plain tensors beside DTensors belong to the same ranks: the norms of tensor parallelism, and what FSDP2 has just
    # gathered for a forward pass.
    meshes = sorted({str(each.device_mesh.mesh.tolist()) for each in model.parameters() if is_distributed(each)})
    found = {}
    for name, parameter in model.named_parameters():
        local = local_part(parameter)
        if local.is_floating_point() and not local.is_meta and local.numel() and is_shuffled(local):
            sums = digest(Shard.whole(name, local if most is None else local.detach().reshape(-1)[:most]))
            values = f"{local.dtype} {tuple(local.shape)} {sums.first:016x} {sums.second:016x}"
            part = _place(parameter) if is_distributed(parameter) else ""
            found[normalize(name)] = values, " ".join(meshes), part
    return found


def equal_parts(model: nn.Module, spread: Spread, only: Container[str] | None = None) -> dict[str, list[int]]:
    """The ranks that hold the same drawn values in different parts of one DTensor, by its name.

    The first 4,096 values of a part decide. ``only`` names those to look at. All ranks have to call this.
    """
    drawn = spread(run_collectively(lambda: _drawn(model, _SAMPLE), "the comparison of parts", spread))
    parts: dict[tuple[str, str], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for rank, here in drawn.items():
        for name, (values, _, part) in here.items():
            if part and (only is None or name in only):
                parts[name, values][part].add(rank)
    return {name: sorted(set[int]().union(*places.values())) for (name, _), places in parts.items() if len(places) > 1}


def check_parts(model: nn.Module, spread: Spread, only: Container[str]) -> None:
    """Raise ReportError on every rank where :func:`equal_parts` finds some."""
    if alike := equal_parts(model, spread, only):
        lines = [f"{name}: the same on {ranks_text(ranks, 16)}" for name, ranks in alike.items()]
        raise ReportError(f"{count(len(lines), 'tensor')} with equal drawn values in different parts", abridged(lines))
