"""Styles: layers of tensor parallelism whose outputs torch does not compute from the weight that it gathers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import FunctionType
from typing import Any

from torch import nn

from torchinit._text import count
from torchinit.errors import RunError
from torchinit.model.dtensor import ASCEND, is_in_order


def check_styles(model: nn.Module) -> None:
    """Raise RunError for layers whose outputs will not be those of their weights, whatever the weights are.

    ``RowwiseParallel`` finds the rows of an embedding, and its part of inputs that are replicated, by the place in the
    mesh; the weight is cut by the rank in the group. On a mesh whose ranks do not ascend these are different parts.
    ``ColwiseParallel`` is right, and so is ``RowwiseParallel`` for inputs that are cut already, as a column-wise layer
    leaves them.

    >>> check_styles(nn.Linear(2, 3))
    """
    problems = []
    for path, module in model.named_modules():
        for mesh, splits in _rowwise(module):
            if splits and not is_in_order(mesh):
                what = "the rows that it looks up" if isinstance(module, nn.Embedding) else "its part of the inputs"
                ranks = mesh.mesh.tolist()
                problems.append(f"{path}: RowwiseParallel over ranks {ranks} finds {what} by the place in the mesh")
    if problems:
        raise RunError(
            f"{count(len(problems), 'layer')} that torch would not compute from its weight: {ASCEND}", problems
        )


def _rowwise(module: nn.Module) -> Iterator[tuple[Any, bool]]:
    """For each RowwiseParallel style of a module its mesh, and whether it splits what all ranks have.

    A style leaves no more than a hook, so its closure is what there is to look at. Where another torch builds it
    otherwise nothing is found, and nothing refused.
    """
    for hook in module._forward_pre_hooks.values():
        if not isinstance(hook, FunctionType) or hook.__code__.co_freevars != ("device_mesh", "input_fn"):
            continue
        mesh, prepare = (cell.cell_contents for cell in hook.__closure__ or ())
        if isinstance(prepare, partial) and getattr(prepare.func, "__qualname__", "") == _PREPARES:
            came, wanted = prepare.args
            splits = any(one.is_replicate() and other.is_shard() for one, other in zip(came, wanted, strict=True))
            yield mesh, splits or isinstance(module, nn.Embedding)


_PREPARES = "RowwiseParallel._prepare_input_fn"
