"""Promises: whether attentions, whose heads no tensor shows, let a model that is made of another keep its function."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Final

from torchinit._files import read_bounded
from torchinit._folding import fold_names
from torchinit._limits import JSON_BYTES
from torchinit._text import abbreviate
from torchinit.checkpoints.adapters.base import Adapter
from torchinit.checkpoints.adapters.width import Net2Wider, Widening
from torchinit.checkpoints.formats import Checkpoint
from torchinit.checkpoints.open import InMemory
from torchinit.checkpoints.tensor_fill import Loaded
from torchinit.errors import TorchinitError
from torchinit.initializers.base import Fill
from torchinit.initializers.load_report import LoadReport
from torchinit.knowledge.attention import HEAD_COUNTS, HEAD_SIZES, WIDTHS, around, count_in, head_sizes
from torchinit.model.layouts import Layout
from torchinit.model.names import normalize
from torchinit.model.sites import Site
from torchinit.serialization.json import unique_json

# Each tensor may fit, and the whole be another function: a head's scores are divided by the root of its size and turned
# by angles that go with it, and which keys a query meets goes with the numbers of both. Shapes have only the product of
# a size and a number. So the size is looked up in the modules of both models, where both are there, or in the config of
# transformers beside a file; of any other file it is a condition, and said.

_QUERIES: Final = ("attn.q", "attn.q_up", "attn.qkv")
_KEYS: Final = ("attn.k", "attn.v", "attn.kv", "attn.kv_up")
_SLOPES: Final = ("Bloom", "Mpt", "Alibi")
"""The beginnings of the classes of attentions whose heads have slopes (ALiBi), which go with their number."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A weight of an attention: by how much its rows of heads grow, of how many, and the size of a head in the file.

    ``uneven`` tells that what it gives to the stream of the blocks grows by copies of some units.
    """

    site: Site
    role: str
    growth: float
    rows: int
    before: int | None
    uneven: bool = False

    @property
    def place(self) -> str:
        """The name of the module that holds the projections."""
        return self.site.owner_name if self.site.leaf != "weight" else self.site.owner_name.rpartition(".")[0]

    @property
    def after(self) -> int | None:
        """The size of a head in the model."""
        return self.site.attention[1] if self.site.attention else None


def kept(
    account: LoadReport, fills: Mapping[str, Fill], sites: Mapping[str, Site], source: object, file: Checkpoint
) -> LoadReport:
    """The account, with a promise that holds in the light of the attentions of the model and of the source."""
    if account.promise not in ("function", "conditional"):
        return account
    found: dict[str, list[Projection]] = defaultdict(list)
    for each in _projections(fills, sites, file, source):
        found[each.place].append(each)
    broken: dict[str, list[str]] = defaultdict(list)
    for place, those in found.items():
        if why := next(_against(those), ""):
            broken[why].append(place)
    if broken:
        reasons = (f"{abbreviate(fold_names(places), 3)}: {why}" for why, places in broken.items())
        return replace(account, promise="none", notes=(*account.notes, *reasons))
    taken = [each for those in found.values() for each in those if each.role in _QUERIES and each.growth != 1]
    unknown = [each for each in taken if each.before is None]
    if not unknown:
        return account
    sizes = ", ".join(sorted({str(each.after) for each in unknown if each.after})) or "one size"
    told = f"promised only if heads are of {sizes} in the file, too, and grow in number: preserves, or --proof, tells"
    return replace(account, promise="conditional", notes=(*account.notes, told))


def _projections(
    fills: Mapping[str, Fill], sites: Mapping[str, Site], file: Checkpoint, source: object
) -> Iterator[Projection]:
    old = source.model if isinstance(source, InMemory) else None
    sizes, config = head_sizes(old) if old is not None else {}, _config_beside(source)
    for name, site in sites.items():
        fill, role = fills.get(name), site.role or ""
        if not isinstance(fill, Loaded) or role not in (*_QUERIES, *_KEYS, "attn.out"):
            continue
        path = around(normalize(fill.keys[0]), sizes)
        before = sizes[path] if path is not None else None
        stored, shape, layout = file.info(fill.keys[0]).shape, site.shape, site.layout or Layout()
        axes = *layout.in_axes, *layout.out_axes
        if not (len(shape) == len(stored) == len(axes) == 2) or 0 in stored or not _is_resized(fill.adapter):
            yield Projection(site, role, 1.0, 0, before)
            continue
        within, out = axes
        axis = within if role == "attn.out" else out
        if config and role in _QUERIES:
            before = _size_by(config, stored[within], stored[out])
        is_uneven = isinstance(fill.adapter, Net2Wider) and role == "attn.out" and shape[out] % stored[out] != 0
        yield Projection(site, role, shape[axis] / stored[axis], stored[axis], before, is_uneven)


def _config_beside(source: object) -> SimpleNamespace | None:
    """The config of transformers that lies beside a file."""
    if not isinstance(source, str):
        return None
    path = Path(source)
    with suppress(OSError, ValueError, TypeError, TorchinitError):
        folder = path if path.is_dir() else path.parent
        return SimpleNamespace(**unique_json(read_bounded(folder / "config.json", JSON_BYTES)))
    return None


def _size_by(config: SimpleNamespace, width: int, rows: int) -> int | None:
    """The size of heads by a config, if it is that of the file: of this width, and with whole heads in these rows."""
    heads, wide = count_in(config, HEAD_COUNTS), count_in(config, WIDTHS)
    if not heads or wide != width or hasattr(config, "qk_nope_head_dim"):  # MLA, whose heads are of two parts
        return None
    size = count_in(config, HEAD_SIZES) or wide // heads
    return size if size and rows % (size * heads) == 0 else None


def _is_resized(adapter: Adapter | None) -> bool:
    """Whether a tensor of the file lies in the site as it is, but for its size."""
    return adapter is None or isinstance(adapter, Widening)


def _against(those: list[Projection]) -> Iterator[str]:
    """The reasons why an attention does not compute what it did."""
    queries = [each for each in those if each.role in _QUERIES]
    for each in those:
        before, after = each.before, each.after
        if before and after and before != after:
            yield f"heads of {before} became heads of {after}, whose scores are scaled otherwise"
        if after and not before and each.rows % after:
            yield f"{each.rows} rows of the file are no heads of {after}: their size has changed"
        if each.uneven:
            yield "the units around it grow unevenly, and a norm over them keeps nothing, be it one without weights"
        for first in queries:
            is_one = each.role in _KEYS and after is not None and each.rows <= after  # which all queries share
            if each.rows and first.rows and each.growth != first.growth and not is_one:
                sides = f"queries grow {first.growth:g} times, {each.role.removeprefix('attn.')} {each.growth:g} times"
                yield f"{sides}: other heads meet than did"
        is_sloped = each.site.attention is not None and each.site.attention[0].startswith(_SLOPES)
        if is_sloped and each.role in _QUERIES and each.growth != 1:
            yield "its slopes (ALiBi) go with the number of heads"
