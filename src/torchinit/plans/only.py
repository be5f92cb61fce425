"""Only: the sites that a plan may write; all others are left alone, and proven to be what they were."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Final, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from torchinit._text import abbreviate, count, did_you_mean
from torchinit.errors import ConfigError, PlanError, ReportError, RunError
from torchinit.initializers.load_report import LoadReport
from torchinit.initializers.source import is_verbatim
from torchinit.model.names import check_glob, glob_matches, normalize
from torchinit.model.sites import Site, group_sites
from torchinit.model.traversal import HeldTensor, walk_tensors
from torchinit.plans.fingerprint import digest_tensors, sources_of
from torchinit.plans.plan import LEFT, LOADED, Plan
from torchinit.plans.report import Report


class MissingKeys(Protocol):
    """What ``load_state_dict(strict=False)`` returns."""

    @property
    def missing_keys(self) -> list[str]: ...


Only: TypeAlias = str | Iterable[str] | Mapping[str, Any] | LoadReport | MissingKeys
"""``"missing"``, globs of names, the ``loading_info`` of ``from_pretrained``, or another account of a load."""

MISSING: Final = "missing"
LOADING: Final = ("transformers.modeling_utils", "_initialize_missing_keys")
"""The function of ``from_pretrained`` that asks for the weights that were not loaded; it has given them bare memory."""

_BUILDING: Final = ("transformers.modeling_utils", "from_pretrained")

_Groups: TypeAlias = Sequence[tuple[Site, Sequence[HeldTensor]]]


def is_loaded(tensor: Tensor) -> bool:
    """Whether transformers has marked a tensor as loaded, or as one that will be tied to another."""
    return bool(getattr(tensor, "_is_hf_initialized", False))


def is_within(module: str, function: str) -> bool:
    """Whether a function of a module is on the stack: this one was called by it in the end."""
    return locals_of(module, function) is not None


def locals_of(module: str, function: str) -> dict[str, Any] | None:
    """The variables of the innermost call of a function that is on the stack; None where none is."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_globals.get("__name__") == module:
            return frame.f_locals
        frame = frame.f_back
    return None


def refuse_while_built(verb: str) -> None:
    """Raise RunError within a constructor that ``from_pretrained`` calls: what is written there is lost."""
    if torch.get_default_device().type == "meta" and is_within(*_BUILDING):
        raise RunError(
            f"{verb} was called while from_pretrained builds a model on the meta device, to load it afterwards: what it"
            " writes there is lost. Give the class _init_weights ="
            " torchinit.integrations.transformers.init_weights(recipe, seed=...) in its body, which writes what the"
            " checkpoint lacks"
        )


@dataclass(slots=True)
class Choice:
    """The sites that are ``left`` alone, by name, each with the reason; ``problems`` are with the choice itself."""

    left: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def choose(only: Only, groups: _Groups) -> Choice:
    """The sites of a model that ``only`` leaves alone.

    A tied tensor is one site: where ``only`` names it by one of its names, and not by the others, that is a problem,
    unless it comes from the account of a load, which tells by its other name whether it was loaded. So is a site that
    lies in the memory of another one that is left. Raises TypeError or ConfigError for anything but an ``Only``.

    >>> from torchinit.model.sites import group_sites
    >>> from torchinit.model.traversal import walk_tensors
    >>> groups = group_sites(walk_tensors(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))))
    >>> choose(["1.*"], groups).left
    {'0.weight': 'left alone: only= names others', '0.bias': 'left alone: only= names others'}
    >>> choose("missing", groups).problems
    ["only='missing': no tensor has the mark of transformers (_is_hf_initialized), so nothing tells what was loaded"]
    """
    choice = _unmarked(groups) if only == MISSING else _named(only, groups)
    left = choice.left
    for site, _ in groups:
        if site.name not in left and (shared := [name for name in site.shares if name in left]):
            choice.problems.append(
                f"only=: {site.name} lies in the memory of {abbreviate(shared)}, which is left alone"
            )
    return choice


def _unmarked(groups: _Groups) -> Choice:
    """All that transformers has not marked as loaded."""
    # Marks belong to tensors, and get lost where those change: buffers lose them when a model moves to another device.
    # So a buffer goes with the parameters of its module, and stays where there are none.
    choice, bare = Choice(), set[nn.Module]()
    for site, group in groups:
        marks = [is_loaded(tensor) for entry in group for tensor in entry.sources]
        if site.kind == "parameter" and not any(marks):
            bare |= {entry.place.module for entry in group}
        elif all(marks):
            choice.left[site.name] = LOADED
        elif site.kind == "parameter":
            choice.problems.append(f"only='missing': a part of {site.name} was loaded, and a part was not")
    for site, group in groups:
        if site.kind == "buffer" and site.name not in choice.left and group[0].place.module not in bare:
            choice.left[site.name] = LEFT
    if LOADED not in choice.left.values():
        mark = "no tensor has the mark of transformers (_is_hf_initialized), so nothing tells what was loaded"
        return Choice(problems=[f"only='missing': {mark}"])
    return choice


