"""Base modules: modules whose initialization is part of their config, MMEngine's ``BaseModule`` and its containers."""

from __future__ import annotations

import copy
import logging
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from inspect import signature
from types import FunctionType
from typing import Any, Final, TypeAlias, cast
from weakref import WeakSet

from torch import nn

from torchinit.mmengine.init_cfg import amend, carry_out, changes_of
from torchinit.mmengine.initializers import PretrainedInit
from torchinit.mmengine.log import log
from torchinit.mmengine.registry import (
    InitCfgAssertionError,
    InitCfgKeyError,
    InitCfgTypeError,
    is_model_wrapper,
    own_version,
)
from torchinit.mmengine.session import Session, current, session_of
from torchinit.plans.report import Report
from torchinit.tracing.uninitialized import watching

InitCfg: TypeAlias = dict[str, Any] | list[dict[str, Any]]

_BUILDING: ContextVar[frozenset[int]] = ContextVar("torchinit_building", default=frozenset())
"""The ids of the modules whose constructors run."""
_WATCHED: Final[WeakSet[Callable[..., Any]]] = WeakSet()
"""The constructors and ``init_weights`` of classes that run inside a watch."""


class BaseModule(nn.Module, metaclass=ABCMeta):
    """A module that knows how its weights start: ``init_cfg``, a dict or a list of dicts.

    ``init_weights()`` carries out the ``init_cfg``, then calls ``init_weights`` of each direct child, then
    loads what a ``Pretrained`` entry names. ``init_cfg=dict(amend=...)``, given as a keyword, changes entries of
    the class's own instead of taking its place: :func:`amend`. A subclass may override ``init_weights``; what
    its code writes is seen and recorded. ``skip_init``, an attribute of any module or class of the tree, keeps
    weights that are there: True for all below it, or names of what is below. Neither an ``init_cfg`` nor an
    ``init_weights`` writes them then.

    >>> class Head(BaseModule):
    ...     def __init__(self, init_cfg=dict(type="Normal", layer="Linear", std=0.01, bias=0.5)):
    ...         super().__init__(init_cfg)
    ...         self.fc = nn.Linear(4, 2)
    >>> report = Head().init_weights()
    >>> report["fc.bias"].rule
    'NormalInit: mean=0, std=0.01, bias=0.5'
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        _watch_class(cls)
        make = super().__new__
        return make(cls) if make is object.__new__ else make(cls, *args, **kwargs)

    def __init__(self, init_cfg: InitCfg | None = None) -> None:
        super().__init__()
        self._is_init = False
        self.init_cfg: dict[str, Any] | list[dict[str, Any]] | None = copy.deepcopy(init_cfg)

    __new__.__signature__ = signature(__init__)  # type: ignore[attr-defined]  # which is looked at where both are

    @property
    def is_init(self) -> bool:
        """Whether ``init_weights`` has run; set it to keep a module from being initialized."""
        return self._is_init

    @is_init.setter
    def is_init(self, value: bool) -> None:
        self._is_init = value

    def init_weights(self, *, containers: bool = False, seed: int | None = None, stats: bool = False) -> Report | None:
        """Initialize the module and what is below it, once; a second call warns and does nothing.

        ``containers=True`` also reaches modules below plain containers, which MMEngine does not. With a
        ``seed`` values belong to names, also those that code of your own draws, and torch's generator is left
        alone; the model may then be sharded. ``stats=True`` measures what was written. The outermost call returns
        the report, the others None.

        Raises RunError for a model on the meta device: :func:`torchinit.materialize` carries this out for it.
        """
        options: dict[str, Any] = {"containers": containers, "seed": seed, "stats": stats}
        report = _in_session(self, lambda session: _initialize(self, session), options, quiet=self._is_init)
        return cast("Report | None", report)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """``to_empty`` and what else gives tensors other memory, with an eye on memory that holds no values."""
        with watching() as remember:
            result = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
            remember(self)
        return result

    def __repr__(self) -> str:
        text = super().__repr__()
        return f"{text}\ninit_cfg={self.init_cfg}" if self.init_cfg else text


_WATCHED.add(BaseModule.init_weights)

# --- what runs inside a watch ------------------------------------------------------------------------------
#
# Constructors are watched for memory that is handed out unfilled, and init_weights for what it writes. A metaclass
# would see both, but a class can have only one: a base module could not be a Protocol or have a metaclass of a user's
# own. A wrapper made in __init_subclass__ misses what comes later (the __init__ of a dataclass, a patched method) and
# what a mixin brings. So a class is looked at whenever it makes an object: a method that is not watched yet is wrapped
# where it stands or, where that is no BaseModule, in the class itself. A wrapper has the signature of what it wraps,
# and only calls a function of this module, so that a class that is pickled by value takes nothing of ours along. Missed
# is what is patched onto a class after its last object was made, for a call from outside of any other init_weights.


def _watch_class(cls: type[BaseModule]) -> None:
    for name, run in (("__init__", _construct), ("init_weights", _initialize_by_code)):
        for base in cls.__mro__:
            method = vars(base).get(name)
            if method is not None and method.__module__ not in ("typing", "typing_extensions"):  # of a Protocol
                if isinstance(method, FunctionType) and method not in _WATCHED:
                    setattr(base if issubclass(base, BaseModule) else cls, name, _watched(method, run))
                break


def _watched(method: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def watched(self: BaseModule, *args: Any, **kwargs: Any) -> Any:
        return run(self, method, args, kwargs)

    _WATCHED.add(watched)
    return watched


def _construct(module: BaseModule, init: Callable[..., None], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Build a module, unless this is a constructor that is called by another; with its own init_cfg amended."""
    building = _BUILDING.get()
    if id(module) in building:
        init(module, *args, **kwargs)
        return
    changes = changes_of(kwargs.get("init_cfg"))
    if changes is not None:
        del kwargs["init_cfg"]  # so that the class takes its own, be it in the signature or made in the constructor
    token = _BUILDING.set(building | {id(module)})
    try:
        with watching() as remember:
            init(module, *args, **kwargs)
            remember(module)
    finally:
        _BUILDING.reset(token)
    if changes is not None:
        module.init_cfg = amend(module.init_cfg, *changes)


