"""Verbs: the functions most users need: a plan of a model, and the plan carried out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from torchinit._frozen import collector_paused
from torchinit._text import abbreviate, count
from torchinit.checkpoints.open import origin_of
from torchinit.distributed import (
    Materialization,
    PlannedStart,
    Start,
    check_styles,
    heard,
    over_model,
    over_ranks,
    own_resets,
    own_starts,
)
from torchinit.distributed.allocation import check_device
from torchinit.distributed.consensus import initialize_together
from torchinit.errors import ConfigError, PlanError, RunError
from torchinit.initializers.source import is_verbatim
from torchinit.initializers.variance_scaling import asks_for_weight
from torchinit.knowledge.attention import with_attention
from torchinit.knowledge.exits import with_exits
from torchinit.knowledge.following import followers_in
from torchinit.knowledge.neutral import with_asked, with_known
from torchinit.knowledge.role_rules import with_roles
from torchinit.model.names import Counted
from torchinit.model.sandbox import refuse_fakes, refuse_transforms
from torchinit.model.sites import KnownSites, Site, group_sites, known_sites, with_weights
from torchinit.model.traversal import HeldTensor, walk_tensors
from torchinit.noise.keyed import noise_of
from torchinit.noise.settings import plain_thread
from torchinit.plans import Plan, Report, make_plan, run
from torchinit.plans.fingerprint import fingerprint as fingerprint_of
from torchinit.plans.only import Choice, Only, choose, left_without_memory, prove, refuse_while_built
from torchinit.plans.origin import Origin
from torchinit.plans.plan import Strict
from torchinit.plans.run import Agree, Progress, is_only_ours, shards_held
from torchinit.recipes import RecipeLike, to_rules
from torchinit.recipes.arguments import Given
from torchinit.recipes.checks import check_model, checked_plan, with_better
from torchinit.rules.matching import asks_for_attention, asks_for_exits, asks_for_roles
from torchinit.rules.rule import Rule, Value
from torchinit.tracing import unfilled_among

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def sites(model: nn.Module) -> tuple[Site, ...]:
    """The parameters and buffers of a model, on any device, meta included, with all that is known of them.

    They come in the order of ``Module.apply``: children before their parents. Tensors that share memory
    are one site with aliases. Each knows its role, that of a layer what follows the layer; norms other than torch's are
    asked for their neutral value: a copy of each kind of layer is run on the CPU, and nothing of the model is touched.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.RMSNorm(3))
    >>> [(site.name, site.neutral, site.activation) for site in sites(model)]
    [('0.weight', None, 'relu'), ('0.bias', None, None), ('2.weight', 1.0, None)]
    """
    held = walk_tensors(model)
    return with_weights(with_roles(model, _sites_among(model, held), held))


@collector_paused()
def _sites_among(model: nn.Module, held: Sequence[HeldTensor]) -> KnownSites:
    """The sites of a model, of the tensors that its modules hold; their roles are not known."""
    return with_asked(model, known_sites(held, followers_in(model), with_known))


def plan(
    model: nn.Module,
    recipe: RecipeLike,
    *,
    complete: bool = False,
    strict: Strict = False,
    trainable: bool | None = None,
    only: Only | None = None,
    under: str = "",
    inside: str = "",
    arguments: Mapping[str, Value] | None = None,
    **named: Value,
) -> Plan:
    """The plan of a recipe on a model, worked out without touching memory; the meta device is enough.

    ``recipe`` is a file, the name of a scheme, rules or entries, initializers by name, or one alone: all the forms of
    :func:`torchinit.recipes.to_rules`. ``complete`` makes a parameter that no rule covers a problem, ``strict`` a rule
    that matches nothing, a site that a checkpoint lacks, and a key of a checkpoint that nobody takes (but
    ``strict="model"`` lets those pass, with a warning); ``trainable`` leaves frozen parameters alone (None: rules of
    schemes do). ``arguments`` are those of the recipe, which may be given as keywords, too.

    ``only`` leaves all other sites alone, and each parameter that it chooses must have a rule. It is globs of names
    (``["head.*"]``), ``"missing"`` (what transformers has not marked as loaded; a buffer goes with the parameters of
    its module), or an account of a load, which chooses what was not loaded: the ``loading_info`` of
    ``from_pretrained``, what ``load_state_dict(strict=False)`` returns, a :class:`LoadReport` of ``report.loads``.

    ``under`` is put before each name (``"layers.3"``: of a stage that stands there in the whole), ``inside`` taken off
    (``"net"``: of a wrapper that keeps the model so), before rules are matched, values drawn and reports made: so a
    model alone, in a wrapper, and as a part of another has the same values.

    Raises ConfigError or TypeError for anything but a recipe with its arguments and a model, and for an ``inside`` that
    no module has, PlanError when the plan has problems, CheckpointError when they are all with checkpoints.

    >>> import torch
    >>> from torchinit import Kaiming, Layer, Leaf, Rule
    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(8, 50), nn.ReLU(), nn.Linear(50, 2))
    >>> plan(model, Rule(Layer("Linear") & Leaf("weight"), Kaiming()))["0.weight"].fill
    Normal(mean=0.0, std=0.2)
    """
    given = given_to(plan, arguments, named)
    check_model(model, recipe)
    counted = Counted(model, under, inside)
    counted.check()
    with counted as root:
        drafted = draft(root, recipe, given, trainable=trainable, only=only)
    return drafted.check(complete=complete or only is not None, strict=strict)


def given_to(verb: Callable[..., object], arguments: Mapping[str, Value] | None, named: Mapping[str, Value]) -> Given:
    """The arguments of a recipe that a verb was given, in ``arguments`` or as keywords that it does not have itself."""
    keywords = inspect.signature(verb).parameters if named else ()  # a call without them need not pay for looking
    return Given.to(verb.__name__, keywords, arguments, named)


def draft(
    model: nn.Module,
    recipe: RecipeLike,
    given: Given | None = None,
    *,
    trainable: bool | None = None,
    only: Only | None = None,
    leave: Mapping[str, str] | None = None,
    held: Sequence[HeldTensor] | None = None,
) -> Plan:
    """The plan of a recipe on a model, whatever is wrong with it; ConfigError when the recipe cannot be read."""
    refuse_transforms()
    check_model(model, recipe)
    rules = to_rules(recipe, given or Given())
    with _pause_for(rules):  # until what the plan does not hold on to is gone
        held = _held_by(model) if held is None else held
        return _draft_among(model, held, rules, trainable=trainable, only=only, leave=leave)


def _pause_for(rules: Sequence[Rule]) -> AbstractContextManager[object]:
    """The collector paused, but for checkpoints: these may be read for a long time, and their readers leave cycles."""
    return nullcontext() if any(is_verbatim(rule.init) for rule in rules) else collector_paused()


def _held_by(model: nn.Module) -> list[HeldTensor]:
    """The tensors that the modules of a model hold, some of them computed: without users' modes."""
    with plain_thread():
        return walk_tensors(model)