def _named(only: Only, groups: _Groups) -> Choice:
    """All that is named by globs, or by the account of a load."""
    globs, by_load = _globs_of(only)
    known = [view.name for site, _ in groups for view in site.views]
    plain = {glob for glob in globs if not {"*", "?"} & {*glob}}
    patterns = [glob for glob in globs if glob not in plain]
    matched = {name for name in known if name in plain or any(glob_matches(glob, name) for glob in patterns)}
    choice, near = Choice(), [MISSING, *known, *(f"{name.rpartition('.')[0]}.*" for name in known)]
    for glob in globs:
        if glob not in matched and not (glob in patterns and any(glob_matches(glob, name) for name in matched)):
            choice.problems.append(f"only=: no tensor of the model is called {glob!r}{did_you_mean(glob, near)}")
    marked = by_load and any(is_loaded(tensor) for _, group in groups for entry in group for tensor in entry.sources)
    for site, group in groups:
        names = [view.name for view in site.views]
        others = [name for name in names if name not in matched]
        if len(others) == len(names):
            choice.left[site.name] = LEFT
        elif others and by_load and not isinstance(only, LoadReport):
            if not marked or any(is_loaded(tensor) for entry in group for tensor in entry.sources):
                choice.left[site.name] = LOADED if marked else LEFT
        elif others and not by_load:
            chosen = next(name for name in names if name in matched)
            tie = f"{chosen} is tied to {abbreviate(others)}, which would change with it"
            choice.problems.append(f"only=: {tie}: name both, or untie them")
    return choice


def _globs_of(only: Only) -> tuple[list[str], bool]:
    """The names in an ``Only``, and whether they come from the account of a load."""
    if isinstance(only, LoadReport):
        mismatched, declined = (site.site for site in only.mismatched), (name for name, _ in only.declined)
        return [*dict.fromkeys((*only.missing, *only.expected, *mismatched, *declined))], True
    info = only if isinstance(only, Mapping) else _keys_of(only)
    if info is not None:
        if "missing_keys" not in info:
            raise ConfigError(f"only= takes a loading_info, which has missing_keys, but got the keys {[*info]}")
        keys = (*info["missing_keys"], *info.get("mismatched_keys", ()))
        return [*dict.fromkeys(normalize(key if isinstance(key, str) else key[0]) for key in keys)], True
    globs = [only] if isinstance(only, str) else list(only) if isinstance(only, Iterable) else [only]
    for glob in globs:
        try:
            check_glob(glob)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ConfigError
            raise kind(f"only=: {error}") from None
    return [*dict.fromkeys(map(str, globs))], False


def _keys_of(load: object) -> Mapping[str, Any] | None:
    """The keys that ``load_state_dict`` returned, as a ``loading_info`` has them; None for anything else."""
    return {"missing_keys": load.missing_keys} if hasattr(load, "missing_keys") else None


def loss_of_loaded(plan: Plan, held: Iterable[HeldTensor]) -> str:
    """A sentence on what transformers has loaded and the plan writes over; within its own loading it is a PlanError."""
    marked = {
        entry.name
        for entry in held
        if (any(map(is_loaded, entry.sources)) if entry.computed_as else is_loaded(entry.tensor))
    }
    steps = plan.steps if marked else ()
    lost = [step.site.name for step in steps if step.site.name in marked and not is_verbatim(step.rule.init)]
    if not lost:
        return ""
    loss = f"{count(len(lost), 'tensor')} that transformers has loaded will be written over: {abbreviate(lost)}"
    if is_within(*LOADING):
        raise PlanError(f"{loss}, within from_pretrained: torchinit.integrations.transformers.init_weights does not")
    return f"{loss}. only='missing' leaves them alone"


# --- the proof -------------------------------------------------------------------------------------------------------


def left_without_memory(model: nn.Module, only: Only | None) -> frozenset[str]:
    """The names of what gets no memory: all that is left alone, but for buffers that no state dict has."""
    if only is None:
        return frozenset()
    groups = group_sites(walk_tensors(model))
    left = choose(only, groups).left
    return frozenset(
        view.name
        for site, _ in groups
        if site.name in left and (site.kind == "parameter" or site.persistent)
        for view in site.views
    )


def prove(model: nn.Module, plan: Plan, write: Callable[[], Report]) -> Report:
    """The report of a write, in which the sites that the plan leaves alone are ``unchanged``, bit for bit.

    Raises ReportError that names those that are not. What has no memory here has nothing to compare.
    """
    left = {skip.site.name for skip in plan.skipped if skip.why in (LEFT, LOADED)}
    if not left:
        return write()
    before = dict(_digests(model, left))
    report = write()
    after = dict(_digests(model, before))
    if changed := [name for name, text in before.items() if after.get(name) != text]:
        headline = f"{count(len(changed), 'site')} changed that only= leaves alone: a rule's own code wrote there"
        raise ReportError(headline, changed)
    return replace(report, unchanged=tuple(before))


def _digests(model: nn.Module, names: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The digest of what is here of each of these sites."""
    for name, tensors in sources_of(model).each:
        if name in names:
            digests, problems = digest_tensors([(name, tensors)])
            if not problems:
                yield name, tuple(each.text(each.sums) for each in digests)
