r"""Loading as MMEngine does it: what fits of a checkpoint is copied into a module, what does not is logged."""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from torchinit.checkpoints.key_mapping import Renames, revised
from torchinit.checkpoints.loaders import CheckpointLoader, load, logger_of, read
from torchinit.checkpoints.matching import kind_of
from torchinit.checkpoints.quantized import Companions, quantized
from torchinit.checkpoints.sources import fetch
from torchinit.checkpoints.suggestions import beginning, guess, splits
from torchinit.core.accounts import Cast, Guess, LoadReport, Mismatch
from torchinit.core.hooks import has_load_hooks
from torchinit.core.names import WRAPPERS as WRAPPING
from torchinit.core.names import normalize
from torchinit.core.tables import some
from torchinit.core.transfers import magnitude
from torchinit.errors import CheckpointError, did_you_mean

_log = logging.getLogger("torchinit")
_MODULE: Final[Renames] = ((r"^module\.", ""),)
_MISFIT: Final = re.compile(r'(?:size mismatch for|While \w+ the parameter named) "?([^\s":]+)"?[:,] (.*)', re.DOTALL)
"""How torch begins the text of what it could not copy, and what of."""

WRAPPERS: Final[list[Callable[[nn.Module], bool]]] = [
    lambda module: isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
]
"""What tells that a module only wraps its ``module``, which is then loaded in its place."""


def read_checkpoint(source: str, map_location: Any = "cpu") -> Any:
    """What a file holds, from any source; no code in it is run. Raises CheckpointError and FileNotFoundError."""
    return read(fetch(source), str(source), map_location)


def _load_checkpoint(filename: str, map_location: Any = None, logger: Any = None) -> Any:
    """What a file holds, as MMEngine's function of that name gives it."""
    return CheckpointLoader.load_checkpoint(filename, map_location, logger)


def _load_checkpoint_with_prefix(prefix: str, filename: str, map_location: Any = None) -> dict[str, Any]:
    """The part of a checkpoint below a prefix, without it; raises AssertionError where there is none."""
    return _below(_weights(_load_checkpoint(filename, map_location), filename), prefix)


