"""The recorder: turns the writes that are observed on a model into a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import _disable_current_modes

from torchinit._frozen import collector_paused
from torchinit.model.modules import part_ids
from torchinit.model.names import is_bare, normalize
from torchinit.model.shards import Shard
from torchinit.model.traversal import HeldTensor, Kind, Walk, walk_tensors
from torchinit.plans.observers import observing_runs
from torchinit.plans.plan import Step
from torchinit.tracing.observer import Event, Observer, name_of
from torchinit.tracing.regions import (
    MemoryIndex,
    Snapshot,
    is_locked,
    refusal,
    region_of_shards,
    region_within,
    snapshot,
    storage_of,
)
from torchinit.tracing.source_lines import find_caller, frame_of_user, is_within
from torchinit.tracing.trace import UNSEEN, Region, Trace, Write

_SCATTERED = frozenset(
    {
        "index_put_", "_index_put_impl_", "index_fill_", "index_copy_", "index_add_", "index_reduce_", "masked_fill_",
        "masked_scatter_", "scatter_", "scatter_add_", "scatter_reduce_", "put_", "fill_diagonal_",
    }
)  # fmt: skip
"""Operations that write only some elements of the tensor that they are called on."""


@dataclass(slots=True)
class TracedTensor:
    """A site while it is traced: the tensors that hold it, each as it was when it was last looked at."""

    name: str
    kind: Kind
    tensors: list[Tensor]
    snapshots: list[Snapshot] = field(default_factory=list)
    written: bool = False
    unseen: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return () if is_lazy(self.tensors[0]) else tuple(self.tensors[0].shape)


class _Computed(NamedTuple):
    """A tensor as a parametrization computed it, the parameters that it did so from, and the line that asked for it."""

    tensor: Tensor
    snapshot: Snapshot
    originals: list[Snapshot]
    line: str


def _originals(chain: ParametrizationList) -> list[Snapshot]:
    return [snapshot(each) for name, each in chain._parameters.items() if each is not None and "original" in name]


class Recorder:
    """One tracing of a model: its sites and modules as they are now, and the trace that grows."""

    def __init__(self, model: nn.Module, *, exact: bool = False) -> None:
        self.model = model
        self.exact = exact
        self.trace: Trace = Trace()
        self.index: MemoryIndex = MemoryIndex()
        self.sites: list[TracedTensor] = []
        self.modules: dict[int, str] = {}
        self.until: int = 0
        self._keys: dict[str, int] = {}
        self._moved: set[int | None] = set()
        self._kept: list[nn.Module] = []
        self._computed: dict[ParametrizationList, _Computed] = {}
        self._in_vain: dict[ParametrizationList, _Computed] = {}
        self.observer: Observer = Observer(
            self.index, self._on_write, self._on_registration, before_write=self._before_write, on_copy=self._on_copy
        )

    @collector_paused()
    def begin(self, caller: FrameType | None, walk: Callable[[], Walk] | None = None) -> None:
        """Learn the model's sites and modules; the search for what is being initialized ends at the caller's frame.

        ``walk`` gives one over the model as it is.
        """
        self.until = 0 if caller is None else id(caller)
        with _disable_current_modes(), torch.no_grad():
            places, held = walk() if walk else Walk.over(self.model)
            for site, aliases in _traced(held):
                self.observe(site, aliases)
            names = {id(place.module): place.name for place in reversed(places)}  # the first of several
            are_bare = is_bare(".\n".join([*names.values(), ""]))
            self.modules = names if are_bare else {key: _bare(name) for key, name in names.items()}
            self._kept = [place.module for place in places]  # so that no id is given to another

    def __enter__(self) -> Trace:
        self.begin(frame_of_user())
        self._names_before, self._parts_before = set(self._keys), part_ids(self.model)
        self._name_sites()
        self._open = ExitStack()
        self._open.callback(register_module_forward_hook(self._on_forward).remove)
        self._open.enter_context(observing_runs(self))
        self._open.enter_context(self.observer)
        return self.trace

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._open.__exit__(kind, error, trace)
        if error is not None:
            self.trace.error = f"{type(error).__name__}: {error}"
        with _disable_current_modes(), torch.no_grad():
            self._look_again()
            self.trace.lost = self.lost_in(self.model)
        self._name_sites()
        broken = [site for site in self.sites if site.unseen and is_locked(site.tensors)]
        if broken and error is None:
            raise refusal(broken[0].name, UNSEEN, "")

    def _name_sites(self) -> None:
        """Bring the names in the trace up to date."""
        left = [site for site in self.sites if site.name not in self.trace.removed]
        self.trace.parameters = tuple(site.name for site in left if site.kind == "parameter")
        self.trace.buffers = tuple(site.name for site in left if site.kind == "buffer")
        self.trace.added = tuple(name for name in self._keys if name not in self._names_before)

    # --- what is known of the model ------------------------------------------------------------------------

    def observe(self, site: TracedTensor, aliases: tuple[str, ...] = ()) -> None:
        """Observe a site from now on."""
        key = self._keys.setdefault(site.name, len(self.sites))
        if key == len(self.sites):
            self.sites.append(site)
        if aliases:
            self.trace.aliases.update(dict.fromkeys(aliases, site.name))
        for tensor in site.tensors:
            self.index.add(key, tensor)
        site.snapshots = self._snapshots(site)

    def _snapshots(self, site: TracedTensor) -> list[Snapshot]:
        return [snapshot(tensor, exact=self.exact) for tensor in site.tensors]

    def _learn(self, module: nn.Module, name: str) -> None:
        """Learn the names of a module and of all below it."""
        for below, child in module.named_modules():
            if id(child) not in self.modules:
                self._kept.append(child)
                self.modules[id(child)] = _bare(f"{name}.{below}".strip("."))

    # --- while code runs -----------------------------------------------------------------------------------

    def _before_write(self, event: Event) -> None:
        """Refuse a write to a locked site; look whether anything has happened since the site was last looked at."""
        site = self.sites[event.key]
        if is_locked(site.tensors):
            self._refuse(site, name_of(event.operation), event.arguments)
        if self.exact:
            with _disable_current_modes():
                self._compare(site)

    def _refuse(self, site: TracedTensor, operation: str, arguments: str = "") -> None:
        caller = find_caller(self.modules, self.until)
        raise refusal(site.name, Write(site.name, operation, arguments).what, caller.line)

    def _on_write(self, event: Event) -> None:
        site = self.sites[event.key]
        if event.operation == "data =" and storage_of(event.args[1]) in self._moved:
            return  # noted when the other tensor was made
        write = self._note(site, name_of(event.operation), event.arguments, _region(site, event))
        self.recorded(site, event, write)

    def recorded(self, site: TracedTensor, event: Event, write: Write) -> None:
        """Called with each write by an operation, for those who want to know more than the trace keeps."""

    # A run of torchinit's own is reported step by step, with torch's modes off: a step is one write, whatever draws it.

    def before_run(self, step: Step, parts: Sequence[Shard]) -> None:
        """Refuse, before a run writes anything, a step that would write a locked site."""
        for site in self._lying_in(parts):
            if is_locked(site.tensors):
                self._refuse(site, *_described(step))

    def written(self, step: Step, parts: Sequence[Shard]) -> None:
        """Note a step that a run has written."""
        for site in self._lying_in(parts):
            self._note(site, *_described(step), region_of_shards(parts))

    def _lying_in(self, parts: Sequence[Shard]) -> list[TracedTensor]:
        """The sites in the memory of shards; none where a parametrization is to be given the values."""
        return [self.sites[key] for key in sorted({key for part in parts for key in self.index.find(part.local)})]

    def _on_copy(self, event: Event, copy: Tensor) -> None:
        """A module moves its tensors: ``to_empty``, ``to`` and the like put others in their places unreported."""
        if not is_within(nn.Module._apply.__code__):
            return
        site = self.sites[event.key]
        if is_locked(site.tensors) and name_of(event.operation) == "empty_like":
            self._refuse(site, "to_empty")
        self.index.add(event.key, copy)
        old = storage_of(event.target)
        self._moved.add(storage_of(copy))
        site.tensors = [copy if storage_of(tensor) == old else tensor for tensor in site.tensors]
        self._note(site, name_of(event.operation))

    def _note(self, site: TracedTensor, operation: str, arguments: str = "", region: Region = None) -> Write:
        caller = find_caller(self.modules, self.until)
        write = Write(site.name, operation, arguments, region, caller.line, caller.module, caller.call)
        self._add(site, write)
        site.written = True
        if self.exact:
            with _disable_current_modes():
                site.snapshots = self._snapshots(site)
        return write

    def _add(self, site: TracedTensor, write: Write) -> None:
        shape = () if write.region is None else site.shape
        self.trace.add((write.site, write.operation, write.line, write.module, write.call), write, shape)

    def _on_registration(self, module: nn.Module, name: str, value: object) -> None:
        """Something is put into a module: a tensor in the place of another, or a new one, or a module."""
        if id(module) not in self.modules:
            return
        path = f"{self.modules[id(module)]}.{name}".strip(".")
        with _disable_current_modes():
            if isinstance(value, nn.Module):
                self._learn(value, path)
                for site, aliases in _traced(walk_tensors(value), path):
                    self._replace(site, aliases)
            elif isinstance(value, Tensor):
                kind: Kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
                self._replace(TracedTensor(normalize(path), kind, [value]), ())

    def _replace(self, site: TracedTensor, aliases: tuple[str, ...]) -> None:
        """A site gets another tensor, which may be another site's: then they are tied from now on."""
        others = {key for tensor in site.tensors for key in self.index.find(tensor)}
        owner = next((self.sites[key] for key in others if self.sites[key].name != site.name), None)
        if owner is not None:
            self.trace.aliases[site.name] = owner.name
            self._note(site, "assigned", owner.name)
            return
        if site.name in self._keys:
            known = self.sites[self._keys[site.name]]
            if is_locked(known.tensors) and set(map(id, known.tensors)) != set(map(id, site.tensors)):
                self._refuse(known, "assigned")
            for tensor in known.tensors:
                self.index.drop(tensor)
            known.tensors, site = site.tensors, known
        self.trace.aliases.pop(site.name, None)
        self.observe(site, aliases)
        self._note(site, "assigned")

    # --- what is written in vain ---------------------------------------------------------------------------

    # A parametrized tensor is computed for whoever asks for it, and what `nn.init` writes to it is gone with it. No
    # site is written, and only the outcome tells: the last that was computed is kept, and looked at again when the next
    # one is, or at the end. If it was written, and nothing has written since to what it was computed from, nor does the
    # module compute what was written, then the write is lost.

    def _on_forward(self, module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, ParametrizationList) and isinstance(output, Tensor) and not output.is_meta:
            self._settle(module)
            with _disable_current_modes():
                line = find_caller(self.modules, self.until).line
                self._computed[module] = _Computed(output, snapshot(output), _originals(module), line)

    def _settle(self, chain: ParametrizationList) -> None:
        last = self._computed.pop(chain, None)
        with _disable_current_modes():
            if last is not None and snapshot(last.tensor) != last.snapshot:
                self._in_vain[chain] = last

    def lost_in(self, model: nn.Module) -> tuple[Write, ...]:
        """The writes to what the modules of a model had computed that they do not compute now."""
        for chain in tuple(self._computed):
            self._settle(chain)
        found = []
        for holder in walk_tensors(model) if self._in_vain else ():
            chains = getattr(holder.place.module, "parametrizations", {}) if holder.computed_as else {}
            last = self._in_vain.get(chains[holder.leaf]) if holder.leaf in chains else None
            if last is None or last.originals != _originals(chains[holder.leaf]):
                continue
            if not torch.allclose(last.tensor, holder.tensor, rtol=1e-3, atol=1e-6):
                found.append(Write(holder.name, UNSEEN, line=last.line))
        return tuple(found)

    # --- the second net ------------------------------------------------------------------------------------

    # Not every write is an operation: NumPy and other libraries write through a pointer, other threads lack our modes,
    # and `module._parameters[name] = tensor` calls no hook. So at the end, and with `exact` before each write, the
    # sites are compared with snapshots of before. To make that cheap, a snapshot is the version that torch counts, the
    # memory and a sample of the content, and a site that was seen to be written is not looked at again: what else
    # was done to it would be one more write among others. What can fail: without `exact`, a write that torch does not
    # count and that leaves the sample alone; a tensor that was replaced and put back. Where the model still consists of
    # the same tensors and modules, which is nearly always, the walk over it that would find replaced ones is spared.

    def _look_again(self) -> None:
        """Find what no observer saw: values, memory or tensors that are others than they were."""
        if part_ids(self.model) == self._parts_before:
            for site in self.sites:
                self._compare(site)
            return
        now = {name: site for site, aliases in _traced(walk_tensors(self.model)) for name in (site.name, *aliases)}
        self.trace.removed = tuple(name for name in self._keys if name not in now)
        for key, site in enumerate(self.sites):
            current = now.get(site.name)
            if current is not None and not all(key in self.index.find(tensor) for tensor in current.tensors):
                site.unseen = True
                self._add(site, Write(site.name, "assigned"))
            elif current is not None:
                self._compare(site)
        for site in now.values():
            if site.name not in self._keys and site.name not in self.trace.aliases:
                self.observe(site)
                self._add(site, Write(site.name, "assigned"))

    def _compare(self, site: TracedTensor) -> None:
        """Note a write that no observer saw, if there was one."""
        if (self.exact or not site.written) and (now := self._snapshots(site)) != site.snapshots:
            site.snapshots, site.unseen = now, True
            self._add(site, Write(site.name, UNSEEN))


