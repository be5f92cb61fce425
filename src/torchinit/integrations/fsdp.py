"""FSDP: the function by which FullyShardedDataParallel, FSDP1, initializes the parts of a model as it wraps them.

It takes one module after the other, as ``_init_weights(module)`` of a transformers model does, and serves there, too.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit._text import count
from torchinit.api import plan
from torchinit.distributed import among
from torchinit.distributed.allocation import Tenant, allocate, check_device, tenants, unwritten
from torchinit.distributed.materialize import why_unwritten
from torchinit.distributed.own_code import Made, is_tried, make_buffers
from torchinit.errors import RunError
from torchinit.model.names import normalize
from torchinit.model.sites import grouped
from torchinit.model.traversal import Held, held, places
from torchinit.noise import Keyed
from torchinit.plans.plan import Plan, Step
from torchinit.plans.report import Record, Report
from torchinit.plans.run import run, shards_held
from torchinit.recipes import RecipeLike
from torchinit.tracing import holds_no_values
from torchinit.tracing.locks import Snapshot, snapshot

LOADED: Final = "was loaded, as transformers marks it (_is_hf_initialized)"
_ANEW: Final = (
    "this param_init_fn was made for. Make it anew, by param_init_fn(model, recipe, seed=...), of the model as it is"
)


def param_init_fn(
    model: nn.Module, recipe: RecipeLike, *, seed: int, device: torch.device | str = "cpu", strict: bool = True
) -> ParamInit:
    """What to pass to ``FullyShardedDataParallel(model, param_init_fn=...)`` for a model on the meta device.

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
    if is_tried():
        return ParamInit(model, Plan(), {}, {}, {}, frozenset(), Keyed(seed), check_device(device))
    made = plan(model, recipe, complete=True, strict=strict)
    found = grouped(held(model))
    paths = {place.module: place.name for place in reversed(places(model))}
    names: dict[nn.Module, dict[str, str]] = {module: {} for module in paths}
    for site, group in found:
        for one in group:
            names[one.place.module][one.leaf] = site.name
    blank = frozenset(site.name for site, group in found if group[0].tensor.is_meta)
    steps = {step.site.name: step for step in made}
    return ParamInit(model, made, steps, names, paths, blank, Keyed(seed), check_device(device))


def is_loaded(tensor: Tensor) -> bool:
    """Whether transformers has marked a tensor as loaded, or as one that will be tied to another.

    >>> is_loaded(torch.ones(2))
    False
    """
    return bool(getattr(tensor, "_is_hf_initialized", False))


