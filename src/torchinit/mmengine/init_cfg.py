"""Init configs: an ``init_cfg`` becomes rules, and code of its users' is called in its place among them.

:func:`amend` changes some entries of an ``init_cfg`` and leaves the others as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Final, TypeAlias

from torch import nn

from torchinit._text import did_you_mean
from torchinit.distributed.consensus import check_start
from torchinit.mmengine.biases import BIAS_WORDS
from torchinit.mmengine.extensions import WORDS
from torchinit.mmengine.initializers import CoreInit, FormulaInit, PretrainedInit
from torchinit.mmengine.registry import (
    WEIGHT_INITIALIZERS,
    InitCfgKeyError,
    InitCfgNameError,
    InitCfgTypeError,
    InitCfgValueError,
    build_from_cfg,
    default_scope,
)
from torchinit.mmengine.session import Session, current
from torchinit.mmengine.tree import configs_of
from torchinit.model.dtensor import behind
from torchinit.model.traversal import walk_tensors
from torchinit.plans.report import Record, Report
from torchinit.plans.run import Progress
from torchinit.rules.rule import INITIALIZERS, SCHEMA, TEXT, Rule
from torchinit.serialization.reading import Reader, argument_types
from torchinit.tracing import unfilled_among

Entry = dict[str, Any]

AMEND: Final = "amend"
"""The key of an ``init_cfg`` that changes a class's own instead of taking its place."""

_NOT_INHERITED: Final = {"layer", "name", "regex", "param", "within", "exclude", "subclasses", "optional"}
"""The keys that say where an entry applies, for which an override has its own ``name``."""


_Call: TypeAlias = tuple[nn.Module, Any, tuple[Rule, ...]]
"""A module, an initializer for it, and its rules where it is one of ours: an entry or an override."""


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
    options: dict[str, Any] = {"seed": seed, "strict": strict, "stats": stats, "progress": progress}
    session = current(module)
    if session is not None:
        with session.asked(**options):
            return _joined(module, carry_out(module, init_cfg, session), session)
    with check_start(module, seed, "mmengine.initialize", partial(configs_of, module, init_cfg)):
        session = Session(module, **options)
        with session.wholes or nullcontext():
            session.check_memory(init_cfg)
            reports = carry_out(module, init_cfg, session)
            session.kept.check(session.provenance.written())
            return _joined(module, reports, session, session.report(stats=stats))


def carry_out(module: nn.Module, init_cfg: Any, session: Session, *, records: bool = True) -> list[Report]:
    """Carry out an ``init_cfg`` within a session; the reports of its rules, which know nothing of other code.

    Those who do not read them spare their ``records``.
    """
    if not isinstance(init_cfg, (dict, list)):
        raise InitCfgTypeError(f"init_cfg must be a dict or a list of dict, but got {type(init_cfg)}")
    entries = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
    calls = [call for entry in entries for call in _calls(module, copy.deepcopy(entry))]
    reports: list[Report] = []
    waiting: list[Callable[[], Report]] = []
    for target, initializer, rules in calls:
        if rules:
            how: dict[str, Any] = {"through": initializer.through, "above": module, "records": records}
            waiting.append(session.prepare(target, rules, **how))
            continue
        # What it will do is not known before it is called.
        reports += [write() for write in waiting]
        waiting.clear()
        if type(initializer).__call__ is PretrainedInit.__call__:
            with session.collecting():
                initializer.load(target, session)
        else:
            with session.foreign(target, f"{type(initializer).__name__} "):
                initializer(target)
    return [*reports, *(write() for write in waiting)]


def _joined(module: nn.Module, reports: list[Report], session: Session, seen: Iterable[Record] = ()) -> Report:
    """Join reports, and the records of what other code was ``seen`` to write; the later one of a site is kept."""
    foreign = [record for record in seen if not record.fill]
    records = {record.name: record for record in (*chain.from_iterable(reports), *foreign)}
    # A plan of no rules knows what there is; others may be for a part of the module.
    whole = session.prepare(module, ())()
    names = frozenset(name for record in records.values() for name in (record.name, *record.aliases))
    skipped = dict.fromkeys(skip for report in (whole, *reports) for skip in report.skipped)
    left_alone = names.union(name for name, _ in skipped)
    # What stands for a DTensor has no memory of its own.
    held = (entry._replace(tensor=behind(entry.tensor)) for entry in walk_tensors(module))
    return replace(
        whole,
        records=tuple(records.values()),
        untouched=tuple(name for name in whole.untouched if name not in left_alone),
        skipped=tuple(skipped),
        unused=tuple(hint for report in reports for hint in report.unused),
        seconds=sum(report.seconds for report in (whole, *reports)),
        buffers=tuple(name for name in whole.buffers if name not in names),
        loads=tuple(session.loads),
        lacking=tuple((name, why) for name, why in whole.lacking if name not in names),
        unfilled=unfilled_among(held, names),
    )


