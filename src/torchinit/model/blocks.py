"""Blocks: the lists of like blocks that a deep model is a stack of, and the runs of stages that such lists make up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from torchinit.model.modules import modules_of
from torchinit.model.parametrizations import bare_class

Place: TypeAlias = tuple[int, int]
"""An index, and the count."""

# What makes a list one of blocks does not show in its class. Tried on the models of transformers, timm and diffusers:
#
# - "The innermost list" finds the experts of a mixture, the two convolutions in a block of ResNet, the attentions in
#   one of LongCat; "the outermost list" the stages of Swin and the two models of an ensemble. So the outermost list
#   counts whose elements are no stages, and what lies within a block is not looked at.
# - "One class" misses hybrids (Jamba, Zamba), any classes finds the sublayers of T5. So several classes are fine if one
#   of them occurs again and their norms have a width in common: that of the residual stream.
# - An element of one matrix is a layer (a convolution with its norm, a head), no block unless there is nothing else.
# - Stages are lists themselves, or differ in width, or hold a list each, of different lengths, or lists of blocks as
#   wide as they are. What is listed within a block has no norm (experts) or a narrower one (attention of low rank).
#
# It fails where a block holds a list of residual blocks of its own width, which is taken for a stage then, and takes
# lists of blocks side by side in a list (branches of HRNet) for stages one after the other.


class BlockStack(NamedTuple):
    """A list of blocks, and its place in a run of stages: where it begins, and the ``total`` of their blocks.

    The total is 0 for a list that stands alone, None where stages hold several lists, which come in no one order.
    """

    blocks: tuple[nn.Module, ...]
    start: int = 0
    total: int | None = 0

    def tower(self, index: int) -> Place | None:
        """The place of a block among those of all stages."""
        return None if self.total is None else (self.start + index, self.total or len(self.blocks))


def find_stacks(model: nn.Module) -> dict[int, BlockStack]:
    """The lists of blocks in a model, by the id of the module that is the list.

    >>> def block():
    ...     return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    >>> model = nn.ModuleDict({"layers": nn.ModuleList([block(), block()]), "heads": nn.ModuleList([nn.Linear(4, 2)])})
    >>> [stack.tower(1) for stack in find_stacks(model).values()]
    [(1, 2)]
    """
    return dict(_stacks_in(model)) or dict(_bare_stacks_in(model))


def _stacks_in(module: nn.Module) -> Iterator[tuple[int, BlockStack]]:
    if not module._modules:
        return
    children = _children(module)
    if _is_stack(module):
        yield id(module), BlockStack(children)
        return
    done: set[nn.Module] = set()
    for run in _runs(module, children):
        holders = {child: stacks for child in run if (stacks := _stacks_of(child))}
        if len(holders) < 2:
            continue
        several = [*holders.values()]
        apart = not set.intersection(*map(_widths, holders))
        if not (apart or (_is_list(module) and all(stacks == [child] for child, stacks in holders.items()))):
            continue
        sizes = [len(_children(stack)) for stacks in several for stack in stacks]
        in_order = len(sizes) == len(holders)
        for number, stack in enumerate(stack for stacks in several for stack in stacks):
            total = sum(sizes) if in_order else None
            yield id(stack), BlockStack(_children(stack), sum(sizes[:number]), total)
        done |= set(holders)
    for child in children:
        if child not in done:
            yield from _stacks_in(child)


def _runs(module: nn.Module, children: Sequence[nn.Module]) -> list[Sequence[nn.Module]]:
    """The children that may be stages, one after the other: those of a list, or those called layer1, layer2, ..."""
    if _is_list(module):
        return [children]
    named: dict[str, list[nn.Module]] = defaultdict(list)
    for name, child in module._modules.items():
        if name[-1:].isdigit() and child is not None:
            named[name.rstrip("0123456789")].append(child)
    return [*named.values()]


def _stacks_of(stage: nn.Module) -> list[nn.Module]:
    """The lists of blocks that a stage is, or holds."""
    if _is_stack(stage, least=1):
        return [stage]
    return [child for child in _children(stage) if _is_stack(child, least=1)]


def _is_stack(module: nn.Module, least: int = 2) -> bool:
    return _is_list_of_blocks(module, least) and not _are_stages(_children(module))


def _is_list_of_blocks(module: nn.Module, least: int = 2) -> bool:
    """Whether the children are blocks, or stages of such; a Sequential of one is a wrapper, if ``least`` says so."""
    if not _is_list(module) or len(module._modules) < (least if isinstance(module, nn.Sequential) else 1):
        return False
    if not all(child is None or child._modules for child in module._modules.values()):
        return False
    if not (children := _children(module)):
        return False
    kinds = {bare_class(child): child for child in children}
    if not all(_has_matrices(child, 2) for child in kinds.values()):
        return False
    if len(kinds) == 1:
        return True
    return len(kinds) < len(children) and bool(set.intersection(*map(_widths, kinds.values())))


def _are_stages(children: Sequence[nn.Module]) -> bool:
    first, last = children[0], children[-1]
    if any(map(_is_list_of_blocks, children)):
        return True
    below = [stack for child in {first, last} for stack in _lists_below(child)]
    if not below:
        return False
    held = [[len(each._modules) for each in _children(child) if _is_list_of_blocks(each)] for child in children]
    if all(len(sizes) == 1 for sizes in held) and len({size for (size,) in held}) > 1:
        return True
    common = _widths(first) & _widths(last)
    return not common or any(max(_norm_widths(_children(stack)[0]), default=0) >= max(common) for stack in below)


def _lists_below(module: nn.Module) -> Iterator[nn.Module]:
    for child in module._modules.values():
        if child is not None and child._modules:
            if _is_list_of_blocks(child):
                yield child
            else:
                yield from _lists_below(child)


def _bare_stacks_in(module: nn.Module) -> Iterator[tuple[int, BlockStack]]:
    """The lists of layers, or of what holds a layer, of one class each."""
    children = _children(module)
    if _is_list(module) and len(set(map(bare_class, children))) == 1:
        is_chain = isinstance(module, nn.Sequential)
        if len(children) > is_chain and all(
            child._modules or (not is_chain and _has_matrices(child, 1)) for child in children
        ):
            yield id(module), BlockStack(children)
            return
    for child in children:
        yield from _bare_stacks_in(child)


def _children(module: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(dict.fromkeys(child for child in module._modules.values() if child is not None))


def _is_list(module: nn.Module) -> bool:
    """Whether the children are numbered: ``0``, ``1``, ...; ``b1``, ``b2``, ..."""
    if isinstance(module, _LISTS):
        return True
    names = module._modules.keys()
    return (
        bool(names)
        and len({name.rstrip("0123456789") for name in names}) == 1
        and all(name[-1].isdigit() for name in names)
    )


_LISTS: Final = (nn.ModuleList, nn.Sequential)


def _has_matrices(module: nn.Module, least: int) -> bool:
    """Whether a module holds so many weights of two dimensions or more."""
    for each in module.modules():  # which is not gone through to its end, as a list of them would be
        matrices = sum(_is_matrix(parameter) for parameter in each._parameters.values())
        least -= min(matrices, 1) if isinstance(each, ParametrizationList) else matrices
        if least <= 0:
            return True
    return False


def _is_matrix(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and (is_lazy(parameter) or parameter.dim() > 1)


def _widths(module: nn.Module) -> set[int]:
    """The widths of what a module's norms, or if it has none its matrices, take."""
    return _norm_widths(module) or {
        size
        for each in modules_of(module)
        for parameter in each._parameters.values()
        if parameter is not None and not is_lazy(parameter) and parameter.dim() > 1
        for size in parameter.shape[:2]
    }


def _norm_widths(module: nn.Module) -> set[int]:
    return {
        parameter.numel()
        for each in modules_of(module)
        if "norm" in type(each).__name__.lower()
        for parameter in each._parameters.values()
        if parameter is not None and not is_lazy(parameter) and parameter.dim() == 1 and parameter.numel() > 1
    }
