"""Roles: what each parameter is for, by its name, its layer and what stands around it; or that nobody knows."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from fnmatch import translate
from functools import cache, lru_cache
from importlib.metadata import EntryPoint
from importlib.resources import files
from itertools import chain
from typing import Any, Final, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from torchinit._frozen import changed
from torchinit._text import did_you_mean
from torchinit.errors import ConfigError
from torchinit.model.names import WRAPPERS, check_glob, glob_matches
from torchinit.model.sites import Site
from torchinit.model.traversal import HeldTensor, walk_tensors
from torchinit.serialization.registry import described, plugins, read_plugin, unloadable

UNSURE: Final = "unsure"
"""The name of the role that nobody knows."""

_WRAPPERS: Final = frozenset({"linear", "base_layer"}) | WRAPPERS
"""Layers that are wrapped in a module of their own, whose name tells then: ``q_proj.base_layer.weight`` of LoRA."""

BIAS: Final = ".bias"
"""The end of the role of a bias, behind that of its weight."""

_BY_CODE: Final = "norm.scale norm.shift conv conv.depthwise conv.pointwise head.lm mlp.gate_up mlp.down buffer unsure"
"""The roles that no rule of a file has to give."""


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
        return ", ".join(reasons + [f"of {place.ndim} dimensions"] * bool(self.ndim))


def read_rules(text: str) -> tuple[RoleRule, ...]:
    """The rules that a TOML file holds: see ``knowledge/role_rules.toml``. Raises ConfigError for anything else.

    >>> read_rules('rules = [{ role = "attn.q", leaf = "my_query" }]')[0].role
    'attn.q'
    """
    try:
        data = tomllib.loads(text)
        return tuple(_rule(entry, data.get("words", {})) for entry in data["rules"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"these are not rules of roles: {error}") from None


def _rule(entry: Mapping[str, Any], words: Mapping[str, str]) -> RoleRule:
    values: dict[str, Any] = {**entry, "ndim": tuple(entry.get("ndim", ()))}
    for name in values.keys() & {"leaf", "near", "around", "layer", "beside"}:
        globs = values[name].format_map(words).split()
        values[name] = re.compile("|".join(map(translate, globs)), re.IGNORECASE * (name in ("near", "around")))
    return RoleRule(**values)


@cache
def _shipped() -> tuple[RoleRule, ...]:
    return read_rules(files("torchinit.knowledge").joinpath("role_rules.toml").read_text("utf-8"))


_OWN: list[RoleRule] = []
_PLUGINS: Final = "torchinit.roles"


@lru_cache
def _offered(point: EntryPoint) -> tuple[RoleRule, ...]:
    """The rules in the file of another package."""
    text = read_plugin(point, "roles")
    try:
        return read_rules(text)
    except ConfigError as error:
        raise unloadable(point, "roles", error) from error


def all_rules() -> tuple[RoleRule, ...]:
    """The rules in the order in which they are tried: those of :func:`register_roles`, of plug-ins, of the package."""
    return (*_OWN, *chain.from_iterable(map(_offered, plugins(_PLUGINS).values())), *_shipped())


def known_roles() -> dict[str, str]:
    """The roles that there are, each with whose rules give it, the package's own first.

    >>> known_roles()["attn.q"]
    'torchinit'
    """
    offers = [(_offered(point), described(point)) for point in plugins(_PLUGINS).values()]
    found = dict.fromkeys(_BY_CODE.split(), "torchinit")
    for rules, whose in ((_shipped(), "torchinit"), *offers, (_OWN, "register_roles")):
        for rule in rules:
            found.setdefault(rule.role, whose)
    return dict(sorted(found.items()))


def register_roles(rules: str | Iterable[RoleRule]) -> None:
    """Put rules before those that are there: a TOML text, or what :func:`read_rules` gives.

    >>> register_roles('rules = [{ role = "attn.q", leaf = "my_query" }]')
    """
    _OWN[:0] = read_rules(rules) if isinstance(rules, str) else rules


def roles(model: nn.Module) -> Mapping[str, Role]:
    """The role of every parameter and buffer of a model, by the name of its site; on any device, meta included.

    A role is a word such as ``attn.q``, ``mlp.down``, ``norm.scale``; a bias has that of its weight, with ``.bias``.
    What no rule knows is ``unsure``, never a guess. A tied tensor has one role under all of its names, that of an
    embedding if it is one, and is listed under the first. Raises TypeError for what is not a model.

    >>> model = nn.TransformerEncoderLayer(8, 2, 16)
    >>> {name: role.name for name, role in roles(model).items() if name.startswith("linear1")}
    {'linear1.weight': 'mlp.in', 'linear1.bias': 'mlp.in.bias'}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"roles are those of a model, an nn.Module, but got {model!r}")
    return _roles_of(model, walk_tensors(model))


