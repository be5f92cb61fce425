"""LSUV: orthogonal matrices, each scaled by what comes out of its layer (Mishkin & Matas, 2015)."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Container, Iterable, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from torchinit._text import abbreviate, count
from torchinit.api import initialize, sites
from torchinit.distributed.collectives import over_model
from torchinit.errors import ProbeError
from torchinit.model.dtensor import local_part
from torchinit.model.names import module_name, normalize
from torchinit.model.sites import Site
from torchinit.plans.report import Report
from torchinit.probing.expectations import KEEPS
from torchinit.probing.inputs import Inputs, Together, check_place, forward, inputs_of
from torchinit.probing.measurement import tower_of
from torchinit.probing.moments import first_floating
from torchinit.probing.passes import kept, probing_mode, values_kept
from torchinit.probing.probe import check_subject
from torchinit.probing.recorder import PassWatch


@dataclass(frozen=True, slots=True)
class LsuvLayer:
    """A matrix, the ``gain`` of its Orthogonal, and the standard deviation of its layer's output, wanted and reached.

    ``target`` and ``std`` are NaN where the layer is drawn, and not scaled.

    >>> LsuvLayer("head.weight", gain=1.4, target=1.0, std=1.01).gain
    1.4
    """

    name: str
    gain: float
    target: float = math.nan
    std: float = math.nan


@dataclass(frozen=True)
class Lsuv:
    """The result of :func:`torchinit.lsuv`: ``recipe`` gives the same values with the same seed, without the batch.

    ``report`` is that of the run that wrote them, ``layers`` in order of execution, ``passes`` the forwards it took.

    >>> print(lsuv(nn.Linear(16, 16), torch.eye(16)))
    1 layer scaled in 2 passes
    weight        gain  std
    weight         ...  1 of 1
    """

    layers: tuple[LsuvLayer, ...]
    recipe: tuple[dict[str, Any], ...]
    report: Report
    passes: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        scaled = [each for each in self.layers if not math.isnan(each.std)]
        width = max((len(each.name) for each in scaled), default=0)
        rows = [f"{each.name:<{width}}  {each.gain:10.4g}  {each.std:.4g} of {each.target:.4g}" for each in scaled]
        head = f"{count(len(scaled), 'layer')} scaled in {count(self.passes, 'pass', 'passes')}"
        return "\n".join([head, f"{'weight':<{width}}  {'gain':>10}  std", *rows, *self.notes])


def lsuv(
    model: nn.Module,
    batch: Any = None,
    *,
    std: float = 1.0,
    tolerance: float = 0.02,
    steps: int = 10,
    seed: int = 0,
    limit: float = 60.0,
) -> Lsuv:
    """Start a model with orthogonal matrices, each scaled so that the output of its layer has this ``std`` on a batch.

    Any layer with one trained matrix is scaled (linear, convolutional, of other packages), its bias is zero; attention
    is one unit, of which the last matrix is scaled; the layers that end residual branches get ``std / sqrt(branches)``,
    so that the stream has grown by no more than ``std`` at its end. Recurrent layers are drawn and not scaled; tables,
    norms and frozen parameters are left as they are. ``batch`` is that of :func:`probe`. Passes are made until all
    layers are within ``tolerance``, ``steps`` at most, and none is begun after ``limit`` seconds.

    The values are those of a recipe, :attr:`Lsuv.recipe`, and a keyed ``seed``: on any number of ranks the same, and
    without the batch again. Ranks that hold parts of the model average what they measure. If a pass raises, or is
    interrupted, the model is as it was. Mishkin & Matas (2015), https://arxiv.org/abs/1511.06422

    Raises ProbeError for a model on the meta device, without a layer to scale, or that raises itself.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(32, 32), nn.Tanh())))
    >>> result = lsuv(model, torch.randn(64, 32))
    >>> len(result.layers), {f"{layer.std:.2f}" for layer in result.layers}
    (20, {'1.00'})
    >>> result.recipe[0]
    {'type': 'Orthogonal', 'gain': 1.0..., 'name': '0.weight'}
    """
    check_subject(model, seed)
    if not std > 0 or not tolerance > 0 or steps < 1:
        raise ValueError(f"std, tolerance and steps are above 0, but got {std!r}, {tolerance!r} and {steps!r}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ProbeError(f"{type(model).__name__} is on the meta device; materialize it before: lsuv runs it")
    weights, biases = _drawn(model)
    if not weights:
        raise ProbeError(f"{type(model).__name__} has no trained matrix, so lsuv has nothing to scale")
    end, together = time.monotonic() + limit, Together(model, "torchinit.lsuv")
    parameters = {normalize(name): each for name, each in model.named_parameters(remove_duplicate=False)}
    gains = dict.fromkeys(weights, 1.0)
    written = [parameters[name] for name in (*weights, *biases)]
    with kept(model, seed), values_kept(written), probing_mode(model), torch.no_grad():
        initialize(model, _entries(gains, biases), seed=seed, stats=False)
        inputs = inputs_of(model, batch, seed, limit, together)
        check_place(inputs, model)
        measuring = _Scaling(model, weights, std)
        measuring.learn(inputs)
        for number in range(1, steps + 1):
            factors = measuring.run(inputs)
            if all(abs(math.log(each)) <= tolerance for each in factors.values()):
                break
            if number == steps or together.largest(time.monotonic() > end):
                break
            for name, factor in factors.items():
                gains[name] *= factor
                local_part(parameters[name].detach()).mul_(factor)
    entries = _entries(gains, biases)
    report = initialize(model, entries, seed=seed)
    return Lsuv(measuring.layers(gains), tuple(entries), report, number, measuring.notes(tolerance))


def _drawn(model: nn.Module) -> tuple[dict[str, Site], list[str]]:
    """The matrices to draw, and the biases to set to zero."""
    free = [site for site in sites(model) if site.kind == "parameter" and site.state == "ready" and not site.frozen]
    weights = {
        site.name: site
        for site in free
        if not site.parametrized and len(site.shape) > 1 and site.layout and site.layout.in_axes and _owners(site)
    }
    owners = {owner for site in weights.values() for owner in _owners(site)}
    biases = [site.name for site in free if site.parameter_kind == "bias" and site.owner_name in owners]
    return weights, biases


def _owners(site: Site) -> list[str]:
    """The layers that multiply by a matrix; none of a mere table."""
    return [each.owner_name for each in (site, *site.aliases) if each.layout and not each.layout.lookup]


def _entries(gains: Mapping[str, float], biases: Iterable[str]) -> list[dict[str, Any]]:
    drawn: list[dict[str, Any]] = [{"type": "Orthogonal", "gain": gain, "name": name} for name, gain in gains.items()]
    return [*drawn, *({"type": "Constant", "val": 0.0, "name": name} for name in biases)]


# One pass does a whole chain: a layer's hook sees what comes out, and hands on the output times the factor that its
# weight will be multiplied by, so what follows is measured as it will be. That needs no write while the model runs
# (FSDP would lose it), and no second pass but to confirm, or where a matrix is used in several places.
class _Scaling:
    """The passes that measure, and which layers are scaled to what."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Site], std: float) -> None:
        self.model, self.std = model, std
        modules = {module_name(path): each for path, each in model.named_modules()}
        number = Counter(owner for site in weights.values() for owner in _owners(site))
        self.weights: dict[str, str] = {}  # of the layers, by their names
        for name, site in weights.items():
            for owner in _owners(site)[-1:]:  # of a head that shares its table, the head
                parent = modules.get(owner.rpartition(".")[0])
                if isinstance(parent, nn.MultiheadAttention):
                    self.weights[owner.rpartition(".")[0]] = name
                elif number[owner] == 1 and not isinstance(modules[owner], nn.MultiheadAttention):
                    self.weights[owner] = name
        self.modules = {owner: modules[owner] for owner in self.weights}
        self.spread = over_model(model, "torchinit.lsuv")
        self.targets: dict[str, float] = {}
        self.stds: dict[str, float] = {}

    def learn(self, inputs: Inputs) -> None:
        """See which layers run, which end a branch, and which lie within attention."""
        with _Wiring(self.model, self.modules) as wiring:
            forward(self.model, inputs)
        inner = wiring.inside_attention()
        called = [name for name in wiring.called if name not in inner]
        branches = Counter(tower_of(name) for name in wiring.ends)
        self.targets = {
            name: self.std / math.sqrt(branches[tower_of(name)]) if name in wiring.ends else self.std for name in called
        }

    def run(self, inputs: Inputs) -> dict[str, float]:
        """The factor that each weight wants, by a pass."""
        self.stds = {}
        factors: dict[str, float] = {}
        with ExitStack() as hooks:
            for name in self.targets:
                hook = partial(self._scaled, name, factors)
                hooks.callback(self.modules[name].register_forward_hook(hook).remove)
            forward(self.model, inputs)
        return factors

    def _scaled(self, name: str, factors: dict[str, float], module: nn.Module, args: object, output: Any) -> Any:
        tensor, weight = first_floating(output), self.weights[name]
        if tensor is not None and name not in self.stds:
            self.stds[name] = size = self._std(tensor)
            if not 0 < size < math.inf:
                return None
            factors[weight] = self.targets[name] / size
        return _times(output, factors.get(weight, 1.0))

    def _std(self, tensor: Tensor) -> float:
        variance = float(tensor.detach().float().var(correction=0))
        among = [*self.spread(variance).values()] if self.spread else [variance]
        return math.sqrt(sum(among) / len(among))

    def layers(self, gains: Mapping[str, float]) -> tuple[LsuvLayer, ...]:
        """All matrices that were drawn, those that were scaled first."""
        scaled = {self.weights[name]: (self.targets[name], size) for name, size in self.stds.items()}
        names = [*scaled, *(name for name in gains if name not in scaled)]
        return tuple(LsuvLayer(name, gains[name], *scaled.get(name, ())) for name in names)

    def notes(self, tolerance: float) -> tuple[str, ...]:
        """What did not come out as wanted."""
        off = [
            f"{name} ({size:.3g})"
            for name, size in self.stds.items()
            if not 0 < size < math.inf or abs(math.log(size / self.targets[name])) > tolerance
        ]
        idle = [name for name in self.weights if name not in self.targets]
        found = [f"not within the tolerance: {abbreviate(off)}"] if off else []
        return (*found, *([f"drawn, not scaled: {abbreviate(idle)}"] if idle else ()))


