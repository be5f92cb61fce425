"""Init configs: an ``init_cfg`` becomes rules, and code of its users' is called in its place among them.

:func:`amend` changes some entries of an ``init_cfg`` and leaves the others as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from torch import nn

from torchinit._text import did_you_mean
from torchinit.mmengine.biases import BIAS_WORDS
from torchinit.mmengine.bridge import WEIGHT_INITIALIZERS
from torchinit.mmengine.extensions import WORDS
from torchinit.mmengine.initializers import CoreInit, FormulaInit, PretrainedInit
from torchinit.mmengine.registry import (
    InitCfgKeyError,
    InitCfgNameError,
    InitCfgTypeError,
    InitCfgValueError,
    build_from_cfg,
)
from torchinit.mmengine.session import Prepared, Session, current
from torchinit.plans.report import Record, Report
from torchinit.plans.run import Progress
from torchinit.rules.catalog import INITIALIZERS, SCHEMA, TEXT
from torchinit.rules.rule import Rule
from torchinit.serialization.annotations import hints_of
from torchinit.serialization.schema import Reader
from torchinit.tracing import unfilled

Entry = dict[str, Any]


class _Call(NamedTuple):
    """What an entry or an override comes to: an initializer for a module, and its rules where it is one of ours."""

    module: nn.Module
    initializer: Any
    rules: tuple[Rule, ...]


def initialize(
    module: nn.Module,
    init_cfg: Any,
    *,
    seed: int | None = None,
    strict: bool = False,
    stats: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Carry out an ``init_cfg``, a dict or a list of dicts, on any module and all below it.

    Each entry is done in turn, its overrides after it. All of it is checked before anything is written, or,
    where a user's own initializer stands among the entries, all up to it. With a ``seed`` values belong to names and
    torch's generator is left alone. ``strict`` makes an entry that matches nothing a PlanError, ``stats=False``
    measures nothing, ``progress`` is called with each step.
    Raises TypeError, KeyError, ValueError and RuntimeError where MMEngine does.

    >>> layer = nn.Linear(2, 2)
    >>> initialize(layer, {"type": "Constant", "val": 2, "layer": "Linear"})["weight"].measured.mean
    2.0
    """
    session = current(module)
    if session is not None:
        with session.asked(seed=seed, strict=strict, stats=stats, progress=progress):
            return _joined(module, carry_out(module, init_cfg, session), session)
    with Session(module, seed, strict=strict, stats=stats, progress=progress) as session:
        session.check_memory(init_cfg)
        reports = carry_out(module, init_cfg, session)
        return _joined(module, reports, session, session.report(stats=stats))


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
            waiting.append(session.prepare(target, rules, through=initializer.through, above=module))
        else:  # what it will do is not known before it is called
            reports += map(session.carry_out, waiting)
            waiting.clear()
            _call(session, target, initializer)
    return [*reports, *map(session.carry_out, waiting)]


def _joined(module: nn.Module, reports: list[Report], session: Session, seen: Iterable[Record] = ()) -> Report:
    """One report of several and of what other code was ``seen`` to write; the later record of a site is kept."""
    foreign = [record for record in seen if not record.fill]
    records = {record.name: record for record in (*chain.from_iterable(reports), *foreign)}
    # A plan of no rules knows what there is; others may be for a part of the module.
    reports = [session.carry_out(session.prepare(module, ())), *reports]
    names = frozenset(name for record in records.values() for name in (record.name, *record.aliases))
    skipped = dict.fromkeys(skip for report in reports for skip in report.skipped)
    left_alone = {name for name, _ in skipped}
    return Report(
        tuple(records.values()),
        untouched=tuple(name for name in reports[0].untouched if name not in names | left_alone),
        skipped=tuple(skipped),
        unused=tuple(hint for report in reports for hint in report.unused),
        noise=str(session.noise),
        seconds=sum(report.seconds for report in reports),
        buffers=tuple(name for name in reports[0].buffers if name not in names),
        loads=tuple(session.loads),
        lacking=tuple((name, why) for name, why in reports[0].lacking if name not in names),
        unfilled=unfilled(module, names),
    )


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


def _call_of(module: nn.Module, entry: Entry, target: nn.Module, *, whole: bool) -> _Call:
    """The initializer that an entry of a module's ``init_cfg`` describes, for the module or a part of it."""
    kind = entry.get("type")
    beyond = isinstance(kind, str) and kind in INITIALIZERS and WEIGHT_INITIALIZERS.get(kind) is None
    initializer = _core(dict(entry)) if beyond else build_from_cfg(entry, WEIGHT_INITIALIZERS)
    initializer.wholemodule = whole
    own = type(initializer).__call__ in (FormulaInit.__call__, PretrainedInit.__call__)
    return _Call(target, initializer, initializer.rules(f"init_cfg of {type(module).__name__}") if own else ())