@dataclass(frozen=True, slots=True)
class ParamInit:
    """Gives the modules of a model values by the whole model's plan, and memory where they have none.

    ``steps`` are the plan's by site, ``names`` those of the sites, by module and the module's name for the tensor,
    ``paths`` those of the modules, as they were when it was made, and ``blank`` the sites that were on the meta
    device. ``records`` tell what was written, ``made`` which buffers the modules' own code made; ``marks`` show
    whether what has been done is so still.
    """

    model: nn.Module
    plan: Plan
    steps: dict[str, Step]
    names: dict[nn.Module, dict[str, str]]
    paths: dict[nn.Module, str]
    blank: frozenset[str]
    noise: Keyed
    device: torch.device
    records: dict[str, Record] = field(default_factory=dict)
    made: Made = field(default_factory=Made)
    marks: dict[str, set[Snapshot]] = field(default_factory=dict)

    @property
    def report(self) -> Report:
        """What was written so far; ``untouched`` are the parameters that still wait for their call."""
        now: dict[str, list[Tensor]] = defaultdict(list)
        for module, names in self.names.items():
            for leaf, name in names.items():
                tensor = module._parameters.get(leaf, module._buffers.get(leaf))
                now[name] += [] if tensor is None else [tensor]
        loaded = {name: LOADED for name, tensors in now.items() if tensors and all(map(is_loaded, tensors))}
        done = {*self.records, *self.made.by, *loaded}
        left = [site for site in (*(step.site for step in self.plan), *self.plan.untouched) if site.name not in done]
        return Report(
            tuple(self.records.values()),
            untouched=tuple(site.name for site in left if site.kind == "parameter" and site.numel),
            skipped=(*((skip.site.name, skip.why) for skip in self.plan.skipped), *loaded.items()),
            unused=tuple(hint for _, hint in self.plan.unused),
            noise=str(self.noise),
            buffers=tuple(site.name for site in left if site.kind == "buffer"),
            loads=self.plan.loads,
            unfilled=tuple(
                name
                for name, tensors in now.items()
                if any(holds_no_values(tensor, written=name in done) for tensor in tensors)
            ),
        )

    def __call__(self, module: nn.Module) -> None:
        """Writes what is planned for a module and what is below it, and has its other buffers made by their own code.

        Raises RunError for a module that is not part of the model, and for what is left unwritten.
        """
        if is_tried():  # by code of the model's own, which is to show what it makes without a recipe
            return
        module = self._owner(module)
        self._check(module)
        blank = [self._named(one) for one in allocate(module, self.device, leave=is_loaded).blank]
        parts = [one for one in _parts(module) if self._site(one) in self.steps and not _is_loaded(one)]
        planned = {self._path(one.place.module, one.leaf) for one in parts}
        # Before the steps: a parametrization may need its buffers to take a value.
        left = self._make_buffers(module, planned, {one.name for one in blank})
        for group in _rounds((self._site(one), one) for one in parts if self._is_news(self._site(one), *_sources(one))):
            shards = {name: shards_held(one, name) for name, one in group.items()}
            agree = among(module) if self.plan.loads else None
            some = sorted((self.steps[name] for name in group), key=lambda step: step.turn)
            for record in run(Plan(tuple(some)), shards, self.noise, agree=agree):
                self.records[record.name] = record
        missed = unwritten(blank, {*planned, *self.made.by})
        left += [one for one in blank if one.name in missed]
        if left:
            texts = {one.name: f"{one.name}: {why_unwritten(one, self.made.failed.get(one.name, ()))}" for one in left}
            hint = "; call super()._init_weights(module) first, which may make them" if _is_within(*_LOADING) else ""
            raise RunError(
                f"{count(len(texts), 'tensor')} of {type(module).__name__} left unwritten{hint}", texts.values()
            )
        for one in parts:
            self._remember(self._site(one), *_sources(one))

    def _owner(self, module: nn.Module) -> nn.Module:
        """The module itself, or the one that computes a weight with it: a parametrization has no values of its own."""
        path = self.paths.get(module, "").split(".")
        within = path.index("parametrizations") if "parametrizations" in path else None
        return module if within is None else self.model.get_submodule(".".join(path[:within]))

    def _check(self, module: nn.Module) -> None:
        """Raises RunError where the module or its tensors are not those that were there when this was made."""
        parts = _parts(module)
        strange = [one.name for one in parts if one.leaf not in self.names.get(one.place.module, ())]
        if strange or (not parts and module not in self.names):
            what = f"{count(len(strange), 'tensor')} of " if strange else ""
            raise RunError(f"{what}{type(module).__name__}: not part of the model that {_ANEW}", strange)
        ties: dict[object, set[str]] = defaultdict(set)
        for one in parts:
            ties[one.key] |= {self._site(one)} & self.steps.keys()
        tied = [" and ".join(sorted(names)) for names in ties.values() if len(names) > 1]
        if tied:
            raise RunError(f"tensors have become one and were several in the model that {_ANEW}", tied)
        here = {(one.place.module, one.leaf) for one in parts}
        spots = ((one, leaf, name) for one in module.modules() for leaf, name in self.names.get(one, {}).items())
        asked = self.blank if _is_within(*_WRAPPING) else self.steps
        absent = dict.fromkeys(name for one, leaf, name in spots if (one, leaf) not in here and name in asked)
        gone = [name for name in absent if name in self.steps and name not in self.records]
        if gone:
            raise RunError(f"{count(len(gone), 'tensor')} gone, or flattened by FSDP1, of the model that {_ANEW}", gone)

    def _make_buffers(self, module: nn.Module, planned: Collection[str], blank: Collection[str]) -> list[Tenant]:
        """Has the buffers made that no rule writes; gives back those that hold no values and that nothing makes.

        One that may hold its values is made anew by the module that it belongs to, or stays: the report names it.
        """
        every = [self._named(one) for one in tenants(module) if one.kind == "buffer"]
        other = [one for one in every if one.name not in planned and not (is_loaded(one.tensor) or is_lazy(one.tensor))]
        wanted = [one for one in other if self._is_news(one.name, one.tensor)]
        hollow = {one.name for one in wanted if one.name in blank or self._is_hollow(one)}
        # Code of what stands above would write into the weights that FSDP1 has flattened.
        top = module if hollow and _has_fsdp(self.model) else self.model
        groups: dict[tuple[nn.Module, torch.device], list[Tenant]] = defaultdict(list)
        for one in wanted:
            groups[top if one.name in hollow else one.module, one.tensor.device].append(one)
        failed: set[str] = set()
        for (scope, device), those in groups.items():
            made = make_buffers(scope, those, device, self.noise.seed, paths=self.paths)
            self.made.by.update(made.by)
            self.made.failed.update(made.failed)
            failed.update(made.failed)
        for one in wanted:
            if one.name not in hollow & failed:
                self._remember(one.name, one.tensor)
        return [one for one in wanted if one.name in hollow & failed]

    def _is_hollow(self, one: Tenant) -> bool:
        """Whether a buffer holds what its memory held before, so far as that can be told.

        One that was on the meta device does until something writes to it, which torch counts, and so does one that
        ``from_pretrained`` has not loaded.
        """
        fresh = not one.tensor.is_inference() and one.tensor._version == 0
        return (fresh and (one.name in self.blank or _is_within(*_LOADING))) or holds_no_values(
            one.tensor, written=False
        )

    def _is_news(self, name: str, *tensors: Tensor) -> bool:
        return any(snapshot(tensor) not in self.marks.get(name, ()) for tensor in tensors)

    def _remember(self, name: str, *tensors: Tensor) -> None:
        self.marks.setdefault(name, set()).update(map(snapshot, tensors))

    def _site(self, one: Held) -> str:
        return self.names[one.place.module][one.leaf]

    def _path(self, module: nn.Module, leaf: str) -> str:
        return normalize(f"{self.paths[module]}.{leaf}".removeprefix("."))

    def _named(self, one: Tenant) -> Tenant:
        """The tensor under its name in the whole model."""
        return replace(one, name=self._path(one.module, one.leaf)) if one.module in self.paths else one


