"""Roles: what each parameter is for, by its name, its layer and what stands around it; or that nobody knows."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from torchinit.errors import ConfigError
from torchinit.model.traversal import HeldTensor, walk_tensors

UNSURE: Final = "unsure"
"""The name of the role that nobody knows."""

_WRAPPERS: Final = frozenset({"linear", "base_layer"})
"""Layers that are wrapped in a module of their own, whose name tells then: ``q_proj.base_layer.weight`` of LoRA."""


class Role(NamedTuple):
    """A role: its ``name``, ``why`` it is thought to be that, and whether that is ``sure``.

    >>> Role("attn.q", "called 'q_proj', in a LlamaAttention").sure
    True
    """

    name: str
    why: str
    sure: bool = True


@dataclass(frozen=True, slots=True)
class _Place:
    """What can be seen of a parameter: the word that tells, its owner's classes, and what stands around it."""

    leaf: str
    is_bias: bool
    layer: tuple[str, ...]
    near: tuple[str, ...]
    around: tuple[str, ...]
    beside: tuple[str, ...]
    ndim: int

    @property
    def parent(self) -> str:
        return self.near[-1] if self.near else "the model"


@dataclass(frozen=True, slots=True)
class RoleRule:
    """A rule by which a parameter has a role; every condition that it has must hold.

    >>> RoleRule("attn.q", re.compile("my_query")).role
    'attn.q'
    """

    role: str
    leaf: re.Pattern[str] | None = None
    near: re.Pattern[str] | None = None
    around: re.Pattern[str] | None = None
    layer: re.Pattern[str] | None = None
    beside: re.Pattern[str] | None = None
    ndim: tuple[int, ...] = ()
    bias: bool | None = None

    def why(self, place: _Place) -> str:
        """The reason why a parameter has the role; empty where it does not."""
        if self.bias not in (None, place.is_bias) or (self.ndim and place.ndim not in self.ndim):
            return ""
        if self.leaf and not self.leaf.fullmatch(place.leaf):
            return ""
        reasons = [f"called {place.leaf!r}"] if self.leaf else []
        for pattern, words, text in (
            (self.near, place.near, "in {}"),
            (self.around, place.around, "below {}"),
            (self.layer, place.layer, "of a {}"),
            (self.beside, place.beside, "beside {!r}"),
        ):
            if pattern is not None:
                found = next((word for word in words if pattern.fullmatch(word)), None)
                if found is None:
                    return ""
                reasons.append(text.format(found))
        return ", ".join([*reasons, *([f"of {place.ndim} dimensions"] if self.ndim else [])])


