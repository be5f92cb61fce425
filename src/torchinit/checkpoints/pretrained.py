"""Pretrained: the initializer that takes values from a checkpoint, and how it finds them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch

from torchinit.checkpoints.adapters import Adapter
from torchinit.checkpoints.key_mapping import KeyMap, Renames
from torchinit.checkpoints.matching import Search
from torchinit.checkpoints.open import InMemory
from torchinit.checkpoints.tensor_fill import Loaded, Source
from torchinit.errors import CheckpointError, MissingExtraError, masked
from torchinit.initializers.load_report import LoadReport
from torchinit.initializers.source import Resolution, SourceInitializer
from torchinit.model.globs import check_globs
from torchinit.model.sites import Site
from torchinit.serialization.json import FrozenMap
from torchinit.serialization.validation import choice, text, truth

OnShape: TypeAlias = Literal["error", "skip"]


@final
@dataclass(frozen=True, slots=True)
class Pretrained(SourceInitializer):
    r"""The values of a checkpoint: a file, an address, a dict of tensors or a model.

    A site that the checkpoint has is loaded, any other stays with its other rules; what became of everything
    is in the plan and in the report. The rule matches buffers, too. Nothing of the file is read before the plan
    is carried out, and then only what the model needs; no code in it is run.

    Names: ``prefix`` takes the keys below it, without it; ``rename`` is a list of ``(pattern, replacement)`` for
    ``re.sub``, in order; wrappers (``module.`` and so on) are dropped on both sides. ``part`` says where in a nested
    checkpoint the weights are (``"ema"``), if not where they usually are.

    What does not fit: ``expect_missing`` are globs of sites that the file need not have. A site that is missing
    otherwise, and that no other rule writes, is an error. ``on_shape`` is ``"error"`` or ``"skip"``, for all or for
    each glob. ``adapt`` gives an adapter to each glob. Of several globs that match, the last counts.

    What is written: values are cast to the site's dtype, floats never from whole numbers, and nothing from quantized
    values, which need the scale beside them; ``dtype`` rounds them before. ``finite=False`` takes NaN and infinities.
    With ``sha256`` the file must have it; for an index that is not enough, and a lock file (TORCHINIT_LOCK) must have
    the hashes of the files that it names. ``lock=False`` lets later rules write over what is loaded. ``map_location``
    is the device on which adapters work.

    Raises TypeError or ValueError for arguments that cannot be; what is wrong with the file shows when a plan is
    made.

    >>> from torchinit import Name, Rule
    >>> from torchinit.plans import make_plan
    >>> rule = Rule(Name("**"), Pretrained({"net.weight": torch.ones(2)}, prefix="net"))
    >>> print(make_plan([Site("weight", (2,))], [rule])["weight"].fill)
    net.weight of dict in memory
    """

    checkpoint: Source
    prefix: str | None = None
    map_location: str = "cpu"
    rename: tuple[tuple[str, str], ...] = ()
    expect_missing: str | tuple[str, ...] = ()
    on_shape: OnShape | Mapping[str, OnShape] = "error"
    adapt: Mapping[str, Adapter] = FrozenMap()
    dtype: torch.dtype | None = None
    part: str | None = None
    finite: bool = True
    sha256: str | None = None
    lock: bool = True

    def __post_init__(self) -> None:
        for name in ("prefix", "part", "sha256"):
            text(name, getattr(self, name))
        for name in ("finite", "lock"):
            truth(name, getattr(self, name))
        _check_adapt(self.adapt)
        missing, on_shape = self.expect_missing, self.on_shape
        values = {
            "checkpoint": InMemory.wrap(self.checkpoint),
            "map_location": _device(self.map_location),
            "rename": _pairs(self.rename),
            "dtype": _dtype(self.dtype),
            "adapt": FrozenMap(self.adapt),
            "expect_missing": tuple(missing) if isinstance(missing, list) else missing,
            "on_shape": FrozenMap(on_shape) if isinstance(on_shape, Mapping) else on_shape,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for choices in self.shape_globs.values():
            choice("on_shape", choices, OnShape)
        check_globs("expect_missing", self.missing_globs)
        check_globs("on_shape", self.shape_globs)
        check_globs("adapt", self.adapt)
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise ValueError(f"sha256 must be 64 hexadecimal digits, but got {self.sha256!r}")
        self.keymap()

    def keymap(self) -> KeyMap:
        """The map from keys of the file to names of the model."""
        return KeyMap(self.prefix or "", self.rename)

    @property
    def missing_globs(self) -> tuple[str, ...]:
        return (self.expect_missing,) if isinstance(self.expect_missing, str) else self.expect_missing

    @property
    def shape_globs(self) -> Mapping[str, OnShape]:
        """``on_shape`` by glob."""
        return self.on_shape if isinstance(self.on_shape, Mapping) else {"**": self.on_shape}

    def resolve_all(self, pairs: Sequence[tuple[Site, Site]], known: Sequence[Site]) -> Resolution:
        try:
            return Search(self, pairs, known).lookup()
        except (CheckpointError, MissingExtraError) as error:
            names = tuple(dict.fromkeys(site.name for _, site in pairs))
            return Resolution({}, account=LoadReport(masked(str(self.checkpoint)), missing=names, failure=str(error)))

    def fill(self, keys: tuple[str, ...], key: str, adapter: Adapter | None, like: tuple[str, ...]) -> Loaded:
        """The fill of a site that is made of ``keys``."""
        return Loaded(
            self.checkpoint, keys, key, adapter, like, self.part, self.dtype, self.map_location, self.finite, self.lock,
            self.sha256,
        )  # fmt: skip


def _device(place: object) -> str:
    """The device as text. Raises TypeError for anything else, ValueError where there is no such device."""
    if not isinstance(place, (str, torch.device)):
        raise TypeError(f"map_location must be the name of a device, but got {place!r}")
    try:
        device = torch.device(place)
    except RuntimeError as error:
        raise ValueError(f"map_location: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise ValueError("map_location: adapters need values, and there are none on the meta device")
    return str(place)


def _dtype(given: object) -> torch.dtype | None:
    """The dtype of that name. Raises TypeError for anything else, ValueError for one that does not hold floats."""
    if given is None:
        return None
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype or the name of one, but got {given!r}")
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(f"dtype rounds floats, so it must hold floats, but got {dtype}")
    return dtype


def _pairs(rename: object) -> Renames:
    """Renames of a list of pairs, or of a dict. Raises TypeError for anything else."""
    pairs = [*rename.items()] if isinstance(rename, Mapping) else rename
    if not (isinstance(pairs, (list, tuple)) and all(map(_is_pair, pairs))):
        raise TypeError(f"rename is a list of (pattern, replacement), but got {rename!r}")
    return tuple((old, new) for old, new in pairs)


def _is_pair(item: object) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _check_adapt(adapt: object) -> None:
    """Raises TypeError unless each glob has an adapter."""
    if not isinstance(adapt, Mapping):
        raise TypeError(f"adapt gives an adapter to each glob, {{'conv1.weight': InputChannels()}}, but got {adapt!r}")
    for glob, adapter in adapt.items():
        if not isinstance(adapter, Adapter):
            raise TypeError(f"adapt[{glob!r}] must be an adapter such as InputChannels(), but got {adapter!r}")
