"""Provenance: who wrote which parameter of a tree, and what before; what nobody wrote, and what ``skip_init`` keeps."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, MutableMapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit._frozen import collector_paused, made
from torchinit._text import abbreviate, count, did_you_mean, dtype_name
from torchinit.errors import ReportError
from torchinit.initializers.elementwise import Fill
from torchinit.initializers.statistics import Moments, measure
from torchinit.mmengine.registry import InitCfgAssertionError, InitCfgNameError, InitCfgTypeError
from torchinit.model.dtensor import behind, local_part
from torchinit.model.modules import named_tensors, parameters_of
from torchinit.model.names import glob_matches, normalize, without_wrappers
from torchinit.model.sites import find_site, sites
from torchinit.plans.report import Record, Report, Texts, expected_of
from torchinit.tracing import holds_no_values


class _LastWrite(NamedTuple):
    """The last write to a tensor, and who wrote before; one by nobody stands for none."""

    by: str = ""
    fill: Fill | None = None
    line: str = ""
    operation: str = ""
    over: tuple[str, ...] = ()
    is_claimed: bool = True


_NONE: Final = _LastWrite()


class HeldAtEnd(NamedTuple):
    """The tensors of a tree once all is written, by name, and the names of those that hold no values of anybody."""

    parameters: list[tuple[str, nn.Parameter]]
    buffers: list[tuple[str, Tensor]]
    unfilled: tuple[str, ...]


class Provenance:
    """For each parameter below ``top`` its last writer, the writers before, and the fill where it is known.

    With ``buffers`` for each buffer, too. ``marks`` answers those who ask in MMEngine's way, parameter by parameter.
    """

    def __init__(self, top: nn.Module, modules: Sequence[nn.Module], *, buffers: bool = False) -> None:
        self.top = top
        self.known: dict[int, Tensor] = {}
        self.marks: dict[nn.Parameter, InitInfoProxy] = {}
        self._buffers = buffers
        for parameter in parameters_of(modules):
            self.add(parameter)
        self.known.update({id(buffer): buffer for buffer in top.buffers()} if buffers else {})
        self._begun = frozenset(self.known)
        self._writes: dict[int, _LastWrite] = {}

    def add(self, parameter: nn.Parameter) -> None:
        """Open an entry for a parameter."""
        self.known[id(parameter)] = parameter
        self.marks[parameter] = InitInfoProxy(self, parameter)

    def claim(self, key: int, text: str, fill: Fill | None = None) -> None:
        """Note that a parameter has been written, by whom and with what; or, without a fill, by whom it was seen to."""
        if key in self.known:
            last = self._writes.get(key, _NONE)
            line, operation = (last.line, last.operation) if fill is None else ("", "")
            self._writes[key] = made(_LastWrite, (text, fill, line, operation, self._before(last, text), True))

    def observed(self, key: int, text: str, line: str, operation: str) -> None:
        """Note that foreign code has written a parameter, which it may still give a text of its own."""
        if key in self.known:
            over = self._before(self._writes.get(key, _NONE), text)
            self._writes[key] = made(_LastWrite, (text, None, line, operation, over, False))

    @staticmethod
    def _before(last: _LastWrite, text: str) -> tuple[str, ...]:
        """Who had written before a write of this text."""
        return last.over if last.by in ("", text) else (*last.over, last.by.strip())

    def over(self, key: int) -> tuple[str, ...]:
        """Who has written a parameter before its last writer did."""
        return self._writes.get(key, _NONE).over

    def is_unclaimed(self, parameter: nn.Parameter) -> bool:
        """Whether foreign code has written the parameter and nobody has given that a text."""
        return not self._writes.get(id(parameter), _NONE).is_claimed

    def claim_written(self, module: nn.Module, text: str) -> None:
        """Give a text to what foreign code wrote in a module and nobody has given a text to yet."""
        for parameter in filter(self.is_unclaimed, list(module.parameters())):
            self.claim(id(parameter), text)

    def check_parameters(self, module: nn.Module) -> None:
        """Raise AssertionError for a parameter that the module did not have when the session began."""
        if _has_none_but(self._begun, module):  # without their names, which take longer
            return
        for name, parameter in module.named_parameters():
            if id(parameter) not in self._begun:
                raise InitCfgAssertionError(
                    f"Find a new :obj:`Parameter` named `{name}` during executing the `init_weights` of"
                    f" `{type(module).__name__}`. Change its values instead: parameters must not be added or replaced"
                )

    # --- the end -------------------------------------------------------------------------------------------

    def written(self) -> Iterator[tuple[nn.Parameter, str]]:
        """Yield the parameters that were written, and by whom."""
        for key, write in self._writes.items():
            if isinstance(tensor := self.known[key], nn.Parameter):
                yield tensor, write.by

    def info(self, parameter: nn.Parameter) -> str:
        """How a parameter was set, as the log says it."""
        write = self._writes.get(id(parameter))
        top = type(self.top).__name__
        return write.by if write else f"The value is the same before and after calling `init_weights` of {top} "

    def held(self) -> HeldAtEnd:
        """Look over all that the tree holds by now."""
        parameters, buffers = named_tensors(self.top)
        unfilled = [
            name
            for name, each in (*parameters, *buffers)
            if holds_no_values(_memory_here(each), written=id(each) in self._writes)
        ]
        return HeldAtEnd(parameters, buffers, tuple(unfilled))

    def findings(self, held: HeldAtEnd) -> Iterator[str]:
        """Yield what a user should hear of: memory that nobody filled, checkpoints that were written over."""
        if left := held.unfilled:
            them = "it holds whatever its" if len(left) == 1 else "they hold whatever their"
            yield f"nobody has written {abbreviate(left)}: {them} memory held before"
        # Code of the user's that writes after a checkpoint was loaded means to; a rule comes to it by its turn.
        writes = {name: self._writes.get(id(parameter), _NONE) for name, parameter in held.parameters}
        by_rules = {name: write.over for name, write in writes.items() if write.fill is not None}
        if undone := [name for name, over in by_rules.items() if any(": load from " in text for text in over)]:
            yield (
                f"{count(len(undone), 'parameter')} loaded from a checkpoint and then initialized after all:"
                f" {abbreviate(undone)}; only an entry with type='Pretrained' itself, in no override, is carried out"
                " last"
            )

    def report(self, held: HeldAtEnd, *, stats: bool = False, unused: tuple[str, ...] = (), noise: str = "") -> Report:
        """Return what happened, a record a parameter."""
        every = (*held.parameters, *(held.buffers if self._buffers else ()))
        named = [(without_wrappers(name), tensor) for name, tensor in every]
        left = [(name, tensor) for name, tensor in named if id(tensor) not in self._writes]
        parameters = [(name, tensor) for name, tensor in left if isinstance(tensor, nn.Parameter)]
        known = sites(self.top) if any(_is_odd(parameter) for _, parameter in parameters) else ()
        odd = {name: site for name, _ in parameters if (site := find_site(known, normalize(name)))}
        report = Report(
            (),
            tuple(name for name, _ in parameters if name not in odd or odd[name].lack or odd[name].numel),
            unused=unused,
            noise=noise,
            buffers=tuple(name for name, tensor in left if not isinstance(tensor, nn.Parameter)),
            lacking=tuple((name, site.lack) for name, site in odd.items() if site.lack),
            unfilled=held.unfilled,
        )
        # Most programs let the report go. What may change is looked at now, and the records are made when asked for.
        written = ((name, tensor, self._writes.get(id(tensor))) for name, tensor in named)
        rows = [_Written.of(name, tensor, write, stats=stats) for name, tensor, write in written if write is not None]
        return report.postponed("records", partial(_records, rows))


class _Written(NamedTuple):
    """A tensor that was written, as it is at the end; ``here`` is the shape of the part on this process."""

    name: str
    write: _LastWrite
    shape: tuple[int, ...]
    dtype: torch.dtype
    here: tuple[int, ...]
    measured: Moments | None

    @classmethod
    def of(cls, name: str, tensor: Tensor, write: _LastWrite, *, stats: bool) -> _Written:
        local = local_part(behind(tensor))
        measured = measure(local.detach()) if stats else None
        return made(cls, (name, write, tensor.shape, tensor.dtype, local.shape, measured))


def _records(rows: Iterable[_Written]) -> tuple[Record, ...]:
    texts = Texts()
    with collector_paused():
        return tuple([_record(row, texts) for row in rows])


def _record(row: _Written, texts: Texts) -> Record:
    name, write, shape, dtype, here, measured = row
    fill, shape = write.fill, tuple(shape)
    foreseen = fill is not None and not dtype.is_complex and (here == shape or fill.elementwise)
    return Record(
        name,
        shape,
        dtype_name(dtype),
        fill="" if fill is None else texts.of(fill),
        rule=write.by.strip(),
        expected=expected_of(fill, shape, dtype) if fill is not None and foreseen else None,
        measured=measured,
        over=write.over,
        bytes=math.prod(here) * dtype.itemsize,
        line=write.line,
        operation=write.operation,
    )


def _memory_here(tensor: Tensor) -> Tensor:
    """The part of a tensor that is on this process, itself if it is a plain one."""
    plain = behind(tensor)
    return tensor if plain is tensor else local_part(plain)


def _has_none_but(known: Container[int], module: nn.Module) -> bool:
    """Whether all parameters of a module are among known ones, given by their ids."""
    own = (parameter for parameter in module._parameters.values() if parameter is not None)
    children = (child for child in module._modules.values() if child is not None)
    return all(id(parameter) in known for parameter in own) and all(_has_none_but(known, child) for child in children)


def _is_odd(parameter: nn.Parameter) -> bool:
    """Whether a parameter may be one that no rule can give values."""
    floats = parameter.is_floating_point() or parameter.is_complex()
    return not is_lazy(parameter) and (not floats or parameter.layout != torch.strided or not parameter.numel())


@final
class InitInfoProxy(MutableMapping[str, Any]):
    """A parameter's entry in ``_params_init_info`` as MMEngine's own ``update_init_info`` reads and writes it.

    It compares ``tmp_mean_value`` with the mean as it is, and sets ``init_info`` where they differ.
    """

    __slots__ = ("_parameter", "_provenance")

    def __init__(self, provenance: Provenance, parameter: nn.Parameter) -> None:
        self._provenance = provenance
        self._parameter = parameter

    def __getitem__(self, key: str) -> Any:
        if key == "init_info":
            return self._provenance.info(self._parameter)
        if key == "tmp_mean_value":
            return None if self._provenance.is_unclaimed(self._parameter) else self._parameter.data.mean().cpu()
        raise KeyError(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "init_info":
            self._provenance.claim(id(self._parameter), value)

    def __delitem__(self, key: str) -> None:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(("init_info", "tmp_mean_value"))

    def __len__(self) -> int:
        return 2


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
        return report.updated(untouched=untouched, buffers=buffers, skipped=(*report.skipped, *why.items()))


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
