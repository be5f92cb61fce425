"""Calls: what a pickle may call, and with what, among the functions that torch's restricted unpickler knows."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from torchinit.errors import CheckpointError


class RefusedPickleError(CheckpointError, pickle.UnpicklingError):
    """A pickle that asks for more than tensors and plain data; nothing of it was run."""


def refused(name: str, what: str) -> RefusedPickleError:
    """The error for a pickle that does what it may not; ``what`` says what."""
    way = "Get the weights as .safetensors, or save their state_dict alone"
    if re.search(r"_rebuild_wrapper_subclass|torchao|quanto|bitsandbytes|hqq", what):
        way = "Its tensors are of a library's own class (quantized?): load it there, dequantize() them and save those"
    return RefusedPickleError(
        f"{name}: is refused: its pickle {what}, and only tensors and plain data are read. Nothing in it was run. {way}"
    )


PLAIN: Final[Mapping[str, str]] = {
    "_codecs.encode": "bytes",
    "builtins.bytearray": "bytes",
    "builtins.complex": "number",
    "builtins.set": "table",
    "collections.Counter": "table",
    "collections.OrderedDict": "table",
    "torch.Size": "tuple",
    "torch.device": "name",
    "torch.serialization._get_layout": "name",
}
"""What makes plain data out of plain data, and of which kind that is."""

TENSORS: Final = frozenset(
    {
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.nn.parameter.Parameter",
    }
)
"""What makes tensors of memory in the file. torch allows more: what makes them of nothing, or copies them."""

_CODINGS: Final = ("latin1", "latin-1")
"""How Python writes bytes as text; others make much out of little, or take long over it."""


def fault(function: str, arguments: Sequence[Any], *, plain: bool) -> str:
    """Why a call is refused; nothing for one that ``torch.save`` writes. ``plain`` says that no tensor is in it.

    What the program has registered with ``torch.serialization.add_safe_globals`` may be called, too.

    >>> fault("os.system", ("true",), plain=True)
    'asks for os.system'
    >>> fault("_codecs.encode", ("00", "hex"), plain=True)
    'calls _codecs.encode with odd arguments'
    """
    if function in TENSORS:
        return ""
    if function not in PLAIN:
        return "" if function in _registered() else f"asks for {function}"
    sizes = function == "builtins.bytearray" and any(isinstance(one, int) for one in arguments)
    coding = function in ("builtins.bytearray", "_codecs.encode") and any(one not in _CODINGS for one in arguments[1:])
    return f"calls {function} with odd arguments" if sizes or coding or not plain else ""


def _registered() -> set[str]:
    known = {
        one[1] if isinstance(one, tuple) else f"{one.__module__}.{one.__qualname__}"
        for one in torch.serialization.get_safe_globals()
    }
    return {name for name in known if not name.startswith("torch.")}
