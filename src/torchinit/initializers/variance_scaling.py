"""Formulas: initializers that look at a site before they know their numbers: its fans, its layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final

from torchinit._text import ShortStr
from torchinit.initializers.elementwise import Constant, Fill, Normal, TruncNormal, Uniform
from torchinit.knowledge.gains import Nonlinearity, gain, gain_before
from torchinit.model.sites import Convention, Site
from torchinit.serialization.registry import Deferred
from torchinit.serialization.schema import check_choice, check_number

FanMode: TypeAlias = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
Family: TypeAlias = Literal["normal", "uniform", "truncated_normal"]


class _FanFormula(ShortStr):
    """A formula over the fans of a site."""

    __slots__ = ()

    fans: Convention

    def __post_init__(self) -> None:
        for name, options in (("mode", FanMode), ("distribution", Family), ("fans", Convention)):
            if hasattr(self, name):
                check_choice(name, getattr(self, name), options)
        for name in ("scale", "gain"):
            check_number(name, getattr(self, name, 1.0), least=0)

    def spread(self, site: Site, gain: float, mode: FanMode, distribution: Family) -> Fill:
        """The fill of mean 0 and standard deviation gain / sqrt(fan), by torch.nn.init's arithmetic to the last bit."""
        fan_in, fan_out = site.fans(self.fans)
        if not site.numel:  # nothing to write, and a fan of 0 has no root
            return Constant(0.0)
        # In the order of torch.nn.init: xavier has gain * sqrt(2 / (fan_in + fan_out)), kaiming gain / sqrt(fan), and
        # both a bound of sqrt(3) times that. One formula for all of them, sqrt(scale / fan), is off by a last bit now
        # and then, and what is drawn without a seed would not have the bits of code by hand.
        if mode == "fan_avg":
            std = gain * math.sqrt(2.0 / (fan_in + fan_out))
        else:
            fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_geo_avg": math.sqrt(fan_in * fan_out)}[mode]
            std = gain / math.sqrt(fan)
        if distribution == "normal":
            return Normal(0.0, std)
        bound = math.sqrt(2.0 if site.dtype.is_complex else 3.0) * std  # of a disc, or of an interval
        if distribution == "uniform":
            return Uniform(-bound, bound)
        return TruncNormal(0.0, std, -2.0, 2.0, unit="sigma", corrected=True)


@final
@dataclass(frozen=True, slots=True)
class VarianceScaling(_FanFormula):
    r"""Variance ``scale`` / fan: the general formula behind Xavier, Kaiming and LeCun.

    .. math:: \mathrm{Var}(w) = \mathrm{scale} / n, \quad n = \text{fan-in, fan-out or one of their means}

    The truncated normal is cut at two standard deviations and corrected, as in ``jax.nn.initializers``.
    ``fans`` chooses how connections are counted: :meth:`torchinit.model.Site.fans`. Raises FanError (in a plan:
    PlanError) for a tensor with fewer than two dimensions.

    >>> VarianceScaling(2.0, "fan_in", "normal").resolve(Site("w", (10, 50)))
    Normal(mean=0.0, std=0.2)
    """

    scale: float = 1.0
    mode: FanMode = "fan_in"
    distribution: Family = "truncated_normal"
    fans: Convention = "torch"
    looks_at: ClassVar[tuple[str, ...]] = ("layout",)

    def resolve(self, site: Site) -> Fill:
        return self.spread(site, math.sqrt(self.scale), self.mode, self.distribution)


@final
@dataclass(frozen=True, slots=True)
class Xavier(_FanFormula):
    """Glorot & Bengio (2010): variance gain² · 2 / (fan_in + fan_out).

    https://proceedings.mlr.press/v9/glorot10a.html

    >>> Xavier().resolve(Site("w", (150, 50)))
    Normal(mean=0.0, std=0.1)
    """

    gain: float = 1.0
    distribution: Family = "normal"
    fans: Convention = "torch"
    looks_at: ClassVar[tuple[str, ...]] = ("layout",)

    def resolve(self, site: Site) -> Fill:
        return self.spread(site, self.gain, "fan_avg", self.distribution)


