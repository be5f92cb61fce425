"""Recorders: what turns the writes that are observed on a model into a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from types import FrameType, TracebackType

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.core.names import normalize
from torchinit.core.places import Held, Kind, held
from torchinit.core.plans import Step
from torchinit.core.shards import Shard
from torchinit.core.witnesses import present
from torchinit.tracing.lines import caller, frame_of_user, is_within
from torchinit.tracing.locks import is_locked, refuse
from torchinit.tracing.marks import Mark, mark
from torchinit.tracing.observe import Event, Observer, Watch, memory_of, storage_of
from torchinit.tracing.operations import arguments_text, is_scattered, name_of
from torchinit.tracing.planned import region, said
from torchinit.tracing.regions import region_of
from torchinit.tracing.writes import UNSEEN, Region, Trace, Write


@dataclass(slots=True)
class Entry:
    """A site while it is traced: the tensors that hold it, each with its mark of when it was last looked at."""

    name: str
    kind: Kind
    tensors: list[Tensor]
    marks: list[Mark] = field(default_factory=list)
    written: bool = False
    unseen: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return () if is_lazy(self.tensors[0]) else tuple(self.tensors[0].shape)


class Recorder:
    """One tracing of a model: its sites and modules as they are now, and the trace that grows."""

    def __init__(self, model: nn.Module, *, exact: bool = False) -> None:
        self.model = model
        self.exact = exact
        self.trace = Trace()
        self.watch = Watch()
        self.entries: list[Entry] = []
        self.modules: dict[int, str] = {}
        self._keys: dict[str, int] = {}
        self._moved: set[int | None] = set()
        self.until = 0
        self._held: list[nn.Module] = []
        self.observer = Observer(
            self.watch,
            self._told,
            self._registered,
            asked=self._asked,
            copied=self._copied,
        )

    # --- beginning and end ---------------------------------------------------------------------------------

    def begin(self, caller: FrameType | None) -> None:
        """Learn the model's sites and modules; no frame beyond the caller's is asked what is being initialized."""
        self.until = 0 if caller is None else id(caller)
        with _disable_current_modes(), torch.no_grad():
            for entry, aliases in _entries(self.model):
                self._take(entry, aliases)
            self._learn(self.model, "")

    def __enter__(self) -> Trace:
        self.begin(frame_of_user(2))
        self._began, self._began_as = set(self._keys), _layout(self.model)
        self._name_sites()
        with ExitStack() as stack:
            stack.enter_context(present(self))
            stack.enter_context(self.observer)
            self._open = stack.pop_all()
        return self.trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)
        if error is not None:
            self.trace.error = f"{type(error).__name__}: {error}"
        with _disable_current_modes(), torch.no_grad():
            self._look_again()
        self._name_sites()
        broken = [entry for entry in self.entries if entry.unseen and is_locked(entry.tensors)]
        if broken and error is None:
            raise refuse(broken[0].name, UNSEEN, "")

    def _name_sites(self) -> None:
        """Brings the names in the trace up to date."""
        trace, gone = self.trace, set(self.trace.removed)
        for kind in ("parameter", "buffer"):
            names = [one.name for one in self.entries if one.kind == kind and one.name not in gone]
            setattr(trace, f"{kind}s", tuple(names))
        trace.added = tuple(name for name in self._keys if name not in self._began)

    # --- what is known of the model ------------------------------------------------------------------------

    def _take(self, entry: Entry, aliases: tuple[str, ...] = ()) -> int:
        """Watches a site."""
        key = self._keys.setdefault(entry.name, len(self.entries))
        if key == len(self.entries):
            self.entries.append(entry)
        self.trace.aliases.update(dict.fromkeys(aliases, entry.name))
        for tensor in entry.tensors:
            self.watch.add(key, tensor)
        entry.marks = [mark(tensor, exact=self.exact) for tensor in entry.tensors]
        return key

    def _learn(self, module: nn.Module, name: str) -> None:
        """Learns the names of a module and of all below it."""
        for below, child in module.named_modules():
            if id(child) not in self.modules:
                self._held.append(child)  # so that its id is not given to another
                self.modules[id(child)] = normalize(f"{name}.{below}".strip(".") + ".x")[: -len(".x")]

    # --- while code runs -----------------------------------------------------------------------------------

    def _asked(self, event: Event) -> None:
        """Before a write: whether it may be, and whether anything has happened since the tensor was last looked at."""
        entry = self.entries[event.key]
        if is_locked(entry.tensors):
            self._refuse(entry, name_of(event.operation), arguments_text(event.operation, event.args, event.kwargs))
        if self.exact:
            with _disable_current_modes():
                self._compare(entry)

    def _refuse(self, entry: Entry, operation: str, arguments: str = "") -> None:
        who = caller(self.modules, 3, self.until)
        raise refuse(entry.name, Write(entry.name, operation, arguments).what, who.line)

    def _told(self, event: Event) -> None:
        entry = self.entries[event.key]
        if event.operation == "data =" and storage_of(event.args[1]) in self._moved:
            return  # noted when the other tensor was made
        said = arguments_text(event.operation, event.args, event.kwargs)
        self.heard(entry, event, self._note(entry, name_of(event.operation), said, _region(entry, event)))

    def heard(self, entry: Entry, event: Event, write: Write) -> None:
        """Called with each write by an operation, for those who want to know more than the trace keeps."""

    def announced(self, step: Step, parts: Sequence[Shard]) -> None:
        """Before a run of torchinit's own writes anything: whether this step of it may be."""
        for entry in self._lying_in(parts):
            if is_locked(entry.tensors):
                self._refuse(entry, *said(step))

    def written(self, step: Step, parts: Sequence[Shard]) -> None:
        """A run has written a step."""
        for entry in self._lying_in(parts):
            self._note(entry, *said(step), region(parts))

    def _lying_in(self, parts: Sequence[Shard]) -> list[Entry]:
        """The sites in the memory of shards; none where a parametrization is to be given the values."""
        return [self.entries[key] for key in sorted({key for part in parts for key in self.watch.hit(part.local)})]

    def _copied(self, event: Event, result: Tensor) -> None:
        """A module moves its tensors: ``to_empty``, ``to`` and the like put others in their places untold."""
        if not is_within(nn.Module._apply.__code__, 2):
            return
        entry = self.entries[event.key]
        if is_locked(entry.tensors) and name_of(event.operation) == "empty_like":
            self._refuse(entry, "to_empty")
        self.watch.add(event.key, result)
        old = storage_of(event.target)
        self._moved.add(storage_of(result))
        entry.tensors = [result if storage_of(tensor) == old else tensor for tensor in entry.tensors]
        self._note(entry, name_of(event.operation))

    def _note(self, entry: Entry, operation: str, arguments: str = "", region: Region = None) -> Write:
        who = caller(self.modules, 2, self.until)
        write = Write(entry.name, operation, arguments, region, who.line, who.module, who.call)
        self._add(entry, write)
        entry.written = True
        if self.exact:
            with _disable_current_modes():
                entry.marks = [mark(tensor, exact=True) for tensor in entry.tensors]
        return write

    def _add(self, entry: Entry, write: Write) -> None:
        shape = () if write.region is None else entry.shape
        self.trace.add((write.site, write.operation, write.line, write.module, write.call), write, shape)

    def _registered(self, module: nn.Module, name: str, value: object) -> None:
        """Something is put into a module: a tensor in the place of another, or a new one, or a module."""
        if id(module) not in self.modules:
            return
        place = f"{self.modules[id(module)]}.{name}".strip(".")
        with _disable_current_modes():
            if isinstance(value, nn.Module):
                self._learn(value, place)
                for entry, aliases in _entries(value, place):
                    self._replace(entry, aliases)
            elif isinstance(value, Tensor):
                kind: Kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
                self._replace(Entry(normalize(place), kind, [value]), ())

    def _replace(self, entry: Entry, aliases: tuple[str, ...]) -> None:
        """A site gets another tensor, which may be another site's: then they are tied from now on."""
        others = {key for tensor in entry.tensors for key in self.watch.hit(tensor)}
        owner = next((self.entries[key] for key in others if self.entries[key].name != entry.name), None)
        if owner is not None:
            self.trace.aliases[entry.name] = owner.name
            self._note(entry, "assigned", owner.name)
            return
        known = self._keys.get(entry.name)
        if known is not None:
            before = self.entries[known].tensors
            if is_locked(before) and set(map(id, before)) != set(map(id, entry.tensors)):
                self._refuse(entry, "assigned")
            for tensor in before:
                self.watch.drop(tensor)
            self.entries[known].tensors = entry.tensors
        self.trace.aliases.pop(entry.name, None)
        self._take(entry if known is None else self.entries[known], aliases)
        self._note(self.entries[self._keys[entry.name]], "assigned")

    # --- the second net ------------------------------------------------------------------------------------

    def _look_again(self) -> None:
        """Finds what no observer saw: values, memory or tensors that are others than they were."""
        if _layout(self.model) == self._began_as:
            for entry in self.entries:
                if self.exact or not entry.written:
                    self._compare(entry)
            return
        now = {name: entry for entry, aliases in _entries(self.model) for name in (entry.name, *aliases)}
        self.trace.removed = tuple(name for name in self._keys if name not in now)
        for key, entry in enumerate(self.entries):
            current = now.get(entry.name)
            if current is not None and not all(key in self.watch.hit(tensor) for tensor in current.tensors):
                entry.unseen = True
                self._add(entry, Write(entry.name, "assigned"))
            elif current is not None and (self.exact or not entry.written):
                self._compare(entry)
        for entry in now.values():
            if entry.name not in self._keys and entry.name not in self.trace.aliases:
                self._take(entry)
                self._add(entry, Write(entry.name, "assigned"))

    def _compare(self, entry: Entry) -> None:
        """Notes a write that nobody saw, if there was one."""
        marks = [mark(tensor, exact=self.exact) for tensor in entry.tensors]
        if marks != entry.marks:
            entry.marks, entry.unseen = marks, True
            self._add(entry, Write(entry.name, UNSEEN))


