"""Vocabulary: the initializers and selectors that plain data can name, and the schema that reads them."""

from __future__ import annotations

from typing import Final

from torchinit.initializers import base, composed, elementwise, matrices, variance_scaling
from torchinit.initializers.elementwise import Constant, Fill, Initializer
from torchinit.initializers.expressions import Computed, constant
from torchinit.model.sites import Convention
from torchinit.rules import selectors
from torchinit.rules.selectors import Selector
from torchinit.serialization.registry import Registry
from torchinit.serialization.schema import Schema, Text, Vocabulary

RESERVED: Final = frozenset(
    {
        "batch_axes", "bias", "bias_prob", "blocks", "buffers", "exclude", "label", "layer", "name", "optional",
        "override", "padding", "param", "regex", "subclasses", "type", "where", "within",
    }
)  # fmt: skip
"""The words of a recipe entry that no initializer may use for an argument of its own."""

INITIALIZERS: Final = Registry("initializer", method="resolve", group="torchinit.initializers", reserved=RESERVED)
"""Every initializer that a recipe can name."""

SELECTORS: Final = Registry("selector", method="matches")
"""Every selector that a recipe can name in a ``where``."""

for _initializer in (
    base.Blockwise,
    elementwise.Constant,
    elementwise.Normal,
    composed.Opaque,
    composed.Padded,
    base.ScaledFill,
    base.StackedFill,
    elementwise.TruncNormal,
    elementwise.Uniform,
    composed.Blocks,
    variance_scaling.Caffe2Xavier,
    composed.DepthScaled,
    variance_scaling.Kaiming,
    variance_scaling.LeCun,
    variance_scaling.Neutral,
    variance_scaling.Ones,
    variance_scaling.Prior,
    composed.Scaled,
    composed.Stacked,
    variance_scaling.VarianceScaling,
    variance_scaling.Xavier,
    variance_scaling.Zeros,
    matrices.DeltaOrthogonal,
    matrices.Dirac,
    matrices.Identity,
    matrices.Orthogonal,
    matrices.Sparse,
):
    INITIALIZERS.register(_initializer)

for _selector in (
    selectors.All,
    selectors.AnyOf,
    selectors.Block,
    selectors.Is,
    selectors.Layer,
    selectors.Leaf,
    selectors.Name,
    selectors.Not,
    selectors.Regex,
    selectors.Kinds,
    selectors.Shape,
    selectors.Within,
):
    SELECTORS.register(_selector)

TEXT: Final = Text(constant, lambda cls, values: Computed(cls, **values), {"fans": Convention})

SCHEMA: Final = Schema(
    {
        Initializer: Vocabulary(INITIALIZERS, bare=(Constant, "val"), text=TEXT),
        Fill: Vocabulary(INITIALIZERS),
        Selector: Vocabulary(SELECTORS),
    }
)
"""How rules, plans and all they are made of correspond to plain data."""
