"""Lint: a model checked for what goes wrong when it is initialized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from torchinit.api import draft
from torchinit.core.plans import Plan
from torchinit.core.reports import Report
from torchinit.errors import ReportError, count
from torchinit.linting.checks import NEEDS, Check, Need, chosen
from torchinit.linting.findings import SEVERITIES, Finding, Findings, Severity
from torchinit.linting.subjects import Subject
from torchinit.recipes import RecipeLike
from torchinit.tracing import Trace


def lint(
    model: nn.Module,
    *,
    recipe: RecipeLike | Plan | None = None,
    trace: Trace | None = None,
    report: Report | None = None,
    loaded: Mapping[str, Tensor] | None = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Findings:
    """What is wrong with the initial values of a model: forgotten, copied, lost, out of scale, not as intended.

    The model's values alone show much; more is found with what is known of their past. ``recipe``, or a plan, says
    how the model was meant to be initialized; ``trace`` what :func:`torchinit.trace` saw; ``report`` what
    :func:`torchinit.initialize` returned; ``loaded`` which values it should hold because they were loaded. Nothing
    is written, no memory beyond a chunk is taken, and a model on the meta device is checked for what needs no
    values.

    ``select`` and ``ignore`` take codes (``"TI301"``), beginnings of codes (``"TI3"``) and names
    (``"same-in-layers"``). Raises ConfigError for what is none of these, and for a recipe that cannot be read.

    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16), 2, enable_nested_tensor=False)
    >>> findings = lint(encoder)
    >>> findings.codes, findings[0].site, findings[0].message[:48]
    (('TI301',), 'layers.0', 'holds the same drawn values as layers.1: ...
    """
    checks = chosen(select, ignore)
    plan = recipe if isinstance(recipe, Plan) or recipe is None else draft(model, recipe)
    subject = Subject(model, plan, report, loaded, trace)
    lacks = {one.code: lack for one in checks if (lack := _lack(one, subject))}
    found = [finding for one in checks if one.code not in lacks for finding in one.findings(subject)]
    return Findings(tuple(sorted(found, key=_rank)), tuple((code, NEEDS[lack]) for code, lack in lacks.items()))


def _lack(one: Check, subject: Subject) -> Need | None:
    """What the check needs and does not get."""
    there: dict[Need, bool] = {
        "sites": True,
        "values": not subject.all_meta,
        "plan": subject.plan is not None,
        "report": subject.report is not None,
        "loaded": subject.loaded is not None,
        "trace": subject.trace is not None,
        "history": subject.loaded is not None or subject.trace is not None,
    }
    return None if there[one.needs] else one.needs


def _rank(finding: Finding) -> tuple[int, str]:
    return SEVERITIES.index(finding.severity), finding.code


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
) -> None:
    """Raises ReportError, an AssertionError, with everything that :func:`lint` finds from this severity on.

    For tests of a model: one line that fails when a layer is forgotten, copied or overwritten.

    >>> assert_initialized(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
    """
    findings = lint(model, recipe=recipe, trace=trace, report=report, loaded=loaded, select=select, ignore=ignore)
    bad = findings.at_least(fail_on)
    if bad:
        raise ReportError(f"{count(len(bad), 'finding')}: the model is not initialized as it should be", map(str, bad))