def _entries(model: nn.Module, prefix: str = "") -> Iterator[tuple[Entry, tuple[str, ...]]]:
    """The sites of a model with the tensors behind them, and their other names."""
    groups: dict[object, list[Held]] = {}
    for one in held(model):
        groups.setdefault(one.key, []).append(one)
    for first, *others in groups.values():
        aliases = tuple(_named(prefix, one.name) for one in others)
        yield Entry(_named(prefix, first.name), first.kind, _behind(first)), aliases


def _named(prefix: str, name: str) -> str:
    return normalize(f"{prefix}.{name}") if prefix else name


def _behind(one: Held) -> list[Tensor]:
    return list(one.way.sources) if one.way else [one.tensor]


def _layout(model: nn.Module) -> list[int]:
    """Which tensors and modules a model is made of: if it is the same later, nothing was put into it."""
    return [
        id(item)
        for module in model.modules()
        for items in (module._parameters, module._buffers, module._modules)
        for item in items.values()
    ]


def _region(entry: Entry, event: Event) -> Region:
    """Which part of the site a write reached."""
    if event.operation == "data =" or name_of(event.operation) == "set_":
        return None
    found = _within(event.target, entry.tensors[0]) if len(entry.tensors) == 1 else "part"
    return "part" if found is None and is_scattered(event.operation) else found


def _within(target: Tensor, base: Tensor) -> Region:
    """The region of a site's tensor that a written tensor is."""
    if target is base:
        return None
    view, memory = memory_of(target), memory_of(base)
    if view is None or memory is None:
        return "part"
    found = region_of(view, memory)
    if memory is base or found == "part":
        return found
    return None if found is None and type(target) is type(base) else "part"


def trace(model: nn.Module, *, exact: bool = False) -> AbstractContextManager[Trace]:
    """Observes every write to the parameters and buffers of a model while the ``with`` block runs.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> with trace(model) as seen:
    ...     _ = nn.init.normal_(model[0].weight, std=0.02)
    >>> seen.writes[0].what, seen.writes[0].call
    ('normal_(mean=0, std=0.02)', 'nn.init.normal_')
    >>> seen.unwritten
    ('0.bias',)
    """
    return Recorder(model, exact=exact)
