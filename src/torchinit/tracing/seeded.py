"""Seeded: foreign code, every random number of which belongs to a name."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.errors import RunError
from torchinit.initializers.matrices import Orthogonal
from torchinit.model.dtensor import is_distributed, shards_of
from torchinit.model.names import Counted
from torchinit.model.ranks import Agreement, check_same
from torchinit.model.sandbox import refuse_fakes
from torchinit.model.shards import Box, Shard
from torchinit.noise import Distribution, Keyed, Noise, seeded_generators
from torchinit.noise.keyed import is_lent
from torchinit.plans.observers import Parts
from torchinit.plans.run import write
from torchinit.tracing.draws import IN_PLACE_DRAWS, MOST_INDICES, NEW_DRAWS, DrawTarget
from torchinit.tracing.observer import arguments_of, name_of
from torchinit.tracing.recorder import Recorder
from torchinit.tracing.regions import memory_of
from torchinit.tracing.source_lines import depth, find_subject, frame_of_caller
from torchinit.tracing.trace import Trace

# Each operation that draws is caught at the dispatcher and done from keyed noise under a name and a draw index. The
# name is the site's where the operation writes one; what code draws into a temporary belongs to the site, or the
# deepest module, among the local variables of the nearest function, which is what code works on in a loop as in
# `_init_weights(self, module)`. The index counts the draws under a name, so that code that draws twice gets two sets.
# A draw into a part of a site is that of a tensor with the part's shape, not a part of the whole's draw: so a part of a
# distributed tensor needs no more than its own placement. Two functions of nn.init go on from what they have drawn and
# are known by their code: orthogonal_ factorizes; trunc_normal_ rejects and draws again, as often as the values say, or
# computes quantiles (before torch 2.12). Each is given its final values, and the steps that would change them are left
# out.
# Runs of torchinit's own would draw from torch's generator without a seed, and with torch's modes off. Theirs are the
# values that they have with this seed: a run asks for a name for each site that it draws, which is the site's own for
# its first draw, so that any fill, also one that draws for its blocks or lends the generator, needs no draw index.
# What can fail: a kernel that draws without an operation of torch, and code whose order of draws depends on values.

TRUNCATED: CodeType = nn.init._no_grad_trunc_normal_.__code__
"""The function that draws within ``nn.init.trunc_normal_``, and looks at what it has drawn."""

_ORTHOGONAL: CodeType = nn.init.orthogonal_.__code__

_aten = torch.ops.aten
_AFTER_DRAWING: Final = {
    _ORTHOGONAL: frozenset({_aten.copy_.default, _aten.mul_.Tensor}),
    TRUNCATED: frozenset({_aten.erfinv_.default, _aten.mul_.Tensor, _aten.add_.Tensor, _aten.clamp_.default})
    if "erfinv_" in TRUNCATED.co_names
    else frozenset(),
}
"""The steps that are left out of functions of ``nn.init`` that have been given their final values."""

_NO_TENSOR = torch.empty(0, device="cpu")


class Seeded(Recorder):
    """A tracing whose draws are keyed: a site's under its own name, others under what is being initialized."""

    def __init__(
        self, model: nn.Module, seed: int, names: Counted | None = None, agreement: Agreement | None = None
    ) -> None:
        self._names: Counted = names or Counted(model)
        super().__init__(self._names.root)
        self.noise: Keyed = Keyed(seed)
        self._agreement = agreement
        self.indices: Counter[str] = Counter()
        self.observer.execute = self._execute

    def __enter__(self) -> Trace:
        if self._agreement is not None:
            self._agreement.over_model(self._names.model)
        refuse_fakes()
        self._names.check()
        state = torch.default_generator.get_state()
        with self._names:
            seen = super().__enter__()
        self._open.callback(torch.default_generator.set_state, state)
        return seen

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self._names:
            super().__exit__(kind, error, trace)

    def _execute(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        method = _method(func)
        if method is None or is_lent():
            return func(*args, **kwargs)
        with torch.no_grad():
            return method(self, func, args, kwargs)

    # --- names and indices ---------------------------------------------------------------------------------

    def _target(self, tensor: Tensor, indices: int = 1) -> DrawTarget:
        """A tensor to draw: a site, or a part of one, or one that is not in the model, or not yet."""
        keys = self.index.find(tensor)
        if self._agreement is not None:  # the model may have been cut up since the block began
            with _disable_current_modes():
                self._agreement.over(self.sites[min(keys)].tensors if keys else [tensor])
        if not keys:
            name = f"{find_subject(self.modules, self._site_of, self.until)}\0temporary"
            return DrawTarget(self.noise, name, self._next(name, indices), tensor)
        site = self.sites[min(keys)]
        index = self._next(site.name, indices)
        whole = None if is_distributed(tensor) else self._whole(site.name, site.tensors, tensor)
        return DrawTarget(self.noise, site.name, index, tensor, whole)

    def _site_of(self, value: object) -> str | None:
        """The site that a value is, or a part of."""
        keys = self.index.find(value) if isinstance(value, Tensor) else None
        return self.sites[min(keys)].name if keys else None

    def _next(self, name: str, indices: int) -> int:
        self.indices[name] += indices
        return self.indices[name] - indices

    def named(self, parts: Parts) -> Parts:
        """The parts that a run without a seed draws: under the model's name, or by what is being initialized."""
        own = parts[0].name
        keys = {key for part in parts for tensor in part.sources or (part.local,) for key in self.index.find(tensor)}
        known = [self.sites[key].name for key in sorted(keys)]
        # Where several lie in one memory, the one that is called so below the module that is being initialized.
        name = next((each for each in known if f".{each}".endswith(f".{own}")), known[0] if known else "")
        if not known:
            near = (self.modules[id(module)] for module in reversed(_WORKING_ON.get()) if id(module) in self.modules)
            subject = find_subject(self.modules, self._site_of, self.until)
            name = f"{own} (for {max(subject, next(near, ''), key=depth) or 'the model'})"
        index = self._next(name, 1)
        numbered = f"{name} (draw {index + 1})" if index else name
        return tuple(replace(part, name=numbered) for part in parts)

    def _whole(self, name: str, tensors: Sequence[Tensor], local: Tensor) -> Box | None:
        """Where a plain tensor that is this rank's part of a distributed site begins, and the shape of the whole."""
        whole = next((tensor for tensor in tensors if is_distributed(tensor)), None)
        if whole is None or local.is_meta:
            return None
        with _disable_current_modes():
            shards = shards_of(name, whole)
        if len(shards) != 1 or shards[0].local.shape != local.shape or memory_of(whole) is None:
            raise RunError(
                f"{name}: is spread over ranks, and code draws a piece of this rank's part by itself, which cannot"
                " have the same values for every spreading; draw the whole parameter"
            )
        return Box(shards[0].start, shards[0].shape)

    # --- operations ----------------------------------------------------------------------------------------

    def _in_place(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        arguments = {key: value for key, value in arguments_of(func, args, kwargs).items() if key != "generator"}
        name = name_of(func)
        target = self._target(args[0], MOST_INDICES if name == "random_" else 1)
        if target.tensor.is_meta:
            return args[0]
        frame = frame_of_caller()
        with _disable_current_modes():
            if frame is not None and frame.f_code is TRUNCATED:
                _draw_truncated(target, frame)
            else:
                IN_PLACE_DRAWS[name](target, **arguments)
        return args[0]

    def _new(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        arguments = arguments_of(func, args, kwargs)
        tensor = kwargs.get("out")
        if tensor is None:
            tensor = _empty_result(arguments)
        elif (size := arguments.get("size")) is not None and tuple(size) != tuple(tensor.shape):
            tensor.resize_(size)
        target = self._target(tensor)
        if not tensor.is_meta:
            with _disable_current_modes():
                NEW_DRAWS[name_of(func)](target, **{k: arguments[k] for k in ("mean", "std") if k in arguments})
        return tensor

    def _other(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Any other operation that draws: on torch's generator, in a state that belongs to the name."""
        target = self._target(kwargs.get("out", _NO_TENSOR))
        message = f"{self.noise.seed}\0{target.index}\0{target.name}".encode("utf-8", "surrogatepass")
        state = int.from_bytes(hashlib.blake2b(message, digest_size=7).digest(), "little")
        own = kwargs.get("generator")
        if own is not None:
            return func(*args, **{**kwargs, "generator": torch.Generator(own.device).manual_seed(state)})
        devices = [item.device for item in args if isinstance(item, Tensor)]
        with seeded_generators(state, *devices, *filter(None, [kwargs.get("device")])):
            return func(*args, **kwargs)

    def _after_drawing(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A step of ``nn.init.trunc_normal_`` or ``orthogonal_`` that works on what was drawn: it is left out.

        The copy of the matrix that ``orthogonal_`` has computed draws the fill instead, under the site's own name.
        """
        frame = frame_of_caller()
        if frame is None or func not in _AFTER_DRAWING.get(frame.f_code, ()):
            return func(*args, **kwargs)
        tensor = frame.f_locals["tensor"]
        if func is _aten.copy_.default:
            target = self._target(tensor)
            fill = Orthogonal(gain=float(frame.f_locals["gain"]))
            with _disable_current_modes():
                for shard in target.shards(target.tensor.detach()):
                    write(fill, shard, _OffsetNoise(self.noise, target.index))
        elif args[0] is not tensor:
            return func(*args, **kwargs)
        return args[0]


_WORKING_ON: ContextVar[tuple[nn.Module, ...]] = ContextVar("torchinit_working_on", default=())


@contextmanager
def working_on(module: nn.Module) -> Iterator[None]:
    """Tell what is being initialized by code that need not have the module among its variables."""
    token = _WORKING_ON.set((*_WORKING_ON.get(), module))
    try:
        yield
    finally:
        _WORKING_ON.reset(token)


@lru_cache(maxsize=4096)
def _method(func: torch._ops.OpOverload) -> Callable[[Seeded, Any, Sequence[Any], Mapping[str, Any]], Any] | None:
    """The method that does an operation in torch's place; None where torch does it, since it draws nothing."""
    name = name_of(func)
    if torch.Tag.nondeterministic_seeded in func.tags:
        return Seeded._in_place if name in IN_PLACE_DRAWS else Seeded._new if name in NEW_DRAWS else Seeded._other
    return Seeded._after_drawing if any(func in steps for steps in _AFTER_DRAWING.values()) else None


@dataclass(frozen=True)
class _OffsetNoise(Noise):
    """A noise whose draw indices begin at an offset, for a fill that begins at 0."""

    noise: Noise
    offset: int
    is_stateful = False

    def fill(self, shard: Shard, distribution: Distribution, params: tuple[float, ...], index: int = 0) -> None:
        self.noise.fill(shard, distribution, params, index + self.offset)

    def order(self, shard: Shard, index: int = 0) -> Tensor:
        return self.noise.order(shard, index + self.offset)

    def linalg_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.noise.linalg_dtype(dtype)


def _draw_truncated(target: DrawTarget, frame: FrameType) -> None:
    """A draw within ``nn.init.trunc_normal_``: the tensor gets its final values, all of which are then accepted."""
    values = frame.f_locals
    if target.tensor is values["tensor"]:
        target.fill("truncated", *(float(values[name]) for name in ("mean", "std", "a", "b")))
    else:
        target.tensor.zero_()


def _empty_result(arguments: Mapping[str, Any]) -> Tensor:
    """An empty tensor like the one that an operation makes."""
    named = ("dtype", "layout", "device", "pin_memory", "memory_format")
    options = {key: arguments[key] for key in named if arguments.get(key)}
    if arguments.get("size") is not None:
        return torch.empty(arguments["size"], **options)
    if isinstance(arguments.get("self"), Tensor):
        return torch.empty_like(arguments["self"], **options)
    given = [arguments[key] for key in ("mean", "std") if isinstance(arguments.get(key), Tensor)]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in given))
    return torch.empty_like(given[0].expand(shape), memory_format=torch.contiguous_format)


def seeded(model: nn.Module, seed: int, *, under: str = "", inside: str = "") -> AbstractContextManager[Trace]:
    """Give every random number that code draws for a model to a name, while the ``with`` block runs.

    ``under`` is put before each name, ``inside`` taken off, as :func:`torchinit.plan` does. Ranks that hold parts of
    one DTensor, or replicas of DistributedDataParallel, compare their seeds when the block begins, or at the first draw
    of a mesh that is new: all of them have to open it. Other plain tensors may be meant to differ, as those of stages:
    :func:`torchinit.verify_replicas` compares them afterwards.

    >>> model = nn.Sequential(nn.Linear(3, 3))
    >>> with seeded(model, 0) as seen:
    ...     _ = nn.init.normal_(model[0].weight, std=0.02)
    >>> [write.site for write in seen.writes]
    ['0.weight']
    """
    told = "".join(
        [repr(seed), *(f" {word} {path!r}" for word, path in (("under", under), ("inside", inside)) if path)]
    )
    agreement = Agreement("torchinit.seeded", lambda spread: check_same(spread, "the seed", told))
    try:
        return Seeded(model, seed, Counted(model, under, inside), agreement)
    except (TypeError, ValueError):
        with suppress(RunError):  # raised on the other ranks, which wait for this one
            agreement.over_model(model)
        raise
