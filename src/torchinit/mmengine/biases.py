"""Biases: how an ``init_cfg``, an initializer or a function treats them, and the attributes that MMEngine writes.

MMEngine writes the attribute ``weight`` of a layer by a formula and then ``bias`` with a number: 0 unless ``bias``
says otherwise, or the one that ``bias_prob`` stands for. Beyond MMEngine ``bias`` may be ``"keep"``, which leaves
biases alone, or an initializer of their own. An entry that selects parameters by their names writes all of them by
its formula, unless it says something of biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, cast

from torchinit.initializers.elementwise import Constant, Initializer
from torchinit.mmengine.registry import InitCfgTypeError
from torchinit.rules.rule import SCHEMA
from torchinit.rules.selectors import Kinds, Leaf, Selector

Bias: TypeAlias = float | Literal["keep"] | Initializer

LEAVES: Final = ("weight", "bias")
"""The attributes that MMEngine writes, in this order."""

BIAS_WORDS: Final = frozenset({"bias", "bias_prob"})


def number(name: str, value: Any) -> float:
    """Return the number that torch would take this for: numpy's and zero-dimensional tensors are numbers, too."""
    if type(value) in (int, float):
        return cast("float", value)
    if not hasattr(value, "__float__"):
        raise InitCfgTypeError(f"{name} must be a number, but got {value!r}")
    return float(value)


def bias_of(bias: Any = 0, bias_prob: Any = None) -> Bias:
    """Return what biases get; ``bias_prob``, where a sigmoid starts, wins over ``bias``, dicts are initializers.

    Raises TypeError for arguments of other types, ValueError for a probability outside (0, 1), and ConfigError for a
    dict that is not an initializer.

    >>> bias_of({"type": "Normal", "std": 0.1}), bias_of("keep"), bias_of("keep", 0.25), bias_of(1)
    (Normal(mean=0.0, std=0.1), 'keep', -1.0986122886681098, 1)
    """
    if isinstance(bias, Mapping):
        bias = SCHEMA.decode(bias, Initializer, "bias")
    if not (isinstance(bias, (int, float, Initializer)) or _is_keep(bias)):
        raise InitCfgTypeError(f"bias must be a number, but got a {type(bias)}")
    if bias_prob is not None and not isinstance(bias_prob, float):
        raise InitCfgTypeError(f"bias_prob type must be float, but got {type(bias_prob)}")
    return cast("Bias", bias) if bias_prob is None else bias_init_with_prob(bias_prob)


def _is_keep(bias: object) -> bool:
    return isinstance(bias, str) and bias == "keep"


def by_attribute(weight: Initializer, bias: Any) -> dict[str, Initializer]:
    """Return the initializers of the attributes that are written, in the order of the writes."""
    if _is_keep(bias):
        return {"weight": weight}
    # To ask whether it is an initializer, a protocol, takes longer than all the rest.
    is_number = type(bias) in (int, float) or not isinstance(bias, Initializer)
    return {"weight": weight, "bias": Constant(float(number("bias", bias))) if is_number else bias}


def by_site(
    where: Selector | None, weight: Initializer, bias: Bias, *, by_name: bool, says_bias: bool
) -> list[tuple[Selector, Initializer]]:
    """Return selectors of the sites to write, among those of ``where`` (None: all), each with its initializer.

    They are found by attribute, as in MMEngine, or ``by_name``: then biases are found by their role.

    >>> by_site(None, Constant(2.0), 0, by_name=False, says_bias=False)
    [(Leaf('weight'), Constant(val=2.0)), (Leaf('bias'), Constant(val=0.0))]
    """
    if by_name and not says_bias and where is not None:
        return [(where, weight)]
    kinds: dict[str, Selector] = {leaf: Leaf(leaf) for leaf in LEAVES}
    if by_name:
        kinds = {"weight": ~Kinds("bias"), "bias": Kinds("bias")}
    inits = by_attribute(weight, bias)
    return [(kinds[leaf] if where is None else where & kinds[leaf], init) for leaf, init in inits.items()]


def bias_init_with_prob(prior_prob: float) -> float:
    """The bias with which a sigmoid starts at a probability: -log((1 - p) / p).

    Lin et al. (2017), https://arxiv.org/abs/1708.02002. Raises ValueError for a probability outside (0, 1).

    >>> bias_init_with_prob(0.01)
    -4.59511985013459
    """
    if not 0 < prior_prob < 1:
        raise ValueError(f"a prior probability lies in (0, 1), but got {prior_prob!r}")
    return -math.log((1 - prior_prob) / prior_prob)
