"""The table: how standard deviations, multipliers, rates, eps and decay go with the size of a model, and one move."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from torchinit._text import did_you_mean, format_table
from torchinit.errors import ConfigError
from torchinit.serialization.schema import check_number

ParameterRole: TypeAlias = Literal["input", "hidden", "output", "tied", "vector", "scalar"]
"""Which axes of a parameter grow: of an *input* its outputs, of an *output* its inputs, of a *hidden* one both.

*tied* is the table of an embedding that the head shares, *vector* a bias or a gain along a growing axis, *scalar* what
does not grow.
"""

Decay: TypeAlias = Literal["product", "sqrt", "constant"]
Form: TypeAlias = Literal["table8", "folded"]


class Powers(NamedTuple):
    """A factor as powers of r_i and r_o, the growth of the fan-in and of the fan-out against the base model.

    >>> print(Powers(-0.5), Powers(-1, 1), Powers(), Powers(-1, 1).at(4.0, 2.0))
    r_i^-1/2 r_o/r_i 1 0.5
    """

    i: float = 0
    o: float = 0

    def at(self, r_i: float, r_o: float) -> float:
        """The factor at these ratios."""
        return float(r_i**self.i * r_o**self.o)

    def __str__(self) -> str:
        powers = [(name, Fraction(power)) for name, power in zip(("r_i", "r_o"), self, strict=True) if power]
        above = [name if power == 1 else f"{name}^{power}" for name, power in powers if power > 0]
        sign = -1 if above else 1  # below a line the powers are positive
        below = [name if sign * power == 1 else f"{name}^{sign * power}" for name, power in powers if power < 0]
        return "/".join([" ".join(above), *below]) if above else " ".join(below) or "1"


ONE: Final = Powers()


class TableRow(NamedTuple):
    """A kind of parameter: the factors of its std, of its output, and of its rates under Adam's kind and under SGD.

    >>> print(*TableRow(std=Powers(-0.5), adam=Powers(-1)))
    r_i^-1/2 1 r_i^-1 1
    """

    std: Powers = ONE
    mult: Powers = ONE
    adam: Powers = ONE
    sgd: Powers = ONE

    def moved(self, mult: Powers) -> TableRow:
        """The same training with another multiplier in the forward pass; the rest, θ, goes into the weight.

        >>> print(*PARAMETRIZATIONS["mup"].rows["output"].moved(Powers()))
        r_i^-1 1 r_i^-1 r_i^-1
        """
        theta = Powers(self.mult.i - mult.i, self.mult.o - mult.o)
        std, adam, sgd = (
            Powers(each.i + times * theta.i, each.o + times * theta.o)
            for each, times in ((self.std, 1), (self.adam, 1), (self.sgd, 2))
        )
        return TableRow(std, mult, adam, sgd)


@dataclass(frozen=True, slots=True)
class Parametrization:
    """A parametrization as data: a row for each kind of parameter, where the attention's scale goes, and depth.

    ``depth`` is the default α of k^-α at each residual branch, k the growth of the number of blocks; None where depth
    has no part in it. ``has_rates`` tells whether rates, eps and decay are transferred at all.

    >>> print(str(PARAMETRIZATIONS["completep"]).splitlines()[2])
    input   1         1       1                r_o
    """

    name: str
    rows: Mapping[ParameterRole, TableRow]
    source: str
    depth: float | None = None
    has_rates: bool = True

    def placed(self, place: str) -> Mapping[ParameterRole, TableRow]:
        """The rows with their multipliers where a published form has them, one of :data:`PLACES`."""
        moves = PLACES[place]
        return {kind: row.moved(moves.get(kind, row.mult)) for kind, row in self.rows.items()}

    def __str__(self) -> str:
        return "\n".join([f"{self.name}: {self.source}", *self.blocks()[1:]])

    def blocks(self) -> list[str]:
        """The source, the table as text, and what goes with it, a line each."""
        rates = ["Adam, Lion lr x", "SGD lr x"] if self.has_rates else []
        lines = [[kind, *map(str, row[: 2 + len(rates)])] for kind, row in self.rows.items()]
        told = [self.source, format_table(["kind", "std x", "mult", *rates], lines)]
        if self.has_rates:
            folded = self.placed("folded")["output"]
            told += [
                "tied: the head's input x r_o^-1; attention logits x (head size / base's)^-1/2",
                "Adam's eps x (r_o r_head)^-1/2; weight decay x 1 / (lr x)",
                f"folded: the output has std x {folded.std}, no mult, Adam lr x {folded.adam}, SGD lr x {folded.sgd}",
            ]
        if self.depth is not None:
            told.append(
                f"k times as many blocks, α = {self.depth:g}: each residual branch x k^-α, in blocks Adam lr x k^(α-1),"
                " SGD lr x k^(2α-1), eps x k^-α"
            )
        return told


# One table, of which the published ones are other places of the multiplier. The readout's stands in the forward pass
# and not in its std: so it works for tied tables, the gradients of all kinds shrink alike, so that one factor of eps
# will do, and a threshold of gradient clipping transfers.
_MUP: Final[dict[ParameterRole, TableRow]] = {
    "input": TableRow(sgd=Powers(o=1)),
    "vector": TableRow(sgd=Powers(o=1)),
    "hidden": TableRow(std=Powers(-0.5), adam=Powers(-1), sgd=Powers(-1, 1)),
    "output": TableRow(mult=Powers(-1), sgd=Powers(1)),
    "tied": TableRow(sgd=Powers(o=1)),
    "scalar": TableRow(),
}
_BY_FAN_IN: Final[dict[ParameterRole, TableRow]] = dict.fromkeys(("hidden", "output"), TableRow(std=Powers(-0.5)))
_STANDARD: Final[dict[ParameterRole, TableRow]] = {**dict.fromkeys(_MUP, TableRow()), **_BY_FAN_IN}

PARAMETRIZATIONS: Final[Mapping[str, Parametrization]] = {
    each.name: each
    for each in (
        Parametrization("standard", _STANDARD, "fan-in initialization with one rate for all", has_rates=False),
        Parametrization("mup", _MUP, "Yang et al. 2022, table 8, https://arxiv.org/abs/2203.03466"),
        Parametrization("depth_mup", _MUP, "Yang et al. 2023, https://arxiv.org/abs/2310.02244", 0.5),
        Parametrization("completep", _MUP, "Dey et al. 2025, table 1, https://arxiv.org/abs/2505.01618", 1.0),
    )
}
"""The parametrizations by their names."""

PLACES: Final[Mapping[str, Mapping[ParameterRole, Powers]]] = {
    "table8": {},
    "folded": {"output": ONE},  # table 3 of the same paper, and the spectral condition (arXiv:2310.17813)
    "table9": {"input": Powers(o=0.5), "vector": Powers(o=0.5), "output": Powers(-0.5)},
    "mean_field": {"hidden": Powers(-0.5)},
}
"""Where the multipliers sit in the forms under which one parametrization is published, if not where the table says."""


class OptimizerRule(NamedTuple):
    """What an optimizer needs when a weight becomes θ w, and its multiplier 1/θ: powers of θ for rate, eps and decay.

    ``sgd`` tells that its step is proportional to the gradient, ``update`` by which scale of a matrix it multiplies its
    steps already, ``eps`` its default, None where it has none, ``coupled`` that decay is added to the gradient.
    """

    lr: float
    eps_power: float
    wd: float
    eps: float | None = None
    sgd: bool = False
    coupled: bool = False
    update: Literal["", "original", "match_rms_adamw", "unit_rms_norm", "none"] = ""


OPTIMIZERS: Final[Mapping[str, OptimizerRule]] = {
    "adam": OptimizerRule(1, -1, -2, 1e-8, coupled=True),
    "adamw": OptimizerRule(1, -1, -1, 1e-8),
    "lion": OptimizerRule(1, 0, -1),
    "sgd": OptimizerRule(2, 0, -2, sgd=True, coupled=True),
    "muon": OptimizerRule(1, 0, -1, update="original"),
    "muon:match_rms_adamw": OptimizerRule(1, 0, -1, update="match_rms_adamw"),
    "muon:unit_rms_norm": OptimizerRule(1, 0, -1, update="unit_rms_norm"),
    "muon:none": OptimizerRule(1, 0, -1, update="none"),
}
"""The optimizers that a published table is for (Lion's is Adam's, whose steps have the same size), by name."""


def _optimizer_named(optimizer: object) -> str:
    """The name of an optimizer, given by name, as a class or an object; ConfigError where no rule of it is known."""
    cls = optimizer if isinstance(optimizer, type) else type(optimizer)
    name = (optimizer if isinstance(optimizer, str) else cls.__name__).lower()
    if name not in OPTIMIZERS:
        text = f"no table of a parametrization is published for the optimizer {name!r}{did_you_mean(name, OPTIMIZERS)}"
        raise ConfigError(f"{text}; known: {', '.join(OPTIMIZERS)}")
    return name


@dataclass(frozen=True, slots=True)
class Settings:
    """What was chosen: a parametrization and the form of its multipliers, an optimizer, α, and the rule of decay.

    >>> print(Settings.of("completep", optimizer="AdamW"))
    completep (table8, α = 1) for adamw; Dey et al. 2025, table 1, https://arxiv.org/abs/2505.01618
    """

    parametrization: str
    form: Form
    optimizer: str
    alpha: float
    wd: Decay
    zero_readout: bool

    @classmethod
    def of(
        cls, parametrization: str = "mup", form: Form = "table8", optimizer: object = "adamw", alpha: float = 1.0,
        wd: Decay = "product", zero_readout: bool = False,
    ) -> Settings:  # fmt: skip
        """The settings, checked; ConfigError for a name that is none, with the near one."""
        check_choice("parametrization", parametrization, PARAMETRIZATIONS)
        check_choice("form", form, get_args(Form))
        check_choice("wd", wd, get_args(Decay))
        depth = PARAMETRIZATIONS[parametrization].depth
        if parametrization != "completep":
            if alpha != 1:
                raise ConfigError(f"alpha is completep's, but got {alpha!r} for {parametrization}")
            alpha = 1.0 if depth is None else depth
        at_least_zero("alpha", alpha)
        return cls(parametrization, form, _optimizer_named(optimizer), float(alpha), wd, zero_readout)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Settings:
        """The settings out of plain data, checked as those of :meth:`of`, whose α is completep's alone."""
        return cls.of(**{**data, "alpha": data["alpha"] if data["parametrization"] == "completep" else 1.0})

    @property
    def table(self) -> Parametrization:
        """The table of the parametrization."""
        return PARAMETRIZATIONS[self.parametrization]

    @property
    def rule(self) -> OptimizerRule:
        """The rule of the optimizer."""
        return OPTIMIZERS[self.optimizer]

    def __str__(self) -> str:
        depth = f", α = {self.alpha:g}" if self.table.depth is not None else ""
        return f"{self.parametrization} ({self.form}{depth}) for {self.optimizer}; {self.table.source}"


