"""The writes to a model while it is constructed, before any of its tensors has a name."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.model.sites import grouped
from torchinit.model.traversal import Kind, held
from torchinit.tracing import Trace
from torchinit.tracing.recorder import Recorder, TracedTensor


class ConstructionRecorder(Recorder):
    """A recorder of whatever is put into modules; :meth:`of` has it under the names that a model gives it.

    >>> recorder = ConstructionRecorder()
    >>> with recorder:
    ...     layer = nn.Linear(2, 3)
    >>> recorder.of(layer).of("weight")[0].call
    'Linear.__init__'
    """

    def __init__(self) -> None:
        super().__init__(nn.Module())

    def _on_registration(self, module: nn.Module, name: str, value: object) -> None:
        if isinstance(value, Tensor):
            kind: Kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
            with _disable_current_modes():
                if not self.index.find(value):
                    self.observe(TracedTensor(f"{name}#{len(self.sites)}", kind, [value]))

    def of(self, model: nn.Module) -> Trace:
        """The writes to the tensors of a model; other modules that were constructed are left out.

        All its sites count as added, since values may have been made before they were put into a module.
        """
        groups = [(site, holders[0].sources) for site, holders in grouped(held(model))]
        sites = [site for site, _ in groups]
        names = {
            self.sites[key].name: site.name
            for site, tensors in groups
            for tensor in tensors
            for key in self.index.find(tensor)
        }
        return Trace(
            [replace(write, site=names[write.site], module=None) for write in self.trace if write.site in names],
            parameters=[site.name for site in sites if site.kind == "parameter"],
            buffers=[site.name for site in sites if site.kind == "buffer"],
            aliases={view.name: site.name for site in sites for view in site.aliases},
            added=[site.name for site in sites],
        )
