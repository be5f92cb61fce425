"""Vocabulary: the initializers and selectors that plain data can name, and the schema that reads them."""

from __future__ import annotations

from typing import Final

from torchinit.core import composites, compositions, fill_base, fills, formulas, matrices, selectors
from torchinit.core.expressions import Computed, constant
from torchinit.core.fills import Constant, Fill, Initializer
from torchinit.core.selectors import Selector
from torchinit.core.sites import Convention
from torchinit.registry import Registry
from torchinit.schema import Schema, Text, Vocabulary

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
    composites.Blockwise,
    fills.Constant,
    fills.Normal,
    composites.Opaque,
    composites.Padded,
    fill_base.ScaledFill,
    fill_base.StackedFill,
    fills.TruncNormal,
    fills.Uniform,
    compositions.Blocks,
    formulas.Caffe2Xavier,
    compositions.DepthScaled,
    formulas.Kaiming,
    formulas.LeCun,
    formulas.Neutral,
    formulas.Ones,
    formulas.Prior,
    compositions.Scaled,
    compositions.Stacked,
    formulas.VarianceScaling,
    formulas.Xavier,
    formulas.Zeros,
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
