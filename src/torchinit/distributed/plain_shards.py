"""Plain shards: parts of tensors that an engine cuts itself, without DTensors, as Megatron does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from operator import itemgetter
from typing import TypeAlias

import torch
from torch import nn

from torchinit._text import count, did_you_mean
from torchinit.errors import ConfigError
from torchinit.knowledge.role_rules import with_roles
from torchinit.model.dtensor import is_distributed
from torchinit.model.shards import Shard
from torchinit.model.sites import sites, with_weights
from torchinit.noise import Keyed
from torchinit.noise.settings import plain_thread
from torchinit.plans.plan import Plan, Strict
from torchinit.plans.planner import make_plan
from torchinit.plans.report import Report
from torchinit.plans.run import run
from torchinit.recipes import RecipeLike, to_rules
from torchinit.recipes.arguments import Given
from torchinit.rules.rule import Value

_Parts: TypeAlias = dict[str, tuple[Shard, ...]]


def initialize_shards(
    shards: Mapping[str, Shard | Sequence[Shard]],
    recipe: RecipeLike | Plan,
    *,
    seed: int,
    complete: bool = False,
    strict: Strict = False,
    stats: bool = True,
    arguments: Mapping[str, Value] | None = None,
) -> Report:
    """Write to parts of tensors the values that the whole tensors have in a model of one process.

    ``shards`` has by their names in the whole model what this rank holds: the local tensor, the shape of the whole, and
    where in it the part begins; several for one that is here in pieces. No rank asks another. A recipe sees names,
    shapes, dtypes and the roles that names tell; what it says of layers, blocks and what follows them needs a plan of
    the whole in its place, made on the meta device: ``torchinit.plan(whole, recipe)``.

    ``complete`` and ``strict`` are those of :func:`torchinit.plan`, of the shards that are here. Raises ConfigError or
    TypeError for what is not a shard, and for shards that reach beyond their whole, overlap without being alike, are of
    several dtypes or lie in one memory, PlanError or RunError as :func:`torchinit.initialize` does, before anything is
    written.

    >>> from torchinit import Normal, Rule, initialize
    >>> whole, local = nn.Linear(4, 6), torch.empty(3, 4)
    >>> _ = initialize(whole, Rule("weight", Normal()), seed=0)
    >>> _ = initialize_shards({"weight": Shard("weight", local, (6, 4), (3, 0))}, Rule("weight", Normal()), seed=0)
    >>> torch.equal(local, whole.weight[3:])
    True
    """
    if not isinstance(shards, Mapping):
        example = "{'layers.3.0.weight': Shard(...)}"
        raise TypeError(f"shards are a dict of names, {example}, but got {type(shards).__name__}")
    parts = {name: tuple(given) if isinstance(given, list | tuple) else (given,) for name, given in shards.items()}
    if problems := [problem for name, several in parts.items() for problem in _problems(name, several)]:
        raise ConfigError(f"{count(len(problems), 'problem')} with shards; nothing was written", problems)
    if shared := [*_shared(parts)]:
        raise ConfigError("shards that lie in one memory; give a tied tensor one name", shared)
    parts = _by_first_name(recipe, parts) if isinstance(recipe, Plan) else parts
    if unlike := [problem for name, several in parts.items() for problem in _unlike(name, several)]:
        raise ConfigError(f"{count(len(unlike), 'problem')} with shards; nothing was written", unlike)
    if isinstance(recipe, Plan):
        plan = _of_shards(recipe, parts)
    else:
        rules = to_rules(recipe, Given(dict(arguments or {})))
        with plain_thread():  # what is made in inference mode could not be written
            sketch = _sketched(parts)
            plan = make_plan(with_weights(with_roles(sketch, sites(sketch))), rules)
    return run(plan.check(complete=complete, strict=strict), parts, Keyed(seed), stats=stats)


def _problems(name: str, parts: Sequence[Shard]) -> Iterator[str]:
    """What is wrong with the parts of one tensor, each by itself."""
    if not parts:
        yield f"{name}: has no parts; leave out what is not here"
    for part in parts:
        if not isinstance(part, Shard):
            raise TypeError(f"{name}: a Shard(name, local, shape, start) is needed, but got a {type(part).__name__}")
        if is_distributed(part.local):
            raise TypeError(f"{name}: is a DTensor, which knows its part: call torchinit.initialize on its model")
        local, start, shape = tuple(part.local.shape), part.start, part.shape
        if part.name != name:
            yield f"{name}: its shard is called {part.name!r}; values belong to names"
        elif not len(local) == len(start) == len(shape):
            yield f"{name}: local shape {local}, start {start} and shape {shape} have not the same number of dimensions"
        elif any(low < 0 or low + size > most for low, size, most in zip(start, local, shape, strict=True)):
            yield f"{name}: a part of shape {local} that begins at {start} reaches beyond the whole, {shape}"
        elif part.shape != parts[0].shape:
            yield f"{name}: its parts are of wholes of other shapes, {parts[0].shape} and {shape}"


def _unlike(name: str, parts: Sequence[Shard]) -> Iterator[str]:
    """What is wrong with the parts of one tensor, each beside the others: other dtypes, and parts that overlap.

    Parts alike in start and shape are copies of one; between parts there may be any gap, which other ranks hold.
    """
    for part in parts:
        if part.local.dtype != (dtype := parts[0].local.dtype):
            pair = f"{_text(parts[0])} is {dtype}, and {_text(part)} is {part.local.dtype}"
            yield f"{name}: its {pair}; initialize the parts of each dtype in a call of their own"
    # By their starts along the axis that has most of them: a part is compared with those that reach beyond its start.
    alike = (part for part in parts if part.local.numel() and part.shape == parts[0].shape)  # of ties, run tells others
    boxes = [*{(tuple(part.start), tuple(part.local.shape)): part for part in alike}.values()]
    cut = max(range(len(parts[0].shape)), key=lambda axis: len({box.start[axis] for box in boxes}), default=0)
    near: list[Shard] = []
    for part in sorted(boxes, key=lambda box: box.start[cut]) if len(boxes) > 1 else ():
        near = [other for other in near if other.start[cut] + other.local.shape[cut] > part.start[cut]]
        if other := next((other for other in near if _meet(other, part)), None):
            remedy = "correct their starts, or cut one where the other begins; copies of a part are alike in both"
            yield f"{name}: its {_text(other)} and {_text(part)} overlap; {remedy}"
        near.append(part)


def _meet(part: Shard, other: Shard) -> bool:
    axes = zip(part.start, part.local.shape, other.start, other.local.shape, strict=True)
    return all(low < begin + length and begin < low + size for low, size, begin, length in axes)


def _text(part: Shard) -> str:
    return f"part of shape {tuple(part.local.shape)} at {tuple(part.start)}"


def _shared(parts: _Parts) -> Iterator[str]:
    """The parts that have elements in common without being one part."""
    # Engines cut thousands of parts from one buffer, so each is compared with the one before it in the memory. Of what
    # is not in one piece, as columns are, no more than the first byte is known.
    spans = []
    for name, part in ((name, part) for name, several in parts.items() for part in several):
        if part.local.numel() and not part.local.is_meta:
            begin, size = part.local.data_ptr(), part.local.nbytes if part.local.is_contiguous() else 1
            spans.append((str(part.local.device), begin, begin + size, name, part))
    spans.sort(key=itemgetter(0, 1))
    for (device, begin, end, name, part), (place, at, to, other_name, other) in pairwise(spans):
        if device != place or at >= end:
            continue
        if name != other_name:
            yield f"{name} and {other_name}"
        elif (begin, end, _text(part)) != (at, to, _text(other)):
            yield f"{name}: its {_text(part)} and {_text(other)}; give each elements of its own"


def _sketched(parts: _Parts) -> nn.Module:
    """A model on the meta device that has the whole tensors under their names, in modules of no kind."""
    # Rules are for the sites of a model, so one is made of the names. Its modules are of no class: a rule by layers
    # matches nothing here, and is told as any rule that does.
    root = nn.Module()
    for name, (part, *_) in parts.items():
        *path, leaf = name.split(".")
        module = root
        for step in path:
            module = module._modules.setdefault(step, nn.Module()) or module
        whole = torch.empty(part.shape, dtype=part.local.dtype, device="meta")
        module._parameters[leaf] = nn.Parameter(whole, requires_grad=part.local.requires_grad)
    return root


def _by_first_name(plan: Plan, parts: _Parts) -> _Parts:
    """The parts under the names that the plan has for them: a tied tensor may be here by another of its names."""
    first = {view.name: site.name for site in plan.sites for view in site.views}
    if unknown := [f"{name}{did_you_mean(name, first)}" for name in parts if name not in first]:
        raise ConfigError(f"the plan lacks {count(len(unknown), 'tensor')} of the shards", unknown)
    named: _Parts = {}
    for name, several in parts.items():
        renamed = (replace(part, name=first[name]) for part in several)
        named[first[name]] = (*named.get(first[name], ()), *renamed)
    return named


def _of_shards(plan: Plan, parts: _Parts) -> Plan:
    fields = ("steps", "overwritten", "skipped", "declined")
    here = {name: tuple(each for each in getattr(plan, name) if each.site.name in parts) for name in fields}
    return replace(plan, **here, untouched=tuple(site for site in plan.untouched if site.name in parts))