def _initialize_by_code(
    module: BaseModule, method: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """Run an overriding ``init_weights``; one that a constructor calls for itself has no log, as in MMEngine."""

    def work(session: Session) -> Any:
        with session.foreign(module):
            return method(module, *args, **kwargs)

    options: dict[str, Any] = {name: kwargs.pop(name) for name in ("containers", "seed", "stats") if name in kwargs}
    return _in_session(module, work, options, quiet=bool(_BUILDING.get()))


def _in_session(module: BaseModule, work: Callable[[Session], Any], options: Mapping[str, Any], *, quiet: bool) -> Any:
    """Return what the work does; of the outermost call a report if that is None, after a log unless it is ``quiet``."""
    containers = options.get("containers", False)
    with session_of(module, options.get("seed"), containers=containers) as (session, outermost):
        result = work(session)
        if not outermost:
            return result
        held = None if quiet else session.finish([] if containers else unreached(module))
        return session.report(held, stats=options.get("stats", False)) if result is None else result


# --- the chain of init_weights -----------------------------------------------------------------------------


def _initialize(module: BaseModule, session: Session) -> None:
    """The module's own entries, its children, its checkpoints."""
    name = type(module).__name__
    if module._is_init:
        log(logging.WARNING, "init_weights of %s has been called more than once.", name)
        return
    config: Any = module.init_cfg or []
    if not isinstance(config, Iterable):
        raise InitCfgTypeError(f"init_cfg must be a dict or a list of dict, but got {type(config)}")
    entries = [config] if isinstance(config, dict) else list(config)
    for entry in entries:
        if not isinstance(entry, dict):
            raise InitCfgAssertionError(f"an init_cfg is a dict or a list of dicts, but holds {entry!r}")
        if "type" not in entry:
            raise InitCfgKeyError(f'`init_cfg` must contain the key "type", but got {entry}')
    pretrained = [entry for entry in entries if _is_pretrained(entry)]
    if entries:
        log(logging.DEBUG, "initialize %s with init_cfg %s", name, module.init_cfg)
        carry_out(module, [entry for entry in entries if not _is_pretrained(entry)], session, records=False)
    for child in _children(module, session.containers):
        initialize_child(child, session)
    if pretrained:
        carry_out(module, pretrained, session, records=False)
    module._is_init = True


def _is_pretrained(entry: dict[str, Any]) -> bool:
    return entry["type"] == "Pretrained" or own_version(entry["type"]) is PretrainedInit


def _children(module: nn.Module, containers: bool) -> Iterator[nn.Module]:
    """The children with an ``init_weights`` to call; those of wrappers and, if asked, of plain containers."""
    for child in module.children():
        inner = unwrapped(child)
        if hasattr(inner, "init_weights"):
            if not getattr(inner, "is_init", False):
                yield inner
        elif containers:
            yield from _children(inner, containers)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return what a wrapper wraps, unless it has an ``init_weights`` of its own."""
    cls: Any = type(module)
    # To ask a layer for what it lacks, or the registries for its class, takes long.
    may_wrap = "module" in module._modules or hasattr(cls, "module") or cls.__getattr__ is not nn.Module.__getattr__
    wraps_another = may_wrap and is_model_wrapper(module) and not hasattr(module, "init_weights")
    return cast("nn.Module", module.module) if wraps_another else module


def initialize_child(child: nn.Module, session: Session) -> None:
    """Call ``init_weights`` of a module below the one that is being initialized, unless ``skip_init`` keeps it."""
    if session.kept.holds(child):
        return
    call: Any = child.init_weights
    if getattr(call, "__func__", None) in _WATCHED and current(call.__self__) is session:  # it may be another's method
        call()
    else:
        with session.foreign(child):
            call()
    if getattr(type(child), "init_weights", None) is not BaseModule.init_weights:
        session.provenance.check_parameters(child)


def unreached(module: nn.Module, prefix: str = "", *, reached: bool = True) -> list[str]:
    """The base modules that the chain of ``init_weights`` does not come to, because of a plain container."""
    paths = []
    for name, child in module.named_children():
        if not child._modules and not isinstance(child, BaseModule):
            continue  # a layer, as most are
        inner = unwrapped(child)
        if isinstance(inner, BaseModule) and not reached and not inner.is_init and _has_something_to_do(inner):
            paths.append(f"{prefix}{name}")
        else:
            paths += unreached(inner, f"{prefix}{name}.", reached=hasattr(inner, "init_weights"))
    return paths


def _has_something_to_do(module: BaseModule) -> bool:
    own = type(module).init_weights is not BaseModule.init_weights
    return own or bool(module.init_cfg) or any(isinstance(child, BaseModule) for child in module.children())


class Sequential(BaseModule, nn.Sequential):
    """``torch.nn.Sequential`` with an ``init_cfg``.

    >>> Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=1, layer="Linear")).init_weights()["0.bias"].fill
    'Constant(0)'
    """

    def __init__(self, *args: Any, init_cfg: InitCfg | None = None) -> None:
        BaseModule.__init__(self, init_cfg)
        nn.Sequential.__init__(self, *args)


class ModuleList(BaseModule, nn.ModuleList):
    """``torch.nn.ModuleList`` with an ``init_cfg``.

    >>> len(ModuleList([nn.Linear(2, 2)], init_cfg=dict(type="Xavier", layer="Linear")))
    1
    """

    def __init__(self, modules: Iterable[nn.Module] | None = None, init_cfg: InitCfg | None = None) -> None:
        BaseModule.__init__(self, init_cfg)
        nn.ModuleList.__init__(self, modules)


class ModuleDict(BaseModule, nn.ModuleDict):
    """``torch.nn.ModuleDict`` with an ``init_cfg``.

    >>> list(ModuleDict({"head": nn.Linear(2, 2)}))
    ['head']
    """

    def __init__(self, modules: Any = None, init_cfg: InitCfg | None = None) -> None:
        BaseModule.__init__(self, init_cfg)
        nn.ModuleDict.__init__(self, modules)