def _draft_among(
    model: nn.Module,
    held: Sequence[HeldTensor],
    rules: Sequence[Rule],
    *,
    trainable: bool | None,
    only: Only | None = None,
    leave: Mapping[str, str] | None = None,
) -> Plan:
    with plain_thread():
        choice = Choice() if only is None else choose(only, group_sites(held))
        known: Sequence[Site] = _sites_among(model, held)
        if asks_for_roles(rules):
            known = with_roles(model, known, held)
        if asks_for_exits(rules):
            known = with_exits(model, known)
        if asks_for_attention(rules):
            known = with_attention(model, known)
        if any(asks_for_weight(rule.init) for rule in rules):
            known = with_weights(known)
        drafted = make_plan(known, rules, trainable=trainable, leave={**choice.left, **(leave or {})})
        if any(reach.is_low for reach in drafted.reach):
            drafted = with_better(drafted, with_roles(model, known, held))
    problems = (*choice.problems, *drafted.problems)
    lazy = [site.name for site in known if site.state == "lazy" and site.kind == "parameter"]
    if lazy and not problems:
        left = {skip.site.name for skip in drafted.skipped}
        names = [name for name in lazy if name not in left]
        problems = (f"without a shape yet: {abbreviate(names)}. Run the model once on an example",) if names else ()
    return drafted if problems == drafted.problems else replace(drafted, problems=problems)


