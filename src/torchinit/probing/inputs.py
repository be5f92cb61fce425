"""Inputs: what a model is run on: the user's batch, or one made from its signature, its config and its layers."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from torchinit._text import did_you_mean, with_article
from torchinit.distributed.collectives import Spread, over_group, over_model
from torchinit.errors import ProbeError
from torchinit.model.sandbox import OperationMode
from torchinit.probing.moments import parts_of

_TARGETS: Final = ("labels", "label", "targets", "target", "y")
_TRIED, _SAMPLES, _ROWS, _TOKENS, _STEPS = 2, 16, 64, 24, 50
"""The samples that are tried, those of a batch, those of vectors alone; the tokens of a text, the steps of a series."""

_MOST_FLOPS, _MOST_ELEMENTS, _SMALL, _PASSES = 1.5e11, 1 << 29, 1 / 16, 4
"""The operations of a pass forward, some seconds of two cores, and the elements that it makes; the part of either from
which on its time goes with the samples. With the way back it takes four times as long."""

_SIZES: Final = (32, 28, 64, 96, 128, 224, 256)
"""The widths of images, tried in this order: a layer behind a flattening takes one of them."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call; ``batch`` is what a loss of the user's gets, ``text`` says where it comes from."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: Tensor | None = None
    batch: Any = None
    text: str = "the given batch"
    size: int = 0

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        found: list[Tensor] = []
        items: list[object] = [*self.args, *self.kwargs.values()]
        while items:
            item = items.pop(0)
            found += [item] if isinstance(item, Tensor) else []
            items = [*(part for _, part in parts_of(item)), *items]
        return found

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.size or next((len(tensor) for tensor in self.tensors if tensor.dim()), 1)

    def part(self, start: int, step: int) -> Inputs:
        """Every so many of the samples."""
        number = self.samples

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[start::step] if value.dim() and len(value) == number else value
            if isinstance(value, Mapping):
                return {key: cut(item) for key, item in value.items()}
            return type(value)(map(cut, value)) if type(value) in (list, tuple) else value

        return Inputs(cut(self.args), cut(self.kwargs), cut(self.target), cut(self.batch), self.text)


class Together:
    """The ranks that run a model together, and have to go the same way: a rank alone would wait for the others.

    These are the ranks that hold parts of its DTensors, and those of a DistributedDataParallel; alone it is one's own.
    """

    def __init__(self, model: nn.Module, doing: str = "torchinit.probe") -> None:
        is_replica = isinstance(model, nn.parallel.DistributedDataParallel)
        group: Any = model.process_group if is_replica else None
        self._spread: Spread | None = over_group(group, doing) if is_replica else over_model(model, doing)

    def largest(self, mine: float) -> float:
        """The largest of what the ranks say; of yes and no yes, if one of them says so."""
        return mine if self._spread is None else max(self._spread(mine).values())

    def common(self, mine: set[str]) -> set[str]:
        """What all of them name."""
        return mine if self._spread is None else set.intersection(*self._spread(mine).values())


def inputs_of(
    model: nn.Module, batch: Any, seed: int = 0, limit: float = 60.0, together: Together | None = None
) -> Inputs:
    """What a model is run on: the batch, what a function gives for it, or one that is made."""
    if batch is None:
        return made(model, seed, limit, together)
    if callable(batch) and not isinstance(batch, Mapping):
        try:
            batch = batch()
        except Exception as error:
            raise ProbeError(f"the function that makes the batch raised {type(error).__name__}: {error}") from error
    return given(model, batch)


def given(model: nn.Module, batch: Any) -> Inputs:
    """The user's batch as arguments of the model's forward; ProbeError for what it cannot take.

    A mapping holds keywords, a tuple or a list positional arguments; anything else is the only one. A last item that
    the model does not take is the target of the loss, as in the pairs of a data loader.

    >>> inputs = given(nn.Linear(2, 3), (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)))
    >>> len(inputs.args), inputs.target.shape, inputs.samples
    (1, torch.Size([4]), 4)
    """
    parameters = _parameters_of(model)
    if isinstance(batch, Mapping):
        return _by_keyword(model, dict(batch), parameters)
    args = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    target = None
    if len(args) > 1 and isinstance(args[-1], Tensor) and _is_target(args, parameters):
        *others, target = args
        args = tuple(others)
    text = "the given batch" + (", its last item as the target" if target is not None else "")
    return Inputs(args, {}, target, batch, text)


