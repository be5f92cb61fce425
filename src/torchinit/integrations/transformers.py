"""Transformers: a recipe as a model's ``_init_weights``, and what a Trainer's checkpoints tell of the start."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from torchinit._files import replacing
from torchinit._text import count
from torchinit.api import draft
from torchinit.distributed.own_code import OwnCodeResult, is_tried
from torchinit.errors import ConfigError, ReportError, RunError
from torchinit.integrations.fsdp import ParamInit
from torchinit.knowledge.role_rules import with_roles
from torchinit.model.sites import Site, group_sites, known_sites
from torchinit.model.traversal import HeldTensor, walk_tensors
from torchinit.noise import Keyed
from torchinit.plans import Fingerprint, Plan, Record, Report, Skipped
from torchinit.plans.fingerprint import fingerprint as fingerprint_of
from torchinit.plans.only import is_loaded
from torchinit.plans.plan import LEFT, LOADED, Strict
from torchinit.recipes import RecipeLike, to_rules
from torchinit.recipes.arguments import Given
from torchinit.rules.matching import Matcher
from torchinit.rules.rule import Recipe, Value
from torchinit.serialization.schema import parse
from torchinit.tracing.regions import Snapshot, snapshot

_INNER: Final = "a model within this one: it starts as its own _init_weights says"

_HOOK: Final = "_initialize_weights"
"""The method of a PreTrainedModel that is called for each of its modules, itself last, and asks ``_init_weights``."""


def init_weights(
    recipe: RecipeLike,
    seed: int = 0,
    *,
    strict: Strict = "model",
    arguments: Mapping[str, Value] | None = None,
    **named: Value,
) -> Any:
    """The method ``_init_weights`` of a model class that starts by a recipe, assigned in the body of the class.

    Transformers asks it for one module after the other: when a model is built, and in ``from_pretrained`` for what the
    checkpoint lacks. What was loaded (``_is_hf_initialized``) stays; the values are those of
    :func:`torchinit.initialize` on the whole model. Each parameter needs a rule, but for those of models within this
    one, over whose own weights the recipe's go. Buffers without a rule are made by their modules' own code, and by the
    ``_init_weights`` above this one, which is also asked for modules that are not part of the model.

    A class of another library that calls ``self._init_weights(module)`` may have it as well. :func:`init_report` tells
    what was written. ``strict`` and ``arguments`` are those of :func:`torchinit.plan`; a rule in vain is an error once
    the last constructor asks.

    Raises ConfigError for a recipe that cannot be read, RunError for a transformers that does not mark what it loads;
    when it is asked, PlanError for a parameter without a rule, RunError for what cannot be written, and for code in a
    subclass that writes over what was loaded.

    >>> class Model(nn.Sequential):
    ...     _init_weights = init_weights({"rules": [{"type": "Ones", "name": "**"}]}, seed=0)
    >>> model = Model(nn.Linear(2, 1))
    >>> _ = model.apply(model._init_weights)
    >>> model[0].weight.tolist(), [record.name for record in init_report(model)]
    ([[1.0, 1.0]], ['0.weight', '0.bias'])
    """
    loaded: Any = sys.modules.get("transformers")
    if loaded is not None and importlib.util.find_spec("transformers.initialization") is None:
        version = getattr(loaded, "__version__", "of unknown version")
        raise RunError(
            f"transformers {version} does not mark the tensors that it has loaded, so what from_pretrained loads would"
            " be written over: pip install 'transformers>=5'. Or initialize after loading, by"
            " torchinit.initialize(model, recipe, seed=..., only=loading_info)"
        )
    given = Given.to("init_weights", ("recipe", "seed", "strict", "arguments"), arguments, named)
    return RecipeMethod(to_rules(recipe, given), Keyed(seed), strict)


@dataclass(slots=True)
class _Past:
    """The past of a model's start: what was written to it, and by which plan. Nothing in here holds the model."""

    plan: Plan = field(default_factory=Plan)
    records: dict[str, Record] = field(default_factory=dict)
    made: OwnCodeResult = field(default_factory=OwnCodeResult)
    seen: dict[str, set[Snapshot]] = field(default_factory=lambda: defaultdict(set))
    inner: WeakSet[nn.Module] = field(default_factory=WeakSet)
    noise: Keyed = field(default_factory=lambda: Keyed(0))


_PASTS: Final[WeakKeyDictionary[nn.Module, _Past]] = WeakKeyDictionary()


