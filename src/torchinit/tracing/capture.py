"""Capture: initialization code of anybody's, as a plan."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchinit.initializers.elementwise import Fill
from torchinit.model.sites import WHY, Site, sites
from torchinit.plans.plan import Plan, Skipped, Step
from torchinit.plans.planner import make_plan
from torchinit.rules.rule import Rule
from torchinit.rules.selectors import Layer, Leaf, Name, Selector
from torchinit.tracing.observer import Event
from torchinit.tracing.operations import arguments_of, name_of
from torchinit.tracing.recorder import Recorder, TracedTensor
from torchinit.tracing.symbolic import OF_WHOLE_SHAPES, SymbolicTensor
from torchinit.tracing.trace import Write

Code = Callable[[Any], object]
"""Code that initializes the model that it is given."""


class _SymbolicRecorder(Recorder):
    """A recorder that keeps a symbolic tensor for each site, and where it was written last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.symbolic: dict[str, SymbolicTensor] = {}
        self.last: dict[str, Write] = {}

    def recorded(self, site: TracedTensor, event: Event, write: Write) -> None:
        tensor = self.symbolic.setdefault(site.name, SymbolicTensor.blank(site.shape))
        arguments = {} if event.operation == "data =" else arguments_of(event.operation, event.args, event.kwargs)
        name = name_of(event.operation)
        whole = len(site.tensors) == 1 and (name not in OF_WHOLE_SHAPES or event.target.shape == site.shape)
        tensor.apply(name, arguments, write.region if whole else "part", f"{write.what} at {write.line}")
        self.last.pop(site.name, None)
        self.last[site.name] = write


def capture(model: nn.Module, code: Code) -> Plan:
    """The plan of what code does: it is run on a copy of the model that has no memory.

    ``code`` is called with the copy. What it writes that a fill describes is a step with that fill, Kaiming
    and Xavier with their numbers resolved; anything else is a step with :class:`torchinit.initializers.Opaque`,
    which cannot be run. Rules are by layer and last part of the name where all such sites agree, else by name.

    >>> from torchinit import Normal, capture
    >>> model = nn.Sequential(nn.Linear(50, 8), nn.LayerNorm(8))
    >>> plan = capture(model, lambda model: nn.init.kaiming_normal_(model[0].weight))
    >>> plan["0.weight"].fill, [site.name for site in plan.untouched]
    (Normal(mean=0.0, std=0.2), ['0.bias', '1.weight', '1.bias'])
    """
    copied = without_memory(model)
    recorder = _SymbolicRecorder(copied)
    try:
        with recorder:
            code(copied)
    except Exception as error:
        error.add_note("torchinit.capture runs the code on the meta device, where tensors have no values to look at")
        raise
    fills = {name: fill for name in recorder.last if (fill := recorder.symbolic[name].fill) is not None}
    return _plan(sites(copied), fills, recorder.last)


def without_memory(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device; no memory of the model is copied on the way.

    >>> copied = without_memory(nn.Linear(2, 3))
    >>> copied.weight.is_meta, copied.weight.shape
    (True, torch.Size([3, 2]))
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _empty(tensor)
    return copy.deepcopy(model, memo)


def _empty(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        blank = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        blank = nn.Parameter(blank, requires_grad=tensor.requires_grad)
    blank.__dict__.update(vars(tensor))
    return blank


# --- from fills to a plan ----------------------------------------------------------------------------------


def _plan(found: Sequence[Site], fills: Mapping[str, Fill], last: Mapping[str, Write]) -> Plan:
    skipped = tuple(Skipped(site, WHY[site.state]) for site in found if site.name in fills and site.state != "ready")
    known = {site.name: site for site in found if site.name in fills and site.state == "ready"}
    rules = _rules(found, known, fills, last)
    steps, problems = [], []
    for turn, name in enumerate(name for name in last if name in known):
        site, fill, write = known[name], fills[name], last[name]
        try:
            fill.check(site.shape, site.dtype)
        except ValueError as error:
            problems.append(f"{name}: {error}")
        steps.append(Step(site, fill, rules[name], turn=turn, notes=(write.call,) if write.call else ()))
    left = tuple(site for site in found if site.name not in fills)
    return Plan(tuple(steps), untouched=left, skipped=skipped, problems=tuple(problems))


def _rules(
    found: Sequence[Site], known: Mapping[str, Site], fills: Mapping[str, Fill], last: Mapping[str, Write]
) -> dict[str, Rule]:
    """A rule for each site: those that agree share one, if that brings back the same plan."""
    single = {name: _rule(Name(name), known[name], fills[name], last[name]) for name in known}
    shared = dict(single)
    for (layer, leaf), names in _alike(found).items():
        if len(names) > 1 and all(name in known for name in names) and len({fills[name] for name in names}) == 1:
            rule = _rule(Layer(layer) & Leaf(leaf), known[names[0]], fills[names[0]], last[names[0]])
            shared.update(dict.fromkeys(names, rule))
    trial = make_plan(found, tuple(dict.fromkeys(shared.values())), ties="last")
    again = {step.site.name: step.fill for step in trial.steps}
    return shared if again == {name: fills[name] for name in known} else single


def _rule(where: Selector, site: Site, fill: Fill, write: Write) -> Rule:
    return Rule(where, fill, padding=False, buffers=site.kind == "buffer", origin=write.line)


def _alike(found: Iterable[Site]) -> dict[tuple[str, str], list[str]]:
    """The sites of each layer and last part of the name; tied ones, which have several, stand alone."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for site in found:
        for view in site.views:
            groups[view.owner.name, view.leaf].append(site.name if not site.aliases else "")
    return groups
