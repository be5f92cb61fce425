"""Base modules: modules whose initialization is part of their config, MMEngine's ``BaseModule`` and its containers."""

from __future__ import annotations

import copy
import logging
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, cast

from torch import nn

from torchinit.core.reports import Report
from torchinit.core.tables import some
from torchinit.distributed.owncode import needs
from torchinit.modules.amend import amend, changes_of
from torchinit.modules.errors import InitCfgAssertionError, InitCfgKeyError
from torchinit.modules.init_cfg import carry_out
from torchinit.modules.initializers import PretrainedInit
from torchinit.modules.log import log
from torchinit.modules.session import Session, session_of
from torchinit.modules.wrappers import is_model_wrapper
from torchinit.tracing.uninitialized import watching


class _BaseModuleMeta(ABCMeta):
    """Sees which tensors a module is built with that hold no values yet, and amends the class's own init_cfg."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        changes = changes_of(kwargs.get("init_cfg"))
        if changes is not None:
            # Not handed on, so that the class takes its own, be it in the signature or made in the constructor.
            kwargs = {key: value for key, value in kwargs.items() if key != "init_cfg"}
        with watching() as remember:
            module = super().__call__(*args, **kwargs)
            remember(module)
        if changes is not None:
            module.init_cfg = amend(module.init_cfg, *changes)
        return module


class BaseModule(nn.Module, metaclass=_BaseModuleMeta):
    """A module that knows how its weights start: ``init_cfg``, a dict or a list of dicts.

    ``init_weights()`` carries out the ``init_cfg``, then calls ``init_weights`` of each direct child, then
    loads what a ``Pretrained`` entry names. ``init_cfg=dict(amend=...)``, given as a keyword, changes entries of
    the class's own instead of taking its place: :func:`amend`. A subclass may override ``init_weights``; what
    its code writes is seen and recorded.

    >>> class Head(BaseModule):
    ...     def __init__(self, init_cfg=dict(type="Normal", layer="Linear", std=0.01, bias=0.5)):
    ...         super().__init__(init_cfg)
    ...         self.fc = nn.Linear(4, 2)
    >>> report = Head().init_weights()
    >>> report["fc.bias"].rule
    'NormalInit: mean=0, std=0.01, bias=0.5'
    """

    def __init__(self, init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None) -> None:
        super().__init__()
        self._is_init = False
        self.init_cfg = copy.deepcopy(init_cfg)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("init_weights")
        if callable(own):
            cls.init_weights = _observed(own)  # type: ignore[method-assign]  # the same call, in a session

    @property
    def is_init(self) -> bool:
        """Whether ``init_weights`` has run; set it to keep a module from being initialized."""
        return self._is_init

    @is_init.setter
    def is_init(self, value: bool) -> None:
        self._is_init = value

    def init_weights(self, *, containers: bool = False, seed: int | None = None, stats: bool = False) -> Report | None:
        """Initializes the module and what is below it, once; a second call warns and does nothing.

        ``containers=True`` also reaches modules below plain containers, which MMEngine does not. With a
        ``seed`` values belong to names, also those that code of your own draws, and torch's generator is left
        alone; the model may then be sharded. ``stats=True`` measures what was written. The outermost call returns
        the report, the others None.

        Raises RunError for a model on the meta device: :func:`torchinit.materialize` carries this out for it.
        """
        make = _maker(self, seed, containers)
        with session_of(self, make) as (session, outermost):
            done = self._is_init
            _initialize(self, session)
            if not outermost:
                return None
            if not done:
                session.finish(_unreached(self) if not session.containers else [])
            return session.report(stats=stats)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """``to_empty`` and what else gives tensors other memory, with an eye on memory that holds no values."""
        with watching() as remember:
            result = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
            remember(self)
        return result

    def __repr__(self) -> str:
        text = super().__repr__()
        return f"{text}\ninit_cfg={self.init_cfg}" if self.init_cfg else text


def _maker(module: nn.Module, seed: int | None, containers: bool) -> Callable[[], Session]:
    return lambda: Session(module, seed, containers=containers)


def _observed(method: Callable[..., Any]) -> Callable[..., Any]:
    """An overriding ``init_weights``, inside a session, so that what it writes is seen."""

    @wraps(method)
    def init_weights(
        self: BaseModule,
        *args: Any,
        containers: bool = False,
        seed: int | None = None,
        stats: bool = False,
        **kwargs: Any,
    ) -> Any:
        make = _maker(self, seed, containers)
        with session_of(self, make) as (session, outermost):
            with session.foreign(self):
                result = method(self, *args, **kwargs)
            if not outermost:
                return result
            session.finish(_unreached(self) if not session.containers else [])
            return session.report(stats=stats) if result is None else result

    return init_weights


def _initialize(module: BaseModule, session: Session) -> None:
    """The module's own entries, its children, its checkpoints."""
    name = type(module).__name__
    if module._is_init:
        log(logging.WARNING, "init_weights of %s has been called more than once.", name)
        return
    entries, pretrained = _parted(module.init_cfg)
    if module.init_cfg:
        log(logging.DEBUG, "initialize %s with init_cfg %s", name, module.init_cfg)
        carry_out(module, entries, session)
    for child in _children(module, session.containers):
        _initialize_child(child, session)
    if pretrained:
        carry_out(module, pretrained, session)
    module._is_init = True


