"""Loading: a checkpoint's tensors into the parts of a module that they fit."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from torchinit.errors import MissingExtraError

_log = logging.getLogger("torchinit")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(slots=True)
class Account:
    """What became of a checkpoint: how many tensors were loaded, and what did not fit."""

    wanted: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    @property
    def loaded(self) -> int:
        return self.wanted - len(self.missing) - len(self.mismatched)


def read_checkpoint(source: str, map_location: Any = "cpu") -> Any:
    """What a file holds: a local path or a ``file://`` URL, of ``torch.save`` or safetensors.

    No code in the file is run. Raises FileNotFoundError, ValueError for another kind of URL,
    MissingExtraError for safetensors without that package, and ``pickle.UnpicklingError`` for a file that
    holds more than tensors and plain data.
    """
    text = str(source).removeprefix("file://")
    if re.match(r"\w[\w+.-]*://", text):
        raise ValueError(f"{source}: only local paths and file:// can be loaded; download the file first")
    path = Path(text).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} can not be found.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, map_location)
    return torch.load(path, map_location=map_location, weights_only=True)


def _read_safetensors(path: Path, device: Any) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtraError("reading a .safetensors file", "cli") from None
    return load_file(path, device=str(device or "cpu"))


def load_pretrained(module: nn.Module, source: str, prefix: str | None = None, map_location: Any = "cpu") -> Account:
    """Loads what fits of a checkpoint, or of its part below ``prefix``, and logs what does not.

    Raises AssertionError where nothing lies below the prefix, RuntimeError for a file without weights.
    """
    _log.info("load %s from: %s", f"{prefix} in model" if prefix else "model", source)
    state = _weights(read_checkpoint(source, map_location), source)
    if prefix is None:
        chosen = _renamed(state, r"^module\.", "")
    else:
        dotted = prefix if prefix.endswith(".") else f"{prefix}."
        chosen = _below(state, dotted)
        if not chosen:
            raise AssertionError(f"{dotted} is not in the pretrained model")
    account = load_state_dict(module, chosen)
    if account.wanted and account.loaded <= 0:
        _log.warning("%s: 0 of %d tensors match the model.%s", source, account.wanted, _remedy(module, state))
    return account


def _weights(held: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(held, Mapping):
        raise RuntimeError(f"No state_dict found in checkpoint file {source}")
    inner = held.get("state_dict", held)
    return inner if isinstance(inner, Mapping) else held


def _renamed(state: Mapping[str, Any], pattern: str, new: str) -> OrderedDict[str, Any]:
    made = OrderedDict((re.sub(pattern, new, key), value) for key, value in state.items())
    made._metadata = getattr(state, "_metadata", OrderedDict())  # type: ignore[attr-defined]  # as torch keeps it
    return made


def _below(state: Mapping[str, Any], prefix: str) -> OrderedDict[str, Any]:
    return OrderedDict((key[len(prefix) :], value) for key, value in state.items() if key.startswith(prefix))


def _wanted(module: nn.Module) -> set[str]:
    """What a checkpoint should hold. The counter of a BatchNorm may be missing, so nothing is said of it."""
    return {key for key in module.state_dict() if "num_batches_tracked" not in key}


def _remedy(module: nn.Module, state: Mapping[str, Any]) -> str:
    """The key or prefix with which most of the model would be found."""
    own = _wanted(module)
    for key, value in state.items():
        if isinstance(value, Mapping) and own & set(map(str, value)):
            return f" Its weights are under the key {key!r}: save that part as a file of its own."
    starts = {key[: at + 1] for key in state for at in [key.find(".")] if at > 0}
    best = max(starts, key=lambda start: len(own & set(_below(state, start))), default="")
    fitting = len(own & set(_below(state, best))) if best else 0
    return f" With prefix={best!r} {fitting} of {len(own)} match." if fitting else ""


def load_state_dict(module: nn.Module, state: Mapping[str, Any]) -> Account:
    """Loads the entries that fit by name and shape; the others are logged in one warning and counted.

    Wrappers are entered on every level, and the hooks that modules have for loading are run.
    """
    metadata = getattr(state, "_metadata", None) or {}
    account = Account(len(_wanted(module)))

    def load(part: nn.Module, local: Mapping[str, Any], prefix: str) -> None:
        part = part.module if isinstance(part, _WRAPPERS) else part
        notes = metadata.get(prefix[:-1], {})
        lists = (account.missing, account.unexpected, account.mismatched)
        part._load_from_state_dict(dict(local), prefix, notes, True, *lists)
        for name, child in part._modules.items():
            if child is not None:
                below = f"{prefix}{name}."
                load(child, {key: value for key, value in local.items() if key.startswith(below)}, below)
        for hook in part._load_state_dict_post_hooks.values():
            hook(part, _IncompatibleKeys(account.missing, account.unexpected))

    load(module, state, "")
    account.missing = [key for key in account.missing if "num_batches_tracked" not in key]
    _tell(account)
    return account


def _tell(account: Account) -> None:
    parts = list(account.mismatched)
    if account.unexpected:
        parts.append(f"unexpected key in source state_dict: {', '.join(account.unexpected)}\n")
    if account.missing:
        parts.append(f"missing keys in source state_dict: {', '.join(account.missing)}\n")
    if parts:
        _log.warning("%s", "\n".join(["The model and loaded state dict do not match exactly\n", *parts]))
