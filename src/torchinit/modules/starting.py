"""Starting: a model's own start, on many ranks or on one: what its layers reset, and what its init_cfgs say over it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchinit.core.places import places
from torchinit.core.reports import Report
from torchinit.core.runs import Progress
from torchinit.core.sites import sites
from torchinit.distributed.allocation import Tenant
from torchinit.distributed.materialization import own_record
from torchinit.distributed.owncode import Made, needs
from torchinit.distributed.together import exchanged, is_shared
from torchinit.errors import ConfigError
from torchinit.modules.base_module import BaseModule, all_count_as_initialized, initialize_tree
from torchinit.modules.init_cfg import carry_out
from torchinit.modules.session import Session, session_of
from torchinit.modules.wholes import bare_class
from torchinit.tracing.seeded import Seeded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

InitCfg = dict[str, Any] | list[dict[str, Any]]


@dataclass(slots=True)
class OwnStart:
    """What a model itself says: its ``init_cfg``s and ``init_weights``, or one ``init_cfg`` given for it.

    Before those, each layer resets its own parameters, as its constructor does: what nothing else writes then has the
    layer's default. Its draws belong to names, as under :func:`torchinit.seeded`.

    Raises ConfigError for a model that says nothing.
    """

    model: nn.Module
    seed: int
    init_cfg: InitCfg | None = None
    strict: bool = False
    stats: bool = True
    progress: Progress | None = None
    group: ProcessGroup | None = None
    resets: Made = field(default_factory=Made)

    def __post_init__(self) -> None:
        if self.init_cfg is None and not any(isinstance(module, BaseModule) for module in self.model.modules()):
            raise ConfigError(
                f"nothing says how {type(self.model).__name__} starts: it holds no BaseModule, so give a recipe,"
                " rules such as Rule(Name('**'), Normal(std=0.02)) or the name of a scheme (torchinit list)"
            )
        if self.init_cfg is None and all_count_as_initialized(self.model):
            raise ConfigError(
                f"{type(self.model).__name__} counts as initialized, though it has no memory: set is_init = False on"
                " its modules"
            )

    @property
    def intent(self) -> Mapping[str, str]:
        said: dict[str, Any] = {"the init_cfg": self.init_cfg}
        if self.init_cfg is None:
            modules = [(name, one) for name, one in self.model.named_modules() if isinstance(one, BaseModule)]
            said = {f"init_cfg of {name or 'the model'}": one.init_cfg for name, one in modules if one.init_cfg}
        shapes = {site.name: f"{list(site.shape)} {site.dtype}" for site in sites(self.model)}
        # Where an object lies in memory is no part of what it says.
        return {**shapes, **{name: re.sub(r" at 0x[0-9a-f]+", "", repr(cfg)) for name, cfg in said.items()}}

    @property
    def certain(self) -> Collection[str]:
        return ()

    def initializes(self, module: nn.Module) -> bool:
        return self.init_cfg is None and isinstance(module, BaseModule)

    def write(self, blank: Sequence[Tenant]) -> Report:
        with session_of(self.model, self._session) as (session, _):
            self.resets = reset_layers(session, self.seed, blank)
            if self.init_cfg is None:
                initialize_tree(self.model, session)
            else:
                carry_out(self.model, self.init_cfg, session)
            return self._with_resets(session.report(stats=self.stats), blank)

    def _session(self) -> Session:
        return Session(
            self.model,
            self.seed,
            buffers=True,
            strict=self.strict,
            progress=self.progress,
            exchange=self._exchange if is_shared(self.group) else None,
        )

    def _exchange(self, tensor: Any, value: Any) -> list[Any]:
        del tensor  # all ranks of the group have it
        return exchanged(value, self.group)

    def _with_resets(self, report: Report, blank: Sequence[Tenant]) -> Report:
        """A report with what layers reset and nothing else wrote."""
        tenants = {one.name: one for one in blank if one.kind == "parameter"}
        reset = [name for name in report.untouched if name in self.resets.by and name in tenants]
        records = [own_record(tenants[name], self.resets.by[name], stats=self.stats) for name in reset]
        left = tuple(name for name in report.untouched if name not in reset)
        return replace(report, records=(*report.records, *records), untouched=left)

    def why_left(self, one: Tenant, tried: Sequence[str]) -> str:
        cls = bare_class(type(one.module)).__name__
        if one.kind == "buffer":
            code = f"its modules' own code does not make it ({'; '.join(tried) or 'there is none'})"
            way = "Let an init_weights() or a reset_parameters() write it, or build it outside of torch.device('meta')"
            return f"a buffer of {cls} that nothing writes, and {code}. {way}"
        reset = "; ".join(self.resets.failed.get(one.name, ())) or f"{cls} has no reset_parameters() that does"
        leaf = one.name.rpartition(".")[2]
        entry = f"dict(type='Constant', val=1, param={leaf!r})"
        return (
            f"a parameter of {cls} that no init_cfg and no init_weights() writes ({reset}). Name it in an entry of an"
            f" init_cfg, for example {entry}, or let an init_weights() or a reset_parameters() write it"
        )


def reset_layers(session: Session, seed: int, blank: Sequence[Tenant]) -> Made:
    """Let each layer that has parameters without values reset them; what it does not write is left to others."""
    wanted: dict[nn.Module, list[Tenant]] = defaultdict(list)
    for one in blank:
        if one.kind == "parameter":
            wanted[one.module].append(one)
    ran: dict[nn.Module, str] = {}
    failed: dict[str, tuple[str, ...]] = {}
    drawing = Seeded(session.top, seed)
    with torch.no_grad(), drawing as seen, session.working(drawing.index):
        for module in dict.fromkeys(place.module for place in places(session.top) if place.module in wanted):
            method = next((name for name in _RESETTING if needs(getattr(module, name, None)) == 0), None)
            if method is None:
                continue
            ran[module] = f"{type(module).__name__}.{method}()"
            try:
                getattr(module, method)()
            except Exception as error:  # noqa: BLE001  # other people's code; it is told if nothing else writes these
                text = f"{ran[module]} raised {type(error).__name__}: {error}"
                failed.update({one.name: (text,) for one in wanted[module]})
    written = {write.site for write in seen.writes}
    by = {one.name: text for module, text in ran.items() for one in wanted[module] if one.name in written}
    return Made(by, failed)


_RESETTING = ("reset_parameters", "_reset_parameters")
