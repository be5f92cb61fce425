"""Chains: which outputs a signal passes one after the other, so that the last may be compared with the first."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby

from torch import nn

from torchinit._text import fold_numbers
from torchinit.probing.measurement import Output, SignalChain

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_APART = re.compile(r"expert|adapter|(^|\.)heads?(\.|$)")
"""Names of lists whose members stand beside each other."""


def chains_among(model: nn.Module, outputs: Sequence[Output]) -> tuple[SignalChain, ...]:
    """The chains of a model whose modules gave these outputs: one of blocks for each tower, else one of its layers.

    Compared are the blocks of a deep model, since what lies inside a branch may be as small as its builder likes. They
    are the outermost modules of a class of which there are several with matrices, with those of odd classes beside them
    in the same list. A model without such has the layers with weights in the order of their calls; the last one is left
    out, since heads follow other rules.
    """
    names = blocks_of(model)
    towers: dict[str, list[Output]] = defaultdict(list)
    for output in outputs:
        if output.module in names:
            towers[tower_of(output.module)].append(output)
    long = [SignalChain("blocks", tuple(_each_once(tower))) for tower in towers.values() if len(tower) > 1]
    if long:
        return tuple(long)
    layers = tuple(output for output in outputs if output.weighted)[:-1]
    return (SignalChain("layers", layers),) if len(layers) > 1 else ()


def _each_once(tower: Iterable[Output]) -> list[Output]:
    """The outputs of one depth each; of a block that is run in parallel, as a twin tower, the first call."""
    return [next(group) for _, group in groupby(tower, key=lambda output: output.module)]


def blocks_of(model: nn.Module) -> set[str]:
    """The names of the blocks of a deep model."""
    classes = Counter(type(module) for module in model.modules() if _may_be_block(module))
    several = {cls for cls, number in classes.items() if number > 2}
    found: set[str] = set()

    def visit(module: nn.Module, path: str) -> None:
        for key, child in module.named_children():
            name = f"{path}.{key}".removeprefix(".")
            if type(child) in several and _may_be_block(child):
                found.add(name)
                if isinstance(module, _LISTS):  # Jamba and others have blocks of another kind in between
                    beside = ((other, each) for other, each in module.named_children() if _may_be_block(each))
                    found.update(f"{path}.{other}".removeprefix(".") for other, _ in beside)
            elif name not in found:
                visit(child, name)

    visit(model, "")
    return {_at_level(name, found) for name in found if not _APART.search(name)}


def _at_level(name: str, found: Iterable[str]) -> str:
    """The block that stands where most of its tower do: of one of an odd class a part was found, not itself."""
    levels = Counter(fold_numbers(other) for other in found if tower_of(other) == tower_of(name))
    usual = levels.most_common(1)[0][0]
    is_part = fold_numbers(name).startswith(f"{usual}.")
    return ".".join(name.split(".")[: usual.count(".") + 1]) if is_part else name


def tower_of(name: str) -> str:
    """The name before the first number: that of the encoder's blocks, or the decoder's."""
    return re.split(r"\d", name, maxsplit=1)[0]


def _may_be_block(module: nn.Module) -> bool:
    """Whether a module holds matrices in layers of its own, and is neither a list of modules nor a stage of blocks."""
    is_list = type(module) in _LISTS
    matrices = sum(parameter.dim() > 1 for parameter in module.parameters())
    return not is_list and bool(module._modules) and matrices > 0 and not _is_stage(module)


def _is_stage(module: nn.Module) -> bool:
    """Whether a module holds a list of several modules of one class, which are blocks themselves."""
    for path, inner in module.named_modules():
        if isinstance(inner, _LISTS) and not _APART.search(path):
            kinds = Counter(type(child) for child in inner.children() if child._modules)
            if any(number > 1 for number in kinds.values()):
                return True
    return False
