"""Starting: a model's own start, on many ranks or on one: what its layers reset, and what its init_cfgs say over it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchinit._text import abbreviate
from torchinit.distributed import OWN_STARTS, Materialization, heard, over_ranks
from torchinit.distributed.allocation import ModuleTensor, check_device
from torchinit.distributed.materialize import with_resets
from torchinit.distributed.own_code import OwnCodeResult, exchange_in, needs, reset_layers
from torchinit.distributed.wholes import bare_class
from torchinit.errors import ConfigError
from torchinit.mmengine.base_module import BaseModule, InitCfg, initialize_child, unreached, unwrapped
from torchinit.mmengine.init_cfg import carry_out
from torchinit.mmengine.provenance import HeldAtEnd
from torchinit.mmengine.session import Session, session_of
from torchinit.mmengine.tree import configs_of
from torchinit.model.sites import sites
from torchinit.noise import Keyed, Noise
from torchinit.noise.keyed import noise_of
from torchinit.plans.report import Report
from torchinit.plans.run import Progress
from torchinit.tracing import unfilled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(slots=True)
class OwnStart:
    """The start that a model itself describes: its ``init_cfg``s and ``init_weights``, or one ``init_cfg`` for it.

    Before those, each layer resets its own parameters, as its constructor does: what nothing else writes then has the
    layer's default. Its draws belong to names, as under :func:`torchinit.seeded`.

    Raises ConfigError for a model all of which counts as initialized.
    """

    # Resets come first, as constructors do, and init_cfgs and init_weights over them: code may read what it changes. To
    # reset only what is left afterwards was not possible: who is left is not known before code of users' own has run.

    model: nn.Module
    noise: Noise
    init_cfg: InitCfg | None = None
    strict: bool = False
    stats: bool = True
    progress: Progress | None = None
    group: ProcessGroup | None = None
    resets: OwnCodeResult = field(default_factory=OwnCodeResult)
    states: tuple[tuple[BaseModule, bool], ...] = ()
    """Which modules counted as initialized before."""
    drawn: tuple[str, ...] = ()
    """What code and entries draw is not known before they have run."""

    def __post_init__(self) -> None:
        self.states = tuple((each, each.is_init) for each in self.model.modules() if isinstance(each, BaseModule))
        if self.init_cfg is None and all(getattr(root, "is_init", False) for _, root in _roots(self.model)):
            raise ConfigError(
                f"{type(self.model).__name__} counts as initialized, though it has no memory: set is_init = False on"
                " its modules"
            )

    @staticmethod
    def call_for(model: nn.Module) -> str:
        """Return what to call for a model that has memory, to have its own start carried out; nothing for others."""
        if isinstance(unwrapped(model), BaseModule):
            return "its init_weights(seed=...)"
        if names := [prefix.rstrip(".") for prefix, root in _roots(model) if isinstance(root, BaseModule)]:
            return f"init_weights(seed=...) of {abbreviate(names)}"
        is_any = any(isinstance(module, BaseModule) for module in model.modules())
        return "torchinit.initialize with a recipe" if is_any else ""

    @property
    def intent(self) -> Mapping[str, str]:
        shapes = {site.name: f"{list(site.shape)} {site.dtype}" for site in sites(self.model)}
        return {**shapes, **configs_of(self.model, self.init_cfg)}

    @property
    def certain(self) -> Collection[str]:
        return ()

    def initializes(self, module: nn.Module) -> bool:
        return self.init_cfg is None and isinstance(module, BaseModule)

    def undo(self) -> None:
        for module, is_init in self.states:
            module.is_init = is_init

    def write(self, blank: Sequence[ModuleTensor]) -> Report:
        seed = self.noise.seed if isinstance(self.noise, Keyed) else None
        options: dict[str, Any] = {"strict": self.strict, "progress": self.progress}
        with session_of(self.model, seed, buffers=True, exchange=exchange_in(self.group), **options) as (session, _):
            session.kept.forget(each.home[each.leaf] for each in blank)
            self.resets = reset_layers(self.model, seed, blank, session.wholes)
            held = None
            if self.init_cfg is None:
                held = _initialize_tree(self.model, session)
            else:
                carry_out(self.model, self.init_cfg, session, records=False)
            return with_resets(session.report(held, stats=self.stats), blank, self.resets, stats=self.stats)

    def explain_left(self, one: ModuleTensor, tried: Sequence[str]) -> str:
        cls = bare_class(type(one.module)).__name__
        if one.kind == "buffer":
            code = f"its modules' own code does not make it ({'; '.join(tried) or 'there is none'})"
            return (
                f"a buffer of {cls} that nothing writes, and {code}. Let an init_weights() or a reset_parameters()"
                " write it, or build it outside of torch.device('meta')"
            )
        reset = "; ".join(self.resets.failed.get(one.name, ())) or f"{cls} has no reset_parameters() that does"
        leaf = one.name.rpartition(".")[2]
        return (
            f"a parameter of {cls} that no init_cfg and no init_weights() writes ({reset}). Name it in an entry of an"
            f" init_cfg, for example dict(type='Constant', val=1, param={leaf!r}), or let an init_weights() or a"
            " reset_parameters() write it"
        )


def _initialize_tree(top: nn.Module, session: Session) -> HeldAtEnd:
    """Call ``init_weights`` of the first modules that have one, as a base module does with its children."""
    roots = list(_roots(top))
    for _, root in roots:
        initialize_child(root, session)
    return session.finish(
        [f"{prefix}{name}" for prefix, root in roots for name in unreached(root)],
        "it would reach it through a torchinit.mmengine.Sequential, ModuleList or ModuleDict",
    )


def _roots(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The first modules with an ``init_weights``, and how the names below each begin."""
    inner = unwrapped(module)
    if isinstance(inner, BaseModule) or needs(getattr(inner, "init_weights", None)) == 0:
        yield prefix, inner
        return
    for name, child in inner.named_children():
        if not getattr(child, "is_init", False):
            yield from _roots(child, f"{prefix}{name}.")


OWN_STARTS.append(OwnStart)


def materialize(
    module: nn.Module,
    init_cfg: InitCfg,
    *,
    device: torch.device | str = "cpu",
    seed: int | torch.Generator | None = None,
    strict: bool = False,
    verify: bool = True,
    stats: bool = True,
    group: ProcessGroup | None = None,
    progress: Progress | None = None,
) -> Report:
    """Give any module on the meta device memory and carry out an ``init_cfg`` on it; layers reset what that leaves.

    Arguments and errors are those of :func:`torchinit.materialize`, which carries out what base modules say themselves.

    >>> with torch.device("meta"):
    ...     layer = nn.Linear(2, 2)
    >>> [record.fill for record in materialize(layer, dict(type="Constant", val=2, param="weight"), seed=0)]
    ['Constant(2)', 'Linear.reset_parameters()']
    """
    spread = over_ranks(group)
    with heard(spread), noise_of(seed, map(check_device, [device])) as noise:
        report = Materialization(
            module,
            lambda: OwnStart(module, noise, init_cfg, strict, stats, progress, group),
            noise,
            device=device,
            group=group,
            verify=verify,
            stats=stats,
            with_memory="torchinit.mmengine.initialize",
            spread=spread,
        ).carry_out()
    return replace(report, unfilled=unfilled(module, frozenset(record.name for record in report)))
