"""Strategies: hypothesis makes sites, shards, selectors, initializers, rules and models."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import get_args

import torch
from hypothesis import strategies as st
from torch import nn

from torchinit import (
    Constant,
    Kaiming,
    Kinds,
    Layer,
    Leaf,
    LeCun,
    Name,
    Neutral,
    Normal,
    Ones,
    Orthogonal,
    Regex,
    Roles,
    Rule,
    Shape,
    TruncNormal,
    Uniform,
    Within,
    Xavier,
    Zeros,
)
from torchinit.initializers import (
    ICNR,
    AlibiSlopes,
    Bilinear,
    Blocks,
    Caffe2Xavier,
    Chrono,
    DeformableRing,
    DeltaOrthogonal,
    DepthScaled,
    Dirac,
    Fill,
    Identity,
    Initializer,
    LogUniform,
    Mapped,
    Prior,
    Ramp,
    Scaled,
    SinCos,
    Sparse,
    Stacked,
    TorchDefault,
    VarianceScaling,
)
from torchinit.model import LayerClass, Shard, Site
from torchinit.model.layouts import ParameterKind
from torchinit.rules import All, AnyOf, Block, Dtype, Is, Not, Selector

PARTS = st.sampled_from(["conv1", "conv2", "layers", "0", "1", "12", "attn", "proj", "weight", "bias"])
NUMBERS = st.floats(-1e3, 1e3)
POSITIVE = st.floats(1e-6, 1e3)


def shapes(least: int = 0, most: int = 4, size: int = 6) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(1, size), min_size=least, max_size=most).map(tuple)


def names() -> st.SearchStrategy[str]:
    return st.lists(PARTS, min_size=1, max_size=5).map(".".join)


@st.composite
def sites(draw: st.DrawFn) -> Site:
    name = draw(names())
    block = draw(st.none() | st.integers(1, 12).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
    return Site(
        name,
        draw(shapes()),
        owner=draw(st.sampled_from(OWNERS)),
        owner_name=name.rpartition(".")[0],
        kind=draw(st.sampled_from(["parameter", "buffer"])),
        parameter_kind=draw(st.sampled_from(["weight", "bias", "other"])),
        block=block,
        neutral=draw(st.sampled_from([None, 0.0, 1.0])),
        frozen=draw(st.booleans()),
        role=draw(st.none() | st.sampled_from(ROLES)),
    )


ROLES = ("attn.out", "attn.out.bias", "expert.down[stacked]", "expert.down[listed]", "conv", "conv.bias", "unsure")


OWNERS = (
    LayerClass("Linear", ("Module",), ("torch.nn.modules.linear.Linear", "torch.nn.modules.module.Module")),
    LayerClass("Conv2d", ("_ConvNd",), ("torch.nn.modules.conv.Conv2d", "torch.nn.modules.conv._ConvNd")),
)


def globs() -> st.SearchStrategy[str]:
    part = PARTS | st.sampled_from(["*", "**", "conv*", "?"])
    return st.lists(part, min_size=1, max_size=5).map(".".join)


def simple_selectors() -> st.SearchStrategy[Selector]:
    return st.one_of(
        st.lists(globs(), min_size=1, max_size=3).map(lambda texts: Name(*texts)),
        st.sampled_from([Regex(r".*[.]weight"), Regex("layers[.](0|1)[.].*"), Regex("a'\"\\\\b")]),
        st.builds(
            lambda texts, flag: Layer(*texts, subclasses=flag),
            st.lists(st.sampled_from(["Linear", "Conv2d", "_ConvNd", nn.Linear, nn.Module]), min_size=1, max_size=3),
            st.booleans(),
        ),
        st.lists(PARTS, min_size=1, max_size=3).map(lambda texts: Leaf(*texts)),
        st.lists(st.sampled_from(get_args(ParameterKind)), min_size=1).map(lambda texts: Kinds(*texts)),
        globs().map(Within),
        st.lists(st.sampled_from([*ROLES, "attn.*", "**", "**.bias", "expert.down"]), min_size=1).map(
            lambda of: Roles(*of)
        ),
        shapes().map(Shape),
        st.integers(0, 4).map(lambda ndim: Shape(ndim=ndim)),
        st.sampled_from(
            [Is("parameter"), Is("buffer"), Is("trainable"), Is("frozen"), Dtype("float32"), Dtype("half")]
        ),
        st.lists(st.integers(-3, 12), min_size=1, max_size=3).map(lambda numbers: Block(*numbers)),
    )


def selectors() -> st.SearchStrategy[Selector]:
    def combined(inner: st.SearchStrategy[Selector]) -> st.SearchStrategy[Selector]:
        several = st.lists(inner, max_size=3)
        return several.map(lambda of: All(*of)) | several.map(lambda of: AnyOf(*of)) | inner.map(Not)

    return st.recursive(simple_selectors(), combined, max_leaves=6)


@st.composite
def truncated_normals(draw: st.DrawFn) -> TruncNormal:
    """Truncated normals that have mass in their interval and in whose bounds float32 can tell two numbers apart."""
    if draw(st.booleans()):
        bound = draw(st.floats(0.1, 6))
        return TruncNormal(draw(NUMBERS), draw(POSITIVE), -bound, bound, "sigma", draw(st.booleans()))
    std, low, width = draw(POSITIVE), draw(st.floats(-6, 5)), draw(st.floats(0.1, 6))
    return TruncNormal(0.0, std, std * low, std * (low + width))


def elementwise_fills() -> st.SearchStrategy[Fill]:
    return st.one_of(
        NUMBERS.map(Constant),
        st.builds(Normal, NUMBERS, POSITIVE),
        st.tuples(NUMBERS, NUMBERS).map(lambda ends: Uniform(*sorted(ends))),
        truncated_normals(),
    )


def matrix_fills() -> st.SearchStrategy[Fill]:
    """Fills of a tensor with two dimensions."""
    return st.one_of(
        st.builds(Orthogonal, st.floats(0.1, 10), st.integers(0, 1)),
        st.builds(Identity, NUMBERS),
        st.builds(Sparse, st.floats(0, 1), POSITIVE),
    )


def kernel_fills() -> st.SearchStrategy[Fill]:
    """Fills of a convolution kernel whose dimension 0 is even and not below dimension 1."""
    return st.one_of(
        st.builds(Orthogonal, st.floats(0.1, 10), st.integers(0, 2)),
        st.builds(DeltaOrthogonal, st.floats(0.1, 10)),
        st.sampled_from([Dirac(), Dirac(2)]),
    )


def formulas() -> st.SearchStrategy[Initializer]:
    modes = st.sampled_from(["fan_in", "fan_out", "fan_avg", "fan_geo_avg"])
    spreads = st.sampled_from(["normal", "uniform", "truncated_normal"])
    fans = st.sampled_from(["torch", "true"])
    simple = st.one_of(
        st.builds(VarianceScaling, POSITIVE, modes, spreads, fans),
        st.builds(Xavier, POSITIVE, spreads, fans),
        st.builds(
            Kaiming, st.floats(0, 3), modes, st.sampled_from(["relu", "leaky_relu", "gelu", "tanh"]), spreads, fans
        ),
        st.builds(Kaiming, st.just(0.0), modes, st.just("auto"), spreads, fans),
        st.builds(LeCun, spreads, fans),
        st.builds(Caffe2Xavier, fans),
        st.sampled_from([Zeros(), Ones(), Neutral()]),
        st.floats(0.01, 0.99).map(Prior),
        st.builds(Ramp, NUMBERS, NUMBERS, st.integers(-2, 1), power=POSITIVE, endpoint=st.booleans()),
        st.tuples(POSITIVE, POSITIVE).map(lambda ends: LogUniform(*sorted(ends))),
        st.builds(Mapped, st.builds(Normal, NUMBERS, POSITIVE), st.just("log"), st.just(1e-6)),
        st.sampled_from(
            [SinCos(), AlibiSlopes(), Bilinear(), DeformableRing(2, 1, 1), Chrono(9), ICNR(Ones()), TorchDefault()]
        ),
    )
    inner = simple | elementwise_fills()
    return st.one_of(
        simple,
        st.builds(Scaled, inner, NUMBERS),
        st.builds(DepthScaled, inner, POSITIVE, st.sampled_from(["depth", "index"])),
        st.builds(Blocks, inner, st.integers(1, 4) | st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)),
        st.tuples(inner, inner).map(lambda pair: Blocks(pair, 2)),
        st.builds(Stacked, inner),
    )


def initializers() -> st.SearchStrategy[Initializer]:
    return st.one_of(elementwise_fills(), matrix_fills(), kernel_fills(), formulas())


def rules(where: st.SearchStrategy[Selector] | None = None) -> st.SearchStrategy[Rule]:
    return st.builds(
        Rule,
        where or selectors(),
        initializers(),
        label=st.sampled_from(["", "heads", 'it\'s "so"']),
        optional=st.booleans(),
        padding=st.booleans(),
        buffers=st.booleans(),
    )


@st.composite
def slices(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A box of a tensor, not empty: a row, a column, a block or all of it."""
    ends = [draw(st.tuples(st.integers(0, size - 1), st.integers(1, size))) for size in shape]
    return tuple(slice(low, max(low + 1, high)) for low, high in ends)


def part(name: str, shape: tuple[int, ...], box: tuple[slice, ...], dtype: torch.dtype = torch.float32) -> Shard:
    """The shard of a site that holds just this box, full of NaN."""
    local = torch.full([cut.stop - cut.start for cut in box], math.nan, dtype=dtype)
    return Shard(name, local, shape, tuple(cut.start for cut in box))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 5),
    "wide": lambda: nn.Linear(3, 8, bias=False),
    "conv": lambda: nn.Conv2d(3, 4, 3),
    "norm": lambda: nn.LayerNorm(5),
    "table": lambda: nn.Embedding(7, 4, padding_idx=2),
    "rnn": lambda: nn.LSTM(3, 2),
    "block": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
}


def models() -> st.SearchStrategy[nn.Sequential]:
    """Models of one to six layers, each named for what it is, in any order."""
    return layer_names().map(build)


def layer_names() -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6, unique=True)


def build(chosen: list[str]) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, LAYERS[name]()) for name in chosen))


def label(value: object) -> str:
    """What a case is called in every process that collects it: no addresses."""
    text = " ".join(str(value).split())[:60]
    return str(getattr(value, "__name__", type(value).__name__)) if " at 0x" in text else text