def _times(output: Any, factor: float) -> Any:
    if isinstance(output, Tensor):
        return output * factor
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return (output[0] * factor, *output[1:])
    return output


class _Wiring(PassWatch):
    """How layers hang together, seen in a pass: in which order, which end residual branches, which serve attention."""

    def __init__(self, model: nn.Module, layers: Container[str]) -> None:
        super().__init__(model)
        self.called: list[str] = []
        self.ends: set[str] = set()
        self._layers = layers
        self._made: MutableMapping[Tensor, str] = WeakTensorKeyDictionary()

    def inside_attention(self) -> set[str]:
        """The layers within attention, but for the last of each."""
        inner: set[str] = set()
        for prefix in {f"{each.module}." for each in self.attentions() if each.module}:
            inner.update([name for name in self.called if name.startswith(prefix)][:-1])
        return inner

    def returned(self, name: str, module: nn.Module, tensor: Tensor, is_new: bool) -> None:
        if name in self._layers:
            self.called += [name] if name not in self.called else []
            self._made[tensor] = name

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow the output of a layer, through what keeps its size, to a sum."""
        tensors = [each for each in args if isinstance(each, Tensor) and each.is_floating_point()]
        if not tensors or not isinstance(result, Tensor):
            return
        name = func.overloadpacket.__name__.rstrip("_")
        makers = [self._made.get(each) for each in tensors]
        if name == "add" and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
            # The stream is what no layer made just now, or the layer that came first; the other one ends a branch.
            stream, branch = sorted(makers, key=lambda each: self.called.index(each) if each else -1)
            self.ends |= {branch} if branch else set()
            self._made.pop(result, None)
            if stream:
                self._made[result] = stream
        elif name in KEEPS and makers[0] is not None:
            self._made[result] = makers[0]