def _roles_of(model: nn.Module, held: Iterable[HeldTensor]) -> _Roles:
    modules, rules = dict(model.named_modules(remove_duplicate=False)), all_rules()
    held = [*held]
    weights = {id(entry.place.module): _shape(entry) for entry in held if entry.leaf == "weight"}
    found: dict[object, dict[str, Role]] = defaultdict(dict)
    shapes: dict[str, tuple[int, ...]] = {}
    tables = {entry.name for entry in held if isinstance(entry.place.module, nn.Embedding)}
    for entry in held:
        shapes[entry.name] = _shape(entry)
        # Of a bias the shape of its weight tells. It is not asked of the layer: a spectral norm moves when looked at.
        shape = weights.get(id(entry.place.module), ()) if entry.leaf == "bias" else ()
        found[entry.key][entry.name] = _role_of(entry, modules, len(shape or shapes[entry.name]), rules)
    names = {name: next(iter(group)) for group in found.values() for name in group}
    named = {next(iter(group)): _of_all_names(group, tables) for group in found.values()}
    for name, role in _told_by_shapes(named, shapes):
        for other in (name, name.removesuffix("weight") + "bias"):
            if other in named:
                named[other] = role._replace(name=role.name + BIAS * (other != name))
    return _Roles(named, names)


def _of_all_names(group: Mapping[str, Role], tables: Set[str]) -> Role:
    """The role of a tensor by those that its names have: the one that tells most, the table if a head shares one."""
    role = max(group.values(), key=lambda role: 2 if role.name.startswith("embed.") else int(role.sure))
    if not role.name.startswith("embed.") and group.keys() & tables and group.keys() - tables:
        return Role("embed.token", "an embedding that another layer shares")
    return role


class _Roles(Mapping[str, Role]):
    """The roles of the sites of a model; each name of a tied tensor finds its role, and one of them is counted."""

    def __init__(self, roles: Mapping[str, Role], names: Mapping[str, str]) -> None:
        self._roles, self._names = roles, names

    def __getitem__(self, name: str) -> Role:
        return self._roles[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._roles)

    def __len__(self) -> int:
        return len(self._roles)

    def __repr__(self) -> str:
        return repr(self._roles)


def with_roles(model: nn.Module, sites: Iterable[Site], held: Iterable[HeldTensor] | None = None) -> tuple[Site, ...]:
    """The sites of a model, each with what it is for: ``Site.role``. ``held`` is what ``walk_tensors`` found."""
    found = _roles_of(model, walk_tensors(model) if held is None else held)

    def with_role(site: Site) -> Site:
        role = found[site.name].name if site.name in found else None
        return changed(site, role=role, aliases=tuple(changed(alias, role=role) for alias in site.aliases))

    return tuple(map(with_role, sites))


def role_matches(glob: str, role: str) -> bool:
    """Whether a role fits a glob. ``*`` stands for any text within one part, ``**`` for any number of parts.

    Where a glob says nothing of what stands in brackets it is for all; a role of biases is matched by globs of such.

    >>> role_matches("expert.down", "expert.down[stacked]"), role_matches("attn.*", "attn.q.bias")
    (True, False)
    """
    if glob.endswith(BIAS) != role.endswith(BIAS) or not role.startswith(_head(glob)):
        return False
    wanted, bare = glob.removesuffix(BIAS), role.removesuffix(BIAS)
    return glob_matches(wanted, bare) or glob_matches(wanted, bare.partition("[")[0])


@lru_cache(maxsize=8)
def _known(rules: tuple[RoleRule, ...]) -> frozenset[str]:
    """The roles that there are, with and without what stands in brackets."""
    roles = {rule.role.removesuffix(BIAS) for rule in rules}.union(_BY_CODE.split())
    return frozenset(roles | {role.partition("[")[0] for role in roles})


def check_role(glob: object) -> None:
    """Raise ValueError for a role that no rule gives, or a glob that begins like none; the text has the near name."""
    check_glob(glob)
    known, wanted = _known(all_rules()), str(glob).removesuffix(BIAS)
    head = _head(wanted)  # and no more, since to compile 40,000 globs of a stranger takes too long
    if wanted not in known and (head == wanted or not any(role.startswith(head) for role in known)):
        groups = {f"{role.partition('.')[0]}.*" for role in known}
        raise ValueError(f"no rule gives the role {glob!r}{did_you_mean(wanted, known | groups)}")


def _head(glob: str) -> str:
    return glob.partition("*")[0].partition("?")[0]


