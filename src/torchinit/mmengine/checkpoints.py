"""Checkpoints as MMEngine loads them: what fits is copied into a module, what does not is logged."""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from torchinit._text import abbreviate, count, did_you_mean, masked
from torchinit.checkpoints.fits import kind_of
from torchinit.checkpoints.formats.detect import detect_format, weights_in
from torchinit.checkpoints.formats.torch_save import load_file
from torchinit.checkpoints.guesses import beginning, likely_guesses, splits
from torchinit.checkpoints.hub.schemes import Prefixes, fetch
from torchinit.checkpoints.key_mapping import Renames, revised
from torchinit.checkpoints.open import open_file
from torchinit.checkpoints.quantized import Companions, quantized
from torchinit.errors import CheckpointError
from torchinit.initializers.load_report import Cast, Guess, LoadReport, Mismatch
from torchinit.initializers.statistics import magnitude
from torchinit.mmengine.log import log, log_to
from torchinit.mmengine.registry import is_loaded_through
from torchinit.model.names import WRAPPERS as WRAPPING
from torchinit.model.names import normalize
from torchinit.model.traversal import has_load_hooks

LoadFunction: TypeAlias = Callable[[str, Any], Any]
"""Gives what a file holds, from its name and ``map_location``."""

_Load = TypeVar("_Load", bound=LoadFunction)
_BACKENDS: Final = {"file": "local", "https": "http", "open-mmlab": "openmmlab", "modelzoo": "torchvision"}
"""What MMEngine calls the way to a source, where that is not its scheme."""
_MODULE: Final[Renames] = ((r"^module\.", ""),)
_MISFIT: Final = re.compile(r'(?:size mismatch for|While \w+ the parameter named) "?([^\s":]+)"?[:,] (.*)', re.DOTALL)
"""How torch begins the text of what it could not copy, and what of."""


class CheckpointLoader:
    """Loads checkpoints by how their names begin; what nobody registered a function for is :func:`fetch`-ed.

    >>> @CheckpointLoader.register_scheme("shelf://")
    ... def load_from_shelf(filename, map_location):
    ...     return {"weight": torch.ones(1)}
    >>> CheckpointLoader.load_checkpoint("shelf://three")
    {'weight': tensor([1.])}
    """

    _schemes: ClassVar[Prefixes[LoadFunction]] = Prefixes()

    @classmethod
    def register_scheme(
        cls, prefixes: str | Iterable[str], loader: LoadFunction | None = None, force: bool = False
    ) -> Callable[[_Load], _Load]:
        """Let a function ``(filename, map_location)`` load what begins so; a decorator without ``loader``.

        Prefixes are regular expressions. Raises KeyError for one that is taken, unless ``force`` replaces it.
        """

        def register(function: Any) -> Any:
            cls._schemes.register(prefixes, function, force=force)
            return function

        if loader is not None:
            register(loader)
        return register

    @classmethod
    def load_checkpoint(cls, filename: str, map_location: Any = None, logger: Any = "current") -> Any:
        """Return what a file holds, whatever it is; of formats without structure a dict of tensors.

        No code in it is run, unless a registered function does. Raises CheckpointError, FileNotFoundError.
        """
        return _content(str(filename), map_location, logger)


def _content(filename: str, map_location: Any, logger: Any, *, mapped: bool = False) -> Any:
    """Return what a file holds; ``mapped`` tensors are its own memory, for those who copy them and let them go."""
    function = CheckpointLoader._schemes.find(filename)
    if function is not None:
        backend = getattr(function, "__name__", "a").removeprefix("load_from_")
    else:
        scheme = filename.partition("://")[0] if "://" in filename else "file"
        backend = _BACKENDS.get(scheme, scheme)
    log_to(logger, logging.INFO, f"Loads checkpoint by {backend} backend from path: {masked(filename)}")
    if function is not None:
        return function(filename, map_location)
    filename, _ = weights_in(filename)
    path = fetch(filename)
    _check_place(map_location)
    if detect_format(path) in ("zip", "pickle"):
        return load_file(path, map_location, mapped=mapped)
    checkpoint = open_file(path, filename)
    device = map_location if isinstance(map_location, (str, torch.device)) else "cpu"
    return {key: checkpoint.read(key).to(device, copy=not mapped) for key in checkpoint}


def _check_place(place: object) -> None:
    """Raise TypeError for what cannot be a ``map_location``, ValueError for text that names no device."""
    if not (place is None or isinstance(place, (str, torch.device, Mapping)) or callable(place)):
        raise TypeError(f"map_location must be a device, a dict of devices, a function or None, but got {place!r}")
    if isinstance(place, str):
        try:
            torch.device(place)
        except RuntimeError:
            raise ValueError(f"map_location must be the name of a device such as 'cpu', but got {place!r}") from None