def init_report(model: nn.Module) -> Report:
    """The report of all that a recipe as ``_init_weights`` has written to a model; RunError where there is none.

    What was loaded is among the ``skipped``.
    """
    if model not in _PASTS:
        raise RunError(f"no recipe has written to this {type(model).__name__} as its _init_weights")
    return _with_past(model, _PASTS[model]).report


def _with_past(model: nn.Module, past: _Past) -> ParamInit:
    init = ParamInit(model, past.plan, past.noise, torch.device("cpu"), _groups_of(model))
    init.records, init.made, init.snapshots = past.records, past.made, past.seen
    return init


class RecipeMethod:
    """What :func:`init_weights` returns: the method ``_init_weights`` of a class, which writes by a recipe."""

    # Transformers calls `_initialize_weights(module)` of each model for the modules below it, the model itself last,
    # and for those of a model within it that one's own. It skips modules whose tensors are all loaded, and marks the
    # others when they are done. So the class gets an `_initialize_weights` around the inherited one: it leaves modules
    # without memory unmarked, sees what a subclass does to loaded tensors, and its last call ends the pass. Every call
    # makes a plan of the whole model as it is then, since constructors ask before they are done and ZeRO-3 gathers one
    # module at a time. Within a pass what was planned is kept, which holds the model, so it goes with the pass.

    def __init__(self, rules: Recipe, noise: Keyed, strict: Strict) -> None:
        self.rules = rules
        self.noise = noise
        self.strict = strict
        self.owner: type | None = None
        self.name: str = ""
        self.passing: WeakKeyDictionary[nn.Module, ParamInit | None] = WeakKeyDictionary()
        self.loaded: WeakKeyDictionary[nn.Module, list[tuple[Tensor, Snapshot]]] = WeakKeyDictionary()

    def __set_name__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        inherited = getattr(owner, _HOOK, None)
        if inherited is None:
            return

        def _initialize_weights(model: nn.Module, module: nn.Module, *rest: Any, **named: Any) -> None:
            self._ask(model, module, partial(inherited, model, module, *rest, **named))

        setattr(owner, _HOOK, _initialize_weights)

    def __get__(self, model: nn.Module | None, owner: type | None = None) -> Any:
        return self if model is None else partial(self._write, model)

    def _ask(self, model: nn.Module, module: nn.Module, inherited: Callable[[], None]) -> None:
        """Have a module initialized as transformers does it, and at the end of a pass the models within this one."""
        if _method_of(type(model)) is not self:  # a subclass has a recipe of its own
            inherited()
            return
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        waiting = model.parameters() if module is model else own
        if any(tensor.is_meta and not is_loaded(tensor) for tensor in waiting):
            self._end(model)
            for part in model.modules() if module is model else ():
                if not any(map(is_loaded, (*part.parameters(), *part.buffers()))):
                    vars(part).pop("_is_hf_initialized", None)  # a buffer that has memory may lose it with the rest
            return  # as accelerate builds models: there is nothing to write to, and it is not done
        was_done = bool(getattr(model, "_is_hf_initialized", False))
        before = self._loaded(model, own)
        self.passing.setdefault(model, None)
        if model not in self.loaded:
            self.loaded[model] = self._loaded(model, (*model.parameters(), *model.buffers()))
        is_over, elsewhere = True, list[tuple[Tensor, Snapshot]]()
        try:
            inherited()
            if module is model:
                self._write_inner(model, was_done=was_done)
            is_over = module is model
        finally:
            if is_over:
                elsewhere = self._end(model)
        if lost := [tensor for tensor, was in (*before, *elsewhere) if _is_changed(tensor, was)]:
            asked = f"({type(module).__name__})" if before else ""
            headline = f"{type(model).__name__}._init_weights{asked} writes over what was loaded"
            names = {id(one): name for name, one in (*model.named_buffers(), *model.named_parameters())}
            raise RunError(headline, [names.get(id(tensor), "a tensor") for tensor in lost])

    def _end(self, model: nn.Module) -> list[tuple[Tensor, Snapshot]]:
        """End a pass, and return what was loaded before it; a trial of code that may make buffers is within one."""
        self.passing.pop(model, None)
        return [] if is_tried() else self.loaded.pop(model, [])

    @staticmethod
    def _loaded(model: nn.Module, tensors: Iterable[Tensor]) -> list[tuple[Tensor, Snapshot]]:
        """What was loaded, as it is, where a subclass goes on in a method of its own: it may write to any module."""
        goes_on = not isinstance(inspect.getattr_static(type(model), "_init_weights", None), RecipeMethod)
        return [(one, snapshot(one)) for one in tensors if goes_on and is_loaded(one)]

    def _write(self, model: nn.Module, module: nn.Module) -> None:
        """Write the values of a module's own tensors."""
        inherited = self._inherited(model)
        is_strange = inherited is not None and all(module is not part for part in model.modules())
        if is_tried() or is_strange:  # buffers are made by the code of the classes above, too
            if inherited is not None:
                inherited(module)
            return
        init = self._start(model, module)
        init.write(module, [init._owner(module)])

    def _write_inner(self, model: nn.Module, *, was_done: bool) -> None:
        """Write what the recipe has for the models within this one, which were asked for values of their own."""
        past = _PASTS.setdefault(model, _Past())
        inner = [part for part in _models_within(model) if _method_of(type(part)) is None]
        new = [part for part in inner if not was_done or (past.records and part not in past.inner)]
        if new:
            within = {below for part in new for below in part.modules()}
            self._start(model, model).write(model, within, buffers=False)
        past.inner.update(inner)

    def _start(self, model: nn.Module, module: nn.Module) -> ParamInit:
        """The plan of a model as it is, ready to write, with what is known of the past."""
        if (kept := self.passing.get(model)) is not None:
            return kept
        groups = _groups_of(model)
        leave = {site.name: LOADED for site, group in groups if all(map(is_loaded, group[0].sources))}
        tied, names = _ties_of(model), {site.name for site, _ in groups}
        leave |= {name: f"will be tied to {tied[name]}" for name in tied.keys() & names if tied[name] in names}
        past = _PASTS.setdefault(model, _Past())
        past.plan, past.noise = self._plan(model, module, leave), self.noise
        init = _with_past(model, past)
        if model in self.passing and all(site.numel for site, _ in groups):
            self.passing[model] = init
        return init

    def _plan(self, model: nn.Module, module: nn.Module, leave: dict[str, str]) -> Plan:
        """The checked plan of a model; what it lacks of models within, and of parts gathered later, is left."""
        others: dict[str, str] = {}
        for part in _models_within(model):
            has_recipe = _method_of(type(part)) is not None
            inside = [name for name, _ in (*part.named_parameters(), *part.named_buffers())]
            path = next(path for path, one in model.named_modules() if one is part)
            (leave if has_recipe else others).update({f"{path}.{name}": _INNER for name in inside})
        held, tied = _held_and_tied(model)
        plan = draft(model, self.rules, leave=leave, held=held)
        if plan.unused and tied:
            matcher = Matcher(with_roles(model, known_sites(tied), tied))
            plan = replace(plan, unused=tuple(each for each in plan.unused if not matcher.matched(each[0])))
        untouched = [site for site in plan.untouched if site.name not in others]
        skipped = [Skipped(site, _INNER) for site in plan.untouched if site.name in others]
        here = {id(tensor) for tensor in module.parameters(recurse=False)}
        names = {name for name, tensor in model.named_parameters(remove_duplicate=False) if id(tensor) in here}
        for skip in plan.skipped:  # under ZeRO-3 each module is gathered when it is asked for
            is_later = skip.site.lack and not skip.site.numel and skip.site.name not in names
            skipped.append(replace(skip, why=LEFT) if is_later else skip)
        plan = replace(plan, untouched=tuple(untouched), skipped=tuple(skipped))
        strict = self.strict if plan.unused and not _is_under_construction(model) else False
        return plan.check(complete=True, strict=strict)

    def _inherited(self, model: nn.Module) -> Callable[[nn.Module], None] | None:
        """The method of the classes above; raises RunError where this one is none of a class."""
        if self.owner is None or self.name != "_init_weights":
            late = ", after the class was made"
            where = f"{type(model).__name__}{f'.{self.name}' if self.owner else late}"
            raise RunError(
                f"init_weights of torchinit.integrations.transformers was assigned to {where}: write _init_weights ="
                " init_weights(recipe, seed=...) in the body of the class. For a method init_weights that writes the"
                " whole model, torchinit.integrations.trainers has one"
            )
        inherited: Callable[[nn.Module], None] | None = getattr(super(self.owner, model), self.name, None)
        return inherited