def _core(entry: Entry) -> CoreInit:
    """An initializer that MMEngine does not have."""
    cls = INITIALIZERS.get(entry.pop("type"))
    words = {*BIAS_WORDS, "layer", *WORDS - hints_of(cls).keys()}
    said = {key: entry.pop(key) for key in words & entry.keys()}
    reader = Reader(SCHEMA.vocabularies)
    init = reader.record(cls, entry, "init_cfg", TEXT, also=words)
    reader.finish("init_cfg")
    return CoreInit(init, **said)


def _overrides(module: nn.Module, entry: Entry, override: Any) -> Iterator[_Call]:
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


def _part(module: nn.Module, name: str, cfg: Entry) -> nn.Module:
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


# --- amendments --------------------------------------------------------------------------------------------


WORD = "amend"
"""The key of an ``init_cfg`` that changes a class's own instead of taking its place."""


def amend(init_cfg: Entry | list[Entry] | None, *changes: Entry) -> list[Entry]:
    """An ``init_cfg`` with changes, each for the entries of its ``layer`` (without one: of its ``type``).

    A change is merged into the entry, or takes its place where it has another ``type``; ``type=None`` drops
    the entry. Other layers of the entry stay as they were. A change for layers that no entry names is added
    at the end. Nothing is changed in place.

    Raises KeyError for a change without ``type`` that fits no entry, TypeError for one that is no dict.

    >>> own = [dict(type="Kaiming", layer="Conv2d"), dict(type="Constant", val=1, layer=["BatchNorm2d", "LayerNorm"])]
    >>> for entry in amend(own, dict(layer="Conv2d", mode="fan_in"), dict(layer="LayerNorm", val=0.5)):
    ...     print(entry)
    {'type': 'Kaiming', 'layer': ['Conv2d'], 'mode': 'fan_in'}
    {'type': 'Constant', 'val': 1, 'layer': ['BatchNorm2d']}
    {'type': 'Constant', 'val': 0.5, 'layer': ['LayerNorm']}
    """
    entries = copy.deepcopy([init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or []))
    for change in changes:
        if not isinstance(change, dict):
            raise InitCfgTypeError(f"a change of an init_cfg is a dict, but got {change!r}")
        entries = _amended(entries, copy.deepcopy(change))
    return entries


def changes_of(init_cfg: object) -> list[Entry] | None:
    """The changes that an ``init_cfg`` of the form ``dict(amend=...)`` asks for; None for any other."""
    if not isinstance(init_cfg, dict) or WORD not in init_cfg:
        return None
    if len(init_cfg) > 1:
        raise InitCfgTypeError(f"an init_cfg with {WORD!r} has no other key, but got {init_cfg}")
    said = init_cfg[WORD]
    return said if isinstance(said, list) else [said]


def _amended(entries: list[Entry], change: Entry) -> list[Entry]:
    wanted, made = _layers(change), []
    left = list(wanted)
    fits = False
    for entry in entries:
        own = _layers(entry)
        common = [layer for layer in own if layer in wanted]
        if common or (not wanted and entry.get("type") == change.get("type")):
            fits = True
            left = [layer for layer in left if layer not in common]
            made += _split(entry, change, own, common)
        else:
            made.append(entry)
    if (left or not fits) and change.get("type") is not None:
        made.append({**change, "layer": left} if left else change)
    elif left or not fits:
        raise _no_entry(entries, change, left)
    return made


def _split(entry: Entry, change: Entry, own: list[str], common: list[str]) -> list[Entry]:
    """The entry for its other layers, and the changed one for those that the change is for."""
    rest = [layer for layer in own if layer not in common]
    kept = [{**entry, "layer": rest}] if rest and common else []
    if "type" in change and change["type"] is None:
        return kept
    same = change.get("type", entry.get("type")) == entry.get("type")
    changed = {**(entry if same else {}), **change}
    return [*kept, {**changed, "layer": common} if common else changed]


def _layers(entry: Entry) -> list[str]:
    said = entry.get("layer")
    return [said] if isinstance(said, str) else list(said or [])


def _no_entry(entries: list[Entry], change: Entry, left: list[str]) -> InitCfgKeyError:
    known = [layer for entry in entries for layer in _layers(entry)]
    if left:
        near = did_you_mean(left[0], known)
        return InitCfgKeyError(f"no entry of the init_cfg is for the layer {left[0]!r}; give a type to add one{near}")
    return InitCfgKeyError(f"a change needs a layer or a type that an entry has, but got {change}")
