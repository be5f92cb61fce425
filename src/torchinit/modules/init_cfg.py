"""Init configs: an ``init_cfg`` becomes rules, and code of its users' is called in its place among them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from torchinit.core.plans import Rule
from torchinit.core.reports import Report
from torchinit.core.runs import Progress
from torchinit.core.vocabulary import INITIALIZERS, SCHEMA, TEXT
from torchinit.errors import did_you_mean
from torchinit.hints import hints_of
from torchinit.modules.errors import InitCfgNameError, InitCfgTypeError, InitCfgValueError
from torchinit.modules.extensions import WORDS
from torchinit.modules.initializers import WEIGHT_INITIALIZERS, CoreInit, FormulaInit, PretrainedInit
from torchinit.modules.registry import build_from_cfg
from torchinit.modules.session import Prepared, Session, current
from torchinit.schema import Reader

InitCfg = dict[str, Any]


class _Call(NamedTuple):
    """What an entry or an override comes to: an initializer for a module, and its rules where it is one of ours."""

    module: nn.Module
    initializer: Any
    rules: tuple[Rule, ...]


def initialize_module(
    module: nn.Module,
    init_cfg: Any,
    *,
    seed: int | None = None,
    strict: bool = False,
    stats: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Carry out an ``init_cfg``, a dict or a list of dicts, on a module and all below it.

    Each entry is done in turn, its overrides after it. All of it is checked before anything is written, or,
    where a user's own initializer stands among the entries, all up to it. ``strict`` makes an entry that matches
    nothing a PlanError, ``stats`` measures what was written, ``progress`` is called with each step.
    Raises TypeError, KeyError, ValueError and RuntimeError where MMEngine does.

    >>> layer = nn.Linear(2, 2)
    >>> initialize_module(layer, {"type": "Constant", "val": 2, "layer": "Linear"})["weight"].measured.mean
    2.0
    """
    session = current(module)
    if session is not None:
        with session.asked(seed=seed, strict=strict, stats=stats, progress=progress):
            return _joined(carry_out(module, init_cfg, session), session)
    with Session(module, seed, strict=strict, stats=stats, progress=progress) as session:
        reports = carry_out(module, init_cfg, session)
        return _with_foreign(_joined(reports, session), session.report(stats=stats))


def carry_out(module: nn.Module, init_cfg: Any, session: Session) -> list[Report]:
    """Carry out an ``init_cfg`` within a session; the reports of its rules, which know nothing of other code."""
    if not isinstance(init_cfg, (dict, list)):
        raise InitCfgTypeError(f"init_cfg must be a dict or a list of dict, but got {type(init_cfg)}")
    entries = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
    calls = [call for entry in entries for call in _calls(module, copy.deepcopy(entry))]
    reports: list[Report] = []
    waiting: list[Prepared] = []
    for target, initializer, rules in calls:
        if rules:
            waiting.append(session.prepare(target, rules, through=initializer.through))
        else:  # what it will do is not known before it is called
            reports += map(session.carry_out, waiting)
            waiting.clear()
            _call(session, target, initializer)
    return [*reports, *map(session.carry_out, waiting)]


def _joined(reports: list[Report], session: Session) -> Report:
    """One report of several; a later record of a site takes the place of an earlier one."""
    if not reports:  # nothing but what other people's code may have written
        return replace(session.account.report(noise=str(session.noise)), loads=tuple(session.loads))
    records = {record.name: record for report in reports for record in report}
    left = [name for report in reports[-1:] for name in report.untouched if name not in records]
    buffers = [name for report in reports[-1:] for name in report.buffers if name not in records]
    lacking = {name: why for report in reports for name, why in report.lacking if name not in records}
    return Report(
        tuple(records.values()),
        tuple(left),
        tuple(dict.fromkeys(skip for report in reports for skip in report.skipped)),
        tuple(hint for report in reports for hint in report.unused),
        str(session.noise),
        sum(report.seconds for report in reports),
        tuple(buffers),
        tuple(session.loads),
        lacking=tuple(lacking.items()),
    )


def _with_foreign(report: Report, seen: Report) -> Report:
    """A report of rules, and of what other code was seen to write, after them or besides."""
    foreign = {record.name: record for record in seen if not record.fill}
    records = {**{record.name: record for record in report}, **foreign}
    left = [name for name in report.untouched if name not in foreign] if len(report) else seen.untouched
    return replace(report, records=tuple(records.values()), untouched=tuple(left))


