"""Origins: what a start was made of, kept in its report, so that it can be made again and compared."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from torchinit._text import abbreviate, dtype_name
from torchinit._version import __version__
from torchinit.errors import ConfigError
from torchinit.noise import STREAM, Keyed, Noise
from torchinit.plans.fingerprint import hashed
from torchinit.plans.plan import Plan
from torchinit.rules.rule import SCHEMA, Rule

Verb: TypeAlias = Literal["initialize", "materialize", "own"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What makes a start again on the same model: its rules as data, the seed, digests, hashes and versions.

    ``verb`` is how it was written, ``"own"`` by the model's own code, ``plan`` the digest of what each site got,
    ``digest`` that of the rules, by which a change of them shows. ``files`` are those that the recipe was read from and
    ``sources`` those of its checkpoints, each with its SHA-256; ``dtypes`` those that are floating-point and not
    float32. ``gaps`` are the rules that are no data, such as functions; of these no start is made again.

    >>> from torchinit import Constant, initialize
    >>> report = initialize(torch.nn.Linear(2, 2), Rule("**", Constant(1)), seed=0, fingerprint=True)
    >>> report.origin.seed, [str(rule) for rule in report.origin.recipe], report.origin.changed
    (0, ["Name('**') -> Constant(1)"], False)
    """

    verb: Verb
    seed: int | None
    recipe: tuple[Rule, ...]
    digest: str
    plan: str
    stream: str = STREAM
    gaps: tuple[str, ...] = ()
    trainable: bool | None = None
    under: str = ""
    inside: str = ""
    dtypes: Mapping[str, str] = field(default_factory=dict, hash=False)
    files: Mapping[str, str] = field(default_factory=dict, hash=False)
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def of(
        cls, verb: Verb, plan: Plan, noise: Noise, *, trainable: bool | None = None, under: str = "", inside: str = "",
        files: Mapping[str, str] | None = None, sources: Mapping[str, str] | None = None,
    ) -> Origin:  # fmt: skip
        """The origin of a start that carries out a plan."""
        rules, gaps = dict[str, Rule](), list[str]()
        for rule in {id(step.rule): step.rule for step in plan.writes}.values():
            try:
                rules.setdefault(json.dumps(SCHEMA.encode(rule, Rule)), rule)  # a saved plan has one for each step
            except ConfigError as error:
                gaps.append(f"{rule}: {error}")
        recipe = tuple(rules.values())
        versions = {"torchinit": __version__, "torch": torch.__version__, "Python": platform.python_version()}
        floats = (site for site in plan.sites if site.dtype.is_floating_point and site.dtype != torch.float32)
        dtypes = {site.name: dtype_name(site.dtype) for site in floats}
        seed = noise.seed if isinstance(noise, Keyed) else None
        return cls(
            verb, seed, recipe, digest_of(recipe), plan_digest(plan), STREAM, tuple(gaps),
            trainable, under, inside, dtypes, files or {}, sources or {}, versions,
        )  # fmt: skip

    @property
    def changed(self) -> bool:
        """Whether somebody changed the rules since."""
        return digest_of(self.recipe) != self.digest

    def differences(self, other: Origin) -> Iterator[tuple[str, str, str]]:
        """What differs from another origin: what it is, here, and there."""
        for name, noun in (("verb", "it was made by"), ("seed", "the seed is"), ("stream", "the stream is")):
            if getattr(self, name) != getattr(other, name):
                yield noun, str(getattr(self, name)), str(getattr(other, name))
        for name in ("trainable", "under", "inside"):
            if getattr(self, name) != getattr(other, name):
                yield f"{name} is", repr(getattr(self, name)), repr(getattr(other, name))
        if self.digest != other.digest:
            mine, theirs = ([str(rule) for rule in each.recipe] for each in (self, other))
            here, there = ([rule for rule in one if rule not in two] for one, two in ((mine, theirs), (theirs, mine)))
            if here or there:
                yield "the recipe has", abbreviate(here) or "none of these", abbreviate(there) or "none of these"
            else:
                yield "the recipe has its rules", "in one order", "in another, or with other options"
        for noun, before, after in (
            ("the recipe's file", self.files, other.files), ("the source", self.sources, other.sources),
            ("the version of", self.versions, other.versions),
        ):  # fmt: skip
            for name in dict.fromkeys((*before, *after)):
                if before.get(name) != after.get(name):
                    yield f"{noun} {name} is", _short(before.get(name)), _short(after.get(name))


def _short(value: str | None) -> str:
    return "not there" if value is None else f"{value[:12]}…" if len(value) == 64 else value


def digest_of(rules: Sequence[Rule]) -> str:
    """The digest of rules as data."""
    return hashed(json.dumps(SCHEMA.encode(tuple(rules), tuple[Rule, ...]), sort_keys=True))


def plan_digest(plan: Plan) -> str:
    """The digest of what each site of a plan gets."""
    return hashed(*(text for pair in sorted(steps_of(plan).items()) for text in pair))


def steps_of(plan: Plan) -> dict[str, str]:
    """The effect of each step of a plan, by the name of its site."""
    return {
        step.site.name: f"{step.fill!r}{step.fill.content} in {list(step.site.shape)} {step.site.dtype}"
        for step in plan.steps
    }
