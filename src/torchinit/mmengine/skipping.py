"""Skipping: parts of a model that keep the weights they have, as a module's ``skip_init`` says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from torch import Tensor, nn

from torchinit._text import count, did_you_mean
from torchinit.errors import ReportError
from torchinit.mmengine.registry import InitCfgNameError, InitCfgTypeError
from torchinit.model.names import glob_matches, without_wrappers
from torchinit.plans.report import Report

SKIP_INIT: Final = "skip_init"
"""The attribute of a module, or of its class: True, or names of what is below it."""


class Kept:
    """The parameters and buffers below a module that ``skip_init`` keeps as they are.

    Raises TypeError for a ``skip_init`` of another kind, RuntimeError with the near name for one that nothing has.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> net.skip_init = "1"
    >>> [Kept(net, [*net.modules()]).holds(layer) for layer in net]
    [False, True]
    """

    def __init__(self, top: nn.Module, modules: Sequence[nn.Module]) -> None:
        self.top = top
        self.why: dict[int, str] = {}
        """By the id of a tensor."""
        skips: dict[type, Any] = {cls: getattr(cls, SKIP_INIT, None) for cls in {*map(type, modules)}}
        for module in modules:
            skip = vars(module).get(SKIP_INIT, skips[type(module)])
            if skip is not None and skip is not False:
                why = f"kept: {SKIP_INIT} of {type(module).__name__}"
                self.why |= {id(tensor): why for tensor in _named_by(module, skip)}

    def forget(self, tensors: Iterable[Tensor | None]) -> None:
        """Do not keep tensors that have no values yet."""
        for tensor in tensors:
            self.why.pop(id(tensor), None)

    def holds(self, module: nn.Module) -> bool:
        """Whether all that a module has is kept."""
        tensors = [*module.parameters(), *module.buffers()] if self.why else []
        return bool(tensors) and all(id(tensor) in self.why for tensor in tensors)

    def check(self, writes: Iterable[tuple[nn.Parameter, str]]) -> None:
        """Raise ReportError for parameters that are kept and were written all the same, each with the code."""
        names = {parameter: name for name, parameter in self.top.named_parameters()} if self.why else {}
        lost = [f"{names[one]}: {text.strip()}" for one, text in writes if one in names and id(one) in self.why]
        if lost:
            raise ReportError(f"{count(len(lost), 'parameter')} written over that {SKIP_INIT} keeps", lost)

    def noted(self, report: Report) -> Report:
        """The report with what was kept among the skipped, where it was among the untouched."""
        if not self.why:
            return report
        tensors = (*self.top.named_parameters(), *self.top.named_buffers())
        why = {without_wrappers(name): self.why[id(tensor)] for name, tensor in tensors if id(tensor) in self.why}
        untouched = tuple(name for name in report.untouched if name not in why)
        buffers = tuple(name for name in report.buffers if name not in why)
        return replace(report, untouched=untouched, buffers=buffers, skipped=(*report.skipped, *why.items()))


def _named_by(module: nn.Module, skip: Any) -> Iterator[Tensor]:
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    if skip is True:
        yield from (tensor for _, tensor in tensors)
        return
    globs = [skip] if isinstance(skip, str) else skip
    if not (isinstance(globs, list | tuple) and all(isinstance(glob, str) for glob in globs)):
        text = f"{SKIP_INIT} of {type(module).__name__} is True, a name, or a list of names of what is below it"
        raise InitCfgTypeError(f"{text}, but got {skip!r}")
    named = [(without_wrappers(name), tensor) for name, tensor in tensors]
    for glob in globs:
        below = [tensor for name, tensor in named if glob_matches(glob, name) or glob_matches(f"{glob}.**", name)]
        if not below:
            near = did_you_mean(glob, [path for path, _ in module.named_modules() if path])
            raise InitCfgNameError(f"{SKIP_INIT} of {type(module).__name__}: nothing below it is called {glob!r}{near}")
        yield from below