def _bare(name: str) -> str:
    """The name of a module without wrappers."""
    return normalize(f"{name}.x")[: -len(".x")] if name else ""


def _traced(held: Iterable[HeldTensor], prefix: str = "") -> Iterator[tuple[TracedTensor, tuple[str, ...]]]:
    """The sites of a model with the tensors behind them, and their other names."""
    groups: dict[object, list[HeldTensor]] = {}
    for holder in held:
        groups.setdefault(holder.key, []).append(holder)
    for first, *others in groups.values():
        name, *aliases = [normalize(f"{prefix}.{each.name}") if prefix else each.name for each in (first, *others)]
        yield TracedTensor(name, first.kind, list(first.sources)), tuple(aliases)


def _described(step: Step) -> tuple[str, str]:
    """The operation and the arguments of a step: the name of its fill, and the rest of how that is spelled."""
    name, text = type(step.fill).__name__, str(step.fill)
    plain = text.startswith(f"{name}(") and text.endswith(")")
    return name, text[len(name) + 1 : -1] if plain else text


def _region(site: TracedTensor, event: Event) -> Region:
    """Which part of the site a write reached."""
    name = name_of(event.operation)
    if name in ("data =", "set_"):
        return None
    found = region_within(event.target, site.tensors[0]) if len(site.tensors) == 1 else "part"
    return "part" if found is None and name in _SCATTERED else found


def trace(model: nn.Module, *, exact: bool = False) -> AbstractContextManager[Trace]:
    """Observe every write to the parameters and buffers of a model while the ``with`` block runs.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> with trace(model) as seen:
    ...     _ = nn.init.normal_(model[0].weight, std=0.02)
    >>> seen.writes[0].what, seen.writes[0].call
    ('normal_(mean=0, std=0.02)', 'nn.init.normal_')
    >>> seen.unwritten
    ('0.bias',)
    """
    return Recorder(model, exact=exact)