def _ties_of(model: nn.Module) -> Mapping[str, str]:
    """The names of a model that transformers ties to others, sooner or later, with these."""
    return getattr(model, "all_tied_weights_keys", None) or {}


def _held_and_tied(model: nn.Module) -> tuple[list[HeldTensor], list[HeldTensor]]:
    """The tensors of a model, and apart from them those that are tied already: the rule is that of their table."""
    ties, every = _ties_of(model), walk_tensors(model)
    keys = {entry.name: entry.key for entry in every}
    tied = {name for name in ties.keys() & keys if name != ties[name] and keys[name] == keys.get(ties[name])}
    return [entry for entry in every if entry.name not in tied], [entry for entry in every if entry.name in tied]


def _groups_of(model: nn.Module) -> list[tuple[Site, list[HeldTensor]]]:
    """The sites of a model, each with all that holds its tensor."""
    held, tied = _held_and_tied(model)
    return [(site, [*group, *(one for one in tied if one.key == group[0].key)]) for site, group in group_sites(held)]


def _models_within(model: nn.Module) -> Iterator[nn.Module]:
    """The models below a model that transformers asks for their own weights, the outermost."""
    for child in model.children():
        if hasattr(child, _HOOK):
            yield child
        else:
            yield from _models_within(child)


def _is_under_construction(model: nn.Module) -> bool:
    """Whether a constructor of a subclass is going to go on, with layers of its own."""
    frame: FrameType | None = sys._getframe()
    constructors = 0
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is model:
            constructors += 1
        frame = frame.f_back
    return constructors > 1