def _call(session: Session, module: nn.Module, initializer: Any) -> None:
    """Let an initializer that has no rules write, and see what it writes."""
    if type(initializer).__call__ is PretrainedInit.__call__:
        initializer.load(module, session)
        return
    with session.foreign(module, f"{type(initializer).__name__} "):
        initializer(module)


def _calls(module: nn.Module, entry: Any) -> Iterator[_Call]:
    """What an entry comes to."""
    if not isinstance(entry, dict):
        raise InitCfgTypeError(f"cfg must be a dict, but got {type(entry)}")
    override = entry.pop("override", None)
    main = _call_of(module, entry, module, whole=False)
    # An entry without layers that has overrides is there for those alone.
    if override is None or entry.get("layer") or not main.rules or main.initializer.extension.selects:
        yield main
    if override is not None:
        inherited = {key: value for key, value in entry.items() if key not in _NOT_INHERITED}
        yield from _overrides(module, inherited, override)


_NOT_INHERITED = {"layer", "name", "regex", "param", "within", "exclude", "subclasses", "optional"}
"""What an entry says of where it applies, which an override has its own ``name`` for."""


def _call_of(module: nn.Module, entry: InitCfg, target: nn.Module, *, whole: bool) -> _Call:
    """The initializer that an entry of a module's ``init_cfg`` describes, for the module or a part of it."""
    kind = entry.get("type")
    beyond = isinstance(kind, str) and kind in INITIALIZERS and WEIGHT_INITIALIZERS.get(kind) is None
    initializer = _core(dict(entry)) if beyond else build_from_cfg(entry, WEIGHT_INITIALIZERS)
    initializer.wholemodule = whole
    own = type(initializer).__call__ in (FormulaInit.__call__, PretrainedInit.__call__)
    return _Call(target, initializer, initializer.rules(f"init_cfg of {type(module).__name__}") if own else ())


def _core(entry: InitCfg) -> CoreInit:
    """An initializer that MMEngine does not have."""
    cls = INITIALIZERS.get(entry.pop("type"))
    words = {"bias", "bias_prob", "layer", *WORDS - hints_of(cls).keys()}
    said = {key: entry.pop(key) for key in words & entry.keys()}
    reader = Reader(SCHEMA.vocabularies)
    init = reader.record(cls, entry, "init_cfg", TEXT, also=words)
    reader.finish("init_cfg")
    return CoreInit(init, **said)


def _overrides(module: nn.Module, entry: InitCfg, override: Any) -> Iterator[_Call]:
    if not isinstance(override, (dict, list)):
        raise InitCfgTypeError(f"override must be a dict or a list of dict, but got {type(override)}")
    for item in [override] if isinstance(override, dict) else override:
        said = copy.deepcopy(item)
        if not isinstance(said, dict):
            raise InitCfgTypeError(f"override must be a dict or a list of dict, but got a list with {type(said)}")
        name = said.pop("name", None)
        if name is None:
            raise InitCfgValueError(f'`override` must contain the key "name", but got {said}')
        if said and "type" not in said:
            raise InitCfgValueError(f'`override` need "type" key, but got {said}{did_you_mean("type", said)}')
        call = _call_of(module, said or dict(entry), _part(module, name, said or entry), whole=True)
        if _is_empty(call.module):
            call = call._replace(rules=tuple(replace(rule, optional=True) for rule in call.rules))
        yield call


def _is_empty(part: nn.Module) -> bool:
    """Whether a part is a container that happens to hold nothing, as that of layers of which a config asks for none."""
    return isinstance(part, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and len(part) == 0


def _part(module: nn.Module, name: str, cfg: InitCfg) -> nn.Module:
    """The part of a module that an override is for; dots lead further down."""
    found: Any = module
    for step in name.split("."):
        if not hasattr(found, step):
            near = did_you_mean(name, [path for path, _ in module.named_modules() if path])
            raise InitCfgNameError(f"module did not have attribute {name}, but init_cfg is {cfg}.{near.lstrip(';')}")
        found = getattr(found, step)
    if not isinstance(found, nn.Module):
        raise AttributeError(f"an override is for a module, but {name} is a {type(found).__name__}")
    return found
