"""Foreign code of a session: who writes what is seen and, with a seed, what it draws belongs to names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor, nn

from torchinit.model.shards import Shard
from torchinit.tracing import Event, MemoryIndex, Observer, Write, line_of_user
from torchinit.tracing.recorder import TracedTensor
from torchinit.tracing.regions import storage_of
from torchinit.tracing.seeded import Seeded
from torchinit.tracing.source_lines import frame_of_user

Wrote: TypeAlias = Callable[[int, str, str], None]
"""Called with each write: the id of the tensor, the user's line, the operation."""

Registered: TypeAlias = Callable[[nn.Module, str, object], None]
"""Called with each tensor or module that is put into a module."""


class Watching:
    """Sees what foreign code writes to known tensors."""

    def __init__(self, known: Mapping[int, Tensor], wrote: Wrote, registered: Registered) -> None:
        self._wrote = wrote
        self.index: MemoryIndex = MemoryIndex()
        for tensor in known.values():
            self.follow(tensor)
        self.observer: Observer = Observer(self.index, self._on_write, registered)

    def _on_write(self, event: Event) -> None:
        self._wrote(event.key, line_of_user(), event.what)

    def follow(self, tensor: Tensor) -> None:
        """Look for a tensor that is new, or has other memory, where it is now."""
        self.index.add(id(tensor), tensor)

    def lying_in(self, parts: Sequence[Shard]) -> set[int]:
        """The tensors in the memory of shards, by id."""
        return {key for part in parts for key in self.index.find(part.local)}


class Drawing(Seeded):
    """Sees what foreign code writes to a model, and draws in its place: the same values for any order of modules.

    Draws are counted by name for as long as this lives, so that code that draws for a site after other code has done
    so gets other numbers. Locks mean nothing here: MMEngine lets user code write after a checkpoint.
    """

    def __init__(self, model: nn.Module, seed: int, wrote: Wrote, registered: Registered) -> None:
        super().__init__(model, seed)
        self._wrote, self._other_registered = wrote, registered
        self.observer.before_write = lambda _: None
        self.begin(frame_of_user())

    def recorded(self, site: TracedTensor, event: Event, write: Write) -> None:
        home = storage_of(event.target)
        for tensor in site.tensors:  # several where the site is computed from them
            if len(site.tensors) == 1 or storage_of(tensor) == home:
                self._wrote(id(tensor), write.line, write.what)

    def _on_registration(self, module: nn.Module, name: str, value: object) -> None:
        super()._on_registration(module, name, value)
        self._other_registered(module, name, value)

    def follow(self, tensor: Tensor) -> None:
        """Look for a tensor that has other memory where it is now."""
        self.index.follow(tensor)

    def lying_in(self, parts: Sequence[Shard]) -> set[int]:
        """The tensors in the memory of shards, by id."""
        return {id(tensor) for entry in self._lying_in(parts) for tensor in entry.tensors}
