"""Parametrized tensors: those that a module computes from others, and how a value is given to them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, type_before_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Assign: TypeAlias = Callable[[Tensor], Tensor]
"""Take values to the tensors behind, and return the tensor that the module now computes."""

_SETTLE = 15
"""Power iterations after which torch's spectral norm, when it is made, takes its estimate for good."""


@dataclass(frozen=True, slots=True)
class Parametrized:
    """A tensor that its module computes from ``sources``; ``assign`` is None where no value can be given to it.

    ``value`` has its shape and dtype. ``hidden`` are the module's own parameters that stand behind it.
    """

    leaf: str
    value: Tensor
    sources: tuple[Tensor, ...]
    assign: Assign | None
    hidden: frozenset[str] = frozenset()


def parametrized(module: nn.Module) -> tuple[Parametrized, ...]:
    """The tensors that a module computes: by ``torch.nn.utils.parametrize``, or by the older hooks.

    >>> [tensor.leaf for tensor in parametrized(parametrizations.weight_norm(nn.Linear(2, 3)))]
    ['weight']
    """
    if not module._forward_pre_hooks and "parametrizations" not in module._modules:  # as most are
        return ()
    computed = []
    if "parametrizations" in module._modules and is_parametrized(module):
        chains: Any = module.parametrizations
        computed += [_chain(module, leaf, chain) for leaf, chain in chains.items()]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            computed.append(_weight_norm(module, hook))
        elif isinstance(hook, SpectralNorm):
            computed.append(_spectral_norm(module, hook))
    return tuple(computed)


def bare_class(module: nn.Module) -> type:
    """The class that a module has, or had before it was parametrized."""
    return type_before_parametrizations(module) if "parametrizations" in module._modules else type(module)


def sets_scale(module: nn.Module, leaf: str) -> bool:
    """Whether a tensor is computed so that it has one size whatever is written to it, as by a spectral norm.

    >>> sets_scale(parametrizations.weight_norm(nn.Linear(4, 4)), "weight")
    False
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)) and hook.name == leaf:
            return isinstance(hook, SpectralNorm)
    try:
        tensor = next((each for each in parametrized(copy.deepcopy(module)) if each.leaf == leaf), None)
    except Exception:  # noqa: BLE001  # what cannot be copied cannot be asked
        return False
    if tensor is None or tensor.value.is_meta:
        return False
    if tensor.assign is None:
        return True
    try:
        with torch.no_grad():
            one, two = (float(tensor.assign(torch.full_like(tensor.value, size)).norm()) for size in (1, 2))
    except Exception:  # noqa: BLE001  # an orthogonal map refuses all that is not orthogonal, a stranger's whatever
        return True
    return not two > 1.5 * one


def _chain(module: nn.Module, leaf: str, chain: ParametrizationList) -> Parametrized:
    def assign(values: Tensor) -> Tensor:
        # Setting it runs right_inverse along the chain. A spectral norm then divides by an estimate of the largest
        # singular value, from vectors that belong to the values before; each look in training improves them by one
        # power iteration.
        setattr(module, leaf, values)
        with _mode(chain, training=True):
            for _ in range(_SETTLE if any(isinstance(step, parametrizations._SpectralNorm) for step in chain) else 0):
                getattr(module, leaf)
        return _look(module, leaf, chain)

    tensors = {**chain._parameters, **chain._buffers}
    sources = tuple(tensor for name, tensor in tensors.items() if tensor is not None and name.startswith("original"))
    takes_values = all(hasattr(step, "right_inverse") and not _is_one_way(step) for step in chain)
    return Parametrized(leaf, _look(module, leaf, chain), sources, assign if takes_values else None)


def _look(module: nn.Module, leaf: str, chain: ParametrizationList) -> Tensor:
    """The tensor, without the changes that looking at it makes to a parametrization in training (power iterations)."""
    with torch.no_grad(), _mode(chain, training=False):
        return cast("Tensor", getattr(module, leaf))


@contextmanager
def _mode(chain: nn.Module, *, training: bool) -> Iterator[None]:
    before = {module: module.training for module in chain.modules()}
    try:
        for module in before:
            module.training = training
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def _is_one_way(step: nn.Module) -> bool:
    """Torch's orthogonal map has a right_inverse that always raises, unless it has a base to move."""
    householder = parametrizations._OrthMaps.householder
    is_orthogonal = isinstance(step, parametrizations._Orthogonal)
    return is_orthogonal and not (hasattr(step, "base") or step.orthogonal_map == householder)


def _weight_norm(module: nn.Module, hook: WeightNorm) -> Parametrized:
    hidden = hook.name + "_g", hook.name + "_v"
    length, direction = map(module.get_parameter, hidden)

    def assign(values: Tensor) -> Tensor:
        # The module computes g v / |v|, which is the values again, but for rounding, with v the values and g their
        # lengths.
        length.copy_(torch.norm_except_dim(values, 2, hook.dim))
        direction.copy_(values)
        return _refresh(module, hook.name, hook.compute_weight(module))

    return Parametrized(hook.name, direction.detach(), (length, direction), assign, frozenset(hidden))


def _spectral_norm(module: nn.Module, hook: SpectralNorm) -> Parametrized:
    source = module.get_parameter(hook.name + "_orig")

    def assign(values: Tensor) -> Tensor:
        source.copy_(values)
        for _ in range(_SETTLE):
            hook.compute_weight(module, do_power_iteration=True)
        return _refresh(module, hook.name, hook.compute_weight(module, do_power_iteration=False))

    return Parametrized(hook.name, source.detach(), (source,), assign, frozenset({hook.name + "_orig"}))


def _refresh(module: nn.Module, leaf: str, value: Any) -> Tensor:
    """Replace the plain attribute, which the hook would renew only before the next forward."""
    setattr(module, leaf, value)
    return cast("Tensor", value)
