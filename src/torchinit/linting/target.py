"""The model under test: its tensors with the statistics of their values, and what is known of their past."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.initializers.statistics import Moments, is_shuffled, measure, measure_each
from torchinit.knowledge.following import chains, with_activations
from torchinit.knowledge.neutral import with_neutral
from torchinit.model.dtensor import is_distributed, local_part
from torchinit.model.names import normalize
from torchinit.model.parametrizations import sets_scale
from torchinit.model.sites import Site, group_sites
from torchinit.model.traversal import HeldTensor, walk_tensors
from torchinit.plans.plan import Plan
from torchinit.plans.report import Report
from torchinit.tracing import Trace, Write

_CHUNK = 1 << 16
_SAMPLE = 4096
"""The keys of so many first places are kept."""

_NONE = torch.empty(0, dtype=torch.int64, device="cpu")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts, moments and digests of a tensor's values.

    ``tiny`` counts values that are not zero and below the smallest normal number of the dtype. ``rows`` and
    ``columns`` hold a digest of each index of the first two dimensions, which is zero where all values are; below
    two dimensions they are empty. ``shuffled`` says whether the values come in no order, as drawn ones do.
    """

    numel: int = 0
    nan: int = 0
    infinite: int = 0
    zeros: int = 0
    tiny: int = 0
    min: float = math.nan
    max: float = math.nan
    mean: float = math.nan
    std: float = math.nan
    digest: int = 0
    shuffled: bool = False
    rows: Tensor = _NONE
    columns: Tensor = _NONE

    @property
    def finite(self) -> bool:
        return not self.nan and not self.infinite

    @property
    def constant(self) -> bool:
        """Whether there are several values, and all are equal."""
        return self.numel > 1 and self.finite and self.min == self.max

    @property
    def varied(self) -> bool:
        """Whether there are several values, all finite, and not all are equal."""
        return self.numel > 1 and self.finite and self.min != self.max

    @property
    def reach(self) -> float:
        """The largest absolute value."""
        return max(abs(self.min), abs(self.max))


def compute_statistics(tensor: Tensor, moments: Moments | None = None) -> Statistics:
    """The statistics of a tensor; of a complex one those of its real and imaginary parts, with one more dimension.

    The columns of more than two dimensions run along the second. ``moments`` are the tensor's, if they are known.
    """
    # A digest is a linear hash modulo 2^64: the digest of a row is the sum of its elements' bits, each times the key of
    # its column, and that of the tensor the sum of those of the rows, each times the key of the row; columns go the
    # other way round. So the order of the chunks does not matter, and one pass gives all three without a copy; a row
    # of zeros has the digest zero. How it can fail: where all differences of two rows are multiples of 2^k, only
    # 64 - k bits of the keys tell them apart. For numbers of 4 bytes k is at most 31, the sign; of 8 bytes it would be
    # 63, so that rows of 1 and -1 would differ by the parity of their signs alone, and `_bits` folds their upper half
    # into the lower one first. Equal tensors are compared bit by bit afterwards; equal rows and columns are not.
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    moments = moments or measure(values)
    if moments is None:
        return Statistics()
    low, high, mean, std = (float(each or 0) for each in (moments.min, moments.max, moments.mean, moments.std))
    if low == high == 0:  # as half of the tensors of a fresh model are; all their digests are 0
        lengths = values.shape[:2] if values.dim() > 1 else ()
        nothing = (torch.zeros(length, dtype=torch.int64, device="cpu") for length in lengths)
        return Statistics(values.numel(), 0, 0, values.numel(), 0, low, high, mean, std, 0, False, *nothing)
    smallest = torch.finfo(values.dtype).smallest_normal if values.is_floating_point() else 0.0
    is_finite = max(-low, high) < math.inf  # which no comparison with NaN is
    nan = infinite = zeros = tiny = digest = 0
    first, *others = values.shape or (1,)
    column_keys = _keys(0, math.prod(others), values.device)
    rows, columns = list[Tensor](), None
    for start, chunk in _chunks(values, first):
        bits = _bits(chunk)
        sizes = chunk.to(torch.float64, copy=True).abs_()  # a copy, since a chunk may be the tensor itself
        if not (is_finite and float(sizes.min()) >= max(smallest, 5e-324)):
            zero = sizes == 0
            bits = bits.masked_fill(zero, 0)  # the sign of a zero says nothing
            zeros += int(zero.sum())
            tiny += int(((sizes < smallest) & ~zero).sum())
            if not is_finite:
                nan, infinite = nan + int(sizes.isnan().sum()), infinite + int(sizes.isinf().sum())
        keys, digests = _keys(start, bits.shape[0], values.device), torch.mv(bits, column_keys)
        digest += int((digests * keys).sum())
        if others:
            rows.append(digests.cpu())
            here = torch.mv(bits.T, keys)
            columns = here if columns is None else columns.add_(here)
    length = math.prod(others[1:])
    by_column = () if columns is None else (columns.view(-1, length) * _keys(0, length, values.device)).sum(1).cpu()
    return Statistics(
        values.numel(), nan, infinite, zeros, tiny, low, high, mean, std,
        digest % (1 << 64), low != high and is_shuffled(values),
        *((torch.cat(rows), by_column) if rows else ()),
    )  # fmt: skip


