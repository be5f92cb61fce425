"""torchtitan: the ``param_init`` of every module of a model, made of one recipe for all of it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from torchinit.api import plan
from torchinit.distributed.consensus import RankIntent, check_consensus
from torchinit.errors import RunError
from torchinit.initializers import Constant, Fill
from torchinit.model.dtensor import behind, shards_of
from torchinit.model.names import normalize
from torchinit.model.ranks import Agreement
from torchinit.model.sites import sites
from torchinit.noise import Keyed
from torchinit.plans import Plan, Record, Report, Step, run
from torchinit.plans.origin import steps_of
from torchinit.plans.plan import Strict
from torchinit.recipes import RecipeLike, to_rules
from torchinit.recipes.arguments import Given
from torchinit.rules.rule import Value

_Target = TypeVar("_Target")


def param_init(
    target: _Target,
    recipe: RecipeLike,
    *,
    seed: int,
    strict: Strict = "model",
    arguments: Mapping[str, Value] | None = None,
    **named: Value,
) -> _Target:
    """The config of a torchtitan model, or the model, with a ``param_init`` made of a recipe in each of its modules.

    A config is copied; a model, on the meta device or not, is changed. ``init_states`` then writes each parameter as
    one process would write it, on any layout, and tied ones by one rule; buffers are made by ``_init_self_buffers``.
    ``strict`` and ``arguments`` are those of :func:`torchinit.plan`. :func:`report` tells afterwards what happened.

    Raises ConfigError or PlanError, also for a parameter without a rule and for a rule for buffers, before anything is
    built; RunError for a config or model whose modules have no ``param_init`` (it came with torchtitan 0.3), and for a
    config that makes several modules by itself; one that stands in several places is copied.

    >>> class Linear(nn.Linear):
    ...     _param_init = None
    >>> model = param_init(Linear(2, 3), {"rules": [{"type": "Constant", "val": 1, "name": "**"}]}, seed=0)
    >>> model._param_init
    {'weight': Constant(val=1.0), 'bias': Constant(val=1.0)}
    """
    rules = to_rules(recipe, Given.to("param_init", ("seed", "strict", "arguments"), arguments, named))
    if isinstance(target, nn.Module):
        _set(target, _Writers(plan(target, rules, complete=True, strict=strict), seed))
        return target
    found = list[Any]()
    config: _Target = _copied(target, found, {})
    nodes = [node for node in found if hasattr(node, "param_init")]
    if not hasattr(config, "build") or not nodes:
        raise RunError(f"{type(target).__name__}: {_NO_HOOK}")
    for node in nodes:  # each makes a module that refers to its own dict
        node.param_init = {}
    with torch.device("meta"):
        model: nn.Module = cast("Any", config).build()
    _set(model, _Writers(plan(model, rules, complete=True, strict=strict), seed), nodes)
    return config


_NO_HOOK = (
    "no module here has a param_init, which came with torchtitan 0.3. Give the model's class"
    " init_weights = torchinit.integrations.trainers.init_weights(recipe, seed=...) instead"
)


def report(model: nn.Module) -> Report:
    """What the dicts of :func:`param_init` have written in a model since they were made.

    ``untouched`` are the parameters that still wait for ``init_states``, ``buffers`` those that no code of the model
    makes. Raises RunError for a model without such dicts.
    """
    found = [each for module in model.modules() for each in (getattr(module, "_param_init", None) or {}).values()]
    writers = next((each.writers for each in found if isinstance(each, ParameterWriter)), None)
    if writers is None:
        raise RunError(f"{type(model).__name__} was not made from torchinit.integrations.torchtitan.param_init")
    makers = {name for name, module in model.named_modules() if _makes_buffers(module)}
    buffers = {site.name: site.views for site in sites(model) if site.kind == "buffer"}
    homes = {name: {view.name.rpartition(".")[0] for view in views} for name, views in buffers.items()}
    return Report(
        tuple(writers.records.values()),
        untouched=tuple(name for name in writers.steps if name not in writers.records),
        skipped=tuple((skip.site.name, skip.why) for skip in writers.plan.skipped),
        unused=tuple(hint for _, hint in writers.plan.unused),
        noise=str(writers.noise),
        buffers=tuple(name for name, paths in homes.items() if not paths & makers),
    )


@dataclass
class _Writers:
    """What the callables of one model share: the plan, the noise, and a record of each parameter written."""

    plan: Plan
    seed: int
    records: dict[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.noise: Keyed = Keyed(self.seed)
        intent = RankIntent({"the seed": str(self.seed)}, steps_of(self.plan))
        self.agreement: Agreement = Agreement("param_init", partial(check_consensus, intent))
        self.steps: dict[str, Step] = {step.site.name: step for step in self.plan}
        if buffers := [name for name, step in self.steps.items() if step.site.kind == "buffer"]:
            raise RunError(
                f"{', '.join(buffers)}: a param_init is for parameters; torchtitan makes buffers in _init_self_buffers"
            )

    def of(self, prefix: str, module: nn.Module) -> dict[str, ParameterWriter]:
        names = {view.name: name for name, step in self.steps.items() for view in step.site.views}
        own = {leaf: normalize(f"{prefix}.{leaf}".removeprefix(".")) for leaf in module._parameters}
        return {leaf: ParameterWriter((names[name],), self) for leaf, name in own.items() if name in names}


@dataclass(frozen=True, eq=False)
class ParameterWriter:
    """An entry of a ``param_init``: gives one parameter what the plan of the whole model has for it.

    Several that are made from one config, and hold one number, have it together.
    """

    names: tuple[str, ...]
    writers: _Writers

    def __call__(self, parameter: Tensor) -> None:
        """Write the parameter, the part of it that is here. Raises RunError for one on the meta device."""
        name = next((name for name in self.names if name not in self.writers.records), self.names[0])
        step = self.writers.steps[name]
        self.writers.agreement.over([behind(parameter)])
        written = run(Plan((step,)), {name: shards_of(name, behind(parameter))}, self.writers.noise)
        self.writers.records.update((record.name, record) for record in written)

    def __repr__(self) -> str:
        return repr(self.fill)

    @property
    def fill(self) -> Fill:
        """What it writes."""
        return self.writers.steps[self.names[0]].fill

    def __deepcopy__(self, memo: dict[int, Any]) -> ParameterWriter:
        return self  # a copy of a config makes the same model


def _set(model: nn.Module, writers: _Writers, nodes: list[Any] | None = None) -> None:
    """Put the dicts in place: into the modules, or into the config nodes that made them."""
    by_dict = {id(node.param_init): node for node in nodes or ()}
    made: dict[int, dict[str, dict[str, ParameterWriter]]] = defaultdict(dict)
    lacking = []
    for name, module in model.named_modules():
        if not any(parameter is not None for parameter in module._parameters.values()):
            continue
        dicts = writers.of(name, module)
        if nodes is None and hasattr(module, "_param_init"):
            cast("Any", module)._param_init = dicts
        elif id(old := getattr(module, "_param_init", None)) in by_dict and old is not None:
            made[id(old)][name] = dicts
        else:
            lacking.append(name or type(model).__name__)
    if lacking:
        raise RunError(f"{', '.join(lacking[:5])}: {_NO_HOOK}")
    for key, several in made.items():
        first, *others = several.values()
        for leaf, writer in first.items():
            together = [writer, *(dicts[leaf] for dicts in others if leaf in dicts)]
            if others and not all(isinstance(each.fill, Constant) and each.fill == writer.fill for each in together):
                raise RunError(
                    f"{' and '.join(several)} are made from one config, so they would start alike: give each a copy of"
                    " its own, or give param_init the model instead of its config"
                )
            first[leaf] = replace(writer, names=tuple(name for each in together for name in each.names))
        by_dict[key].param_init = first


def _copied(value: Any, nodes: list[Any], within: Mapping[int, Any]) -> Any:
    """A copy of a config with another one for each place where the same one stands, since each makes a module.

    Its dataclasses are added to the ``nodes``; ``within`` are the copies of those around it, which it may refer to.
    """
    if id(value) in within:
        return within[id(value)]
    if is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        nodes.append(made)
        within = {**within, id(value): made}
        for part in (part.name for part in fields(value) if hasattr(value, part.name)):
            object.__setattr__(made, part, _copied(getattr(value, part), nodes, within))
        return made
    if type(value) is dict:
        return {key: _copied(item, nodes, within) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item, nodes, within) for item in value)
    return copy.deepcopy(value)


def _makes_buffers(module: nn.Module) -> bool:
    """Whether a module has code of its own that makes its buffers; that of torchtitan's base class does nothing."""
    hook = getattr(type(module), "_init_self_buffers", None)
    return hook is not None and getattr(hook, "__module__", "") != "torchtitan.protocols.module"
