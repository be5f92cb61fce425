"""Amendments: an ``init_cfg`` with some entries changed, and the others as they are."""

from __future__ import annotations

import copy
from typing import Any

from torchinit.errors import did_you_mean
from torchinit.modules.errors import InitCfgKeyError, InitCfgTypeError

Entry = dict[str, Any]

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