@CheckpointLoader.register_scheme("mmcls://")
def load_from_mmcls(filename: str, map_location: Any) -> dict[str, Any]:
    """Return the backbone of a classifier, which MMEngine takes out of what its table names."""
    state, start = _weights(_content(str(fetch(filename)), map_location, "silent"), filename), "backbone."
    return {"state_dict": {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}}


def _load_checkpoint(filename: str, map_location: Any = None, logger: Any = None) -> Any:
    """Return what a file holds, as MMEngine's function of that name gives it."""
    return CheckpointLoader.load_checkpoint(filename, map_location, logger)


def _load_checkpoint_with_prefix(prefix: str, filename: str, map_location: Any = None) -> dict[str, Any]:
    """Return the part of a checkpoint below a prefix, without it; AssertionError where there is none."""
    return _below(_weights(_load_checkpoint(filename, map_location), filename), prefix)


def load_checkpoint(
    model: nn.Module,
    filename: str,
    map_location: Any = None,
    strict: bool = False,
    logger: Any = None,
    revise_keys: Sequence[tuple[str, str]] = _MODULE,
) -> Any:
    """Load what fits of a checkpoint into a model, as MMEngine does, and return what the file holds.

    ``revise_keys`` are applied to each key in turn by ``re.sub``. What does not fit is one warning, with
    ``strict`` a RuntimeError. Where nothing fits there is another warning, with what would fit. Raises
    CheckpointError, a RuntimeError, for a file without weights or with quantized ones.

    >>> import tempfile
    >>> path = tempfile.NamedTemporaryFile(suffix=".pth").name
    >>> torch.save({"state_dict": {"module.weight": torch.ones(1, 1), "module.bias": torch.ones(1)}}, path)
    >>> model = nn.Linear(1, 1)
    >>> list(load_checkpoint(model, path)), model.bias.item()
    (['state_dict'], 1.0)
    """
    content = _load_checkpoint(filename, map_location, logger)
    state = _weights(content, filename)
    _loaded(model, _revised(state, revise_keys), filename, strict, logger, state, "revise_keys")
    return content


def load_pretrained(
    module: nn.Module, source: str | os.PathLike[str], prefix: str | None = None, map_location: Any = "cpu"
) -> LoadReport:
    """Load what fits of a checkpoint, or of its part below ``prefix``, and log what does not.

    Raises AssertionError where nothing lies below the prefix, CheckpointError for a file without weights.
    """
    source = os.fspath(source)
    log(logging.INFO, "load %s from: %s", f"{prefix} in model" if prefix else "model", source)
    state = _weights(_content(source, map_location, None, mapped=True), source)
    chosen = _revised(state, _MODULE) if prefix is None else _below(state, prefix)
    return _loaded(module, chosen, source, False, None, state, "prefix")


def load_state_dict(
    module: nn.Module, state_dict: Mapping[str, Any], strict: bool = False, logger: Any = None
) -> LoadReport:
    """Load the entries that fit by name and shape; the others are logged in one warning and counted.

    Wrappers are entered on every level, and the hooks that modules have for loading are run. Raises RuntimeError
    where something does not fit and ``strict`` is set, CheckpointError, which is one, for a model on meta and for
    values in quantized form.

    >>> model = nn.Linear(1, 1)
    >>> load_state_dict(model, {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}).found
    2
    """
    return _loaded(module, state_dict, "state_dict", strict, logger)


def _weights(content: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"No state_dict found in checkpoint file {source}")
    inner = content.get("state_dict", content)
    return inner if isinstance(inner, Mapping) else content


def _revised(state: Mapping[str, Any], keys: Sequence[tuple[str, str]]) -> OrderedDict[str, Any]:
    result = OrderedDict(revised(state, keys))
    result._metadata = getattr(state, "_metadata", OrderedDict())  # type: ignore[attr-defined]  # as torch keeps it
    return result


def _below(state: Mapping[str, Any], prefix: str) -> OrderedDict[str, Any]:
    dotted = prefix if prefix.endswith(".") else f"{prefix}."
    chosen = OrderedDict((key[len(dotted) :], value) for key, value in state.items() if key.startswith(dotted))
    if not chosen:
        starts = {start for key in state for start, _ in splits(str(key)) if start}
        raise AssertionError(f"{dotted} is not in the pretrained model{did_you_mean(dotted, starts)}")
    return chosen


# --- copying -----------------------------------------------------------------------------------------------


