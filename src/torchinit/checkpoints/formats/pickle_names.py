"""Names in pickles: what may be called, and with what; what is let go; and the error for all others."""

from __future__ import annotations

import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import torch

from torchinit.errors import CheckpointError

PLAIN: Final[Mapping[str, str]] = {  # the functions that make plain data out of plain data, and of which kind that is
    "_codecs.encode": "bytes",
    "builtins.bytearray": "bytes",
    "builtins.complex": "number",
    "builtins.set": "table",
    "collections.Counter": "table",
    "collections.OrderedDict": "ordered",
    "torch.Size": "tuple",
    "torch.device": "name",
    "torch.serialization._get_layout": "name",
}
_REBUILD = "parameter parameter_with_state tensor tensor_v2 tensor_v3 sparse_tensor qtensor meta_tensor_no_storage"
TENSORS: Final = frozenset({"torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter"}) | {
    f"torch._utils._rebuild_{name}" for name in _REBUILD.split()
}
"""The functions that make tensors of memory in the file. torch allows more, which make them of nothing or copy them."""
COMMON: Final[Mapping[str, Any]] = {  # what the files of most models name, and what torch gives for each name
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    **{f"torch.{kind}Storage": torch.serialization.StorageType(f"{kind}Storage")
       for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")},
}  # fmt: skip
KINDS: Final[Mapping[str, tuple[str, ...]]] = {  # of the first arguments of those functions, which take them apart
    "torch._tensor._rebuild_from_type_v2": ("", "", "tuple"),
    "torch._utils._rebuild_sparse_tensor": ("name", "tuple"),
    "torch._utils._rebuild_meta_tensor_no_storage": ("", "tuple", "tuple"),
    **{f"torch._utils._rebuild_{name}": ("memory", "", "tuple", "tuple") + ("tuple",) * (name == "qtensor")
       for name in ("tensor", "tensor_v2", "tensor_v3", "qtensor")},
}  # fmt: skip
HEAVY: Final = ("tensor", "memory")
"""What has a million elements, each of which becomes an object where it is unrolled."""
_LEAVES: Final = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|typing\.Any|_?io\.BytesIO|collections\.(deque|defaultdict)|uuid\.UUID"
    r"|pathlib(\._local)?\.\w*Path|datetime\.(datetime|date|time|timedelta|timezone)|decimal\.Decimal|fractions\.Fraction"
    r"|builtins\.(slice|range|frozenset|object|list|dict|tuple|int|float|str|bool)|torch\.torch_version\.TorchVersion"
    r"|numpy(\._?core(\.\w+)?)?\.(dtype|ndarray|scalar|_reconstruct|_frombuffer|u?int\d+|float\d+|complex\d+|bool_?|str_)"
    r"|numpy\.dtypes\.\w+|numpy\.random\..+|(omegaconf|ml_collections)\..+|yacs\.config\.CfgNode"
    r"|easydict\.EasyDict|addict(\.addict)?\.Dict|mmengine\.logging\.history_buffer\.HistoryBuffer"
    r"|(mmengine\.config|mmcv\.utils)\.config\.\w+|(pytorch_)?lightning(_fabric)?\..+\.AttributeDict|megatron\..*enums?\.\w+"
)
"""What training code keeps beside the weights, arguments and scalars: it is not made, and what it holds is let go."""


class RefusedPickleError(CheckpointError, pickle.UnpicklingError):
    """A pickle that asks for more than tensors and plain data; nothing of it was run."""


def refused(name: str, deed: str) -> RefusedPickleError:
    """The error for a pickle that does what it may not."""
    how = "Get the weights as .safetensors, or save their state_dict alone"
    asked = re.fullmatch(r"asks for ((\w+)\.[\w.]*\b[A-Z]\w*)", deed)
    if asked and (is_leaf(asked[1]) or asked[2] not in (*sys.stdlib_module_names, "torch")):
        how += f"; or, if you trust the file, load it under torch.serialization.safe_globals([{asked[1]}])"
    if re.search(r"_rebuild_wrapper_subclass|torchao|quanto|bitsandbytes|hqq", deed):
        how = "Its tensors are of a library's own class (quantized?): load it there, dequantize() them and save those"
    only = "and only tensors and plain data are read. Nothing in it was run"
    return RefusedPickleError(f"{name}: is refused: its pickle {deed}, {only}. {how}")


def is_leaf(name: str) -> bool:
    """Whether a full name is of what may lie beside the weights, and need not be made; what a program allows is."""
    return bool(_LEAVES.fullmatch(name)) and name not in allowed()


def allowed() -> set[str]:
    """The functions that the program has registered with ``torch.serialization.add_safe_globals``."""
    safe = torch.serialization.get_safe_globals()
    names = {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in safe}
    return {name for name in names if not name.startswith("torch.")}
