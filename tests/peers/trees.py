"""Trees: random module trees with an init_cfg, built from MMEngine's classes or from torchinit's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

LEAVES = ("Linear", "Conv2d", "ConvTranspose2d", "BatchNorm2d", "LayerNorm", "Embedding", "Grouped", "Derived")
WITH_FANS = ("Linear", "Conv2d", "ConvTranspose2d", "Embedding", "Derived")


@dataclass(frozen=True)
class Node:
    """A module: a layer, or a container of a kind with children."""

    kind: str
    children: tuple[Node, ...] = ()
    init_cfg: Any = None


class Derived(nn.Conv2d):
    """Its direct base is Conv2d, its grandparent _ConvNd."""


class UserLayer(nn.Module):
    """A module that is no BaseModule and has an init_weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 2))

    def init_weights(self) -> None:
        nn.init.normal_(self.weight, std=0.3)


def leaf(kind: str) -> nn.Module:
    made: dict[str, Any] = {
        "Linear": lambda: nn.Linear(3, 4),
        "Conv2d": lambda: nn.Conv2d(2, 4, 3),
        "ConvTranspose2d": lambda: nn.ConvTranspose2d(2, 4, 3, bias=False),
        "BatchNorm2d": lambda: nn.BatchNorm2d(4),
        "LayerNorm": lambda: nn.LayerNorm(4),
        "Embedding": lambda: nn.Embedding(5, 3, padding_idx=1),
        "Grouped": lambda: nn.Conv2d(4, 4, 3, groups=4),
        "Derived": lambda: Derived(2, 3, 1),
        "User": UserLayer,
        "Loss": lambda: nn.CrossEntropyLoss(weight=torch.ones(3)),
    }
    return made[kind]()  # type: ignore[no-any-return]


def build(node: Node, library: Any) -> nn.Module:
    """The tree, of the classes of a library."""
    if node.kind in ("Base", "Custom", "Skipped"):
        return _base(node, library)
    children = [build(child, library) for child in node.children]
    if node.kind in ("Sequential", "ModuleList"):
        cls = getattr(library, node.kind)
        args = children if node.kind == "Sequential" else [children]
        return cls(*args, init_cfg=node.init_cfg)  # type: ignore[no-any-return]
    return nn.Sequential(*children) if node.kind == "Plain" else leaf(node.kind)


def _base(node: Node, library: Any) -> nn.Module:
    class Base(library.BaseModule):
        def __init__(self) -> None:
            super().__init__(node.init_cfg)
            for number, child in enumerate(node.children):
                self.add_module(f"c{number}", build(child, library))

    class Custom(Base):
        def init_weights(self) -> None:
            super().init_weights()
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    library.trunc_normal_init(module, std=0.02, bias=0.1)

    made = Custom() if node.kind == "Custom" else Base()
    if node.kind == "Skipped":
        made.is_init = True
    return made


def layers(names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    return st.one_of(st.sampled_from(names), st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))


BIASES = st.fixed_dictionaries({}, optional={"bias": st.sampled_from([0, 0.5, -2])}) | st.just({"bias_prob": 0.01})
ANYWHERE = (*LEAVES, "Conv2d", "_BatchNorm", "_ConvNd", "Module", "Nothing")


def entries(children: int) -> st.SearchStrategy[dict[str, Any]]:
    """One entry of an init_cfg, with overrides for some of the children."""
    plain: st.SearchStrategy[dict[str, Any]] = st.one_of(
        st.builds(dict, type=st.just("Constant"), val=st.sampled_from([0, 1, -0.25])),
        st.builds(dict, type=st.just("Normal"), mean=st.sampled_from([0, 1]), std=st.sampled_from([0.01, 1])),
        st.builds(dict, type=st.just("Uniform"), a=st.sampled_from([-1, 0]), b=st.sampled_from([0.5, 2])),
        st.builds(dict, type=st.just("TruncNormal"), std=st.sampled_from([0.02, 1]), a=st.just(-1), b=st.just(2)),
    )
    fans: st.SearchStrategy[dict[str, Any]] = st.one_of(
        st.builds(dict, type=st.just("Xavier"), gain=st.sampled_from([1, 0.5]), distribution=DISTRIBUTIONS),
        st.builds(
            dict, type=st.just("Kaiming"), mode=st.sampled_from(["fan_in", "fan_out"]), distribution=DISTRIBUTIONS
        ),
        st.just({"type": "Caffe2Xavier"}),
    )
    override = st.builds(
        lambda number, said: {"name": f"c{number}", **said},
        st.integers(0, max(0, children - 1)),
        st.one_of(st.just({"type": "Constant", "val": 3, "bias": 1}), st.just({"type": "Normal", "std": 2.0})),
    )
    overrides = st.one_of(override, st.lists(override, max_size=2)) if children else st.nothing()
    base = st.one_of(
        st.builds(lambda said, layer: {**said, "layer": layer}, plain, layers(ANYWHERE)),
        st.builds(lambda said, layer: {**said, "layer": layer}, fans, layers(WITH_FANS)),
    )
    whole = st.builds(lambda said, bias: {**said, **bias}, base, BIASES)
    if not children:
        return whole
    return st.one_of(whole, st.builds(lambda said, extra: {**said, "override": extra}, whole, overrides))


MODES = st.sampled_from(["fan_in", "fan_out"])
DISTRIBUTIONS = st.sampled_from(["normal", "uniform"])


def init_cfgs(children: int) -> st.SearchStrategy[Any]:
    one = entries(children)
    return st.one_of(st.none(), one, st.lists(one, max_size=3))


def nodes(depth: int) -> st.SearchStrategy[Node]:
    """A tree of at most this depth, with a base module on top."""
    leaves = st.sampled_from([*LEAVES, "User", "Loss"]).map(Node)
    if depth == 0:
        return leaves
    below = st.lists(st.one_of(leaves, nodes(depth - 1)), min_size=1, max_size=3).map(tuple)
    named = below.flatmap(
        lambda children: st.builds(
            Node, st.sampled_from(["Base", "Base", "Custom", "Skipped"]), st.just(children), init_cfgs(len(children))
        )
    )
    listed = below.flatmap(
        lambda children: st.builds(
            Node, st.sampled_from(["Sequential", "ModuleList", "Plain"]), st.just(children), init_cfgs(0)
        )
    )
    return st.one_of(named, named, listed)


def trees() -> st.SearchStrategy[Node]:
    below = st.integers(1, 3).flatmap(lambda depth: st.lists(nodes(depth), min_size=1, max_size=3).map(tuple))
    return below.flatmap(
        lambda children: st.builds(
            Node, st.sampled_from(["Base", "Custom"]), st.just(children), init_cfgs(len(children))
        )
    )


def with_checkpoint(node: Node, path: Path) -> Node:
    """The tree with a Pretrained entry before its own."""
    own = [] if node.init_cfg is None else node.init_cfg if isinstance(node.init_cfg, list) else [node.init_cfg]
    return Node(node.kind, node.children, [{"type": "Pretrained", "checkpoint": str(path)}, *own])