def initialize(
    model: nn.Module,
    recipe: RecipeLike,
    *,
    seed: int | torch.Generator | None = None,
    complete: bool = False,
    strict: Strict = False,
    trainable: bool | None = None,
    stats: bool = True,
    progress: Progress | None = None,
    fingerprint: bool = False,
    verify: bool = True,
    only: Only | None = None,
    under: str = "",
    inside: str = "",
    arguments: Mapping[str, Value] | None = None,
    **named: Value,
) -> Report:
    """Writes the initial values of a model as its recipe says, and reports what happened.

    ``recipe``, its ``arguments``, ``complete``, ``strict``, ``trainable``, ``only``, ``under`` and ``inside`` are those
    of :func:`plan`; what ``only`` leaves alone is compared, bit for bit, with what it was (``report.unchanged``). A
    rule that matches nothing is a warning unless it is an error, as is a scheme that reaches less than half of a model.
    An ``init_cfg`` is for ``torchinit.mmengine.initialize``: where these entries give other values, a warning says so.

    With an int as ``seed`` every value belongs to the name of its parameter: the same for any order of layers, and
    the caller's random state is left alone. Without one, values are drawn from torch's global generator, or from a
    generator that is given as ``seed``, in the order in which hand-written code would draw them. ``stats=False``
    measures nothing; ``progress`` is called after each step; ``fingerprint`` puts the model's into the report
    (:func:`torchinit.fingerprint`), with all that makes the start again (``report.origin``).

    All ranks that hold parts of a model of DTensors have to call this. They compare what they were told (recipe, seed,
    options, a digest of the checkpoint's values) and what they hold (shapes, dtypes, layouts) before anything is
    written, and with ``verify`` their replicas afterwards; an error on one of them is an error on all of them.

    Raises ConfigError, TypeError, PlanError, CheckpointError or RunError before anything is written; a function that
    fails as an initializer is a RunError when its turn comes, and replicas that differ are a ReportError, as is a site
    that ``only`` leaves alone and that has changed.

    >>> from torchinit import Layer, Leaf, Normal, Rule
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> report = initialize(model, Rule(Layer("Linear") & Leaf("weight"), Normal(std=0.02)), seed=0)
    >>> report.assert_ok()["0.weight"].expected.std
    0.02
    """
    check_model(model, recipe)
    spread = over_model(model, "torchinit.initialize")
    with heard(spread):
        given = given_to(initialize, arguments, named)
        refuse_while_built("initialize")
        refuse_fakes()
    counted = Counted(model, under, inside)
    progress = counted.outside(progress)
    devices = (parameter.device for parameter in model.parameters())
    with heard(spread), counted as root, noise_of(seed, devices) as noise, ExitStack() as pause:
        pause.enter_context(collector_paused())  # to the end, or until it is other people's turn
        held = _held_by(root)  # once for all: the plan, the memory to write to, and what is left unfilled
        plans: list[Plan] = []

        def ready() -> Plan:
            counted.check()
            rules = to_rules(recipe, given)
            if any(is_verbatim(rule.init) for rule in rules):
                pause.close()
            drafted = _draft_among(root, held, rules, trainable=trainable, only=only)
            checked = checked_plan(drafted, held, recipe, seed, complete=complete or only is not None, strict=strict)
            check_styles(root)
            if not is_only_ours(checked.drafts, progress):
                pause.close()
            plans.append(checked)
            return checked

        def write(checked: Plan, agree: Agree | None = None) -> Report:
            work = partial(run, checked, shards_held(held), noise, stats=stats, progress=progress, agree=agree)
            return prove(root, checked, work)

        options = {"fingerprint": fingerprint, "verify": verify}
        report = initialize_together(root, spread, ready, write, noise, options) if spread else write(ready())
        facts: dict[str, Any] = {"trainable": trainable, "under": under, "inside": inside}
        planned = [draft.site for draft in plans[-1].drafts]
        written = frozenset([site.name for site in planned]).union(
            alias.name for site in planned for alias in site.aliases
        )
        origin = fingerprint and origin_of("initialize", plans[-1], noise, recipe, **facts)
        return _finished(report, root, unfilled_among(held, written), origin)


def _finished(report: Report, model: nn.Module, unfilled: tuple[str, ...], origin: Origin | Literal[False]) -> Report:
    """The report with the findings that only the model itself shows; with an origin, its fingerprint and that."""
    report = report.updated(unfilled=unfilled)
    return report.updated(fingerprint=fingerprint_of(model), origin=origin) if origin else report


