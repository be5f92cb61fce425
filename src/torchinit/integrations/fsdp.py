"""FSDP: the function that FullyShardedDataParallel, FSDP1, calls to initialize the parts of a model as it wraps them.

It takes one module after the other, as ``_init_weights(module)`` of a transformers model does, and serves there, too.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit._text import count
from torchinit.api import plan
from torchinit.distributed import among
from torchinit.distributed.allocation import ModuleTensor, allocate, check_device, module_tensors, unwritten
from torchinit.distributed.consensus import RankIntent, check_consensus
from torchinit.distributed.materialize import explain_unwritten
from torchinit.distributed.own_code import OwnCodeResult, is_tried, make_buffers
from torchinit.errors import RunError
from torchinit.model.names import normalize
from torchinit.model.ranks import Agreement, Spread
from torchinit.model.sites import Site, group_sites
from torchinit.model.traversal import HeldTensor, walk_modules, walk_tensors
from torchinit.noise import Keyed
from torchinit.plans import Plan, Record, Report, Step, run
from torchinit.plans.only import LOADING, is_loaded, is_within, locals_of
from torchinit.plans.origin import steps_of
from torchinit.plans.plan import LOADED, Strict
from torchinit.plans.run import shards_of_entry
from torchinit.recipes import RecipeLike
from torchinit.rules.rule import Value
from torchinit.tracing import holds_no_values
from torchinit.tracing.regions import Snapshot, snapshot

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_WRAPPING: Final = ("torch.distributed.fsdp._init_utils", "_init_param_handle_from_module")
"""The function of FSDP1 that asks for the weights of a part without memory; of one with memory it does not ask."""

_ANEW: Final = (
    "this param_init_fn was made for. Make it anew, by param_init_fn(model, recipe, seed=...), of the model as it is"
)


def param_init_fn(
    model: nn.Module,
    recipe: RecipeLike,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    strict: Strict = "model",
    arguments: Mapping[str, Value] | None = None,
) -> ParamInit:
    """The argument of ``FullyShardedDataParallel(model, param_init_fn=...)`` for a model on the meta device.

    FSDP1 has each part whole on every rank for a moment before it keeps its own; the values are those of
    :func:`torchinit.materialize` on one process. Make it before anything wraps the model: it keeps the names.

    It is called with a module of the model, and writes what the recipe has for it and for all below it: on the meta
    device, where it gives memory first, or in memory that is there, as after ``to_empty`` or in ``_init_weights(self,
    module)`` of a transformers model. What transformers marks as loaded is left alone. A second call writes the same.

    Raises ConfigError or PlanError, also for a parameter without a rule, before anything has memory.

    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(2, 3))
    >>> init = param_init_fn(model, {"rules": [{"type": "Constant", "val": 1, "name": "**"}]}, seed=0)
    >>> init(model[0])
    >>> model[0].bias.tolist(), [record.name for record in init.report]
    ([1.0, 1.0, 1.0], ['0.weight', '0.bias'])
    """
    planned = Plan() if is_tried() else plan(model, recipe, complete=True, strict=strict, arguments=arguments)
    return ParamInit(model, planned, Keyed(seed), check_device(device))


class ParamInit:
    """Gives the modules of a model values by the whole model's plan, and memory where they have none."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        noise: Keyed,
        device: torch.device,
        groups: list[tuple[Site, list[HeldTensor]]] | None = None,
    ) -> None:
        groups = group_sites(walk_tensors(model)) if groups is None else groups
        self.model = model
        self.plan = plan
        self.noise = noise
        self.device = device
        self.steps: dict[str, Step] = {step.site.name: step for step in plan}
        self.paths: dict[nn.Module, str] = {place.module: place.name for place in reversed(walk_modules(model))}
        # The names of the sites, by module and the module's name for the tensor: FSDP1 changes both as it wraps.
        self.names: dict[nn.Module, dict[str, str]] = {module: {} for module in self.paths}
        for site, group in groups:
            for entry in group:
                self.names[entry.place.module][entry.leaf] = site.name
        self.was_on_meta: frozenset[str] = frozenset(site.name for site, group in groups if group[0].tensor.is_meta)
        self.records: dict[str, Record] = {}
        self.made: OwnCodeResult = OwnCodeResult()
        self.agreement: Agreement = Agreement("param_init_fn", self._compare)
        # What each site was like when it was last seen to: a call that finds it so writes nothing.
        self.snapshots: dict[str, set[Snapshot]] = defaultdict(set)

    @property
    def report(self) -> Report:
        """The records so far; ``untouched`` are the parameters that still wait for their call."""
        tensors: dict[str, list[Tensor]] = defaultdict(list)
        for module, names in self.names.items():
            for leaf, name in names.items():
                tensor = module._parameters.get(leaf, module._buffers.get(leaf))
                tensors[name] += [] if tensor is None else [tensor]
        loaded = {name: LOADED for name, group in tensors.items() if group and all(map(is_loaded, group))}
        done = {*self.records, *self.made.by, *loaded}
        left = [site for site in (*(step.site for step in self.plan), *self.plan.untouched) if site.name not in done]
        return Report(
            tuple(self.records.values()),
            untouched=tuple(site.name for site in left if site.kind == "parameter" and site.numel),
            skipped=tuple(({skip.site.name: skip.why for skip in self.plan.skipped} | loaded).items()),
            unused=tuple(hint for _, hint in self.plan.unused),
            noise=str(self.noise),
            buffers=tuple(site.name for site in left if site.kind == "buffer"),
            loads=self.plan.loads,
            unfilled=tuple(
                name
                for name, group in tensors.items()
                if any(holds_no_values(tensor, written=name in done) for tensor in group)
            ),
        )

    def __call__(self, module: nn.Module) -> None:
        """Writes what is planned for a module and what is below it, and has its other buffers made by their own code.

        Raises RunError for a module that is not part of the model, and for what is left unwritten.
        """
        self.write(module)

    def write(self, module: nn.Module, within: Collection[nn.Module] | None = None, *, buffers: bool = True) -> None:
        """The same, of the modules ``within`` alone, and of all below it by default; without ``buffers`` of weights."""
        if is_tried():  # by code of the model's own, which is to show what it makes without a recipe
            return
        # FSDP1 calls this for each part that it wraps, the innermost first, transformers for each module, and a module
        # comes again with those around it: a site that is as it was left is not written again (``snapshots``). Names
        # are those from before the wrapping, which changes them.
        module = self._owner(module)
        self.agreement.over(module.parameters(), _groups_of_fsdp())
        asked = {part for part in module.modules() if within is None or self._owner(part) in within}
        self._check(module, asked)
        memory = allocate(module, self.device, lambda one: one.module not in asked or is_loaded(one.tensor))
        blank = [self._named(tenant) for tenant in memory.blank]
        parts = [(self._site(entry), entry) for entry in _parts(module, asked)]
        parts = [(name, entry) for name, entry in parts if name in self.steps]
        parts = [(name, entry) for name, entry in parts if not all(map(is_loaded, entry.sources))]
        if half := [name for name, entry in parts if any(map(is_loaded, entry.sources))]:
            raise RunError("computed of tensors that were loaded in part, which a recipe would write over", half)
        planned = {self._path(entry.place.module, entry.leaf) for _, entry in parts}
        # Before the steps: a parametrization may need its buffers to take a value.
        left = self._make_buffers(module, asked, planned, {each.name for each in blank}) if buffers else []
        for group in _rounds((name, entry) for name, entry in parts if self._is_news(name, *entry.sources)):
            steps = sorted((self.steps[name] for name in group), key=lambda step: step.turn)
            shards = {name: shards_of_entry(entry, name) for name, entry in group.items()}
            agree = among(module, "param_init_fn") if self.plan.loads else None
            for record in run(Plan(tuple(steps)), shards, self.noise, agree=agree):
                self.records[record.name] = record
        missed = unwritten(blank, {*planned, *self.made.by})
        left += [tenant for tenant in blank if tenant.name in missed]
        if left:
            texts = {each.name: explain_unwritten(each, self.made.failed.get(each.name, ())) for each in left}
            hint = "; call super()._init_weights(module) first, which may make them" if is_within(*LOADING) else ""
            headline = f"{count(len(texts), 'tensor')} of {type(module).__name__} left unwritten{hint}"
            raise RunError(headline, [f"{name}: {why}" for name, why in texts.items()])
        for name, entry in parts:
            self._remember(name, *entry.sources)

    def _compare(self, spread: Spread) -> None:
        check_consensus(RankIntent({"the seed": str(self.noise.seed)}, steps_of(self.plan)), spread)

    def _owner(self, module: nn.Module) -> nn.Module:
        """The module itself, or the one that computes a weight with it: a parametrization has no values of its own."""
        path = self.paths.get(module, "").split(".")
        within = path.index("parametrizations") if "parametrizations" in path else None
        return module if within is None else self.model.get_submodule(".".join(path[:within]))

    def _check(self, module: nn.Module, asked: Collection[nn.Module]) -> None:
        """Raises RunError where the module or its tensors are not those that were there when this was made."""
        parts = _parts(module, asked)
        strange = [entry.name for entry in parts if entry.leaf not in self.names.get(entry.place.module, ())]
        if strange or (not parts and module not in self.names):
            tensors = f"{count(len(strange), 'tensor')} of " if strange else ""
            raise RunError(f"{tensors}{type(module).__name__}: not part of the model that {_ANEW}", strange)
        ties: dict[object, set[str]] = defaultdict(set)
        for entry in parts:
            ties[entry.key] |= {self._site(entry)} & self.steps.keys()
        tied = [" and ".join(sorted(names)) for names in ties.values() if len(names) > 1]
        if tied:
            raise RunError(f"tensors have become one and were several in the model that {_ANEW}", tied)
        here = {(entry.place.module, entry.leaf) for entry in parts}
        places = ((part, leaf, name) for part in asked for leaf, name in self.names.get(part, {}).items())
        wanted = self.was_on_meta if is_within(*_WRAPPING) else self.steps
        absent = dict.fromkeys(name for part, leaf, name in places if (part, leaf) not in here and name in wanted)
        gone = [name for name in absent if name in self.steps and name not in self.records]
        if gone:
            raise RunError(f"{count(len(gone), 'tensor')} gone, or flattened by FSDP1, of the model that {_ANEW}", gone)

    def _make_buffers(
        self, module: nn.Module, asked: Collection[nn.Module], planned: Collection[str], blank: Collection[str]
    ) -> list[ModuleTensor]:
        """Has the buffers made that no rule writes; gives back those that hold no values and that nothing makes.

        One that may hold its values is made anew by the module that it belongs to, or stays: the report names it.
        """
        tenants = (tenant for tenant in module_tensors(module) if tenant.kind == "buffer" and tenant.module in asked)
        buffers = [self._named(tenant) for tenant in tenants]
        others = [each for each in buffers if each.name not in planned and not is_loaded(each.tensor)]
        wanted = [each for each in others if not is_lazy(each.tensor) and self._is_news(each.name, each.tensor)]
        hollow = {each.name for each in wanted if each.name in blank or self._is_hollow(each)}
        # Code of the modules above would write into the weights that FSDP1 has flattened.
        top = module if hollow and _has_fsdp(self.model) else self.model
        groups: dict[tuple[nn.Module, torch.device], list[ModuleTensor]] = defaultdict(list)
        for each in wanted:
            groups[top if each.name in hollow else each.module, each.tensor.device].append(each)
        failed: set[str] = set()
        for (scope, device), group in groups.items():
            made = make_buffers(scope, group, device, self.noise.seed, paths=self.paths)
            self.made.by.update(made.by)
            self.made.failed.update(made.failed)
            failed.update(made.failed)
        for each in wanted:
            if each.name not in hollow & failed:
                self._remember(each.name, each.tensor)
        return [each for each in wanted if each.name in hollow & failed]

    def _is_hollow(self, buffer: ModuleTensor) -> bool:
        """Whether a buffer holds what its memory held before, so far as that can be told.

        One that was on the meta device does until something writes to it, which torch counts, and so does one that
        ``from_pretrained`` has not loaded.
        """
        is_fresh = not buffer.tensor.is_inference() and buffer.tensor._version == 0
        was_blank = is_fresh and (buffer.name in self.was_on_meta or is_within(*LOADING))
        return was_blank or holds_no_values(buffer.tensor, written=False)

    def _is_news(self, name: str, *tensors: Tensor) -> bool:
        return any(snapshot(tensor) not in self.snapshots[name] for tensor in tensors)

    def _remember(self, name: str, *tensors: Tensor) -> None:
        self.snapshots[name].update(map(snapshot, tensors))

    def _site(self, entry: HeldTensor) -> str:
        return self.names[entry.place.module][entry.leaf]

    def _path(self, module: nn.Module, leaf: str) -> str:
        return normalize(f"{self.paths[module]}.{leaf}".removeprefix("."))

    def _named(self, tenant: ModuleTensor) -> ModuleTensor:
        """The tensor under its name in the whole model."""
        known = tenant.module in self.paths
        return replace(tenant, name=self._path(tenant.module, tenant.leaf)) if known else tenant


