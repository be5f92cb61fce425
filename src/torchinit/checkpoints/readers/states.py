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
_MOST = 1 << 22
"""So many names no checkpoint has; a few kilobytes can have as many, where one table lies in another many times."""


def find_state(held: object, name: str, part: str | None = None) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The named tensors in what a file holds, the path to them, and what else there was to choose from.

    ``part`` says where they are: ``"ema.state_dict"``. Raises CheckpointError where there are none.
    """
    search = _Search(name)
    if part is not None:
        return search.part(held, part), part, ()
    state, path, seen = held, "", set[int]()
    notes: list[str] = []
    while (key := search.next(state)) is not None:
        if id(state) in seen:
            raise CheckpointError(f"{name}: its part {path!r} holds itself")
        seen.add(id(state))
        others = [other for other in search.holders(state) if other != key]
        if others:
            notes.append(f"taken from {_join(path, key)!r}; there are also {some(sorted(others))}: choose with part")
        state, path = state[key], _join(path, key)  # type: ignore[index]  # only a mapping has a next
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{name}: holds a {type(state).__name__}, no named tensors")
    tensors = search.tensors(state)
    if not tensors:
        raise CheckpointError(f"{name}: {_why_empty(state)}")
    return tensors, path, tuple(notes)


class _Search:
    """A search for named tensors in nested tables, of which one may lie in many places, or in itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: dict[tuple[int, int], int] = {}
        self.steps = 0

    def next(self, state: object) -> str | None:
        """The key below which the weights are; None if they are here."""
        if not isinstance(state, Mapping):
            return None
        here = sum(isinstance(value, Tensor) for value in state.values())
        holders = self.holders(state)
        for key in PARTS:
            if key in holders and self.count(state[key]) >= here:
                return key
        if here or not holders:
            return None
        weighty = [key for key in holders if not _is_optimizer(key, state[key])]
        return weighty[0] if len(weighty) == 1 else None

    def holders(self, state: object) -> list[str]:
        """The keys below which there are named tensors."""
        return [key for key, value in _named(state) if self.count(value)]

    def count(self, state: object, depth: int = 4) -> int:
        """How many named tensors there are here and below."""
        if not isinstance(state, Mapping) or not depth:
            return 0
        if (found := self.counts.get((id(state), depth))) is None:
            found = sum(1 if isinstance(one, Tensor) else self.count(one, depth - 1) for _, one in _named(state))
            self.counts[id(state), depth] = found
        return found

    def tensors(self, state: object, prefix: str = "", depth: int = 4) -> dict[str, Tensor]:
        """The named tensors here and in the tables below, whose names are joined with dots; optimizers are left out."""
        found: dict[str, Tensor] = {}
        for key, value in _named(state) if depth else ():
            self.steps += 1
            if isinstance(value, Tensor):
                found[prefix + key] = value
            elif self.count(value, depth - 1) and not _is_optimizer(key, value):
                found.update(self.tensors(value, f"{prefix}{key}.", depth - 1))
        if self.steps > _MOST:
            raise CheckpointError(f"{self.name}: has more than {_MOST:,} names; refused")
        return found

    def part(self, held: object, part: str) -> dict[str, Tensor]:
        """The named tensors at a path."""
        state, path = held, ""
        while part:
            keys = [key for key, _ in _named(state)]
            key = next((key for key in keys if part == key or part.startswith(f"{key}.")), None)
            if key is None:
                near = did_you_mean(part.split(".", maxsplit=1)[0], keys)
                raise CheckpointError(f"{self.name}: has no part {_join(path, part)!r}{near}")
            state, path, part = state[key], _join(path, key), part[len(key) + 1 :]  # type: ignore[index]  # it has keys
        tensors = self.tensors(state)
        if not tensors:
            raise CheckpointError(f"{self.name}: its part {path!r} holds no named tensors")
        return tensors


def _named(state: object) -> list[tuple[str, Any]]:
    """What a table holds under texts."""
    return [(key, one) for key, one in state.items() if isinstance(key, str)] if isinstance(state, Mapping) else []


def _is_optimizer(key: str, value: object) -> bool:
    inner = isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys()
    return inner or key in _OPTIMIZER or key.startswith(("optimizer", "optim_"))


def _why_empty(state: Mapping[Any, Any]) -> str:
    keys = [key for key, _ in _named(state)]
    if any(_is_optimizer(key, value) for key, value in _named(state)) or {"state", "param_groups"} <= {*keys}:
        return "holds the state of an optimizer only, no weights; give the file in which its training saved the model"
    if any(isinstance(value, Tensor) for value in state.values()):
        return "its tensors have no names: their keys are no text"
    return f"holds no tensors, only {count(len(keys), 'entry', 'entries')}: {some(keys)}" if keys else "is empty"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