class _Copied(NamedTuple):
    """The outcome of a copy: torch's lists, and the entries that were looked at."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    seen: dict[str, Any]


def _loaded(
    module: nn.Module, state: Mapping[str, Any], source: str, strict: bool, logger: Any, file: Any = None, by: str = ""
) -> LoadReport:
    """Copy what fits, tell what does not, and what is odd about the values.

    Where nothing fits, say what would of the whole ``file``, as the caller's argument ``by``.
    """
    source = str(source)
    if meta := [key for key, tensor in _own(module).items() if tensor.is_meta]:
        raise CheckpointError(
            f"{source}: the model is on the meta device ({abbreviate(meta, 3)}), so there is nothing to load into; call"
            " torchinit.materialize with a rule that loads it, Rule(Name('**'), Pretrained(...)), or"
            " model.to_empty(device=...) first"
        )
    hooked = any(map(has_load_hooks, module.modules()))
    if not hooked:
        _refuse_quantized(module, state, source)
    copied = _copy(module, state)
    if hooked:  # they may have made weights of what was quantized, so what is left of it tells
        _refuse_quantized(module, copied.seen, source)
    lines = list(copied.mismatched)
    if copied.unexpected:
        lines.append(f"unexpected key in source state_dict: {', '.join(copied.unexpected)}\n")
    if copied.missing:
        lines.append(f"missing keys in source state_dict: {', '.join(copied.missing)}\n")
    texts = ["\n".join(["The model and loaded state dict do not match exactly\n", *lines])] if lines else []
    if texts and strict:
        raise CheckpointError(texts[0])
    account = _account(module, copied, source)
    texts += [f"{source}: {text}" for text in (*account.doubts, *_odd_values(account, copied.seen))]
    if file is not None and account.wanted and not account.found:
        texts.append(f"{source}: 0 of {account.wanted} tensors match the model.{_remedy(module, file, by)}")
    for text in texts:
        log_to(logger, logging.WARNING, text)
    return account


def _refuse_quantized(module: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Raise CheckpointError where some of the entries are values of the module in quantized form."""
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    dtypes = {normalize(name): tensor.dtype for name, tensor in tensors}  # without what a state_dict has beside them
    if wrong := quantized(state, dtypes):
        rest = tuple(name for name in _own(module) if name not in wrong)
        mismatched = tuple(Mismatch(name, site.why) for name, site in wrong.items())
        remedies = tuple(dict.fromkeys(site.remedy for site in wrong.values()))
        raise CheckpointError(LoadReport(source, loaded=rest, mismatched=mismatched, hints=remedies).problems[0])


def _copy(module: nn.Module, state: Mapping[str, Any]) -> _Copied:
    """Load what fits, wherever the modules below have it."""
    # Module.load_state_dict cannot be called: it raises where something does not fit, and does not enter wrappers. As
    # there, a module's hooks may change the dict that they get, and what they leave is what its children find. So the
    # dict is copied once, at the top, and the parts of children are cut from it after their parent has been loaded.
    # What is looked at is therefore not `state`, but what the hooks have made of it. What can fail: torch's private
    # `_load_from_state_dict` and its lists may change; tests/peers compares them with MMEngine's own.
    metadata = getattr(state, "_metadata", None)
    versions = metadata if isinstance(metadata, Mapping) else {}  # a file can hold anything under that name
    lists: tuple[list[str], list[str], list[str]] = ([], [], [])
    seen: dict[str, Any] = {}
    start = OrderedDict(state)
    if metadata is not None:
        start._metadata = metadata  # type: ignore[attr-defined]  # as torch keeps it

    def walk(part: nn.Module, local: dict[str, Any], prefix: str) -> None:
        while is_loaded_through(part):
            part = part.module  # type: ignore[assignment]  # it is what a wrapper has
        version, before = versions.get(prefix[:-1]), len(lists[1])
        part._load_from_state_dict(local, prefix, version if isinstance(version, dict) else {}, True, *lists)
        looked_at = (*(f"{prefix}{name}" for name in (*part._parameters, *part._buffers)), *lists[1][before:])
        seen.update({normalize(key): local[key] for key in looked_at if key in local})
        for name, child in part._modules.items():
            if child is not None:
                below = f"{prefix}{name}."
                walk(child, {key: value for key, value in local.items() if key.startswith(below)}, below)
        for hook in part._load_state_dict_post_hooks.values():
            if hook(part, _IncompatibleKeys(*lists[:2])) is not None:
                raise AssertionError(
                    "Hooks registered with `register_load_state_dict_post_hook` must not return anything; they change"
                    " missing_keys and unexpected_keys in place"
                )

    try:
        walk(module, start, "")
    except BaseException as error:
        done = f"{len(seen)} of {count(len(start), 'entry', 'entries')} had been copied, or found not to fit, by then"
        error.add_note(f"{done}: the module may be half-loaded")
        raise
    missing, unexpected, mismatched = lists
    return _Copied([key for key in missing if "num_batches_tracked" not in key], unexpected, mismatched, seen)


