"""The functions most users need: a plan of a model, and the plan carried out."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import nn

from torchinit.core.fingerprints import fingerprint as fingerprint_of
from torchinit.core.following import with_activations
from torchinit.core.neutral import with_neutral
from torchinit.core.planner import make_plan
from torchinit.core.plans import Plan, Recipe, Rule
from torchinit.core.reports import Report
from torchinit.core.runs import Agree, Progress, Shards, local_shards, run
from torchinit.core.sites import Site
from torchinit.core.sites import sites as bare_sites
from torchinit.distributed import Materialization, PlannedStart, Start, among, check_styles, own_starts
from torchinit.errors import ConfigError, RunError
from torchinit.noise import Global, Keyed
from torchinit.recipes import decode_recipe, load_recipe
from torchinit.recipes.alternatives import with_better
from torchinit.tracing import unfilled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

RecipeLike: TypeAlias = str | os.PathLike[str] | Rule | Sequence[Rule] | Mapping[str, Any] | list[dict[str, Any]]
"""What stands for a recipe: a file or the name of a shipped scheme, rules, or plain data: ``rules``, or entries."""

_log = logging.getLogger("torchinit")


def sites(model: nn.Module) -> tuple[Site, ...]:
    """The parameters and buffers of a model, on any device, meta included, and what is known of them.

    They come in the order of ``Module.apply``: children before their parents. Tensors that share memory
    are one site with aliases. Of a layer is told what follows it; norms other than torch's are asked for their neutral
    value: a copy of each kind of layer is run on the CPU, and nothing of the model is touched.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.RMSNorm(3))
    >>> [(site.name, site.neutral, site.activation) for site in sites(model)]
    [('0.weight', None, 'relu'), ('0.bias', None, None), ('2.weight', 1.0, None)]
    """
    return with_activations(model, with_neutral(model, bare_sites(model)))


def plan(model: nn.Module, recipe: RecipeLike, *, complete: bool = False, strict: bool = False) -> Plan:
    """What a recipe will write where, worked out without touching memory; the meta device is enough.

    ``complete`` makes a parameter that no rule covers a problem, ``strict`` a rule that matches nothing, or a
    site that a checkpoint lacks. Raises ConfigError when the recipe cannot be read, PlanError when the plan has
    problems, CheckpointError when they are all with checkpoints.

    >>> import torch
    >>> from torchinit import Kaiming, Layer, Leaf, Rule
    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(8, 50), nn.ReLU(), nn.Linear(50, 2))
    >>> plan(model, Rule(Layer("Linear") & Leaf("weight"), Kaiming()))["0.weight"].fill
    Normal(mean=0.0, std=0.2)
    """
    return draft(model, recipe).check(complete=complete, strict=strict)


def draft(model: nn.Module, recipe: RecipeLike) -> Plan:
    """The plan of a recipe on a model, whatever is wrong with it; ConfigError when the recipe cannot be read."""
    known = sites(model)
    return with_better(make_plan(known, rules_of(recipe)), known)


def initialize(
    model: nn.Module,
    recipe: RecipeLike,
    *,
    seed: int | None = None,
    strict: bool = False,
    stats: bool = True,
    progress: Progress | None = None,
    fingerprint: bool = False,
) -> Report:
    """Writes the initial values of a model as its recipe says, and reports what happened.

    With a ``seed`` every value belongs to the name of its parameter: the same for any order of layers, and
    the caller's random state is left alone. Without one, values are drawn from torch's global generator in
    the order in which hand-written code would draw them. A rule that matches nothing is a warning, with
    ``strict`` an error; a scheme that reaches less than a half of the model is a warning. ``stats=False`` measures
    nothing; ``progress`` is called after each step; ``fingerprint`` puts the model's into the report
    (:func:`torchinit.fingerprint`).

    A dict with ``type``, or a list of such dicts, is read as entries of a recipe; for MMEngine's ``init_cfg`` there is
    :func:`torchinit.mmengine.initialize`.

    Where a recipe loads into a model of DTensors, all ranks that hold parts of it have to call this, and what one finds
    in its part of the file is an error on all of them.

    Raises ConfigError, PlanError, CheckpointError or RunError before anything is written.

    >>> from torchinit import Layer, Leaf, Normal, Rule
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> report = initialize(model, Rule(Layer("Linear") & Leaf("weight"), Normal(std=0.02)), seed=0)
    >>> report.assert_ok()["0.weight"].expected.std
    0.02
    """
    made = _checked(model, recipe, strict=strict)
    check_styles(model)
    noise = Global() if seed is None else Keyed(seed)
    agree = among(model) if made.loads else None
    report = run(made, _shards_of(model, agree), noise, stats=stats, progress=progress, agree=agree)
    return _finished(report, model, fingerprint=fingerprint)


def _shards_of(model: nn.Module, agree: Agree | None) -> Shards:
    try:
        return local_shards(model)
    except RunError as error:
        if agree:
            agree([str(error)])  # the other ranks ask in ``run`` what this one has found
        raise


def _finished(report: Report, model: nn.Module, *, fingerprint: bool) -> Report:
    """The report with what has to be looked at in the model itself."""
    written = frozenset(name for record in report for name in (record.name, *record.aliases))
    report = replace(report, unfilled=unfilled(model, written))
    return replace(report, fingerprint=fingerprint_of(model)) if fingerprint else report


def _checked(model: nn.Module, recipe: RecipeLike, *, strict: bool, complete: bool = False) -> Plan:
    """The plan, with a warning for what may not be meant; that a scheme is for other models explains errors, too."""
    made = draft(model, recipe)
    for reach in made.reach:
        if reach.is_low:
            _log.warning("%s", reach.summary())
    made.check(complete=complete, strict=strict)
    hints = [hint for _, hint in made.unused]
    for text in (*hints, *made.left_alone, *(text for account in made.loads for text in account.warnings)):
        _log.warning("%s", text)
    return made


def materialize(
    model: nn.Module,
    recipe: RecipeLike | None = None,
    *,
    device: torch.device | str = "cpu",
    seed: int,
    strict: bool | None = None,
    verify: bool = True,
    stats: bool = True,
    fingerprint: bool = False,
    group: ProcessGroup | None = None,
    progress: Progress | None = None,
) -> Report:
    """Gives a model on the meta device memory and its first values, and proves that nothing was left unwritten.

    Only what is here of a sharded model gets memory; any engine that holds parameters as DTensors will do (FSDP2,
    tensor parallelism and both), and the values are those that one process would have given. All ranks have to call
    this, and all of them raise if one does. Parameters are written by the recipe, buffers by its rules with
    ``buffers = true`` or by their modules' own code. Ties, strides, dtypes and ``requires_grad`` stay as they are.

    Without a recipe the model itself says how it starts: ``init_cfg`` and ``init_weights`` of every
    :class:`torchinit.BaseModule` are carried out, with the values of ``init_weights(seed=seed)``. What those do not
    write, each layer's ``reset_parameters()`` does, with draws that belong to names.

    ``strict`` makes a rule that matches nothing an error; None: of a recipe, and not of ``init_cfg``s, many of which
    come with their classes. ``verify`` compares replicas, bit for bit, where there are several ranks.
    ``fingerprint`` keeps the model's in the report. ``group`` holds the ranks that have this model; None: all there
    are.

    Raises ConfigError or PlanError, also for a parameter without a rule, and RunError, with several ranks always
    RunError; the model is then on the meta device as before.

    >>> from torchinit import Kaiming, Leaf, Rule, Sequential, Zeros
    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64, affine=False))
    ...     own = Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=1, layer="Linear", bias="keep"))
    >>> report = materialize(model, [Rule(Leaf("weight"), Kaiming()), Rule(Leaf("bias"), Zeros())], seed=0)
    >>> report.assert_ok(complete=True)["1.running_var"].fill
    'BatchNorm1d.reset_running_stats()'
    >>> [record.fill for record in materialize(own, seed=0)]
    ['Constant(1)', 'Linear.reset_parameters()']
    """
    own = own_starts(model) if recipe is None else None
    with_memory = own.call_for(model) if own else "torchinit.initialize"

    def ready() -> Start:
        if own is not None:
            return own(model, seed, strict=bool(strict), stats=stats, progress=progress, group=group)
        if recipe is None:
            raise ConfigError(
                f"nothing says how {type(model).__name__} starts: it holds no BaseModule, so give a recipe, rules such"
                " as Rule(Name('**'), Normal(std=0.02)) or the name of a scheme (torchinit list)"
            )
        made = _checked(model, recipe, complete=True, strict=strict is not False)
        return PlannedStart(model, made, Keyed(seed), stats=stats, progress=progress)

    report = Materialization(
        model,
        ready,
        Keyed(seed),
        device=device,
        group=group,
        verify=verify,
        stats=stats,
        with_memory=with_memory if own or recipe is not None else f"{with_memory} with a recipe",
    ).carry_out()
    return _finished(report, model, fingerprint=fingerprint)


def rules_of(recipe: RecipeLike) -> Recipe:
    """The rules that a recipe stands for; raises ConfigError or TypeError where it is none."""
    if isinstance(recipe, (str, os.PathLike)):
        return load_recipe(recipe)
    if isinstance(recipe, Mapping):
        return decode_recipe(recipe if "rules" in recipe else {"rules": [recipe]})
    if isinstance(recipe, Rule):
        return (recipe,)
    rules: tuple[object, ...] = tuple(recipe) if isinstance(recipe, Sequence) else (recipe,)
    if all(isinstance(rule, Rule) for rule in rules):
        return cast("Recipe", rules)
    if all(isinstance(rule, (Rule, Mapping)) for rule in rules):
        return decode_recipe({"rules": list(rules)})
    raise TypeError(f"a recipe is a file, a dict with 'rules', entries, or rules, but got {type(recipe)}")
