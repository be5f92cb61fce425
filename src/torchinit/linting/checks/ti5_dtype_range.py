"""TI5: values that a dtype holds badly, modules of two dtypes or on two devices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch

from torchinit.linting.registry import Hit, check
from torchinit.linting.target import LintedTensor, LintTarget


@check("TI501", "subnormal", "warning", "values", "initialize in float32 and convert, or scale the weight up")
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


@check("TI502", "overflow", "warning", "values", "scale it down, or keep it in bfloat16 or float32")
def overflow(target: LintTarget) -> Iterator[Hit]:
    """A float16 parameter with a value above 256, whose square float16 does not hold.

    Sums of products overflow there, and an infinity turns into NaN. Compared, so never wrong; harmless where the
    layer computes in float32. Loaded values are left out.
    """
    for linted in target.drawn:
        if linted.site.dtype == torch.float16 and linted.statistics.numel and linted.statistics.reach > 256:
            yield Hit(linted.name, f"holds {linted.statistics.reach:.6g}, and float16 ends at 65504")


def _mixed(
    target: LintTarget, wanted: Callable[[LintedTensor], bool], of: Callable[[LintedTensor], object]
) -> Iterator[Hit]:
    """The modules whose own tensors are of several kinds."""
    kinds: dict[str, dict[object, list[str]]] = defaultdict(lambda: defaultdict(list))
    for linted in filter(wanted, target.tensors):
        kinds[linted.site.owner_name][of(linted)].append(linted.site.leaf)
    for owner, leaves_by_kind in kinds.items():
        texts = [
            f"{' and '.join(leaves)} {str(kind).removeprefix('torch.')}" for kind, leaves in leaves_by_kind.items()
        ]
        if len(texts) > 1:
            yield Hit(owner, " but ".join(texts))


@check("TI503", "mixed-dtypes", "warning", "sites", "convert the module as a whole: module.to(dtype)")
def mixed_dtypes(target: LintTarget) -> Iterator[Hit]:
    """A module whose weight and bias have different dtypes.

    Most layers refuse to compute so; it comes from a tensor that was made or assigned without a dtype. Parameters
    of other names are left alone (state spaces keep their decay in float32), and formats of 8 bits.
    """

    def wanted(linted: LintedTensor) -> bool:
        floating = linted.site.dtype.is_floating_point and linted.site.dtype.itemsize > 1
        return linted.is_parameter and floating and linted.site.parameter_kind in ("weight", "bias")

    return _mixed(target, wanted, lambda linted: linted.site.dtype)


@check("TI504", "mixed-devices", "error", "sites", "move the module as a whole: module.to(device)")
def mixed_devices(target: LintTarget) -> Iterator[Hit]:
    """A module whose own tensors are on different devices.

    It cannot compute. A tensor that is assigned after ``to`` makes it. The meta device has a check of its own.
    """
    return _mixed(target, lambda linted: not linted.tensor.is_meta, lambda linted: linted.tensor.device)