def at_least_zero(argument: str, value: float) -> None:
    """Raise ConfigError for a number that is negative or not finite, TypeError for what is not a number."""
    is_finite = not isinstance(value, float) or math.isfinite(value)  # which check_number would call a ValueError
    if not is_finite or check_number(argument, value) < 0:
        raise ConfigError(f"{argument} is a number from 0 on, but got {value!r}")


def check_choice(argument: str, value: object, known: Collection[str]) -> None:
    """Raise ConfigError for a value that is none of those known."""
    if value not in known:
        near = did_you_mean(value, known) if isinstance(value, str) else ""
        raise ConfigError(f"{argument} is one of {', '.join(known)}, but got {value!r}{near}")


class Factors(NamedTuple):
    """The factors of one parameter against the base model; its effective weight is ``mult`` times what is stored.

    >>> Factors(mult=0.25).moved(1.0, OPTIMIZERS["sgd"])
    Factors(std=0.25, mult=1.0, lr=0.0625, eps=1.0, wd=16.0)
    """

    std: float = 1.0
    mult: float = 1.0
    lr: float = 1.0
    eps: float = 1.0
    wd: float = 1.0

    def moved(self, mult: float, rule: OptimizerRule) -> Factors:
        """The same training with another multiplier in the forward pass, the rest of it in the weight.

        With θ = mult / new mult the stored weight is θ times what it was, so that its gradient is 1/θ of it: exact for
        any function, but for a clipped norm of all gradients, to which each weight contributes otherwise.
        """
        theta = self.mult / mult
        lr, eps, wd = (theta**power for power in (rule.lr, rule.eps_power, rule.wd))
        return Factors(self.std * theta, mult, self.lr * lr, self.eps * eps, self.wd * wd)