def _told_by_shapes(named: Mapping[str, Role], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Role]]:
    """The weights whose roles two shapes tell: gate and up in one, and a head over the vocabulary."""
    tables = {shapes[name][0] for name, role in named.items() if role.name == "embed.token" and shapes[name]}

    def parent(name: str) -> str:
        return name.rpartition(".")[0].rpartition(".")[0]

    ways_out = {parent(name): name for name, role in named.items() if role.name == "mlp.out"}
    # Two weights and their roles are compared, so this comes after all others. A copy, as the caller puts what is
    # yielded into `named` before it asks for more.
    for name, role in [*named.items()]:
        out = ways_out.get(parent(name), "")
        if role.name == "head.task" and shapes[name] and shapes[name][0] in tables:
            yield name, role._replace(name="head.lm", why=f"{role.why}, as many rows as tokens")
        elif role.name == "mlp.in" and out and shapes[name][:1] == (2 * shapes[out][-1],):
            yield name, role._replace(name="mlp.gate_up", why=f"{role.why}, twice the rows that {out} takes")
            yield out, named[out]._replace(name="mlp.down")


def _shape(entry: HeldTensor) -> tuple[int, ...]:
    return () if is_lazy(entry.tensor) else tuple(entry.tensor.shape)


def _role_of(entry: HeldTensor, modules: Mapping[str, nn.Module], ndim: int, rules: Iterable[RoleRule]) -> Role:
    if entry.kind == "buffer":
        return Role("buffer", "a buffer")
    place, owner = _place(entry, modules, ndim), entry.place.module
    if _is_norm(owner, entry):
        return Role("norm.shift" if place.is_bias else "norm.scale", f"of a {place.layer[0]}")
    for rule in rules:
        if why := rule.why(place):
            return Role(rule.role + BIAS * (place.is_bias and rule.bias is None), why)
    if isinstance(owner, nn.modules.conv._ConvNd):
        is_depthwise, is_pointwise = owner.groups == owner.in_channels > 1, set(owner.kernel_size) == {1}
        kind = "conv.depthwise" if is_depthwise else "conv.pointwise" if is_pointwise else "conv"
        return Role(kind + BIAS * place.is_bias, f"of a {place.layer[0]}")
    return Role(UNSURE, f"no rule knows {place.leaf!r} in {place.near[-1]}", sure=False)


def _is_norm(owner: nn.Module, entry: HeldTensor) -> bool:
    """Whether the owner is a norm: by its class, with one axis that is longer than 1, and nothing learned below it."""
    names = [cls.__name__.lower() for cls in type_before_parametrizations(owner).__mro__]
    known = "norm" in names[0] or not {"layernorm", "groupnorm", "rmsnorm", "_batchnorm", "_normbase"}.isdisjoint(names)
    below = (parameter for child in owner.children() for parameter in child.parameters())
    return known and sum(size > 1 for size in _shape(entry)) <= 1 and next(below, None) is None


def _place(entry: HeldTensor, modules: Mapping[str, nn.Module], ndim: int) -> _Place:
    path = entry.place.name.split(".") if entry.place.name else []
    owner = type_before_parametrizations(entry.place.module)
    is_recurrent = issubclass(owner, (nn.RNNBase, nn.modules.rnn.RNNCellBase))
    is_bias = entry.leaf == "bias" or (is_recurrent and entry.leaf.startswith("bias"))
    leaf, holder = entry.leaf, path  # the word that tells, and the way to the module that holds what is called so
    # Of "layers.3.q_proj.base_layer.weight" the word is q_proj: numbers and wrappers are called alike everywhere. Its
    # holder is what it lies in, found from the end, as a word may be in a path twice.
    if entry.leaf in ("weight", "bias") and path:
        names = [name for name in path if name not in _WRAPPERS] or path
        leaf = next((name for name in reversed(names) if not name.isdigit()), "")
        holder = path[: len(path) - 1 - path[::-1].index(leaf)] if leaf else path
    above = [modules[".".join(holder[:size])] for size in range(len(holder), -1, -1)]
    classes = [tuple(cls.__name__ for cls in type(module).__mro__[:2]) for module in above]
    around = [name for name in reversed(holder) if not (name.isdigit() or name in WRAPPERS)]
    beside = (*above[0]._modules.keys(), *above[0]._parameters.keys())  # those of a ScriptModule do not iterate
    return _Place(
        leaf,
        is_bias,
        tuple(cls.__name__ for cls in owner.__mro__),
        (*around[:1], *reversed(classes[0])),
        (*around, *(name for names in classes for name in names)),
        tuple(name for name in beside if name != leaf),
        ndim,
    )


def role_of_several(word: str) -> str:
    """The role of a weight that holds several side by side, by the name of its layer alone; empty for any other.

    >>> role_of_several("query_key_value"), role_of_several("q_proj")
    ('attn.qkv', '')
    """
    several = [rule for rule in _shipped() if rule.role in ("attn.qkv", "attn.kv", "mlp.gate_up") and not rule.near]
    return next((rule.role for rule in several if rule.leaf and rule.leaf.fullmatch(word)), "")
