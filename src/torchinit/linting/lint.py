"""Lint: a model checked for what goes wrong when it is initialized, and recorded while it is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from torchinit._frozen import collector_paused
from torchinit._text import count
from torchinit.api import draft, given_to
from torchinit.distributed.collectives import run_collectively
from torchinit.distributed.consensus import differing_replicas, equal_parts
from torchinit.errors import ReportError
from torchinit.linting.registry import NEEDS, Check, Findings, Severity, select_checks, sorted_findings
from torchinit.linting.target import AcrossRanks, LintTarget
from torchinit.model.dtensor import cut_dimensions, is_distributed
from torchinit.model.ranks import Spread, over_group
from torchinit.model.sites import group_sites
from torchinit.model.traversal import Kind, walk_tensors
from torchinit.plans.plan import Plan
from torchinit.plans.report import Report
from torchinit.recipes import RecipeLike
from torchinit.rules.rule import Value
from torchinit.tracing import Trace
from torchinit.tracing.recorder import Recorder, TracedTensor
from torchinit.tracing.uninitialized import unstamp, watching

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SHORT: Final = 1 << 24


def lint(
    model: nn.Module,
    *,
    recipe: RecipeLike | Plan | None = None,
    trace: Trace | None = None,
    report: Report | None = None,
    loaded: Mapping[str, Tensor] | None = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    group: ProcessGroup | None = None,
    arguments: Mapping[str, Value] | None = None,
    **named: Value,
) -> Findings:
    """Find what is wrong with the initial values of a model: forgotten, copied, lost, out of scale, not as intended.

    The values alone show much; more is found with ``recipe`` and its ``arguments``, or a plan: how the model was meant
    to be initialized; ``trace``: what :func:`torchinit.trace` saw; ``report``: what :func:`torchinit.initialize`
    returned; ``loaded``: the values that were loaded into it. With a process ``group``
    (``torch.distributed.group.WORLD``: all ranks) its ranks compare what they hold, parts that are equal and replicas
    that are not: all of them have to call this, and an error on one is an error on all. Nothing is written, no memory
    beyond a chunk is taken, but for weights that may be copies of each other, and a model on the meta device is checked
    for what needs no values.

    ``select`` and ``ignore`` take codes (``"TI301"``), beginnings of codes (``"TI3"``) and names
    (``"same-in-layers"``). Raises ConfigError for what is none of these, and for a recipe that cannot be read.

    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16), 2, enable_nested_tensor=False)
    >>> findings = lint(encoder)
    >>> findings.codes, findings[0].site, findings[0].message[:48]
    (('TI301',), 'layers.0', 'holds the same drawn values as layers.1: ...
    """
    values = given_to(lint, arguments, named)

    def prepared() -> tuple[tuple[Check, ...], Plan | None]:
        checks = select_checks(select, ignore)
        if isinstance(recipe, Plan) or recipe is None:
            values.finish()
            return checks, recipe
        return checks, draft(model, recipe, values)

    spread = None if group is None else over_group(group, "torchinit.lint")
    checks, plan = prepared() if spread is None else run_collectively(prepared, "lint", spread, own=True)
    across = None if spread is None else _across(model, spread)
    target = LintTarget(
        model,
        plan=Plan() if plan is None else plan,
        report=Report() if report is None else report,
        loaded={} if loaded is None else loaded,
        trace=Trace() if trace is None else trace,
        ranks=across or AcrossRanks(),
    )
    history = loaded if trace is None else trace
    past = {"plan": plan, "report": report, "loaded": loaded, "trace": trace, "history": history, "ranks": across}
    given = {"sites", *(need for need, value in past.items() if value is not None)}
    given |= set() if target.is_sketch else {"values"}
    # Many small tensors: a moment's work, of which the collector would take a fifth. Large ones may take minutes.
    is_short = sum(linted.site.numel for linted in target.tensors) <= _SHORT
    with collector_paused() if is_short else nullcontext():
        if "values" in given.intersection(check.needs for check in checks):
            target.measure()
        findings = [
            check.finding(hit._replace(line=hit.line or target.line(hit.site)))
            for check in checks
            if check.needs in given
            for hit in check.search(target)
        ]
    return sorted_findings(findings, ((one.code, NEEDS[one.needs]) for one in checks if one.needs not in given))


def _across(model: nn.Module, spread: Spread) -> AcrossRanks:
    """What the ranks have to tell each other. Every one of them comes to each exchange, whatever it holds."""
    equal, differing = equal_parts(model, spread), differing_replicas(model, spread)
    whole = [
        name
        for name, parameter in model.named_parameters()
        if not (is_distributed(parameter) and cut_dimensions(parameter))
    ]
    return AcrossRanks(equal, differing, spread(torch.initial_seed()), whole)


def assert_initialized(
    model: nn.Module,
    *,
    recipe: RecipeLike | Plan | None = None,
    trace: Trace | None = None,
    report: Report | None = None,
    loaded: Mapping[str, Tensor] | None = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    fail_on: Severity = "error",
    arguments: Mapping[str, Value] | None = None,
    **named: Value,
) -> None:
    """Raise ReportError, an AssertionError, with everything that :func:`lint` finds from this severity on.

    For tests of a model: one line that fails when a layer is forgotten, copied or overwritten.

    >>> assert_initialized(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
    """
    given = {**(arguments or {}), **named}
    findings = lint(
        model, recipe=recipe, trace=trace, report=report, loaded=loaded, select=select, ignore=ignore, arguments=given
    )
    if severe := findings.at_least(fail_on):
        headline = f"{count(len(severe), 'finding')}: the model is not initialized as it should be"
        raise ReportError(headline, map(str, severe))


class ConstructionRecorder(Recorder):
    """A recorder of the writes to a model while it is constructed, before any of its tensors has a name.

    It records whatever is put into modules; :meth:`of` has it under the names that a model gives it. It also watches
    which memory was handed out empty and not written, of any dtype.
    """

    def __init__(self) -> None:
        super().__init__(nn.Module())
        self._memory = ExitStack()

    def __enter__(self) -> Trace:
        self._remember = self._memory.enter_context(watching(within_modes=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._memory.close()

    # A constructor writes to tensors that have no name in the model yet, so they are followed by their memory, from the
    # moment when they are put into any module; `of` gives them the names that the finished model has for that memory.
    # Tensors that are replaced before the end are in no model, and their writes are dropped.

    def _on_registration(self, module: nn.Module, name: str, value: object) -> None:
        if isinstance(value, Tensor):
            with _disable_current_modes():
                if not self.index.find(value):
                    kind: Kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
                    self.observe(TracedTensor(f"{name}#{len(self.sites)}", kind, [value]))

    def of(self, model: nn.Module) -> Trace:
        """The writes to the tensors of a model; other modules that were constructed are left out.

        All its sites count as added, since values may have been made before they were put into a module.
        """
        self._remember(model)
        unstamp(chain(model.parameters(), model.buffers()))
        groups = group_sites(walk_tensors(model))
        sites = [site for site, _ in groups]
        names = {
            self.sites[key].name: site.name
            for site, holders in groups
            for tensor in holders[0].sources
            for key in self.index.find(tensor)
        }
        return Trace(
            [replace(write, site=names[write.site], module=None) for write in self.trace if write.site in names],
            parameters=[site.name for site in sites if site.kind == "parameter"],
            buffers=[site.name for site in sites if site.kind == "buffer"],
            aliases={view.name: site.name for site in sites for view in site.aliases},
            added=[site.name for site in sites],
            lost=self.lost_in(model),
        )
