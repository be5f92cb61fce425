"""Building: what is written to a model while it is made, before any of its tensors has a name."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.core.places import Kind, held
from torchinit.core.sites import grouped
from torchinit.tracing import Trace
from torchinit.tracing.recorder import Entry, Recorder


class Building(Recorder):
    """A recorder of whatever is put into modules; :meth:`of` has it under the names that a model gives it.

    >>> building = Building()
    >>> with building:
    ...     layer = nn.Linear(2, 3)
    >>> building.of(layer).of("weight")[0].call
    'Linear.__init__'
    """

    def __init__(self) -> None:
        super().__init__(nn.Module())

    def _registered(self, module: nn.Module, name: str, value: object) -> None:
        if not isinstance(value, Tensor):
            return
        kind: Kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
        with _disable_current_modes():
            if not self.watch.hit(value):
                self._take(Entry(f"{name}#{len(self.entries)}", kind, [value]))

    def of(self, model: nn.Module) -> Trace:
        """What was written to the tensors of a model; what was built besides is left out.

        All its sites count as added, since values may have been made before they were put into a module.
        """
        parts = [
            (site, [*group[0].way.sources] if group[0].way else [group[0].tensor])
            for site, group in grouped(held(model))
        ]
        names = {
            self.entries[key].name: site.name
            for site, tensors in parts
            for one in tensors
            for key in self.watch.hit(one)
        }
        found = [replace(write, site=names[write.site], module=None) for write in self.trace if write.site in names]
        sites = [site for site, _ in parts]
        return Trace(
            found,
            parameters=[site.name for site in sites if site.kind == "parameter"],
            buffers=[site.name for site in sites if site.kind == "buffer"],
            aliases={view.name: site.name for site in sites for view in site.aliases},
            added=[site.name for site in sites],
        )
