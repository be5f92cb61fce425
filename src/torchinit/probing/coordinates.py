"""Coordinates: how the activations of a model, and what a few steps of training change of them, go with its size."""

from __future__ import annotations

import inspect
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from torchinit.api import initialize, materialize
from torchinit.errors import ProbeError, ReportError, TorchinitError
from torchinit.knowledge import roles
from torchinit.model.names import check_globs, glob_matches, module_name
from torchinit.noise import seeded_generators
from torchinit.probing.inputs import Inputs, Together, inputs_of
from torchinit.probing.measure import Optimizer
from torchinit.probing.moments import rms
from torchinit.probing.passes import Loss, Passes, probing_mode
from torchinit.probing.recorder import PassWatch
from torchinit.probing.slopes import CoordCheck, CoordinateSlope, fit
from torchinit.recipes import RecipeLike

MakeModel: TypeAlias = Callable[..., Any]
"""A function of a width or a depth, and perhaps ``seed``, that returns a model, or a pair of it and its optimizer."""

_WIDTHS: Final = (64, 128, 256, 512)
_BLOCK: Final = re.compile(r"(?<![^.])[0-9]+(?![^.])")
"""The number of a block in a name: the first."""

_MOST: Final = 1 << 20
"""The elements that are kept of an output, in whole samples."""


def coord_check(
    make: MakeModel,
    *,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    steps: int = 5,
    seeds: int = 3,
    batch: Any = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    lr: float | None = None,
    recipe: RecipeLike | None = None,
    expected: Mapping[str, float] | None = None,
    limit: float = 60.0,
) -> CoordCheck:
    r"""Measure how what a few steps change of each layer's output goes with the width of a model, or with its depth.

    .. math:: \mathrm{RMS}(y_T - y_0) \propto \text{size}^{\,\text{slope}}

    A slope of 0 says that all sizes learn alike, so that a learning rate found at a small one holds at a large one; a
    positive one that the layer's output explodes with the size, a negative one that it stops learning. The slopes are
    those of straight lines through the logarithms, for each of the ``seeds``, with the standard error of their mean.

    ``make(size)`` builds a model of a width, or of a depth: it returns the model, or a pair of it and its optimizer,
    the way to give layers rates of their own; if it takes ``seed``, it is told. Its draws from torch's generator come
    from the seed. Without a pair the optimizer is that of ``optimizer``, a class of ``torch.optim`` or a function of
    the parameters (Adam), with ``lr`` (3e-3). ``recipe`` starts each model, ``batch`` and ``loss`` are those of
    :func:`torchinit.probe`: all sizes train on the same batch. ``expected`` has slopes other than 0, by globs of names.
    After ``limit`` seconds no other seed is begun, and the result says so.

    Raises ValueError for less than two sizes, ProbeError for a model that cannot be built or probed.

    >>> def make(width):
    ...     sizes = [(8, width), (width, width), (width, 4)]
    ...     return nn.Sequential(*[each for a, b in sizes for each in (nn.Linear(a, b), nn.ReLU())][:-1])
    >>> check = coord_check(make, widths=(64, 256, 1024), lr=1e-2, seeds=2)
    >>> check["2"].verdict, check["2"].change > 0.3
    ('grows', True)
    """
    kind, sizes = _sizes(widths, depths)
    if steps < 1 or seeds < 1:
        raise ValueError(f"a coordinate check takes a step and a seed at least, but got steps={steps}, seeds={seeds}")
    check_globs("expected", expected or {})
    run = _Run(make, kind, batch, loss, optimizer, lr, recipe, steps, limit)
    end, measured = time.monotonic() + limit, list[list[_Measured]]()
    while len(measured) < seeds and not (measured and run.is_over(end)):
        measured.append([run.measure(size, len(measured)) for size in sizes])
    seeds, wanted = len(measured), seeds
    late = f", {wanted - seeds} fewer than wanted, since none is begun after {limit:g} seconds"
    first = measured[0][0].layers
    slopes = []
    for name in (name for name in first if all(name in each.layers for row in measured for each in row)):
        changes, starts = (
            fit(sizes, [[getattr(each.layers[name], which) for each in row] for row in measured])
            for which in ("change", "start")
        )
        goals = [value for glob, value in (expected or {}).items() if glob_matches(glob, name)] or [0.0]
        layer, role = first[name].kind, first[name].role
        line = CoordinateSlope(name, layer, role, kind, *changes[:2], *starts[:2], changes.values, goals[-1])
        slopes.append(line)
    losses = tuple(sum(row[at].loss for row in measured) / seeds for at in range(len(sizes)))
    return CoordCheck(kind, sizes, steps, seeds, tuple(slopes), losses, run.text + late * (seeds < wanted))


def assert_flat(check: CoordCheck | MakeModel, *, strict: bool = False, **options: Any) -> None:
    """Raise ReportError, an AssertionError, with the layers whose change goes with the size of the model.

    ``check`` is the result of :func:`coord_check`, or what it takes, with its ``options``. With ``strict`` layers of
    which the slopes cannot tell fail as well.

    >>> from torch.optim import SGD
    >>> def make(width):
    ...     model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 4))
    ...     _ = nn.init.zeros_(model[2].weight)
    ...     rates = [width / 64, width / 64, 64 / width, 1.0]  # muP's for SGD, of the base width 64
    ...     groups = [{"params": [p], "lr": 0.1 * rate} for p, rate in zip(model.parameters(), rates)]
    ...     return model, SGD(groups)
    >>> assert_flat(make, widths=(64, 256), steps=4)
    """
    result = check if isinstance(check, CoordCheck) else coord_check(check, **options)
    bad = [each for each in result if each.verdict not in ("flat", "still", *(() if strict else ("undecided",)))]
    if bad:
        raise ReportError(f"{len(bad)} of {len(result)} layers are not flat over {result.kind}", map(str, bad))