@final
@dataclass(frozen=True, slots=True)
class Kaiming(_FanFormula):
    """He et al. (2015): variance gain² / fan, the gain that of the layer's nonlinearity.

    ``mode`` is the fan: by default ``"fan_out"``, as in MMEngine, where ``torch.nn.init.kaiming_normal_`` has
    ``"fan_in"``; a plan notes where the two are more than a factor of 2 apart.
    ``a`` is the negative slope of ``leaky_relu`` (and of ``prelu``). ``nonlinearity`` is one of :func:`gain`'s
    names, a function (in Python: plain data cannot hold one), or ``"auto"``: what follows the layer, with its slope,
    where the structure of the model shows it. Where it does not, and before a norm, the gain is 1, and the plan notes
    what is not known. https://arxiv.org/abs/1502.01852

    >>> Kaiming().resolve(Site("w", (50, 10)))
    Normal(mean=0.0, std=0.2)
    >>> Kaiming(mode="fan_in", nonlinearity="linear", distribution="uniform").resolve(Site("w", (8, 3)))
    Uniform(a=-1.0, b=1.0)
    >>> Kaiming(mode="fan_in", nonlinearity="auto").resolve(Site("w", (10, 50), activation="relu"))
    Normal(mean=0.0, std=0.2)
    """

    a: float = 0.0
    mode: FanMode = "fan_out"
    nonlinearity: Nonlinearity = "relu"
    distribution: Family = "normal"
    fans: Convention = "torch"
    looks_at: ClassVar[tuple[str, ...]] = ("layout", "activation")

    def __post_init__(self) -> None:
        _FanFormula.__post_init__(self)
        check_number("a", self.a)
        if self.nonlinearity != "auto":
            gain(self.nonlinearity, self.a)
        elif self.a:
            raise ValueError(f"a is found with nonlinearity='auto', so it cannot be {self.a!r}, too")

    def resolve(self, site: Site) -> Fill:
        auto = self.nonlinearity == "auto"
        factor = gain_before(site.activation) if auto else gain(self.nonlinearity, self.a)
        return self.spread(site, factor, self.mode, self.distribution)


@final
@dataclass(frozen=True, slots=True)
class LeCun(_FanFormula):
    """LeCun et al. (1998), "Efficient BackProp": variance 1 / fan_in.

    >>> LeCun("uniform").resolve(Site("w", (7, 3)))
    Uniform(a=-1.0, b=1.0)
    """

    distribution: Family = "truncated_normal"
    fans: Convention = "torch"
    looks_at: ClassVar[tuple[str, ...]] = ("layout",)

    def resolve(self, site: Site) -> Fill:
        return self.spread(site, 1.0, "fan_in", self.distribution)


@final
@dataclass(frozen=True, slots=True)
class Caffe2Xavier(_FanFormula):
    """Caffe2's XavierFill: uniform with variance 1 / fan_in.

    >>> Caffe2Xavier().resolve(Site("w", (7, 3)))
    Uniform(a=-1.0, b=1.0)
    """

    fans: Convention = "torch"
    looks_at: ClassVar[tuple[str, ...]] = ("layout",)

    def resolve(self, site: Site) -> Fill:
        return self.spread(site, gain("leaky_relu", 1.0), "fan_in", "uniform")


@final
@dataclass(frozen=True, slots=True)
class TorchDefault(ShortStr):
    r"""What torch's own layers start with, biases included: uniform, within a bound that the weight's fan gives.

    .. math:: w, b \sim U(-1/\sqrt{n}, 1/\sqrt{n})

    n is the fan-in of the weight in ``nn.Linear`` and convolutions, the number of first inputs in ``nn.Bilinear``, the
    number of hidden units in an LSTM, GRU or RNN. One rule for weights and biases draws, without a seed, the bits of
    ``reset_parameters()``. Raises ValueError (in a plan: PlanError) for a bias without a weight, FanError for other
    vectors.

    >>> weight = Site("fc.weight", (8, 4))
    >>> TorchDefault().resolve(Site("fc.bias", (8,), parameter_kind="bias", weight=weight))
    Uniform(a=-0.5, b=0.5)
    """

    looks_at: ClassVar[tuple[str, ...]] = ("layout", "owner", "parameter_kind", "weight", "leaf")

    def resolve(self, site: Site) -> Fill:
        if not site.numel:
            return Constant(0.0)
        is_bias, gates = site.parameter_kind == "bias", site.layout.blocks if site.layout else 1
        weight = site.weight if is_bias else site
        if any(map(site.owner.is_a, ("torch.nn.modules.rnn.RNNBase", "torch.nn.modules.rnn.RNNCellBase"))):
            fan: float = site.shape[1] if site.leaf.startswith("weight_hr") else site.shape[0] // gates
        elif weight is None:
            raise ValueError(f"{site.name!r} has no weight beside it that tells its bound")
        elif site.owner.is_a("torch.nn.Bilinear"):
            fan = weight.shape[1]
        elif is_bias:
            fan = weight.fans()[0]
        else:  # as torch: to the last bit
            return Kaiming(math.sqrt(5), "fan_in", "leaky_relu", "uniform").resolve(site)
        # torch gives a weight a gain for a slope of sqrt(5), which is sqrt(2 / 6), so that the bound sqrt(3) * gain /
        # sqrt(fan) is 1 / sqrt(fan) but for rounding; biases and recurrent layers have it directly.
        bound = 1 / math.sqrt(fan) if fan else 0.0
        return Uniform(-bound, bound)


