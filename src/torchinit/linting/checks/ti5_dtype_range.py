"""TI5: values that a dtype holds badly, modules of two dtypes or on two devices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch

from torchinit._text import abbreviate, count, dtype_name
from torchinit.linting.registry import Hit, check
from torchinit.linting.target import LintTarget
from torchinit.model.sites import Site
from torchinit.model.states import intent


@check("TI501", "warning", "values", "initialize in float32 and convert, or scale the weight up")
def subnormal(target: LintTarget) -> Iterator[Hit]:
    """A float16 parameter more than a tenth of whose values lie below 6.1e-5, where the format loses its digits.

    float16 ends early: a normal with a standard deviation of 5e-4 has a tenth of its values there, and below 6e-8
    all is zero. Counted; a tenth is a convention. Loaded values are left out.
    """
    for linted in target.drawn:
        stats = linted.statistics
        drawn = stats.numel - stats.zeros
        if linted.site.dtype == torch.float16 and stats.tiny > drawn / 10:
            text = f"{stats.tiny:,} of {drawn:,} values that are not zero are below 6.1e-05"
            yield Hit(linted.name, f"{text}, where float16 has few digits")


@check("TI502", "warning", "values", "scale it down, or keep it in bfloat16 or float32")
def overflow(target: LintTarget) -> Iterator[Hit]:
    """A float16 parameter with a value above 256, whose square float16 does not hold.

    Sums of products overflow there. Harmless where the layer computes in float32. Loaded values are left out.
    """
    for linted in target.drawn:
        if linted.site.dtype == torch.float16 and linted.statistics.numel and linted.statistics.reach > 256:
            yield Hit(linted.name, f"holds {linted.statistics.reach:.6g}, and float16 ends at 65504")


@check("TI503", "warning", "sites", "convert the module as a whole: module.to(dtype)")
def mixed_dtypes(target: LintTarget) -> Iterator[Hit]:
    """A module whose weight and bias have different dtypes.

    Most layers refuse to compute so; it comes from a tensor that was made or assigned without a dtype. Parameters
    of other names are left alone (state spaces keep their decay in float32), and formats of 8 bits.
    """
    sites = [linted.site for linted in target.tensors if linted.is_parameter]
    roles = [site for site in sites if site.parameter_kind in ("weight", "bias")]
    floating = [site for site in roles if site.dtype.is_floating_point and site.dtype.itemsize > 1]
    return _mixed((site, dtype_name(site.dtype)) for site in floating)


@check("TI504", "error", "sites", "move the module as a whole: module.to(device)")
def mixed_devices(target: LintTarget) -> Iterator[Hit]:
    """A module whose own tensors are on different devices.

    It cannot compute. A tensor that is assigned after ``to`` makes it. The meta device has a check of its own.
    """
    return _mixed((each.site, str(each.tensor.device)) for each in target.tensors if not each.tensor.is_meta)


@check("TI505", "note", "sites", "make it anew in float32 after the conversion, and keep it out of later ones")
def rounded_buffer(target: LintTarget) -> Iterator[Hit]:
    """A buffer in no state dict that stands in fewer digits than its own code makes it in.

    ``model.to(torch.bfloat16)`` rounds the frequencies of rotary embeddings with all the rest, and positions far out
    turn by other angles. The dtype that the code makes is found by building the module again, on the meta device, from
    the arguments that it keeps; where it keeps none, a buffer called a frequency is taken to be float32.
    """
    rounded = []
    for linted in target.tensors:
        site, holder = linted.site, linted.holders[0]
        if site.kind == "buffer" and not site.persistent and site.dtype.is_floating_point and site.dtype.itemsize < 4:
            made = intent(holder.place.module, holder.leaf)
            dtype = made.dtype if made else torch.float32 if "freq" in holder.leaf else site.dtype
            if dtype.itemsize > site.dtype.itemsize:
                rounded.append(f"{linted.name} ({dtype_name(site.dtype)} for {dtype_name(dtype)})")
    if rounded:
        yield Hit("", f"fewer digits than made in {count(len(rounded), 'buffer')}: {abbreviate(rounded)}")


def _mixed(kinds: Iterable[tuple[Site, str]]) -> Iterator[Hit]:
    """The modules whose own tensors are of several kinds."""
    leaves: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for site, kind in kinds:
        leaves[site.owner_name][kind].append(site.leaf)
    for owner, by_kind in leaves.items():
        if len(by_kind) > 1:
            yield Hit(owner, " but ".join(f"{' and '.join(names)} {kind}" for kind, names in by_kind.items()))