def _parts(module: nn.Module) -> list[Held]:
    """The tensors of a module, but for what FSDP1 has flattened, and has had written before."""
    return [one for one in held(module) if not one.flat]


def _sources(one: Held) -> tuple[Tensor, ...]:
    return one.way.sources if one.way else (one.tensor,)


def _is_loaded(one: Held) -> bool:
    return all(map(is_loaded, _sources(one)))


def _rounds(parts: Iterable[tuple[str, Held]]) -> Iterator[dict[str, Held]]:
    """The parts by site, a tensor of each a round: a tie that has been broken since has several."""
    copies: dict[str, dict[object, Held]] = defaultdict(dict)
    for name, one in parts:
        copies[name].setdefault(one.key, one)
    for number in range(max(map(len, copies.values()), default=0)):
        yield {name: [*those.values()][number] for name, those in copies.items() if number < len(those)}


_LOADING: Final = ("transformers.modeling_utils", "_initialize_missing_keys")
"""What of ``from_pretrained`` asks for the weights that were not loaded, and has given them bare memory."""

_WRAPPING: Final = ("torch.distributed.fsdp._init_utils", "_materialize_with_param_init_fn")
"""What of FSDP1 asks for the weights of a part that has no memory; of one that has it does not ask."""


def _is_within(module: str, function: str) -> bool:
    """Whether a function is being called by which this one was called in the end."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back
    return False


def _has_fsdp(model: nn.Module) -> bool:
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(one, fsdp.FullyShardedDataParallel) for one in model.modules())