def _parts(module: nn.Module, asked: Collection[nn.Module]) -> list[HeldTensor]:
    """The tensors of the modules asked for, but for those that FSDP1 has flattened, and has had written before."""
    return [entry for entry in walk_tensors(module) if not entry.flat and entry.place.module in asked]


def _groups_of_fsdp() -> list[ProcessGroup]:
    """The groups of the ranks that wrap a part with FSDP1 at the time; none where rank 0 sends its values to all."""
    values = locals_of(*_WRAPPING)
    if values is None:
        return []
    state = {} if values.get("sync_module_states") else vars(values["state"])  # whose lookup does not end yet
    return [state[name] for name in ("process_group", "_inter_node_pg") if state.get(name) is not None]


def _rounds(parts: Iterable[tuple[str, HeldTensor]]) -> Iterator[dict[str, HeldTensor]]:
    """The parts by site, a tensor of each a round: a tie that has been broken since has several."""
    copies: dict[str, dict[object, HeldTensor]] = defaultdict(dict)
    for name, entry in parts:
        copies[name].setdefault(entry.key, entry)
    for number in range(max(map(len, copies.values()), default=0)):
        yield {name: [*group.values()][number] for name, group in copies.items() if number < len(group)}


def _has_fsdp(model: nn.Module) -> bool:
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(part, fsdp.FullyShardedDataParallel) for part in model.modules())