def _is_target(args: Sequence[Any], parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether the last of several items is for the loss: the model has no place for it, or it is a label for each."""
    if any(each.kind is each.VAR_POSITIONAL for each in parameters.values()):
        return False
    places = [each for each in parameters.values() if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    required = [each for each in places if each.default is each.empty]
    is_label = not args[-1].is_floating_point() and args[-1].dim() == 1
    named = len(places) >= len(args) and places[len(args) - 1].name in _TARGETS
    return len(places) < len(args) or (is_label and len(required) < len(args) and not named)


def _by_keyword(model: nn.Module, batch: dict[str, Any], parameters: Mapping[str, inspect.Parameter]) -> Inputs:
    kwargs, target = dict(batch), None
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for key in batch if not takes_all else ():
        if key not in parameters:
            if key not in _TARGETS or target is not None:
                taker = f"the forward of {type(model).__name__}"
                near = did_you_mean(key, parameters)
                whole = "" if near or set(batch) & set(parameters) else "; if it takes the whole dict: batch=(batch,)"
                raise ProbeError(f"the batch has {key!r}, which {taker} does not take{near}{whole}")
            target = kwargs.pop(key)
    return Inputs((), kwargs, target, batch, f"the given batch ({', '.join(map(str, batch))})")


def check_place(inputs: Inputs, model: nn.Module) -> None:
    """Raise ProbeError where the batch and the model are on different devices."""
    devices = {parameter.device for parameter in model.parameters()}
    others = {tensor.device for tensor in inputs.tensors if tensor.dim()} - devices
    if len(devices) == 1 and others:
        here, there = str(devices.pop()), str(others.pop())
        raise ProbeError(f"the batch is on {there} and the model on {here}; move one of them: batch.to({here!r})")


# --- a model run on them ---------------------------------------------------------------------------------------------


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """The output of a model; ProbeError with a hint where it raises."""
    try:
        return model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        problems = [f"{first_line(error)}{_place(error, model)}", *_hints(error, inputs, model)]
        raise ProbeError(f"the forward of {type(model).__name__} raised", problems) from error


def raised(model: nn.Module, inputs: Inputs) -> Exception | None:
    """What a model raises on its inputs."""
    try:
        with torch.no_grad():
            forward(model, inputs)
    except ProbeError as error:
        return error.__cause__ if isinstance(error.__cause__, Exception) else error
    return None


def _place(error: Exception, model: nn.Module) -> str:
    """The innermost module of a model that ran when an error was raised."""
    names = {id(module): (name, type(module).__name__) for name, module in model.named_modules() if name}
    inside = [names.get(id(frame.f_locals.get("self"))) for frame, _ in traceback.walk_tb(error.__traceback__)]
    name, kind = next((each for each in reversed(inside) if each), ("", ""))
    return f" (in {name}, {with_article(kind)})" if name else ""


def _hints(error: Exception, inputs: Inputs, model: nn.Module) -> Iterator[str]:
    """What may be behind the error of a forward: missing arguments, another dtype."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    others = {tensor.dtype for tensor in inputs.tensors if tensor.is_floating_point()} - dtypes
    if others and len(dtypes) == 1:
        mine, its = (str(each.pop()).removeprefix("torch.") for each in (others, dtypes))
        yield f"the batch is {mine} and the model {its}: convert one of them, or probe within autocast"
    if any(isinstance(each, torch.utils.data.DataLoader) for each in inputs.args):
        yield "a loader has many batches; give one of them: batch=next(iter(loader))"
    elif isinstance(error, TypeError) and "argument" in str(error):
        yield "a tuple gives positional arguments, a dict keywords: batch={'name': tensor}"


# --- inputs that are made --------------------------------------------------------------------------------------------

Make = Callable[[int, torch.Generator], Tensor]


def made(model: nn.Module, seed: int, limit: float, together: Together | None = None) -> Inputs:
    """A batch made from the model's signature, its config and its layers: the first one on which it runs.

    How many samples it has is a matter of the model alone, by the size of a pass; only where that would not end within
    ``limit`` seconds there are fewer, and the text says so. Raises ProbeError where none does, with the names of what
    is needed.
    """
    errors: list[str] = []
    together = together or Together(model)
    for samples, makers, text in _candidates(model):
        few = _inputs(model, makers, _TRIED, seed, text)
        size = _Size()
        # The number of samples used to go by the clock: other machines, and the same one when it was busy, measured
        # other batches. So the work of a pass is counted, and the clock has a say only where that would not end in
        # time. Samples are halved, so that times which differ a little mostly come to the same number.
        with OperationMode(size.see):
            seconds, error = _timed(model, few)
        seconds = together.largest(seconds)
        if error is None:
            number = full = _fitting(samples, size.share, 1)
            # A small model takes the same time for any number, most of it Python's, and nothing is won by fewer.
            if size.share * full / _TRIED > _SMALL and _fitting(full, _PASSES * seconds, limit) < full:
                seconds = together.largest(_timed(model, few)[0])  # once more, since the first run of anything is slow
                number = _fitting(full, _PASSES * seconds, limit)
            cut = f"; {full} would take more than {limit:g} seconds" if number < full else ""
            return _inputs(model, makers, number, seed, text + cut)
        errors.append(f"{text}: {first_line(error)}")
    names = [name for name, each in _parameters_of(model).items() if each.default is each.empty and _is_named(each)]
    wanted = ", ".join(names) or "inputs"
    raise ProbeError(
        f"{type(model).__name__} takes {wanted}, and what was made for it does not fit; give batch=, a tensor, a tuple"
        " of arguments, a dict of keywords, or a function that returns one",
        errors[:5],
    )


class _Size:
    """The size of the runs within its mode, in parts of what a pass may have: of multiplications, and of memory."""

    def __init__(self) -> None:
        self.multiplied, self.elements = 0, 0

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry out an operation, and count what it does and makes."""
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.multiplied += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        if not func.is_view and not func._schema.is_mutable:
            made = result if isinstance(result, (tuple, list)) else (result,)
            self.elements += sum(each.numel() for each in made if isinstance(each, Tensor))
        return result

    @property
    def share(self) -> float:
        return max(self.multiplied / _MOST_FLOPS, self.elements / _MOST_ELEMENTS)


def _fitting(samples: int, tried: float, most: float) -> int:
    """The samples, halved until they need no more than this, by what those that are tried do."""
    while samples > _TRIED and samples / _TRIED * tried > most:
        samples //= 2
    return samples


def _timed(model: nn.Module, inputs: Inputs) -> tuple[float, Exception | None]:
    start = time.monotonic()
    error = raised(model, inputs)
    return time.monotonic() - start, error


def first_line(error: BaseException) -> str:
    """The class of an error with the first line of its text."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _inputs(model: nn.Module, makers: Mapping[str, Make], samples: int, seed: int, text: str) -> Inputs:
    first = next(model.parameters(), torch.empty(0, device="cpu"))
    generator = torch.Generator().manual_seed(seed)
    floating = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)

    def placed(tensor: Tensor) -> Tensor:
        return tensor.to(first.device, floating if tensor.is_floating_point() else None)

    values = {name: placed(make(samples, generator)) for name, make in makers.items()}
    extra = {"return_loss": True} if "return_loss" in _parameters_of(model) else {}
    return Inputs((), {**values, **extra}, None, values, f"made: {samples} samples of {text}", samples)