def read_rules(text: str) -> tuple[RoleRule, ...]:
    """The rules that a TOML file holds: see ``knowledge/role_rules.toml``. Raises ConfigError for anything else.

    >>> read_rules('rules = [{ role = "attn.q", leaf = "my_query" }]')[0].role
    'attn.q'
    """
    try:
        data = tomllib.loads(text)
        words = data.get("words", {})
        return tuple(_rule(entry, words) for entry in data["rules"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"these are not rules of roles: {error}") from None


def _rule(entry: Mapping[str, Any], words: Mapping[str, str]) -> RoleRule:
    values: dict[str, Any] = dict(entry)
    for name in ("leaf", "near", "around", "layer", "beside"):
        if name in values:
            globs = values[name].format_map(words).split()
            values[name] = re.compile("|".join(map(translate, globs)), re.IGNORECASE * (name in ("near", "around")))
    return RoleRule(**values | {"ndim": tuple(values.get("ndim", ()))})


@cache
def _shipped() -> tuple[RoleRule, ...]:
    return read_rules(files("torchinit.knowledge").joinpath("role_rules.toml").read_text("utf-8"))


_OWN: list[RoleRule] = []


def register_roles(rules: str | Iterable[RoleRule]) -> None:
    """Put rules before those that are there: a TOML text, or what :func:`read_rules` gives.

    >>> register_roles('rules = [{ role = "attn.q", leaf = "my_query" }]')
    """
    _OWN[:0] = read_rules(rules) if isinstance(rules, str) else rules


def roles(model: nn.Module) -> Mapping[str, Role]:
    """The role of every parameter and buffer of a model, by the name of its site; on any device, meta included.

    A role is a word such as ``attn.q``, ``mlp.down``, ``norm.scale``; a bias has that of its weight, with ``.bias``.
    What no rule knows is ``unsure``, never a guess. Of a tied tensor the role under its first name counts. Raises
    TypeError for anything but a model.

    >>> model = nn.TransformerEncoderLayer(8, 2, 16)
    >>> {name: role.name for name, role in roles(model).items() if name.startswith("linear1")}
    {'linear1.weight': 'mlp.in', 'linear1.bias': 'mlp.in.bias'}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"roles are those of a model, an nn.Module, but got {model!r}")
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[object, tuple[str, Role]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in walk_tensors(model):
        shapes[entry.name] = tuple(entry.tensor.shape)
        found.setdefault(entry.key, (entry.name, _role_of(entry, modules)))
    named = dict(found.values())
    for name, role in _told_by_shapes(named, shapes):
        for changed in (name, name.removesuffix("weight") + "bias"):
            if changed in named:
                named[changed] = role._replace(name=role.name + ".bias" * (changed != name))
    return MappingProxyType(named)


def _told_by_shapes(named: Mapping[str, Role], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Role]]:
    """The weights whose roles two shapes tell: gate and up in one, and a head over the vocabulary."""
    tables = {shapes[name][0] for name, role in named.items() if role.name == "embed.token" and shapes[name]}
    ways_out = {_parent(name): name for name, role in named.items() if role.name == "mlp.out"}
    for name, role in [*named.items()]:
        out = ways_out.get(_parent(name), "")
        if role.name == "head.task" and shapes[name][0] in tables:
            yield name, role._replace(name="head.lm", why=f"{role.why}, as many rows as tokens")
        elif role.name == "mlp.in" and out and shapes[name][:1] == (2 * shapes[out][-1],):
            yield name, role._replace(name="mlp.gate_up", why=f"{role.why}, twice the rows that {out} takes")
            yield out, named[out]._replace(name="mlp.down")


def _parent(name: str) -> str:
    """The module around the layer that a weight belongs to."""
    return name.rpartition(".")[0].rpartition(".")[0]


def _role_of(entry: HeldTensor, modules: Mapping[str, nn.Module]) -> Role:
    if entry.kind == "buffer":
        return Role("buffer", "a buffer")
    place, owner = _place(entry, modules), entry.place.module
    if _is_norm(owner, entry):
        return Role("norm.shift" if place.is_bias else "norm.scale", f"of a {place.layer[0]}")
    for rule in (*_OWN, *_shipped()):
        if why := rule.why(place):
            return Role(rule.role + ".bias" * (place.is_bias and rule.bias is None), why)
    return _convolution(owner, place) or Role(UNSURE, f"no rule knows {place.leaf!r} in {place.parent}", sure=False)


def _convolution(owner: nn.Module, place: _Place) -> Role | None:
    if not isinstance(owner, nn.modules.conv._ConvNd):
        return None
    kind = "conv"
    if owner.groups == owner.in_channels > 1:
        kind = "conv.depthwise"
    elif set(owner.kernel_size) == {1}:
        kind = "conv.pointwise"
    return Role(kind + ".bias" * place.is_bias, f"of a {place.layer[0]}")


def _is_norm(owner: nn.Module, entry: HeldTensor) -> bool:
    """Whether the owner is a norm: by its class, with one axis that is longer than 1, and nothing learned below it."""
    names = [cls.__name__.lower() for cls in type_before_parametrizations(owner).__mro__]
    known = "norm" in names[0] or not {"layernorm", "groupnorm", "rmsnorm", "_batchnorm", "_normbase"}.isdisjoint(names)
    below = (parameter for child in owner.children() for parameter in child.parameters())
    return known and sum(size > 1 for size in entry.tensor.shape) <= 1 and next(below, None) is None


def _place(entry: HeldTensor, modules: Mapping[str, nn.Module]) -> _Place:
    path = entry.place.name.split(".") if entry.place.name else []
    owner, weight = type_before_parametrizations(entry.place.module), getattr(entry.place.module, "weight", None)
    is_bias = entry.leaf == "bias"
    leaf, holder = entry.leaf, path  # the word that tells, and the way to the module that holds what is called so
    if entry.leaf in ("weight", "bias") and path:
        names = [name for name in path if name not in _WRAPPERS] or path
        leaf = next((name for name in reversed(names) if not name.isdigit()), "")
        holder = path[: len(path) - 1 - path[::-1].index(leaf)] if leaf else path
    above = [modules[".".join(holder[:size])] for size in range(len(holder), -1, -1)]
    classes = [tuple(cls.__name__ for cls in type(module).__mro__[:2]) for module in above]
    around = [name for name in reversed(holder) if not name.isdigit()]
    beside = (*above[0]._modules, *above[0]._parameters)
    return _Place(
        leaf,
        is_bias,
        tuple(cls.__name__ for cls in owner.__mro__),
        (*around[:1], *reversed(classes[0])),
        (*around, *(name for names in classes for name in names)),
        tuple(name for name in beside if name != leaf),
        weight.dim() if is_bias and isinstance(weight, Tensor) else entry.tensor.dim(),
    )


_SEVERAL: Final = frozenset({"attn.qkv", "attn.kv", "mlp.gate_up"})


def role_of_several(word: str) -> str:
    """The role of a weight that holds several side by side, by the name of its layer alone; empty for any other.

    >>> role_of_several("query_key_value"), role_of_several("q_proj")
    ('attn.qkv', '')
    """
    named = (rule for rule in _shipped() if rule.role in _SEVERAL and rule.leaf and not rule.near)
    return next((rule.role for rule in named if rule.leaf and rule.leaf.fullmatch(word)), "")