def load_checkpoint(
    model: nn.Module,
    filename: str,
    map_location: Any = None,
    strict: bool = False,
    logger: Any = None,
    revise_keys: Sequence[tuple[str, str]] = _MODULE,
) -> Any:
    """Loads what fits of a checkpoint into a model, as MMEngine does, and gives back what the file holds.

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
    held = _load_checkpoint(filename, map_location, logger)
    state = _weights(held, filename)
    account = _loaded(model, _revised(state, revise_keys), filename, strict, logger)
    _warn_of_nothing(account, model, state, logger, by="revise_keys")
    return held


def load_pretrained(
    module: nn.Module, source: str | os.PathLike[str], prefix: str | None = None, map_location: Any = "cpu"
) -> LoadReport:
    """Loads what fits of a checkpoint, or of its part below ``prefix``, and logs what does not.

    Raises AssertionError where nothing lies below the prefix, CheckpointError for a file without weights.
    """
    source = os.fspath(source)
    _log.info("load %s from: %s", f"{prefix} in model" if prefix else "model", source)
    state = _weights(load(source, map_location, _log, mapped=True), source)
    chosen = _revised(state, _MODULE) if prefix is None else _below(state, prefix)
    account = _loaded(module, chosen, source, False, None)
    _warn_of_nothing(account, module, state, None, by="prefix")
    return account


def load_state_dict(
    module: nn.Module, state_dict: Mapping[str, Any], strict: bool = False, logger: Any = None
) -> LoadReport:
    """Loads the entries that fit by name and shape; the others are logged in one warning and counted.

    Wrappers are entered on every level, and the hooks that modules have for loading are run. Raises RuntimeError
    where something does not fit and ``strict`` is set, CheckpointError, which is one, for a model on meta and for
    values in quantized form.

    >>> model = nn.Linear(1, 1)
    >>> load_state_dict(model, {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}).found
    2
    """
    return _loaded(module, state_dict, "state_dict", strict, logger)


def _weights(held: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(held, Mapping):
        raise CheckpointError(f"No state_dict found in checkpoint file {source}")
    inner = held.get("state_dict", held)
    return inner if isinstance(inner, Mapping) else held


def _revised(state: Mapping[str, Any], keys: Sequence[tuple[str, str]]) -> OrderedDict[str, Any]:
    made = OrderedDict(revised(state, keys))
    made._metadata = getattr(state, "_metadata", OrderedDict())  # type: ignore[attr-defined]  # as torch keeps it
    return made


def _below(state: Mapping[str, Any], prefix: str) -> OrderedDict[str, Any]:
    dotted = prefix if prefix.endswith(".") else f"{prefix}."
    chosen = OrderedDict((key[len(dotted) :], value) for key, value in state.items() if key.startswith(dotted))
    if not chosen:
        starts = {start for key in state for start, _ in splits(str(key)) if start}
        raise AssertionError(f"{dotted} is not in the pretrained model{did_you_mean(dotted, starts)}")
    return chosen


def _loaded(module: nn.Module, state: Mapping[str, Any], source: str, strict: bool, logger: Any) -> LoadReport:
    """Copies what fits, tells what does not, and what is odd about the values."""
    if meta := [key for key, tensor in _own(module).items() if tensor.is_meta]:
        raise CheckpointError(
            f"{source}: the model is on the meta device ({some(meta, 3)}), so there is nothing to load into; call"
            " torchinit.materialize with a rule that loads it, Rule(Name('**'), Pretrained(...)), or"
            " model.to_empty(device=...) first"
        )
    hooked = any(map(has_load_hooks, module.modules()))
    if not hooked:
        _refuse_quantized(module, state, str(source))
    missing, unexpected, mismatched, seen = _copy(module, state)
    if hooked:  # they may have made weights of what was quantized, so what is left of it tells
        _refuse_quantized(module, seen, str(source))
    missing = [key for key in missing if "num_batches_tracked" not in key]
    text = _text(missing, unexpected, mismatched)
    if text and strict:
        raise CheckpointError(text)
    if text:
        logger_of(logger).warning("%s", text)
    account = _account(module, seen, str(source), missing, unexpected, mismatched)
    for doubt in account.doubts:
        logger_of(logger).warning("%s: %s", account.source, doubt)
    _warn_of_values(account, seen, logger)
    return account


def _refuse_quantized(module: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Raises CheckpointError where some of the entries are values of the module in quantized form."""
    held = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    dtypes = {normalize(name): tensor.dtype for name, tensor in held}  # without what a state_dict has beside them
    if wrong := quantized(state, dtypes):
        rest = tuple(name for name in _own(module) if name not in wrong)
        why = tuple(Mismatch(name, site.why) for name, site in wrong.items())
        ways = tuple(dict.fromkeys(site.remedy for site in wrong.values()))
        raise CheckpointError(LoadReport(source, loaded=rest, mismatched=why, hints=ways).problems[0])


def _copy(module: nn.Module, state: Mapping[str, Any]) -> tuple[list[str], list[str], list[str], dict[str, Any]]:
    """Load what fits; the missing keys, the unexpected ones, the texts of what does not fit, and what was looked at.

    As ``Module.load_state_dict`` does it, a module's hooks may change the dict that they get, and what they leave is
    what its children find. So the dict is copied once, at the top, and the parts of children are cut from it after
    their parent has been loaded. What is looked at is therefore not ``state``, but what the hooks have made of it.
    """
    metadata = getattr(state, "_metadata", None)
    versions = metadata if isinstance(metadata, Mapping) else {}  # a file can hold anything under that name
    lists: tuple[list[str], list[str], list[str]] = ([], [], [])
    seen: dict[str, Any] = {}
    start = OrderedDict(state)
    if metadata is not None:
        start._metadata = metadata  # type: ignore[attr-defined]  # as torch keeps it

    def walk(part: nn.Module, local: dict[str, Any], prefix: str) -> None:
        while any(wraps(part) for wraps in WRAPPERS):
            part = part.module  # type: ignore[assignment]  # it is what a wrapper has
        known, before = versions.get(prefix[:-1]), len(lists[1])
        part._load_from_state_dict(local, prefix, known if isinstance(known, dict) else {}, True, *lists)
        looked = (*(f"{prefix}{name}" for name in (*part._parameters, *part._buffers)), *lists[1][before:])
        seen.update({normalize(key): local[key] for key in looked if key in local})
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

    walk(module, start, "")
    return *lists, seen