def _candidates(model: nn.Module) -> Iterator[tuple[int, Mapping[str, Make], str]]:
    parameters = {name: each for name, each in _parameters_of(model).items() if _is_named(each)}
    # The surest first: the inputs that a model of transformers goes by, then its main one alone, since what is known
    # may not go together; the images that timm says; what the first layer takes. That is the first by definition, which
    # is mostly, but not always, the first to run. What does not fit raises in the run, and the next one is tried; it
    # can fail where a model also runs on what it is not meant for.
    config = getattr(model, "config", None)
    first = getattr(model, "main_input_name", None)
    if config is not None and isinstance(first, str):
        known = {name: make for name in parameters if (make := _by_name(name, config)) is not None}
        main = {name: known[name] for name in (first, "decoder_input_ids") if name in known}
        for chosen in (known, main):
            if chosen:
                yield _SAMPLES // 2, chosen, ", ".join(chosen)
    required = [name for name, each in parameters.items() if each.default is each.empty]
    names = required or [*parameters][:1]
    settings = getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None)
    if settings is not None and names:
        channels, *size = settings["input_size"]
        size = [getattr(getattr(model, "patch_embed", None), "img_size", None) or size][0]
        yield _SAMPLES, {names[0]: _normal(channels, *size)}, f"random pixels, {channels}x{'x'.join(map(str, size))}"
    for samples, make, text in _by_first_layer(model) if names else ():
        yield samples, dict.fromkeys(names, make), text


