"""Lightning: the callback that gives a LightningModule its first weights, in each process, before it is sharded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial, wraps
from importlib import import_module
from typing import Any, Final
from weakref import ref

import torch
from torch import nn

from torchinit.api import initialize, materialize, plan
from torchinit.distributed.collectives import is_shared, over_group, run_collectively
from torchinit.distributed.consensus import check_consensus, intent_of
from torchinit.errors import RunError
from torchinit.noise import Keyed
from torchinit.plans import Report
from torchinit.plans.origin import steps_of
from torchinit.plans.plan import Strict
from torchinit.recipes import RecipeLike, to_rules
from torchinit.recipes.arguments import Given
from torchinit.rules.rule import Recipe, Value

_PACKAGES: Final = ("lightning.pytorch", "pytorch_lightning")


class InitCallback:
    """Write the first weights of a LightningModule by a recipe: ``Trainer(callbacks=[InitCallback("llama", seed=0)])``.

    It acts in ``fit`` alone, once the module is whole and before a strategy wraps it: after ``configure_model``, where
    the module has one, else after its ``setup``, else before both. Every process writes the values that one alone
    would; what is on the meta device by then is given memory. A run that is resumed keeps what it loads, and ``report``
    is then None. A module is written once, however often it is fitted.

    ``recipe``, its ``arguments``, ``complete``, ``strict`` and ``trainable`` are those of :func:`torchinit.initialize`.
    Afterwards ``report`` has what happened, with the fingerprint, which is kept in the checkpoints with the seed.

    Raises ConfigError for a recipe that cannot be read, ImportError without Lightning 2; in ``fit`` RunError, for a
    module without parameters and where ranks were told different things, and whatever ``initialize`` raises.

    >>> InitCallback({"rules": [{"type": "Kaiming", "layer": "Linear"}]}, seed=0)  # doctest: +SKIP
    InitCallback(seed=0)
    """

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        """Make an object that is a Callback, too, of the package that the program uses: it is known by now."""
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        return object.__new__(type(cls.__name__, (cls, *_callbacks()), names))

    def __init__(
        self,
        recipe: RecipeLike,
        *,
        seed: int = 0,
        complete: bool = False,
        strict: Strict = "model",
        trainable: bool | None = None,
        arguments: Mapping[str, Value] | None = None,
        **named: Value,
    ) -> None:
        own = ("seed", "complete", "strict", "trainable", "arguments")
        self.rules: Recipe = to_rules(recipe, Given.to("InitCallback", own, arguments, named))
        self.seed: int = Keyed(seed).seed
        self.options: dict[str, Any] = {"complete": complete, "strict": strict, "trainable": trainable}
        self.report: Report | None = None
        self.start: dict[str, Any] = {}
        self._written: Callable[[], object] = lambda: None
        self._undo: Callable[[], object] = lambda: None

    def __repr__(self) -> str:
        return f"InitCallback(seed={self.seed})"

    def __reduce__(self) -> tuple[object, ...]:  # for strategies that start processes; the class was made for this one
        state = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return _restored, (type(self).__mro__[1], state)

    # --- hooks of Lightning ----------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write the weights, or see to it that they are written once the module's own hooks have made the rest."""
        if stage != "fit" or self._written() is pl_module:
            return
        last = next((name for name in ("configure_model", "setup") if _overrides(pl_module, name)), None)
        write = partial(self._write, pl_module, trainer.strategy.root_device)
        if last is None:
            write()
        else:
            self._undo = _call_after(pl_module, last, write)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget what was written in a run that has loaded a checkpoint over it."""
        if trainer.ckpt_path:
            self.report = None

    def teardown(self, *_: Any, **__: Any) -> None:
        """Leave nothing on the module, also where a hook before its own has raised."""
        self._undo()

    on_exception = teardown

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoints keep: the seed and the fingerprint of the first weights."""
        return self.start

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over how the run that is resumed was started."""
        self.start = dict(state_dict)

    # --- the writing -----------------------------------------------------------------------------------------

    def _write(self, module: nn.Module, device: torch.device) -> None:
        if next(module.parameters(), None) is None:
            raise RunError(
                f"{type(module).__name__} has no parameters yet, so that InitCallback has nothing to write. Build its"
                " layers in __init__, setup or configure_model; what is built in on_fit_start or later comes too late"
            )
        options: dict[str, Any] = {"seed": self.seed, "fingerprint": True, **self.options}
        if any(tensor.is_meta for tensor in module.parameters()):
            self.report = materialize(module, self.rules, device=device, **options)
        else:
            self._agree(module)
            self.report = initialize(module, self.rules, **options)
        found = self.report.fingerprint
        self.start = {"seed": self.seed, "fingerprint": found.total if found else ""}
        self._written = ref(module)

    def _agree(self, module: nn.Module) -> None:
        """Raise RunError on every rank unless all are about to write the same; DDP would hide it."""
        if is_shared():
            planned, spread = partial(plan, module, self.rules, **self.options), over_group(None, "InitCallback")
            steps = steps_of(run_collectively(planned, "the plan", spread, own=True))
            check_consensus(intent_of(module, steps, Keyed(self.seed), self.options), spread)


def _restored(cls: type[InitCallback], state: dict[str, Any]) -> InitCallback:
    made: InitCallback = cls(state["rules"], seed=state["seed"])
    vars(made).update(state)
    return made


def _callbacks() -> list[type]:
    """The Callback classes of the packages in use, or else of the first that is installed; both have the same hooks."""
    for name in () if {*_PACKAGES} & {*sys.modules} else _PACKAGES:
        with suppress(ImportError):
            import_module(name)
            break
    packages = [sys.modules[name] for name in _PACKAGES if name in sys.modules]
    if not packages:
        raise ImportError("torchinit.integrations.lightning needs Lightning: pip install lightning")
    for package in packages:
        if not hasattr(package.LightningModule, "configure_model"):
            raise ImportError(
                f"{package.__name__} {getattr(package, '__version__', '')} has no hook configure_model, after which"
                " InitCallback writes: pip install 'lightning>=2.0'"
            )
    return [package.Callback for package in packages]


def _overrides(module: nn.Module, name: str) -> bool:
    """Whether a LightningModule has a hook of its own; that of Lightning does nothing."""
    hook = getattr(module, name)
    home = getattr(getattr(hook, "__func__", hook), "__module__", "")
    return not str(home).startswith(("lightning.pytorch.", "pytorch_lightning."))


# Lightning has no hook between configure_model and the strategy that wraps the model. on_fit_start was tried: there are
# optimizers by then, some with copies of the values, FSDP1 has flattened the parameters, and an average of weights that
# is kept beside them has taken the old ones. So the module's own hook is called through one that writes afterwards and
# takes itself away when it is called, or when the run ends. It fails for a module whose hooks are looked up elsewhere.


def _call_after(module: nn.Module, name: str, then: Callable[[], object]) -> Callable[[], object]:
    """Have the module's next call of a method of its own followed by another; return what takes that back."""
    attributes, method = vars(module), getattr(module, name)
    before = {name: attributes[name]} if name in attributes else {}

    def undo() -> None:
        if attributes.get(name) is once:
            del attributes[name]
            attributes.update(before)

    @wraps(method)
    def once(*args: Any, **kwargs: Any) -> Any:
        undo()
        result = method(*args, **kwargs)
        then()
        return result

    attributes[name] = once
    return undo