def _text(missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[str]) -> str:
    parts = list(mismatched)
    if unexpected:
        parts.append(f"unexpected key in source state_dict: {', '.join(unexpected)}\n")
    if missing:
        parts.append(f"missing keys in source state_dict: {', '.join(missing)}\n")
    return "\n".join(["The model and loaded state dict do not match exactly\n", *parts]) if parts else ""


def _own(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint should hold. The counter of a BatchNorm may be missing, so nothing is said of it."""
    tensors = {normalize(key): value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    return {key: value for key, value in tensors.items() if "num_batches_tracked" not in key}


def _account(
    module: nn.Module,
    seen: Mapping[str, Any],
    source: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    mismatched: Sequence[str],
) -> LoadReport:
    own = _own(module)
    wrong = [(found[1], found[2]) for text in mismatched if (found := _MISFIT.match(text))]
    lost = {normalize(name) for name in (*missing, *unexpected, *dict(wrong))}
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
        missing=tuple(missing),
        mismatched=tuple(Mismatch(*pair) for pair in wrong),
        unexpected=tuple(unexpected),
        casts=tuple(Cast(key, (seen, dtype)) for key, seen, dtype in pairs if seen != dtype),
        elements=(sum(own[key].numel() for key in loaded), sum(tensor.numel() for tensor in own.values())),
        doubts=tuple(f"{some(names)}: {doubt}" for doubt, names in doubts.items()),
    )


def _warn_of_values(account: LoadReport, seen: Mapping[str, Any], logger: Any) -> None:
    """Says which tensors that were loaded are not finite, or whole numbers for floats."""
    tensors = {key: seen[key] for key in account.loaded if isinstance(seen.get(key), Tensor)}
    endless = [key for key, tensor in tensors.items() if not _is_finite(tensor)]
    if endless:
        logger_of(logger).warning("%s: NaN or infinity in %s", account.source, some(endless))
    other = [cast for cast in account.casts if len({*map(kind_of, cast.dtypes)}) > 1]
    if other:
        names = some([cast.site for cast in other])
        logger_of(logger).warning("%s: numbers of another kind, %s, for %s", account.source, other[0], names)


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout != torch.strided:
        return True
    return magnitude(tensor.detach()) < float("inf")


def _warn_of_nothing(
    account: LoadReport,
    module: nn.Module,
    state: Mapping[str, Any],
    logger: Any,
    *,
    by: Literal["prefix", "revise_keys"],
) -> None:
    """Says loudly where nothing was loaded, and what would change that; ``by`` is the caller's argument for it."""
    if not account.found and account.wanted:
        text = f"{account.source}: 0 of {account.wanted} tensors match the model."
        logger_of(logger).warning("%s%s", text, _remedy(module, state, by))


def _remedy(module: nn.Module, state: Mapping[str, Any], by: str) -> str:
    """The part, or the beginning of names, with which most of the model would be found."""
    own = {key: tuple(tensor.shape) for key, tensor in _own(module).items()}
    for key, value in state.items():
        if isinstance(value, Mapping) and own.keys() & set(map(str, value)):
            return f" Its weights are under the key {key!r}: save that part as a file of its own."
    keys = {str(key): tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    found = guess(own, keys, 0) or Guess()
    start = _wrapping([*keys]) + found.prefix
    pairs = [[beginning(start), ""]] * bool(start) + [list(pair) for pair in found.rename]
    number = sum(own.get(key) == shape for key, shape in revised(keys, pairs).items())
    if not number:
        return f" The file has {some([*keys], 3)}; the model has {some([*own], 3)}."
    if by == "prefix" and not found.rename:
        how = f"prefix={start!r}"
    else:
        how = f"revise_keys={pairs}" if by == "revise_keys" else f"load_checkpoint(..., revise_keys={pairs})"
    return f" With {how} {number} of {len(own)} match."


def _wrapping(keys: Sequence[str]) -> str:
    """The parts of wrappers with which all keys begin."""
    parts = takewhile(WRAPPING.__contains__, keys[0].split(".")) if keys else ()
    start = "".join(f"{part}." for part in parts)
    return start if all(key.startswith(start) for key in keys) else ""