def _is_changed(tensor: Tensor, was: Snapshot) -> bool:
    """Whether a tensor was written, by its sample, or by torch's count of writes where that is not all of it."""
    now = snapshot(tensor)
    whole = now.content is not None and len(now.content) == tensor.numel() * tensor.element_size()
    return now.content != was.content or (not whole and now.version != was.version)


def _method_of(cls: type) -> RecipeMethod | None:
    """The recipe of a class: that of the first class in its order that has one."""
    methods = (vars(base).get("_init_weights") for base in cls.__mro__)
    return next((method for method in methods if isinstance(method, RecipeMethod)), None)


# --- a Trainer's checkpoints -----------------------------------------------------------------------------------------

_FORMAT: Final = "torchinit-start-1"


class StartCallback:
    """A callback of transformers' Trainer that keeps the start beside the checkpoints, for its ``callbacks=[...]``.

    When training begins, ``torchinit.json`` in the ``output_dir`` gets the fingerprint of the first weights and the
    ``report``, by default that of :func:`init_report`. Each checkpoint gets the same, and the fingerprint of its own
    weights. A run that is resumed writes no start; with ``compare`` the weights have to be those that the checkpoint's
    fingerprint tells of, else ReportError names the ones that differ, and RunError says that there is no such file.

    >>> StartCallback(compare=True).file
    'torchinit.json'
    """

    file: Final = "torchinit.json"

    def __init__(self, report: Report | None = None, *, compare: bool = False) -> None:
        self.report = report
        self.compare = compare
        self.start: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Do nothing at all other events: this is no TrainerCallback, so that it imports nothing of transformers."""
        if name.startswith("on_"):
            return lambda *_, **__: None
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Keep the start of a new run; compare the weights of a resumed one with its checkpoint, if that is asked."""
        if state.global_step:
            self._resume(_folder(args, state), model)
        elif self.start is None:  # a second call of train() goes on from trained weights
            report = self.report or (init_report(model) if model in _PASTS else None)
            told = report.to_dict() if report else None
            self.start = {"fingerprint": fingerprint_of(model).to_dict(), "report": told}
            self._write(Path(args.output_dir), state, {})

    def on_save(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Put the start beside a checkpoint, and the fingerprint of the checkpoint's own weights."""
        self._write(_folder(args, state), state, {"weights": fingerprint_of(model).to_dict()})

    def _write(self, folder: Path, state: Any, more: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            folder.mkdir(parents=True, exist_ok=True)
            data = {"format": _FORMAT, "start": self.start, "step": state.global_step, **more}
            with replacing(folder / self.file) as file:
                file.write(json.dumps(data, indent=2).encode())

    def _resume(self, folder: Path, model: nn.Module) -> None:
        path = folder / self.file
        if not path.is_file():
            if self.compare:
                raise RunError(f"there is no {path} to compare with: StartCallback was not there when it was saved")
            return
        data = parse(path.read_text("utf-8"), str(path), _FORMAT)
        self.start = data.get("start")
        if not self.compare:
            return
        if "weights" not in data:
            raise ConfigError(f"{path} has no fingerprint of weights")
        saved = Fingerprint.from_dict(data["weights"]).persistent
        if changes := [change.name for change in saved.diff(fingerprint_of(model).persistent)]:
            headline = f"{count(len(changes), 'tensor')} of the resumed model not as {folder.name} was saved"
            raise ReportError(headline, changes)


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
