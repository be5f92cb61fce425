"""States: where in a nested training checkpoint the weights are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchinit.core.tables import some
from torchinit.errors import CheckpointError, count, did_you_mean

PARTS = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params",
    "generator", "student", "teacher", "params_ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema",
)  # fmt: skip
"""What training code calls the weights, the trained ones before their averages."""

_OPTIMIZER = ("optimizer", "optim", "optimizer_state", "optimizer_state_dict", "param_groups", "lr_scheduler")


def find_state(held: object, name: str, part: str | None = None) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The named tensors in what a file holds, the path to them, and what else there was to choose from.

    ``part`` says where they are: ``"ema.state_dict"``. Raises CheckpointError where there are none.
    """
    if part is not None:
        return _tensors(_inner(held, name, part)), part, ()
    state, path = held, ""
    notes: list[str] = []
    while (key := _next(state, name)) is not None:
        others = [other for other in _holders(state) if other != key]
        if others:
            notes.append(f"taken from {_join(path, key)!r}; there are also {some(sorted(others))}: choose with part")
        state, path = state[key], _join(path, key)  # type: ignore[index]  # only a mapping has a next
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{name}: holds {_a(state)}, no named tensors")
    tensors = _tensors(state)
    if not tensors:
        raise CheckpointError(f"{name}: {_why_empty(state)}")
    return tensors, path, tuple(notes)


def _next(state: object, name: str) -> str | None:
    """The key below which the weights are; None if they are here."""
    if not isinstance(state, Mapping):
        return None
    here = sum(isinstance(value, Tensor) for value in state.values())
    holders = _holders(state)
    for key in PARTS:
        if key in holders and _count(state[key]) >= here:
            return key
    if here or not holders:
        return None
    weighty = [key for key in holders if not _is_optimizer(key, state[key])]
    return weighty[0] if len(weighty) == 1 else None


def _holders(state: object) -> list[str]:
    """The keys below which there are named tensors."""
    items = state.items() if isinstance(state, Mapping) else ()
    return [key for key, value in items if isinstance(key, str) and _count(value)]


def _count(state: object, depth: int = 4) -> int:
    """How many named tensors there are here and below."""
    if not isinstance(state, Mapping) or not depth:
        return 0
    own = [value for key, value in state.items() if isinstance(key, str)]
    return sum(1 if isinstance(value, Tensor) else _count(value, depth - 1) for value in own)


def _tensors(state: object, prefix: str = "", depth: int = 4) -> dict[str, Tensor]:
    """The named tensors here and in the tables below, whose names are joined with dots; optimizers are left out."""
    found: dict[str, Tensor] = {}
    for key, value in state.items() if isinstance(state, Mapping) and depth else ():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            found[prefix + key] = value
        elif not _is_optimizer(key, value):
            found.update(_tensors(value, f"{prefix}{key}.", depth - 1))
    return found


def _is_optimizer(key: str, value: object) -> bool:
    inner = isinstance(value, Mapping) and {"state", "param_groups"} <= {*map(str, value)}
    return inner or key in _OPTIMIZER or key.startswith(("optimizer", "optim_"))


def _inner(held: object, name: str, part: str) -> Mapping[str, Any]:
    state, path = held, ""
    while part:
        key = next((key for key in _keys(state) if part == key or part.startswith(f"{key}.")), None)
        if key is None:
            near = did_you_mean(part.split(".", maxsplit=1)[0], _keys(state))
            raise CheckpointError(f"{name}: has no part {_join(path, part)!r}{near}")
        state, path, part = state[key], _join(path, key), part[len(key) + 1 :]  # type: ignore[index]  # it has keys
    if not isinstance(state, Mapping) or not _tensors(state):
        raise CheckpointError(f"{name}: its part {path!r} holds no named tensors")
    return state


def _keys(state: object) -> list[str]:
    return [key for key in state if isinstance(key, str)] if isinstance(state, Mapping) else []


def _why_empty(state: Mapping[Any, Any]) -> str:
    keys = [*map(str, state)]
    if any(_is_optimizer(str(key), value) for key, value in state.items()) or {"state", "param_groups"} <= {*keys}:
        return "holds the state of an optimizer only, no weights"
    if any(isinstance(value, Tensor) for value in state.values()):
        return "its tensors have no names: their keys are no text"
    return f"holds no tensors, only {count(len(keys), 'entry', 'entries')}: {some(keys)}" if keys else "is empty"


def _a(value: object) -> str:
    return f"a {type(value).__name__}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