class Growth(NamedTuple):
    """How much larger a parameter is than in the base model: fan-in, fan-out, the readout's fan-in, and depth.

    ``head`` is the growth of the width that the head reads, ``depth`` that of the number of blocks around, 1 outside of
    them; ``fans`` and ``base_fans`` are (fan-in, fan-out) of a matrix, for optimizers that scale by them.
    """

    r_i: float = 1.0
    r_o: float = 1.0
    head: float = 1.0
    depth: float = 1.0
    fans: tuple[float, float] = (1.0, 1.0)
    base_fans: tuple[float, float] = (1.0, 1.0)


def factors_of(kind: ParameterRole, growth: Growth, settings: Settings, *, is_branch: bool = False) -> Factors:
    """The factors of a parameter in the canonical form; ``is_branch`` that its output is that of a residual branch.

    >>> width = Growth(r_i=4.0, r_o=4.0, head=4.0)
    >>> factors_of("hidden", width, Settings.of("mup"))
    Factors(std=0.5, mult=1.0, lr=0.25, eps=0.25, wd=4.0)
    """
    table, rule, alpha = settings.table, settings.rule, settings.alpha
    row, r_i, r_o = table.rows[kind], growth.r_i, growth.r_o
    std, mult = row.std.at(r_i, r_o), row.mult.at(r_i, r_o)
    if not table.has_rates:
        return Factors(std, mult)
    is_muon = bool(rule.update) and kind == "hidden"
    lr = (row.sgd if rule.sgd else row.adam).at(r_i, r_o)
    if is_muon:
        lr = math.sqrt(r_o / r_i) * _update_scale(rule, growth.base_fans) / _update_scale(rule, growth.fans)
    # The gradient of what lies before the head shrinks with the width that the head reads, and with its own outputs.
    eps = 1 / r_i if kind == "output" else 1.0 if kind == "scalar" else (r_o * growth.head) ** -0.5
    if table.depth is not None:
        k = growth.depth
        mult *= k**-alpha if is_branch else 1.0
        lr *= k ** (2 * alpha - 1) if rule.sgd else k ** (alpha - 1)
        eps *= k**-alpha
    decay = {"product": 1 / lr, "sqrt": lr**-0.5, "constant": 1.0}[settings.wd]
    return Factors(std, mult, lr, eps, 1 / lr if rule.sgd else decay)


def _update_scale(rule: OptimizerRule, fans: tuple[float, float]) -> float:
    """By how much Muon multiplies its orthogonal step for a matrix of this fan-in and fan-out."""
    fan_in, fan_out = fans
    match rule.update:
        case "original":
            return math.sqrt(max(1.0, fan_out / fan_in))
        case "match_rms_adamw":
            return 0.2 * math.sqrt(max(fan_in, fan_out))
        case "unit_rms_norm":
            return math.sqrt(fan_out / fan_in)
    return 1.0