@final
@dataclass(frozen=True, slots=True)
class Zeros(ShortStr):
    """Every element is 0.

    >>> Zeros().resolve(Site("w", (7, 3)))
    Constant(val=0.0)
    """

    looks_at: ClassVar[tuple[str, ...]] = ()

    def resolve(self, site: Site) -> Fill:
        return Constant(0.0)


@final
@dataclass(frozen=True, slots=True)
class Ones(ShortStr):
    """Every element is 1.

    >>> Ones().resolve(Site("w", (7, 3)))
    Constant(val=1.0)
    """

    looks_at: ClassVar[tuple[str, ...]] = ()

    def resolve(self, site: Site) -> Fill:
        return Constant(1.0)


@final
@dataclass(frozen=True, slots=True)
class Neutral(ShortStr):
    """The value at which the scale or the shift of a norm does nothing, and the norm only normalizes.

    Most norms multiply by their weight: it is neutral at 1. Those of Gemma and Qwen3-Next multiply by 1 + weight: it is
    neutral at 0, as are shifts. The layer tells which, not its name: ``Site.neutral``. Declines what is not a norm's,
    and what could not be found; the plan says so of a layer that is called a norm.

    >>> Neutral().resolve(Site("norm.weight", (8,), neutral=0.0)), Neutral().resolve(Site("fc.weight", (8, 8)))
    (Constant(val=0.0), None)
    """

    looks_at: ClassVar[tuple[str, ...]] = ("neutral",)

    def resolve(self, site: Site) -> Fill | None:
        return None if site.neutral is None else Constant(site.neutral)


@final
@dataclass(frozen=True, slots=True)
class Prior(ShortStr):
    """The bias with which a sigmoid starts at the probability ``prob``: -log((1 - prob) / prob).

    Lin et al. (2017) start detection heads so, https://arxiv.org/abs/1708.02002. Raises ValueError for a
    probability outside (0, 1).

    >>> Prior(0.01).resolve(Site("bias", (80,)))
    Constant(val=-4.59511985013459)
    """

    prob: float
    looks_at: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 < check_number("prob", self.prob) < 1:
            raise ValueError(f"prob must lie in (0, 1), but got {self.prob!r}")

    def resolve(self, site: Site) -> Fill:
        return Constant(-math.log((1 - self.prob) / self.prob))


# --- what an initializer asks of a site ------------------------------------------------------------------------------


def asks_what_follows(init: object) -> bool:
    """Whether an initializer, or one that it is made of, takes the gain of what follows the layer."""
    if isinstance(init, Deferred):
        return init.target_and_arguments()[1].get("nonlinearity") == "auto"
    return getattr(init, "nonlinearity", None) == "auto" or any(map(asks_what_follows, _parts(init)))


def asks_for_neutral(init: object) -> bool:
    """Whether an initializer, or one that it is made of, is :class:`Neutral`."""
    return isinstance(init, Neutral) or any(map(asks_for_neutral, _parts(init)))


def asks_for_weight(init: object) -> bool:
    """Whether an initializer may ask a bias for its weight: :class:`TorchDefault`, an expression, a user's own."""
    is_own = not type(init).__module__.startswith("torchinit.")
    return is_own or isinstance(init, (TorchDefault, Deferred)) or any(map(asks_for_weight, _parts(init)))


def _parts(init: object) -> tuple[object, ...]:
    inner = getattr(init, "init", ())
    return inner if isinstance(inner, tuple) else (inner,)
