"""Fits: whether tensors of a file can become those of a site, what is odd where they do or not, and what it takes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, TypeVar

import torch

import torchinit._limits as limits
from torchinit._text import abbreviate, dtype_name
from torchinit.checkpoints.adapters import Adapter, Dequantize
from torchinit.checkpoints.adapters.factors import is_dequantizable
from torchinit.checkpoints.formats import Checkpoint, Info
from torchinit.checkpoints.key_mapping import NamedKeys
from torchinit.checkpoints.tensor_fill import Loaded
from torchinit.initializers.base import Fill
from torchinit.initializers.load_report import Mismatch
from torchinit.model.names import glob_matches
from torchinit.model.shards import Box
from torchinit.model.sites import Site

_T = TypeVar("_T")

COUNTER: Final = "num_batches_tracked"
"""The counter of a BatchNorm's runs. Old checkpoints lack it, and nothing depends on it."""


def leftovers(
    names: NamedKeys, used: Collection[str], known: Collection[str], spare: Sequence[str], left: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """The keys that nothing in the model is called: those that are expected, and the others with their names.

    ``known`` are the names of the model, ``spare`` the globs of what is expected, ``left`` the keys that are, too.
    """
    expected, others = list[str](), dict[str, str]()
    for key, name in names.name_of.items():
        if key in used or (name in known and key not in left):
            continue
        is_spare = any(glob_matches(glob, text) for glob in spare for text in (key, name))
        if key in left or is_spare or name.rpartition(".")[2] == COUNTER:
            expected.append(key)
        else:
            others[key] = name
    return expected, others


def last_match(globs: Mapping[str, _T], name: str) -> _T | None:
    """The value of the last glob that matches a name; None if none does."""
    return next((globs[glob] for glob in reversed([*globs]) if glob_matches(glob, name)), None)


def beside(unexpected: Mapping[str, str], taken: Collection[str]) -> Iterator[str]:
    """Those of the unexpected keys, given with their names, whose layers are loaded but for them.

    ``taken`` are the names of what is loaded. ``x.bias`` lies beside ``x.weight``, and so does all that is below a
    layer or a tensor: ``x.lora_A.weight``, ``x.weight.absmax``. What lies below a module that has modules is a part of
    the network that the model lacks.
    """
    paths = {name.rpartition(".")[0] for name in taken}
    layers = {*taken, *paths}.difference(above for path in paths for above in _above(path))
    for key, name in unexpected.items():
        if not 0 < len(name) <= limits.NAME_LENGTH:  # all its beginnings would take the square of its length
            continue
        *_, path = above = [*_above(name)]
        if path in paths or not layers.isdisjoint(above):
            yield key


def _above(name: str) -> Iterator[str]:
    """The names of all modules that hold what is called so; the model itself is called nothing."""
    if name:
        yield ""
        yield from (name[: dot.start()] for dot in re.finditer("[.]", name))


def square(loaded: Sequence[Site]) -> list[str]:
    """A note on square weights that are taken as they are, though others are transposed."""
    square = [site.name for site in loaded if site.owner.name == "Linear" and site.shape == site.shape[:1] * 2]
    return [f"square, so they fit transposed or not, and are taken as they are: {abbreviate(square)}"] if square else []


def hooked(lost: Sequence[Site]) -> list[str]:
    """A hint on sites that may be lost because hooks are not run here: a plan is made of the header alone."""
    hooks = {site.name: site.hooks for site in lost if site.hooks}
    if not hooks:
        return []
    which = abbreviate([*dict.fromkeys(hooks.values())], 3)
    lost_to = f"{which} may change what load_state_dict gives to {abbreviate([*hooks], 3)}, by hooks that a rule does"
    return [f"{lost_to} not run: load_checkpoint(model, file) runs them; or say the same by rename and adapt"]


def misfit(site: Site, infos: Sequence[Info], key: str, adapter: Adapter | None) -> Mismatch | None:
    """The reason for which tensors cannot become those of a site, by their kinds and shapes; None if they can."""
    if site.state not in ("ready", "integer") or site.missing:
        return Mismatch(site.name, site.why)
    multiplies = any(isinstance(step, Dequantize) for step in steps_of(adapter))
    for info in infos:
        made = torch.float32 if multiplies and is_dequantizable(info.dtype) else info.dtype
        if made == site.dtype:
            continue
        kinds = [kind_of(made), kind_of(site.dtype)]
        if len(set(kinds)) > 1 and kinds != ["truth values", "whole numbers"]:
            stored = f"{kinds[0]} ({dtype_name(info.dtype)})"
            return Mismatch(site.name, f"is {dtype_name(site.dtype)}, but the file holds {stored}", "kind")
    shapes = [info.shape for info in infos]
    if adapter is None:
        why = f"has shape {list(site.shape)}, but the file {list(shapes[0])}"
        return Mismatch(site.name, why, "shape") if shapes[0] != site.shape else None
    try:
        adapter.check(shapes, site.shape, key)
    except ValueError as error:
        return Mismatch(site.name, str(error), "shape")
    return None


def float_dtype(given: object) -> torch.dtype | None:
    """A dtype of floats, given by itself or by name. Raises TypeError or ValueError for anything else."""
    if given is None:
        return None
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype or the name of one, but got {given!r}")
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(f"dtype rounds floats, so it must hold floats, but got {dtype}")
    return dtype


def device_name(place: object) -> str:
    """The name of a device. Raises TypeError for anything else, ValueError for one that is not, or holds no values."""
    if not isinstance(place, (str, torch.device)):
        raise TypeError(f"map_location must be the name of a device, but got {place!r}")
    try:
        device = torch.device(place)
    except RuntimeError as error:
        raise ValueError(f"map_location: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise ValueError("map_location: adapters need values, and there are none on the meta device")
    return str(place)


def kind_of(dtype: torch.dtype) -> str:
    """The kind of numbers that a dtype holds; from one kind to another nothing is cast."""
    if dtype == torch.bool:
        return "truth values"
    if dtype.is_complex:
        return "complex numbers"
    return "floats" if dtype.is_floating_point else "whole numbers"


_WORTH_A_NOTE: Final = 1 << 20  # bytes


def apart(fills: Mapping[str, Fill], names: Collection[str]) -> Iterator[Mismatch]:
    """The sites that get a share of a tensor which another of the ``names`` has whole: LoRA's factors, its base."""
    adapters = {name: (fill.key, fill.adapter) for name, fill in fills.items() if isinstance(fill, Loaded)}
    for name, (key, adapter) in adapters.items():
        for other in adapter.together(key) if adapter else ():
            _, others = adapters.get(other, ("", None))
            if other in names and steps_of(adapter)[-1] not in steps_of(others):
                why = f"is made by {adapter}, which takes a share of {other}: adapt that, too, or it is there twice"
                yield Mismatch(name, why)


def steps_of(adapter: Adapter | None) -> tuple[Adapter, ...]:
    """The steps of a chain; an adapter alone is one, None has none."""
    return getattr(adapter, "steps", (adapter,)) if adapter else ()


def peak(fills: Mapping[str, Fill], checkpoint: Checkpoint, sites: Mapping[str, Site]) -> Iterator[str]:
    """A note on the site that takes the most memory beside its own, if any is computed of whole tensors."""
    most, at = _WORTH_A_NOTE, ""
    for name, site in sites.items():
        fill = fills.get(name)
        if not isinstance(fill, Loaded) or not (adapter := fill.adapter) or adapter.goes_by_slices:
            continue
        # Its last element tells: of a part nothing more is read than it needs, of a whole all is.
        last = Box(tuple(max(0, size - 1) for size in site.shape), tuple(min(1, size) for size in site.shape))
        shapes = [checkpoint.info(key).shape for key in fill.keys]
        read = sum(box.numel for box in adapter.read_plan(shapes, site.shape, last, fill.key).boxes)
        if (size := 4 * read * adapter.copies) > most:  # computed in single precision
            most, at = size, name
    if at:
        yield f"{at} is made of whole tensors, which takes up to {most / 2**20:,.1f} MiB beside the model for a moment"
