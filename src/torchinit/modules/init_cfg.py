"""Init configs: an ``init_cfg`` becomes rules, and code of its users' is called in its place among them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from torchinit.core.plans import Rule
from torchinit.core.reports import Report
from torchinit.core.vocabulary import INITIALIZERS, SCHEMA
from torchinit.errors import ConfigError, did_you_mean
from torchinit.modules.errors import InitCfgNameError, InitCfgTypeError, InitCfgValueError
from torchinit.modules.initializers import WEIGHT_INITIALIZERS, FormulaInit
from torchinit.modules.registry import build_from_cfg
from torchinit.modules.session import Prepared, Session, current
from torchinit.recipes.entries import ENTRY_WORDS, entry_rules
from torchinit.schema import Reader

InitCfg = dict[str, Any]

_BEYOND = ENTRY_WORDS - {"layer"}


@dataclass(frozen=True, slots=True)
class _Extended:
    """The rules of an entry that says what MMEngine could not understand."""

    rules: tuple[Rule, ...]


def initialize_module(module: nn.Module, init_cfg: Any, seed: int | None = None) -> Report:
    """Carries out an ``init_cfg``, a dict or a list of dicts, on a module and all below it.

    Each entry is done in turn, its overrides after it. All of it is checked before anything is written, or,
    where a user's own initializer stands among the entries, all up to it.
    Raises TypeError, KeyError, ValueError and RuntimeError where MMEngine does.
    """
    if not isinstance(init_cfg, (dict, list)):
        raise InitCfgTypeError(f"init_cfg must be a dict or a list of dict, but got {type(init_cfg)}")
    entries = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
    calls = [call for entry in entries for call in _calls(module, copy.deepcopy(entry))]
    session = current(module) or Session(module, seed)
    reports: list[Report] = []
    waiting: list[Prepared] = []
    for target, what in calls:
        if isinstance(what, _Extended):
            waiting.append(session.prepare(target, what.rules, through=True))
        elif isinstance(what, tuple):
            waiting.append(session.prepare(target, what))
        else:  # what it will do is not known before it is called
            reports += map(session.carry_out, waiting)
            waiting.clear()
            _call(session, target, what)
    reports += map(session.carry_out, waiting)
    return merged(reports, session)


def merged(reports: list[Report], session: Session) -> Report:
    """One report of several; a later record of a site takes the place of an earlier one."""
    if not reports:  # nothing but what other people's code may have written
        return session.account.report(noise=str(session.noise))
    records = {record.name: record for report in reports for record in report}
    left = [name for report in reports[-1:] for name in report.untouched if name not in records]
    buffers = [name for report in reports[-1:] for name in report.buffers if name not in records]
    seconds = sum(report.seconds for report in reports)
    skipped = tuple(dict.fromkeys(skip for report in reports for skip in report.skipped))
    unused = tuple(hint for report in reports for hint in report.unused)
    lacking = {name: why for report in reports for name, why in report.lacking if name not in records}
    return Report(
        tuple(records.values()),
        tuple(left),
        skipped,
        unused,
        str(session.noise),
        seconds,
        tuple(buffers),
        lacking=tuple(lacking.items()),
    )


def _call(session: Session, module: nn.Module, initializer: Any) -> None:
    """Lets an initializer of the user's own write, and sees what it writes."""
    with session.foreign(module, f"{type(initializer).__name__} "):
        initializer(module)


def _calls(module: nn.Module, entry: Any) -> Iterator[tuple[nn.Module, Any]]:
    """What an entry comes to: modules, each with rules to carry out on it or an initializer to call."""
    if not isinstance(entry, dict):
        raise InitCfgTypeError(f"cfg must be a dict, but got {type(entry)}")
    if _is_recipe_entry(entry):
        yield module, _extended(entry)
        return
    override = entry.pop("override", None)
    main = _rules_or_call(module, build_from_cfg(entry, WEIGHT_INITIALIZERS), whole=False)
    # An entry without layers that has overrides is there for those alone.
    if override is None or entry.get("layer") or not isinstance(main, tuple):
        yield module, main
    if override is not None:
        entry.pop("layer", None)
        yield from _overrides(module, entry, override)


def _is_recipe_entry(entry: InitCfg) -> bool:
    """Whether an entry says what only a recipe can: words of its own, or an initializer that MMEngine lacks."""
    kind = entry.get("type")
    known = not isinstance(kind, str) or WEIGHT_INITIALIZERS.get(kind) is not None
    beyond = entry.keys() & _BEYOND or (isinstance(entry.get("bias"), dict) or entry.get("bias") == "keep")
    return isinstance(kind, str) and kind in INITIALIZERS and bool(not known or beyond or "fans" in entry)


def _extended(entry: InitCfg) -> _Extended:
    reader = Reader(SCHEMA.vocabularies)
    rules = entry_rules(entry, "init_cfg", reader)
    reader.finish("init_cfg")
    return _Extended(rules)


def _rules_or_call(module: nn.Module, initializer: Any, *, whole: bool) -> Any:
    initializer.wholemodule = whole
    if type(initializer).__call__ is FormulaInit.__call__:
        return initializer.rules(f"init_cfg of {type(module).__name__}")
    return initializer


def _overrides(module: nn.Module, entry: InitCfg, override: Any) -> Iterator[tuple[nn.Module, Any]]:
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
        target = _part(module, name, said or entry)
        what = _rules_or_call(module, build_from_cfg(said or dict(entry), WEIGHT_INITIALIZERS), whole=True)
        if isinstance(what, tuple) and _is_empty(target):
            what = tuple(replace(rule, optional=True) for rule in what)
        yield target, what


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


__all__ = ["ConfigError", "initialize_module"]
