"""Sources: the tensors whose bits a site stands for, and the sums of what is here of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit.errors import RunError
from torchinit.model.dtensor import is_distributed, shards_of
from torchinit.model.names import normalize
from torchinit.model.traversal import held
from torchinit.plans.digest import Sums, digest


class Source(NamedTuple):
    """The tensors that a site stands for: one, or those that a parametrization computes it from."""

    name: str
    tensors: tuple[Tensor, ...]


class Sources(NamedTuple):
    """Those of a model: each tied tensor once, its other names, and the buffers that are not in a state dict."""

    each: Iterable[Source]
    aliases: dict[str, str]
    transient: tuple[str, ...]


class Look(NamedTuple):
    """What was seen of a tensor: its dtype and shape, and the sums of the part that is here.

    ``distributed`` is the tensor itself if it is a DTensor: its other parts are elsewhere.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sums: Sums
    distributed: Any = None

    def text(self, sums: Sums) -> str:
        """The tensor in one line, with sums that may be those of more than what is here."""
        return f"{self.dtype} {self.shape} {sums.first:016x} {sums.second:016x}"


def sources_of(model: nn.Module) -> Sources:
    """The sources of a model's sites, in the order of ``Module.apply``.

    >>> [source.name for source in sources_of(nn.Linear(2, 3)).each]
    ['weight', 'bias']
    """
    groups: dict[object, Source] = {}
    aliases: dict[str, str] = {}
    transient = []
    for one in held(model):
        first = groups.setdefault(one.key, Source(one.name, one.way.sources if one.way else (one.tensor,)))
        if first.name != one.name:
            aliases[one.name] = first.name
        elif one.kind == "buffer" and one.leaf in one.place.module._non_persistent_buffers_set:
            transient.append(one.name)
    return Sources(groups.values(), aliases, tuple(transient))


def sources_in(tensors: Mapping[str, Tensor]) -> Sources:
    """The sources in a state dict, those behind one parametrized tensor together, read one site at a time.

    What else a state dict may hold (``get_extra_state``) is no site.

    >>> [source.name for source in sources_in(nn.Linear(2, 3).state_dict()).each]
    ['weight', 'bias']
    """
    return Sources(_in(tensors), {}, ())


def _in(tensors: Mapping[str, Tensor]) -> Iterator[Source]:
    keys: dict[str, list[str]] = {}
    for key in tensors:
        keys.setdefault(normalize(key), []).append(key)
    for name, group in keys.items():
        read = tuple(value for value in (tensors[key] for key in sorted(group)) if isinstance(value, Tensor))
        if read:
            yield Source(name, read)


def look_at(sources: Iterable[Source]) -> tuple[list[Look], list[str]]:
    """What is seen of each tensor, and of those that cannot be looked at, why.

    >>> (weight, bias), problems = look_at(sources_of(nn.Linear(2, 3)).each)
    >>> weight.shape, problems
    ((3, 2), [])
    """
    looks, problems = [], []
    for name, tensors in sources:
        for tensor in tensors:
            sums, why = _sums(name, tensor)
            shape = () if is_lazy(tensor) else tuple(tensor.shape)
            looks.append(Look(name, str(tensor.dtype), shape, sums, tensor if is_distributed(tensor) else None))
            problems += why
    return looks, problems


def _sums(name: str, tensor: Tensor) -> tuple[Sums, list[str]]:
    why = _unreadable(tensor)
    if why:
        return Sums(), [f"{name}: {why}"]
    try:
        return sum(map(digest, shards_of(name, tensor)), Sums()), []
    except RunError as error:
        return Sums(), [str(error)]


def _unreadable(tensor: Tensor) -> str:
    if is_lazy(tensor):
        return "has no shape yet: run the model once on an example"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "is a sparse or a quantized tensor"
    if is_distributed(tensor) and tensor.device_mesh.get_coordinate() is None:
        return "is on a mesh that this rank does not belong to"
    return "is on the meta device" if tensor.is_meta else ""