def _by_name(name: str, config: Any) -> Make | None:
    """The maker of an input that goes by its name in transformers, with the numbers of a config."""

    def number(key: str, default: int) -> int:
        places = (config, *(getattr(config, f"{part}_config", None) for part in ("text", "vision", "audio")))
        found = (getattr(place, key, None) for place in places)
        value = next((value for value in found if value), default)
        return int(value[0] if isinstance(value, (list, tuple)) else value)

    vocabulary = number("vocab_size", 100)
    size = number("image_size", 32)
    makers: dict[str, Make] = {
        "input_ids": _ids(min(5, vocabulary - 1), vocabulary, _TOKENS),
        "decoder_input_ids": _ids(min(5, vocabulary - 1), vocabulary, _TOKENS),
        "pixel_values": _normal(number("num_channels", 3), size, size),
        "input_values": _normal(4000),
        "input_features": _normal(number("num_mel_bins", 80), 2 * number("max_source_positions", 50)),
    }
    return makers.get(name)


def _by_first_layer(model: nn.Module) -> Iterator[tuple[int, Make, str]]:
    """What the first layer takes: ids, vectors, series, images of several sizes."""
    for layer in model.modules():
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            number = layer.num_embeddings
            yield _SAMPLES, _ids(0, number, _TOKENS), f"{_TOKENS} random ids below {number}"
        elif isinstance(layer, nn.RNNBase):
            shape = "batch first" if layer.batch_first else "steps first"
            make = _normal(_STEPS, layer.input_size, axis=0 if layer.batch_first else 1)
            yield _SAMPLES, make, f"{_STEPS} random steps of {layer.input_size}, {shape}"
        elif isinstance(layer, nn.modules.conv._ConvNd):
            dims = layer.weight.dim() - 2
            for size in _SIZES if dims > 1 else (256, 1024, 4096):
                shape = "x".join(map(str, (layer.in_channels, *[size] * dims)))
                yield _SAMPLES, _normal(layer.in_channels, *[size] * dims), f"random values, {shape}"
        elif isinstance(layer, nn.MultiheadAttention):
            yield _SAMPLES, _normal(_TOKENS, layer.embed_dim), f"{_TOKENS} random vectors of {layer.embed_dim}"
        elif isinstance(layer, (nn.Linear, nn.LayerNorm, nn.modules.batchnorm._BatchNorm)):
            width = _width(layer)
            yield _ROWS, _normal(width), f"random vectors of {width}"
            yield _SAMPLES, _normal(_TOKENS, width), f"{_TOKENS} random vectors of {width}"
        else:
            continue
        return


def _width(layer: Any) -> int:
    shape = getattr(layer, "normalized_shape", None)
    return int(shape[-1] if shape else getattr(layer, "in_features", 0) or layer.num_features)


def _ids(low: int, high: int, number: int) -> Make:
    return lambda samples, generator: torch.randint(low, high, (samples, number), generator=generator, device="cpu")


def _normal(*shape: int, axis: int = 0) -> Make:
    return lambda samples, generator: torch.randn(
        *shape[:axis], samples, *shape[axis:], generator=generator, dtype=torch.float32, device="cpu"
    )


def _parameters_of(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    original: Any = getattr(model, "_orig_mod", model)
    return inspect.signature(original.forward).parameters


def _is_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY, parameter.POSITIONAL_ONLY)
