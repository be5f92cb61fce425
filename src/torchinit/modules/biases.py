"""Biases: what an ``init_cfg`` says of them: MMEngine's numbers and probabilities, and beyond those initializers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from torchinit.core.fills import Constant, Initializer
from torchinit.core.vocabulary import SCHEMA
from torchinit.modules.errors import InitCfgTypeError

Bias: TypeAlias = float | Literal["keep"] | Initializer


def bias_number(bias: Any, bias_prob: Any = None) -> float:
    """Return the number that MMEngine gives to biases; ``bias_prob``, where a sigmoid starts, wins over ``bias``.

    Raises TypeError for arguments of other types, ValueError for a probability outside (0, 1).

    >>> bias_number(0.5), round(bias_number(0, bias_prob=0.01), 3)
    (0.5, -4.595)
    """
    if not isinstance(bias, (int, float)):
        raise InitCfgTypeError(f"bias must be a number, but got a {type(bias)}")
    if bias_prob is not None and not isinstance(bias_prob, float):
        raise InitCfgTypeError(f"bias_prob type must be float, but got {type(bias_prob)}")
    return bias if bias_prob is None else bias_init_with_prob(bias_prob)


def take_bias(said: dict[str, Any]) -> Bias | None:
    """Take a bias that is not a number, if there is one, out of what an entry says.

    Raises ConfigError for a dict that is not an initializer.

    >>> take_bias({"bias": {"type": "Normal", "std": 0.1}}), take_bias({"bias": "keep"}), take_bias({"bias": 0.5})
    (Normal(mean=0.0, std=0.1), 'keep', None)
    """
    bias = said.get("bias")
    if not (isinstance(bias, (Mapping, Initializer)) or (isinstance(bias, str) and bias == "keep")):
        return None
    del said["bias"]
    if isinstance(bias, str):
        return "keep"
    read: Initializer = SCHEMA.decode(bias, Initializer, "bias") if isinstance(bias, Mapping) else bias
    return read


def bias_initializer(bias: Bias) -> Initializer | None:
    """The initializer of the biases; None where they are to be left alone.

    >>> bias_initializer(1), bias_initializer("keep")
    (Constant(val=1.0), None)
    """
    if isinstance(bias, str):
        return None
    return Constant(float(bias)) if isinstance(bias, (int, float)) else bias


def bias_init_with_prob(prior_prob: float) -> float:
    """The bias with which a sigmoid starts at a probability: -log((1 - p) / p).

    Lin et al. (2017), https://arxiv.org/abs/1708.02002. Raises ValueError for a probability outside (0, 1).

    >>> bias_init_with_prob(0.01)
    -4.59511985013459
    """
    if not 0 < prior_prob < 1:
        raise ValueError(f"a prior probability lies in (0, 1), but got {prior_prob!r}")
    return -math.log((1 - prior_prob) / prior_prob)
