"""Hooked: random modules whose hooks rename, resize, delete and add entries of what is loaded into them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

NAMES = ("a", "b", "c0", "c1", "c0.a", "c0.b", "c1.a", "c0.c0.a", "c1.c0.b", "norm.weight", "new", "c0.new")
KINDS = ("rename", "copy", "resize", "delete", "add", "metadata")


@dataclass(frozen=True)
class Change:
    """What a hook does to the entries below its module; only to those of an old version, if ``old`` says so."""

    kind: str
    which: int
    name: str
    size: int
    old: bool

    def make(self, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        keys = sorted(key for key in state if key.startswith(prefix))
        if not keys or (self.old and metadata.get("version", 1) > 1):
            return
        key = keys[self.which % len(keys)]
        match self.kind:
            case "rename":
                state[prefix + self.name] = state.pop(key)
            case "copy":
                state[prefix + self.name] = state[key]
            case "resize":
                state[key] = state[key].flatten().repeat(8)[: self.size]
            case "delete":
                del state[key]
            case "add":
                state[prefix + self.name] = torch.full((self.size,), 0.5 + self.which)
            case "metadata":  # which is the module's own, whatever is done to the dict
                metadata["version"] = 1


@dataclass(frozen=True)
class Node:
    """A module: the sizes of its tensors, its children, the changes that it makes, and by which means."""

    sizes: tuple[int, int]
    changes: tuple[Change, ...] = ()
    how: str = "none"
    after: str = "none"
    norm: bool = False
    wrapped: bool = False
    children: tuple[Node, ...] = ()


Snapshot = tuple[str, tuple[str, ...], tuple[str, ...]]


class Module(nn.Module):
    """A node without changes; what is missing and unexpected after each of its modules is kept in a list."""

    def __init__(self, node: Node, path: str, seen: list[Snapshot]) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(node.sizes[0]))
        self.register_buffer("b", torch.zeros(node.sizes[1]))
        if node.norm:
            self.norm = nn.BatchNorm1d(2)
        for number, child in enumerate(node.children):
            made = build(child, f"{path}c{number}.", seen)
            self.add_module(f"c{number}", nn.DataParallel(made) if child.wrapped else made)
        self.changes = node.changes
        itself: Any = self  # of which torch tells no types
        if node.how == "private hook":
            itself._register_load_state_dict_pre_hook(partial(_change, None, node.changes))
        elif node.how == "private hook with module":
            itself._register_load_state_dict_pre_hook(_change_with_module, with_module=True)
        elif node.how == "hook":
            itself.register_load_state_dict_pre_hook(_change_with_module)
        itself.register_load_state_dict_post_hook(partial(_after, path, node.after, seen))


class Overriding(Module):
    """The same by a method of its own."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        _change(None, self.changes, state, prefix, metadata)
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def _change(_: Any, changes: tuple[Change, ...], state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
    for change in changes:
        change.make(state, prefix, metadata)


def _change_with_module(module: Any, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
    _change(module, module.changes, state, prefix, metadata)


def _after(path: str, what: str, seen: list[Snapshot], module: nn.Module, keys: Any) -> None:
    if what == "forgive":
        keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith(path)]
    if what == "complain":
        keys.unexpected_keys.append(f"{path}odd")
    seen.append((path, tuple(keys.missing_keys), tuple(keys.unexpected_keys)))


def build(node: Node, path: str = "", seen: list[Snapshot] | None = None) -> nn.Module:
    cls = Overriding if node.how == "override" else Module
    return cls(node, path, [] if seen is None else seen)


Load = Callable[[nn.Module, Any], object]


def loaded(node: Node, state: OrderedDict[str, Tensor], load: Load) -> tuple[dict[str, Tensor], list[Snapshot], Any]:
    """The values afterwards, what was missing and unexpected on the way, and what the function gave or raised."""
    seen: list[Snapshot] = []
    module = build(node, seen=seen)
    entries = OrderedDict(state)
    if hasattr(state, "_metadata"):
        entries._metadata = {key: dict(value) for key, value in state._metadata.items()}  # type: ignore[attr-defined]
    result: Any
    try:
        result = load(module, entries)
    except RuntimeError as error:
        result = error
    assert [*entries] == [*state], "the dict that was given has changed"
    return dict(module.state_dict()), seen, result


def changes() -> st.SearchStrategy[tuple[Change, ...]]:
    change = st.builds(
        Change, st.sampled_from(KINDS), st.integers(0, 9), st.sampled_from(NAMES), st.integers(1, 3), st.booleans()
    )
    return st.lists(change, min_size=1, max_size=3).map(tuple)


def nodes(depth: int = 2, *, wrapped: bool = False) -> st.SearchStrategy[Node]:
    """Trees of hooks; with ``wrapped`` some of the modules lie in a wrapper."""
    children = st.lists(nodes(depth - 1, wrapped=wrapped), max_size=2).map(tuple) if depth else st.just(())
    return st.builds(
        Node,
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
        changes(),
        st.sampled_from(["none", "override", "override", "hook", "private hook", "private hook with module"]),
        st.sampled_from(["none", "none", "forgive", "complain"]),
        st.booleans(),
        st.booleans() if wrapped else st.just(value=False),
        children,
    )


@st.composite
def cases(draw: st.DrawFn, *, wrapped: bool = False) -> tuple[Node, OrderedDict[str, Tensor]]:
    """A tree, and entries for it: most of its own under their names, others under names near to them."""
    node = draw(nodes(wrapped=wrapped))
    state: OrderedDict[str, Tensor] = OrderedDict()
    model = build(node)
    for number, (key, tensor) in enumerate(model.state_dict().items()):
        bare = key.replace("module.", "")
        name = draw(st.sampled_from([bare, bare, bare, bare.rpartition(".")[0] + ".new", "old." + bare]))
        state[name.lstrip(".")] = torch.full(tensor.shape, number + 1, dtype=tensor.dtype)
    if draw(st.booleans()):
        places = [name.replace("module.", "").strip(".") for name, _ in model.named_modules()]
        state._metadata = {name: {"version": draw(st.integers(1, 2))} for name in places}  # type: ignore[attr-defined]
    return node, state