def materialize(
    model: nn.Module,
    recipe: RecipeLike | None = None,
    *,
    device: torch.device | str = "cpu",
    seed: int | torch.Generator | None = None,
    complete: bool = False,
    strict: Strict = False,
    trainable: bool | None = None,
    verify: bool = True,
    stats: bool = True,
    progress: Progress | None = None,
    fingerprint: bool = False,
    group: ProcessGroup | None = None,
    only: Only | None = None,
    under: str = "",
    inside: str = "",
    arguments: Mapping[str, Value] | None = None,
    **named: Value,
) -> Report:
    """Gives a model on the meta device memory and its first values, and proves that nothing was left unwritten.

    Only what is here of a sharded model gets memory; any engine that holds parameters as DTensors will do (FSDP2,
    tensor parallelism and both), and the values are those that one process would have given. All ranks have to call
    this, and all of them raise if one does. Ties, strides, dtypes and ``requires_grad`` stay as they are.

    ``recipe``, its ``arguments``, ``complete``, ``strict``, ``trainable``, ``under`` and ``inside`` are those of
    :func:`plan`, ``seed``, ``stats``, ``progress`` and ``fingerprint`` those of :func:`initialize`; a model on several
    ranks needs an int as ``seed``. What no rule covers is reset by its layer's own ``reset_parameters()``, with draws
    that belong to names; where there is none, and with ``complete``, it is an error. Buffers are written by rules with
    ``buffers = true`` or by their modules' own code. ``only``, as that of :func:`plan`, gives memory and values to what
    it chooses and to buffers that no state dict has, and leaves all else alone, whether on the meta device or loaded
    already. ``verify`` compares replicas, bit for bit, where there are several ranks. ``group`` holds the ranks that
    have this model; None: all there are.

    Without a recipe the model itself says how it starts: ``init_cfg`` and ``init_weights`` of every
    :class:`torchinit.BaseModule` are carried out, with the values of ``init_weights(seed=seed)``, over what the layers
    reset.

    Raises ConfigError, TypeError or PlanError, and RunError, with several ranks always RunError; the model is then on
    the meta device as before.

    >>> from torchinit import Kaiming, Leaf, Rule, Zeros
    >>> from torchinit.mmengine import Sequential
    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64, affine=False))
    ...     own = Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=1, layer="Linear", bias="keep"))
    >>> report = materialize(model, [Rule(Leaf("weight"), Kaiming()), Rule(Leaf("bias"), Zeros())], seed=0)
    >>> report.assert_ok(complete=True)["1.running_var"].fill
    'BatchNorm1d.reset_running_stats()'
    >>> [record.fill for record in materialize(own, seed=0)]
    ['Constant(1)', 'Linear.reset_parameters()']
    """
    if torch.compiler.is_dynamo_compiling():
        raise RunError("materialize gives a model memory, which torch.compile cannot follow: call it outside of that")
    refuse_while_built("materialize")
    spread = over_ranks(group)
    with heard(spread):
        check_model(model, recipe)
        given = given_to(materialize, arguments, named)
        if recipe is None:
            given.finish()
        own = own_starts(model) if recipe is None else None
    counted = Counted(model, under, inside)
    progress = counted.outside(progress)
    plans = [Plan()]
    instead = "torchinit.initialize with a recipe" if recipe is None else "torchinit.initialize"

    def ready() -> Start:
        counted.check()
        if recipe is None and (trainable or only is not None):
            option = "trainable" if trainable else "only"
            raise ConfigError(f"{option} is for a recipe; without one every parameter starts as its model says")
        if own is not None:
            return own(root, noise, strict=bool(strict), stats=stats, progress=progress, group=group)
        if recipe is None:
            raise ConfigError(
                f"nothing says how {type(model).__name__} starts: it holds no BaseModule, so give a recipe, rules such"
                " as Rule(Name('**'), Normal(std=0.02)) or the name of a scheme (torchinit list)"
            )
        rules, held = to_rules(recipe, given), _held_by(root)
        with _pause_for(rules):
            drafted = _draft_among(root, held, rules, trainable=trainable, only=only)
        whole = complete or only is not None
        checked = checked_plan(drafted, held, recipe, seed, complete=whole, strict=strict)
        # What has no elements, and should have some, looks written when it has memory; no layer can reset it either.
        if empty := [f"{site.name} {site.lack}" for site in checked.without_values if site.lack and not site.numel]:
            raise PlanError(f"{count(len(empty), 'problem')} in the plan; nothing was written", empty)
        resets = None if whole else partial(own_resets, root, noise, group=group)
        plans.append(checked)
        return PlannedStart(root, checked, noise, stats=stats, progress=progress, resets=resets)

    with heard(spread), counted as root, noise_of(seed, map(check_device, [device])) as noise:
        with_memory = own.call_for(model) if own else instead
        told = {"complete": complete, "fingerprint": fingerprint}
        leave = left_without_memory(root, only)
        options = (device, group, verify, stats, with_memory, told, leave, spread)
        report = Materialization(root, ready, noise, *options).carry_out()
        facts: dict[str, Any] = {"trainable": trainable, "under": under, "inside": inside}
        origin = fingerprint and origin_of("own" if own else "materialize", plans[-1], noise, recipe, **facts)
        written = frozenset(name for record in report for name in (record.name, *record.aliases))
        return _finished(report, root, unfilled_among(walk_tensors(root), written), origin)
