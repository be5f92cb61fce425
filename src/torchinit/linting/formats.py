"""Formats: checks of dtypes and devices: values that a format holds badly, modules of two kinds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch

from torchinit.linting.checks import Evidence, check
from torchinit.linting.subjects import Part, Subject


@check("TI501", "subnormal", "warning", "values", "initialize in float32 and convert, or scale the weight up")
def subnormal(subject: Subject) -> Iterator[Evidence]:
    """A float16 parameter more than a tenth of whose values lie below 6.1e-5, where the format loses its digits.

    float16 ends early: a normal with a standard deviation of 5e-4 has a tenth of its values there, and below 6e-8
    all is zero. Counted; a tenth is a convention. Loaded values are left out.
    """
    for part in subject.drawn:
        facts = part.facts
        drawn = facts.numel - facts.zeros
        if part.site.dtype == torch.float16 and facts.tiny > drawn / 10:
            text = (
                f"{facts.tiny:,} of {drawn:,} values that are not zero are below 6.1e-05, where float16 has few digits"
            )
            yield Evidence(part.name, text)


@check("TI502", "overflow", "warning", "values", "scale it down, or keep it in bfloat16 or float32")
def overflow(subject: Subject) -> Iterator[Evidence]:
    """A float16 parameter with a value above 256, whose square float16 does not hold.

    Sums of products overflow there, and an infinity turns into NaN. Compared, so never wrong; harmless where the
    layer computes in float32. Loaded values are left out.
    """
    for part in subject.drawn:
        if part.site.dtype == torch.float16 and part.facts.numel and part.facts.reach > 256:
            yield Evidence(part.name, f"holds {part.facts.reach:.6g}, and float16 ends at 65504")


def _mixed(subject: Subject, wanted: Callable[[Part], bool], of: Callable[[Part], object]) -> Iterator[Evidence]:
    """The modules whose own tensors are of several kinds."""
    kinds: dict[str, dict[object, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part in filter(wanted, subject.parts):
        kinds[part.site.owner_name][of(part)].append(part.site.leaf)
    for owner, found in kinds.items():
        if len(found) > 1:
            said = [f"{' and '.join(leaves)} {str(kind).removeprefix('torch.')}" for kind, leaves in found.items()]
            yield Evidence(owner, " but ".join(said))


@check("TI503", "mixed-dtypes", "warning", "sites", "convert the module as a whole: module.to(dtype)")
def mixed_dtypes(subject: Subject) -> Iterator[Evidence]:
    """A module whose weight and bias have different dtypes.

    Most layers refuse to compute so; it comes from a tensor that was made or assigned without a dtype. Parameters
    of other names are left alone (state spaces keep their decay in float32), and formats of 8 bits.
    """

    def wanted(part: Part) -> bool:
        floating = part.site.dtype.is_floating_point and part.site.dtype.itemsize > 1
        return part.is_parameter and floating and part.site.parameter_kind in ("weight", "bias")

    return _mixed(subject, wanted, lambda part: part.site.dtype)


@check("TI504", "mixed-devices", "error", "sites", "move the module as a whole: module.to(device)")
def mixed_devices(subject: Subject) -> Iterator[Evidence]:
    """A module whose own tensors are on different devices.

    It cannot compute. A tensor that is assigned after ``to`` makes it. The meta device has a check of its own.
    """
    return _mixed(subject, lambda part: not part.tensor.is_meta, lambda part: part.tensor.device)