def _chunks(values: Tensor, length: int) -> Iterator[tuple[int, Tensor]]:
    """Parts along the first dimension, of that length, each with two dimensions and the number of its first row."""
    size = max(1, _CHUNK * length // values.numel())
    for start in range(0, length, size):
        part = values if size >= length else values[start : start + size]
        yield start, part.reshape(min(size, length - start), -1).contiguous()


def _keys(start: int, size: int, device: torch.device) -> Tensor:
    """An odd number for each place, as good as random: the finisher of SplitMix64."""
    is_usual = device.type == "cpu" and start + size <= _SAMPLE
    return _first_keys()[start : start + size] if is_usual else _made_keys(start, size, device)


@lru_cache(maxsize=1)
def _first_keys() -> Tensor:
    """The keys of the first places, which nearly all tensors use, and nobody writes to."""
    with _disable_current_modes(), torch.inference_mode(False):
        return _made_keys(0, _SAMPLE, torch.device("cpu"))


def _made_keys(start: int, size: int, device: torch.device) -> Tensor:
    key = torch.arange(start + 1, start + size + 1, device=device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        key = (key ^ (key >> shift)) * factor
    return (key ^ (key >> 31)) | 1


def _bits(chunk: Tensor) -> Tensor:
    """The bits of each value as an int64."""
    chunk = chunk if chunk.dtype == torch.bool else chunk.view(_BITS[chunk.element_size()])
    return chunk ^ (chunk >> 32) if chunk.element_size() == 8 else chunk.to(torch.int64)


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LintedTensor:
    """A parameter or buffer of the model under test; its values are read once, when they are asked for."""

    site: Site
    holders: list[HeldTensor]
    loaded: bool
    writes: tuple[Write, ...]

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def tensor(self) -> Tensor:
        return self.holders[0].tensor

    @cached_property
    def values(self) -> Tensor | None:
        """The part of the values that is here; None where there are none to look at.

        A partial sum of several ranks is not the values.
        """
        partial = is_distributed(self.tensor) and any(each.is_partial() for each in self.tensor.placements)
        if partial or self.site.state in ("quantized", "sparse", "lazy"):
            return None
        values = local_part(self.tensor)
        return None if values.is_meta or not values.numel() else values.detach()

    @property
    def here(self) -> torch.Size:
        """The shape of the part that is here."""
        return local_part(self.tensor).shape

    @property
    def is_complete(self) -> bool:
        return self.here == self.tensor.shape

    @cached_property
    def statistics(self) -> Statistics:
        """The statistics of the values; those of no values where there are none."""
        values = self.values
        return Statistics() if values is None else compute_statistics(values, self.moments)

    @cached_property
    def moments(self) -> Moments | None:
        """The moments of the values; :meth:`LintTarget.measure` takes those of all tensors at once."""
        return None if self.values is None else measure(self.values)

    @property
    def is_parameter(self) -> bool:
        return self.site.kind == "parameter"

    @property
    def is_drawn(self) -> bool:
        """Whether the values are of several kinds and in no order, as a draw leaves them."""
        return self.statistics.varied and self.statistics.shuffled

    @property
    def is_matrix(self) -> bool:
        """Whether the site is the weight of a layer that mixes its inputs, or a table that is looked up."""
        layout = self.site.layout
        return self.is_parameter and layout is not None and bool(layout.out_axes) and len(self.site.shape) > 1

    @property
    def mixes(self) -> bool:
        """Whether several units have the same inputs, and several of them, so that only their weights differ."""
        layout, shape = self.site.layout, self.site.shape
        if not self.is_matrix or layout is None or layout.lookup:
            return False
        units = math.prod(shape[axis] for axis in layout.out_axes)
        return self.site.fans("true")[0] > 1 and units > (layout.groups if 0 in layout.out_axes else 1)

    @cached_property
    def factor(self) -> float:
        """The factor by which the layer makes what passes larger, inputs being independent: std · sqrt(fan_in).

        The fan counts the connections that the layer makes; a table that is looked up makes none.
        """
        fan = self.multiplied.fans("true")[0] if self.is_matrix and self.multiplied else 0.0
        return math.sqrt(fan) * math.hypot(self.statistics.std, self.statistics.mean)

    @cached_property
    def has_own_scale(self) -> bool:
        """Whether a parametrization decides how large it is, whatever is drawn."""
        return self.site.parametrized and sets_scale(self.holders[0].place.module, self.holders[0].leaf)

    @cached_property
    def multiplied(self) -> Site | None:
        """The site as the layer sees it that multiplies by it; None for a table that is only looked up."""
        return next((view for view in self.site.views if view.layout and not view.layout.lookup), None)

    @property
    def is_zero(self) -> bool:
        """Whether there are values, all of them zero."""
        return 0 < self.statistics.numel == self.statistics.zeros

    @property
    def last_write(self) -> Write | None:
        """The last of the writes that a trace knows."""
        return max(self.writes, key=lambda write: write.last, default=None)


def _equal(first: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are there and the same, bit for bit."""
    return first is not None and other is not None and (first is other or torch.equal(first, other.to(first.device)))


def is_pair_to_tie(twins: Collection[LintedTensor]) -> bool:
    """Whether one of them is a table that is looked up, and another the weight of a layer."""
    return len({bool(twin.site.layout and twin.site.layout.lookup) for twin in twins}) == 2


def split_common_end(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The names without the parts that all of them end with, and those: ``a``, ``b`` and ``fc`` of a.fc and b.fc."""
    ends = zip(*(name.split(".")[:0:-1] for name in names), strict=False)  # the last parts come first
    leaf = ".".join([parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, ends)][::-1])
    return tuple(name.removesuffix(f".{leaf}") if leaf else name for name in names), leaf or names[0]


@dataclass(frozen=True, slots=True)
class AcrossRanks:
    """What the ranks of a group have told each other of a model.

    ``equal`` names the weights of which several ranks hold the same drawn values as different parts, ``differing`` has
    a line for each site whose replicas are not the same, ``seeds`` torch's seed on each rank, ``replicated`` the
    parameters that every rank has whole.
    """

    equal: Mapping[str, Sequence[int]] = field(default_factory=dict)
    differing: Sequence[str] = ()
    seeds: Mapping[int, int] = field(default_factory=dict)
    replicated: Sequence[str] = ()


@dataclass(frozen=True)
class LintTarget:
    """A model that is checked, and what is known of it besides its values; what is not known is empty."""

    model: nn.Module
    plan: Plan
    report: Report
    loaded: Mapping[str, Tensor]
    trace: Trace
    ranks: AcrossRanks = AcrossRanks()

    @cached_property
    def tensors(self) -> tuple[LintedTensor, ...]:
        """The parameters and buffers of the model, in the order of ``Module.apply``."""
        loaded = {normalize(name) for name in self.loaded}
        writes: dict[str, list[Write]] = defaultdict(list)
        for write in self.trace:
            writes[write.site].append(write)
        groups = group_sites(walk_tensors(self.model))
        sites = with_activations(self.model, with_neutral(self.model, (site for site, _ in groups)))
        tensors = []
        for site, (_, holders) in zip(sites, groups, strict=True):
            is_loaded = any(view.name in loaded for view in site.views)
            past = tuple(writes[self.trace.aliases.get(site.name, site.name)])
            tensors.append(LintedTensor(site, holders, is_loaded, past))
        return tuple(tensors)

    def measure(self) -> None:
        """Take the moments of all values in one call of the kernel, where one a tensor would be a tenth of the time."""
        here = [(linted, linted.values) for linted in self.tensors if linted.values is not None]
        for (linted, _), moments in zip(here, measure_each([values] for _, values in here), strict=True):
            vars(linted)["moments"] = moments  # where the property looks first

    @cached_property
    def drawn(self) -> tuple[LintedTensor, ...]:
        """The parameters whose values were not loaded, and are finite: those that an initialization answers for."""
        parameters = (each for each in self.tensors if each.is_parameter and not each.loaded)
        return tuple(each for each in parameters if each.statistics.finite)

    @cached_property
    def twins(self) -> tuple[tuple[LintedTensor, ...], ...]:
        """The groups of parameters that hold the same drawn values in memory of their own."""
        alike: dict[object, list[LintedTensor]] = defaultdict(list)
        for each in self.drawn:
            if each.is_drawn:
                alike[each.statistics.digest, each.here, each.site.dtype].append(each)
        groups = (tuple(twin for twin in group if _equal(twin.values, group[0].values)) for group in alike.values())
        return tuple(group for group in groups if len(group) > 1)

    @property
    def is_sketch(self) -> bool:
        """Whether nothing of the model has memory."""
        return bool(self.tensors) and all(each.tensor.is_meta for each in self.tensors)

    @cached_property
    def by_name(self) -> dict[str, LintedTensor]:
        """The tensors by their names, all names of tied tensors included."""
        return {view.name: each for each in self.tensors for view in each.site.views}

    @cached_property
    def chains(self) -> list[list[tuple[str, str]]]:
        """The modules that a signal passes one after the other, as far as the structure shows."""
        return chains(self.model)

    @cached_property
    def likely_chains(self) -> list[list[tuple[str, str]]]:
        """The same with long lists of like layers, which are one behind the other as a rule."""
        return chains(self.model, likely=True)

    def bias_of(self, weight: LintedTensor) -> LintedTensor | None:
        """The bias beside a weight, if the layer has one."""
        start, _, leaf = weight.name.rpartition("weight")
        return self.by_name.get(f"{start}bias{leaf}")

    def line(self, name: str) -> str:
        """The line that wrote a site last, where a trace knows it."""
        linted = self.by_name.get(name)
        return linted.last_write.line if linted and linted.last_write else ""