def _calls(module: nn.Module, entry: Any) -> Iterator[_Call]:
    """The calls of an entry: its own, and one for each override."""
    if not isinstance(entry, dict):
        raise InitCfgTypeError(f"cfg must be a dict, but got {type(entry)}")
    override = entry.pop("override", None)
    _, initializer, rules = main = _call_of(module, entry, module)
    # An entry without layers that has overrides is there for those alone.
    if override is None or entry.get("layer") or not rules or initializer.extension.selects:
        yield main
    if not (override is None or isinstance(override, (dict, list))):
        raise InitCfgTypeError(f"override must be a dict or a list of dict, but got {type(override)}")
    inherited = {key: value for key, value in entry.items() if key not in _NOT_INHERITED}
    for words in [override] if isinstance(override, dict) else override or ():
        if not isinstance(words, dict):
            raise InitCfgTypeError(f"override must be a dict or a list of dict, but got a list with {type(words)}")
        name = words.pop("name", None)
        if name is None:
            raise InitCfgValueError(f'`override` must contain the key "name", but got {words}')
        if words and "type" not in words:
            raise InitCfgValueError(f'`override` need "type" key, but got {words}{did_you_mean("type", words)}')
        part, initializer, rules = _call_of(module, words or dict(inherited), _part(module, name, words or inherited))
        # A container may happen to hold nothing, as that of layers of which a config asks for none.
        is_empty = isinstance(part, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and not len(part)
        yield part, initializer, tuple(replace(rule, optional=True) for rule in rules) if is_empty else rules


def _call_of(module: nn.Module, entry: Entry, target: nn.Module) -> _Call:
    """The initializer that an entry of a module's ``init_cfg`` describes, for the module or, in overrides, a part."""
    kind = entry.get("type")
    scope = entry.get("_scope_") or default_scope()
    beyond = isinstance(kind, str) and kind in INITIALIZERS and WEIGHT_INITIALIZERS.find(kind, scope) is None
    initializer = _core(dict(entry)) if beyond else build_from_cfg(entry, WEIGHT_INITIALIZERS)
    initializer.wholemodule = target is not module
    own = type(initializer).__call__ in (FormulaInit.__call__, PretrainedInit.__call__)
    return target, initializer, initializer.rules(f"init_cfg of {type(module).__name__}") if own else ()


def _core(entry: Entry) -> CoreInit:
    """An initializer that MMEngine does not have."""
    cls = INITIALIZERS.get(entry.pop("type"))
    words = {*BIAS_WORDS, "layer", *WORDS - argument_types(cls).keys()}
    extras = {key: entry.pop(key) for key in words & entry.keys()}
    reader = Reader(SCHEMA.vocabularies, "init_cfg")
    init = reader.record(cls, entry, "init_cfg", TEXT, also=words)
    reader.finish()
    return CoreInit(init, **extras)


def _part(module: nn.Module, name: str, cfg: Entry) -> nn.Module:
    """The part of a module that an override is for; dots lead further down."""
    part: Any = module
    for step in name.split("."):
        if not hasattr(part, step):
            near = did_you_mean(name, [path for path, _ in module.named_modules() if path])
            raise InitCfgNameError(f"module did not have attribute {name}, but init_cfg is {cfg}.{near.lstrip(';')}")
        part = getattr(part, step)
    if not isinstance(part, nn.Module):
        raise AttributeError(f"an override is for a module, but {name} is a {type(part).__name__}")
    return part


# --- amendments --------------------------------------------------------------------------------------------


def amend(init_cfg: Entry | list[Entry] | None, *changes: Entry) -> list[Entry]:
    """Return an ``init_cfg`` with changes, each for the entries of its ``layer`` (without one: of its ``type``).

    A change is merged into the entry, or takes its place where it has another ``type``; ``type=None`` drops
    the entry. Other layers of the entry stay as they were. A change for layers that no entry names is added
    at the end. Nothing is changed in place.

    Raises KeyError for a change without ``type`` that fits no entry, TypeError for one that is not a dict.

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
    if not isinstance(init_cfg, dict) or AMEND not in init_cfg:
        return None
    if len(init_cfg) > 1:
        raise InitCfgTypeError(f"an init_cfg with {AMEND!r} has no other key, but got {init_cfg}")
    changes = init_cfg[AMEND]
    return changes if isinstance(changes, list) else [changes]


def _amended(entries: list[Entry], change: Entry) -> list[Entry]:
    wanted, amended = _layers(change), list[Entry]()
    left, fits = list(wanted), False
    for entry in entries:
        own = _layers(entry)
        common = [layer for layer in own if layer in wanted]
        if not common and (wanted or entry.get("type") != change.get("type")):
            amended.append(entry)
            continue
        fits, left = True, [layer for layer in left if layer not in common]
        rest = [layer for layer in own if layer not in common]
        if rest and common:
            amended.append({**entry, "layer": rest})
        if change.get("type", "unchanged") is not None:
            base = entry if change.get("type", entry.get("type")) == entry.get("type") else {}
            amended.append({**base, **change, **({"layer": common} if common else {})})
    if fits and not left:
        return amended
    if change.get("type") is not None:
        return [*amended, {**change, "layer": left} if left else change]
    if not left:
        raise InitCfgKeyError(f"a change needs a layer or a type that an entry has, but got {change}")
    near = did_you_mean(left[0], [layer for entry in entries for layer in _layers(entry)])
    raise InitCfgKeyError(f"no entry of the init_cfg is for the layer {left[0]!r}; give a type to add one{near}")


def _layers(entry: Entry) -> list[str]:
    layers = entry.get("layer")
    return [layers] if isinstance(layers, str) else list(layers or [])