def _sizes(
    widths: Sequence[int] | None, depths: Sequence[int] | None
) -> tuple[Literal["width", "depth"], tuple[int, ...]]:
    if widths is not None and depths is not None:
        wanted = "give one of them, and fix the other in make"
        raise ValueError(f"a coordinate check goes over widths or over depths: {wanted}")
    sizes = tuple(depths if depths is not None else widths or _WIDTHS)
    if len(set(sizes)) < 2 or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"a slope takes two sizes at least, whole numbers from 1 on, but got {sizes}")
    return ("width" if depths is None else "depth"), tuple(sorted(set(sizes)))


class _Layer(NamedTuple):
    """The RMS of an output at the start, and of its change after the last step; its layer's class and role."""

    start: float
    change: float
    kind: str
    role: str


class _Measured(NamedTuple):
    """The layers of a model of one size that was trained with one seed, and its loss at the end."""

    layers: dict[str, _Layer]
    loss: float


class _Run:
    """One factory of models, and how each of them is trained."""

    def __init__(
        self, make: MakeModel, kind: str, batch: Any, loss: Loss | None, optimizer: Optimizer | None,
        lr: float | None, recipe: RecipeLike | None, steps: int, limit: float,
    ) -> None:  # fmt: skip
        self.make, self.batch, self.loss, self.recipe = make, batch, loss, recipe
        self.optimizer, self.lr, self.steps, self.limit = optimizer, lr, steps, limit
        self.is_depth = kind == "depth"
        self.inputs: Inputs | None = None
        self.together: Together | None = None
        self.text = ""

    def is_over(self, end: float) -> bool:
        """Whether the time is over, on one of the ranks that train a model together."""
        over = time.monotonic() > end
        return over if self.together is None else bool(self.together.largest(over))

    def measure(self, size: int, seed: int) -> _Measured:
        with seeded_generators(seed):
            model, optimizer = self._made(size, seed)
            self.together = Together(model, "torchinit.coord_check")
            with probing_mode(model):
                # Made for the first of all models, and then the same for the others.
                self.inputs = self.inputs or inputs_of(model, self.batch, 0, self.limit, self.together)
                return self._train(model, optimizer, self.inputs)

    def _made(self, size: int, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        takes_seed = "seed" in inspect.signature(self.make).parameters
        try:
            made = self.make(size, seed=seed) if takes_seed else self.make(size)
        except TorchinitError:
            raise
        except Exception as error:  # whatever a stranger's code raises
            what = "depth" if self.is_depth else "width"
            text = f"make({size}) raised {type(error).__name__}: {error}"
            raise ProbeError(f"{text}\n  make(size) is to build the model of this {what}") from error
        model, optimizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(model, nn.Module):
            found = f"make({size}) returned {type(model).__name__}"
            raise ProbeError(f"{found}, not a model or a pair of it and its optimizer")
        if any(each.is_meta for each in model.parameters()):
            materialize(model, self.recipe, seed=seed)
        elif self.recipe is not None:
            initialize(model, self.recipe, seed=seed)
        if optimizer is None:
            make, rate = self.optimizer or torch.optim.Adam, 3e-3 if self.lr is None else self.lr
            optimizer = make([each for each in model.parameters() if each.requires_grad], lr=rate)
        elif self.optimizer or self.lr is not None:
            raise ProbeError("make returned a model with its optimizer, so optimizer= and lr= are not for it")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ProbeError(f"make({size}) returned a model and {type(optimizer).__name__}, which is not an optimizer")
        self.text = f"{type(model).__name__}, {type(optimizer).__name__}"
        return model, optimizer

    def _train(self, model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Inputs) -> _Measured:
        passes = Passes(model, inputs, self.loss)

        def outputs() -> tuple[dict[str, Tensor], Tensor]:
            with _FirstOutputs(model) as watch:
                value, _ = passes.forward()
            return watch.outputs, value

        first, value = outputs()
        last = first
        for _ in range(self.steps):
            optimizer.zero_grad()
            if not value.requires_grad:
                raise ProbeError(f"the loss does not depend on any trained parameter of {type(model).__name__}")
            value.backward()
            optimizer.step()
            last, value = outputs()
        return _Measured(self._layers(model, first, last), float(value.detach()))

    def _layers(self, model: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, _Layer]:
        known, modules = roles(model), {module_name(name): each for name, each in model.named_modules() if name}
        alike: dict[str, list[str]] = defaultdict(list)
        for name in (each for each in before if each in after):
            alike[_BLOCK.sub("*", name, count=1) if self.is_depth else name].append(name)
        layers = {}
        for key, names in alike.items():
            # Over depths like layers are one: of a stream, which blocks hand on, the last; of what is inside, the mean.
            used, last = names[-1:] if key.endswith("*") else names, names[-1]
            role = known.get(f"{last}.weight")
            layers[key] = _Layer(
                sum(rms(before[name].double()) for name in used) / len(used),
                sum(rms(after[name].double() - before[name].double()) for name in used) / len(used),
                type(modules.get(last, model)).__name__,
                role.name if role and role.sure else "",
            )
        return layers


class _FirstOutputs(PassWatch):
    """The output of each module's first call; what a container hands on is its child's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, operations=False)
        self.outputs: dict[str, Tensor] = {}

    def returned(self, name: str, module: nn.Module, tensor: Tensor, is_new: bool) -> None:
        name = name or "(output)"
        if is_new and tensor.dim() > 1 and name not in self.outputs:
            samples = max(1, _MOST * len(tensor) // max(1, tensor.numel()))
            self.outputs[name] = tensor.detach()[:samples].clone()
