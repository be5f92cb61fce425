"""Replicas: the ranks that hold the same part of a model, and whether they hold the same bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from torchinit._text import count
from torchinit.distributed.collectives import abridged, over_group, ranks_text, run_collectively
from torchinit.errors import ReportError, RunError
from torchinit.initializers.statistics import is_shuffled
from torchinit.model.dtensor import cut_dimensions, is_distributed, local_part, piece_here
from torchinit.model.names import normalize
from torchinit.model.ranks import Spread
from torchinit.model.shards import Shard
from torchinit.plans.digest import digest
from torchinit.plans.fingerprint import digest_tensors, hashed, sources_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Digests: TypeAlias = dict[str, str]
_SAMPLE = 4096


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
    compare_replicas(model, over_group(group))


def compare_replicas(model: nn.Module, spread: Spread, only: Container[str] | None = None) -> None:
    """Compare the parts of a model on the ranks of a spread, as :func:`verify_replicas` does on those of a group.

    ``only`` names the DTensors to look at, and leaves out plain tensors.
    """
    _raise_for(differing_replicas(model, spread, only))


def differing_replicas(model: nn.Module, spread: Spread, only: Container[str] | None = None) -> list[str]:
    """A line for each site that is not the same on all ranks that should hold the same part of it."""
    # Parts are compared by name and part, not by mesh: data parallelism holds meshes side by side that know nothing
    # of each other.
    parts = run_collectively(lambda: _parts(model, only), "the comparison of replicas", spread)
    totals = spread({place: hashed(*map(str, sites.items())) for place, sites in parts.items()})
    seen: dict[str, set[str]] = defaultdict(set)
    for each in totals.values():
        for place, total in each.items():
            seen[place].add(total)
    doubtful = {place for place, found in seen.items() if len(found) > 1}
    details = spread({place: sites for place, sites in parts.items() if place in doubtful}) if doubtful else {}
    return list(_differences(details))


def _parts(model: nn.Module, only: Container[str] | None) -> dict[str, _Digests]:
    """The digest of each site that is here, by its place: which part of the whole it is."""
    sources = sources_of(model).each
    if only is not None:
        sources = [(name, tensors) for name, tensors in sources if name in only and all(map(_is_part, tensors))]
    looks, problems = digest_tensors(sources)
    if problems:
        raise RunError(f"{count(len(problems), 'site')} without elements to look at", problems)
    texts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for look in looks:
        texts[_place(look.distributed)][look.name].append(look.text(look.sums))
    return {place: {name: hashed(*lines) for name, lines in sites.items()} for place, sites in texts.items()}


def _is_part(tensor: Any) -> bool:
    return is_distributed(tensor) and tensor.device_mesh.get_coordinate() is not None


def _place(tensor: Any) -> str:
    """Which part of a tensor is here; a text that is the same on meshes side by side."""
    if tensor is None:
        return ""
    mesh = tensor.device_mesh
    return " ".join(f"{tensor.placements[i]} {piece_here(mesh, i)}/{mesh.shape[i]}" for i in cut_dimensions(tensor))


def verify_stages(model: nn.Module, *, group: ProcessGroup | None = None) -> None:
    """Find drawn values that ranks have in common where each should have its own: stages, or parts of a weight.

    Values belong to names, and a stage alone has local ones: ``0.weight`` of every stage is one name, so one seed gives
    all of them the same bits, as one ``torch.manual_seed`` on every rank does with parts that each rank draws itself.
    Compared are all parameters of the ranks of the ``group`` (None: all there are), whatever their names. Replicas are
    the ranks of a mesh that have one part of a DTensor, or a plain tensor beside DTensors; of a model without any each
    rank should have its own. Only values that come in no order count, and are at least 20. All ranks of the group have
    to call this; digests are sent.

    Raises ReportError on every rank, with what is held by which of them: start each stage under its name in the whole
    (``under="layers.3"``), or from a seed of its own; RunError for a model on the meta device. What is tied across
    stages is named, too.

    >>> from torch import distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> verify_stages(nn.Linear(8, 8))
    >>> dist.destroy_process_group()
    """
    spread = over_group(group)

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
    """The digest of what is here of each drawn parameter, the meshes of the model, and which part it is, if it is one.

    Of its first values, with ``most``.
    """
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


def _differences(details: Mapping[int, Mapping[str, _Digests]]) -> Iterator[str]:
    """A line for each site that has more than one digest in one place."""
    known = [(place, name) for here in details.values() for place, sites in here.items() for name in sites]
    for place, name in dict.fromkeys(known):
        holders: dict[str, list[int]] = defaultdict(list)
        for rank, here in details.items():
            if name in here.get(place, {}):
                holders[here[place][name]].append(rank)
        if len(holders) > 1:
            # Blamed are those that hold other bits than most, or than the first rank where there is no majority.
            most = max(holders.values(), key=lambda ranks: (len(ranks), -ranks[0]))
            odd = sorted(rank for ranks in holders.values() if ranks is not most for rank in ranks)
            verb = "holds" if len(odd) == 1 else "hold"
            yield f"{name}: {ranks_text(odd, 16)} {verb} other bits than {ranks_text(most, 16)}"


def _raise_for(problems: Sequence[str]) -> None:
    if problems:
        raise ReportError(f"{count(len(problems), 'site')} not the same on all replicas", abridged(problems))