def _own(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a checkpoint should hold; MMEngine does not miss the counter of a BatchNorm."""
    tensors = {normalize(key): value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    return {key: value for key, value in tensors.items() if "num_batches_tracked" not in key}


# --- what is told of it --------------------------------------------------------------------------------------


def _account(module: nn.Module, copied: _Copied, source: str) -> LoadReport:
    own, seen = _own(module), copied.seen
    wrong = [(match[1], match[2]) for text in copied.mismatched if (match := _MISFIT.match(text))]
    lost = {normalize(name) for name in (*copied.missing, *copied.unexpected, *dict(wrong))}
    loaded = [key for key in own if key in seen and key not in lost]
    pairs = [(key, seen[key].dtype, own[key].dtype) for key in loaded if isinstance(seen[key], Tensor)]
    companions, doubts = Companions.among(seen, own), dict[str, list[str]]()
    for key, _, dtype in pairs:
        for doubt in companions.doubts([key], [companions.info(key)], dtype):
            doubts.setdefault(doubt, []).append(key)
    return LoadReport(
        source,
        loaded=tuple(loaded),
        expected=tuple(key for key in own if key not in seen and key not in lost),
        missing=tuple(copied.missing),
        mismatched=tuple(Mismatch(*pair) for pair in wrong),
        unexpected=tuple(copied.unexpected),
        casts=tuple(Cast(key, (source_dtype, dtype)) for key, source_dtype, dtype in pairs if source_dtype != dtype),
        elements=(sum(own[key].numel() for key in loaded), sum(tensor.numel() for tensor in own.values())),
        doubts=tuple(f"{abbreviate(names)}: {doubt}" for doubt, names in doubts.items()),
    )


def _odd_values(account: LoadReport, seen: Mapping[str, Any]) -> Iterator[str]:
    """Tell of tensors that were loaded and are not finite, or integers for floats."""
    tensors = {key: seen[key] for key in account.loaded if isinstance(seen.get(key), Tensor)}
    if not_finite := [key for key, tensor in tensors.items() if not _is_finite(tensor)]:
        yield f"NaN or infinity in {abbreviate(not_finite)}"
    if casts := [cast for cast in account.casts if len({*map(kind_of, cast.dtypes)}) > 1]:
        yield f"numbers of another kind, {casts[0]}, for {abbreviate([cast.site for cast in casts])}"


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout != torch.strided:
        return True
    return magnitude(tensor.detach()) < float("inf")


def _remedy(module: nn.Module, state: Mapping[str, Any], by: str) -> str:
    """The part, or the beginning of names, with which most of the model would be found, as the argument ``by``."""
    own = {key: tuple(tensor.shape) for key, tensor in _own(module).items()}
    for key, value in state.items():
        if isinstance(value, Mapping) and own.keys() & set(map(str, value)):
            return f" Its weights are under the key {key!r}: save that part as a file of its own."
    keys = {str(key): tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    best, *rivals = likely_guesses(own, keys, 0) or [Guess()]
    start = _wrapping([*keys])
    number = sum(own.get(key) == shape for key, shape in revised(keys, _pairs(start, best)).items())
    if not number:
        return f" The file has {abbreviate([*keys], 3)}; the model has {abbreviate([*own], 3)}."
    tied = f", as many with {abbreviate([_how(start, rival, by) for rival in rivals], 3)}" if rivals else ""
    return f" With {_how(start, best, by)} {number} of {len(own)} match{tied}."


def _pairs(start: str, best: Guess) -> list[list[str]]:
    start += best.prefix
    return [[beginning(start), ""]] * bool(start) + [list(pair) for pair in best.rename]


def _how(start: str, best: Guess, by: str) -> str:
    """A guess as the argument ``by``, behind what wrappers have put before all keys."""
    if by == "prefix" and not best.rename:
        return f"prefix={start + best.prefix!r}"
    pairs = f"revise_keys={_pairs(start, best)}"
    return pairs if by == "revise_keys" else f"load_checkpoint(..., {pairs})"


def _wrapping(keys: Sequence[str]) -> str:
    """The parts of wrappers with which all keys begin."""
    parts = takewhile(WRAPPING.__contains__, keys[0].split(".")) if keys else ()
    start = "".join(f"{part}." for part in parts)
    return start if all(key.startswith(start) for key in keys) else ""