def _parted(init_cfg: Any) -> tuple[list[Any], list[Any]]:
    """The entries, and those that load a checkpoint, which are done last."""
    entries: list[Any] = []
    pretrained: list[Any] = []
    for entry in [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []:
        if not isinstance(entry, dict):
            raise InitCfgAssertionError(f"an init_cfg is a dict or a list of dicts, but holds {entry!r}")
        if "type" not in entry:
            raise InitCfgKeyError(f'`init_cfg` must contain the key "type", but got {entry}')
        last = entry["type"] == "Pretrained" or entry["type"] is PretrainedInit
        (pretrained if last else entries).append(entry)
    return entries, pretrained


def _children(module: nn.Module, containers: bool) -> Iterator[nn.Module]:
    """The children with an ``init_weights`` to call; those of wrappers and, if asked, of plain containers."""
    for child in module.children():
        inner = _unwrapped(child)
        if hasattr(inner, "init_weights"):
            if not getattr(inner, "is_init", False):
                yield inner
        elif containers:
            yield from _children(inner, containers)


def _unwrapped(module: nn.Module) -> nn.Module:
    """What a wrapper wraps, unless it has an ``init_weights`` of its own."""
    wraps_another = is_model_wrapper(module) and not hasattr(module, "init_weights")
    return cast("nn.Module", module.module) if wraps_another else module


def _initialize_child(child: nn.Module, session: Session) -> None:
    call: Any = child.init_weights
    if isinstance(child, BaseModule):
        call()
    else:
        with session.foreign(child):
            call()
    if getattr(type(child), "init_weights", None) is not BaseModule.init_weights:
        session.account.check_parameters(child)


def _unreached(module: nn.Module, prefix: str = "", *, reached: bool = True) -> list[str]:
    """The base modules that the chain of ``init_weights`` does not come to, because of a plain container."""
    found = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        inner = _unwrapped(child)
        linked = hasattr(inner, "init_weights")
        if isinstance(inner, BaseModule) and not reached and not inner.is_init and _has_something_to_do(inner):
            found.append(path)
        else:
            found += _unreached(inner, f"{path}.", reached=linked)
    return found


def initialize_tree(top: nn.Module, session: Session) -> None:
    """Initialize a model that is a base module, or that holds some.

    Where it is none itself, ``init_weights`` of the first modules below that have one is called, as a base module
    does with its children; plain modules are entered to find them.
    """
    roots = list(_roots(top))
    for _, root in roots:
        _initialize_child(root, session)
    session.finish(
        [f"{prefix}{name}" for prefix, root in roots for name in _unreached(root)],
        "it would reach it through a torchinit.Sequential, ModuleList or ModuleDict",
    )


def all_count_as_initialized(top: nn.Module) -> bool:
    """Whether :func:`initialize_tree` would find nothing to do, as all there is has ``is_init`` set.

    >>> layer = Sequential(nn.Linear(1, 1))
    >>> before, layer.is_init = all_count_as_initialized(layer), True
    >>> before, all_count_as_initialized(layer)
    (False, True)
    """
    return all(getattr(root, "is_init", False) for _, root in _roots(top))


def call_for(top: nn.Module) -> str:
    """What to call for a model that has memory, to have what it says of itself carried out.

    >>> call_for(nn.ModuleDict({"head": Sequential()})), call_for(Sequential()), call_for(nn.Linear(1, 1))
    ('init_weights(seed=...) of head', 'its init_weights(seed=...)', 'torchinit.initialize with a recipe')
    """
    if isinstance(_unwrapped(top), BaseModule):
        return "its init_weights(seed=...)"
    names = [prefix.rstrip(".") for prefix, root in _roots(top) if isinstance(root, BaseModule)]
    return f"init_weights(seed=...) of {some(names)}" if names else "torchinit.initialize with a recipe"


def _roots(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The first modules with an ``init_weights``, and how the names below each begin."""
    inner = _unwrapped(module)
    if isinstance(inner, BaseModule) or needs(getattr(inner, "init_weights", None)) == 0:
        yield prefix, inner
        return
    for name, child in inner.named_children():
        if not getattr(child, "is_init", False):
            yield from _roots(child, f"{prefix}{name}.")


@contextmanager
def as_before_on_error(top: nn.Module) -> Iterator[None]:
    """Take back, where the block raises, what it has noted of modules being initialized."""
    before = [(module, module.is_init) for module in top.modules() if isinstance(module, BaseModule)]
    try:
        yield
    except BaseException:
        for module, is_init in before:
            module.is_init = is_init
        raise


def _has_something_to_do(module: BaseModule) -> bool:
    own = type(module).init_weights is not BaseModule.init_weights
    return own or bool(module.init_cfg) or any(isinstance(child, BaseModule) for child in module.children())


class Sequential(BaseModule, nn.Sequential):
    """``torch.nn.Sequential`` with an ``init_cfg``.

    >>> Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=1, layer="Linear")).init_weights()["0.bias"].fill
    'Constant(0)'
    """

    def __init__(self, *args: Any, init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None) -> None:
        BaseModule.__init__(self, init_cfg)
        nn.Sequential.__init__(self, *args)


class ModuleList(BaseModule, nn.ModuleList):
    """``torch.nn.ModuleList`` with an ``init_cfg``.

    >>> len(ModuleList([nn.Linear(2, 2)], init_cfg=dict(type="Xavier", layer="Linear")))
    1
    """

    def __init__(
        self,
        modules: Iterable[nn.Module] | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        BaseModule.__init__(self, init_cfg)
        nn.ModuleList.__init__(self, modules)


class ModuleDict(BaseModule, nn.ModuleDict):
    """``torch.nn.ModuleDict`` with an ``init_cfg``.

    >>> list(ModuleDict({"head": nn.Linear(2, 2)}))
    ['head']
    """

    def __init__(
        self,
        modules: Any = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        BaseModule.__init__(self, init_cfg)
        nn.ModuleDict.__init__(self, modules)
