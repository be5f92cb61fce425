"""Resets: layers write what nothing else does, by their own ``reset_parameters``, whole or spread over ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchinit.distributed.allocation import Tenant
from torchinit.distributed.buffers import Made, needs
from torchinit.distributed.collectives import exchanged, is_shared
from torchinit.distributed.wholes import Exchange, Wholes, is_spread
from torchinit.model.traversal import places
from torchinit.noise import Keyed, Noise
from torchinit.tracing.recorder import Recorder
from torchinit.tracing.seeded import Seeded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def own_resets(model: nn.Module, noise: Noise, blank: Sequence[Tenant], *, group: ProcessGroup | None = None) -> Made:
    """Let each layer that has parameters without values reset them, with draws that belong to names under a seed."""
    seed = noise.seed if isinstance(noise, Keyed) else None
    wholes = Wholes(model, exchange_in(group)) if seed is not None and is_spread(model) else None
    with wholes or nullcontext():
        return reset_layers(model, seed, blank, wholes)


def exchange_in(group: ProcessGroup | None) -> Exchange | None:
    """The exchange by which the ranks of a group give each other the parts of a tensor; None for one process."""

    def exchange(tensor: Any, value: Any) -> list[Any]:
        del tensor  # all ranks of the group have it
        return exchanged(value, group)

    return exchange if is_shared(group) else None


def reset_layers(top: nn.Module, seed: int | None, blank: Sequence[Tenant], wholes: Wholes | None = None) -> Made:
    """Let each layer that has parameters without values reset them; what it does not write is left to others."""
    wanted: dict[nn.Module, list[Tenant]] = defaultdict(list)
    for entry in blank:
        if entry.kind == "parameter":
            wanted[entry.module].append(entry)
    ran: dict[nn.Module, str] = {}
    failed: dict[str, tuple[str, ...]] = {}
    recorder = Recorder(top) if seed is None else Seeded(top, seed)
    with torch.no_grad(), recorder as seen, wholes.working(recorder.index) if wholes else nullcontext():
        for module in dict.fromkeys(place.module for place in places(top) if place.module in wanted):
            names = ("reset_parameters", "_reset_parameters")
            method = next((name for name in names if needs(getattr(module, name, None)) == 0), None)
            if method is None:
                continue
            ran[module] = f"{type(module).__name__}.{method}()"
            try:
                getattr(module, method)()
            except Exception as error:  # noqa: BLE001  # foreign code; reported if nothing else writes these
                text = f"{ran[module]} raised {type(error).__name__}: {error}"
                failed.update({entry.name: (text,) for entry in wanted[module]})
    written = {write.site for write in seen.writes}
    by = {entry.name: text for module, text in ran.items() for entry in wanted[module] if entry.name in written}
    return Made(by, failed)
