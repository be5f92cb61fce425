"""Norms: all families of transformers, each with its norms as the schemes start them; makes docs/reference/norms.md.

.venv-peers/bin/python -m tests.peers.norms [FAMILY ...]

builds every family on the meta device (small where it can be made so), plans it, gives copies of its norms the values
of the plan, and measures what they give out for inputs of root mean square 1. In families with norms that compute
1 + weight, mirror images are planted and looked for with lint. It takes about ten minutes.
"""

from __future__ import annotations

import copy
import json
import re
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from tests.peers.families import model_of, small
from torchinit import Plan, lint, plan, sites
from torchinit.model import Shard, Site
from torchinit.noise import Keyed

PAGE: Final = Path(__file__).parents[2] / "docs/reference/norms.md"
RESULTS: Final = Path(__file__).with_name("norm_families.json")
SECONDS: Final = 240
LARGEST: Final = 40_000_000
GATES: Final = (1.2784645, 30.0)
"""The gates at which SiLU and the sigmoid are 1."""

HEADS: Final[dict[str, Any]] = {"head_dim": 8, "num_key_value_heads": 2}

FEW: Final[tuple[dict[str, Any], ...]] = (
    {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "head_dim": 16},
    {"num_hidden_layers": 2},
    {"num_layers": 2},
    {},
)
"""Settings for families of which a small model cannot be made, tried in turn."""

SCHEMES: Final = (
    "llama",
    "gemma",
    "qwen",
    "olmo",
    "mixture",
    "bert",
    "vit",
    "resnet",
    "t5",
    "gpt2",
    "convnext",
    "swin",
)


@dataclass
class Family:
    """What became of a family: its norms by neutral value, and whatever is not as it should be."""

    name: str
    error: str = ""
    classes: dict[str, str] = field(default_factory=dict)
    norms: int = 0
    centered: int = 0
    measured: dict[str, list[float]] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    planted: str = ""


class TooLongError(RuntimeError):
    """A model that takes too long to build."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLongError(f"takes more than {seconds} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def built(name: str) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """A model of a family on the meta device, and what makes it; the last error where it cannot be made."""
    ways: list[Callable[[], nn.Module]] = [partial(small, name), partial(small, name, **HEADS)]
    ways += [partial(_of_config, name, settings) for settings in FEW]
    last: Exception | None = None
    for way in ways:
        try:
            with torch.device("meta"):
                return way(), way
        except Exception as error:
            if isinstance(error, TooLongError):
                raise
            last = error
    assert last is not None
    raise last


def _of_config(name: str, settings: dict[str, Any]) -> nn.Module:
    return model_of(CONFIG_MAPPING[name](**settings))


def scales(model: nn.Module) -> list[Site]:
    """The scales of norms: what is neutral at 1, or, beside another axis than a shift's, at 0."""
    return [
        site for site in sites(model) if site.neutral is not None and not site.leaf.endswith(("bias", "beta", "tau"))
    ]


def started(module: nn.Module, made: Plan, owner: str) -> nn.Module | None:
    """A copy of a norm on the host with the values of a plan; None where the plan does not write all of it."""
    norm = copy.deepcopy(module).to_empty(device="cpu")
    for name, parameter in norm.named_parameters():
        path = f"{owner}.{name}" if owner else name
        try:
            fill = made[path].fill
        except KeyError:
            return None
        fill.write(Shard.whole(path, parameter.detach()), Keyed(0))
    for name, child in norm.named_children():  # an activation behind the norm, as in BiT
        if next(child.parameters(), None) is None:
            norm.add_module(name, nn.Identity())
    for buffer in norm.buffers():
        buffer.fill_(1)
    if hasattr(norm, "running_mean") and isinstance(norm.running_mean, Tensor):
        norm.running_mean.zero_()
    return norm.eval()


def sizes(norm: nn.Module) -> list[float]:
    """The root mean squares of what a norm gives out, for inputs of each layout that it takes."""
    width = max(parameter.numel() for parameter in norm.parameters())
    heads = getattr(norm, "num_heads", None) or 1
    found = []
    shapes = [(8, 40, width), (8, width, 6, 7), (8, 6, 7, width), (8, width, 40), (8, 40, heads, width // heads)]
    shapes += [(8, 40, *parameter.shape) for parameter in norm.parameters() if parameter.dim() > 1]
    features = [value for value in vars(norm).values() if isinstance(value, (tuple, list)) and value]
    shapes += [(8, 40, *value, width) for value in features if all(type(size) is int for size in value)]
    for shape in shapes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for gates in ((), *((torch.full(shape, gate),) for gate in GATES)):
            try:
                y = norm(x, *gates)
            except Exception:  # noqa: BLE001 - of code of any kind, which takes another layout
                continue
            if isinstance(y, Tensor) and y.numel() == x.numel():
                found.append(float(y.detach().float().square().mean().sqrt()))
    return found


def examined(name: str) -> Family:
    """All that is to be known of a family."""
    family = Family(name)
    try:
        with at_most(SECONDS):
            _examine(family, *built(name))
    except Exception as error:  # noqa: BLE001 - of code of any kind
        text = re.sub(r" from '[^']*'?", "", str(error)).strip()  # a place on this machine
        family.error = f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:150]
    return family


def _examine(family: Family, model: nn.Module, make: Callable[[], nn.Module]) -> None:
    plans, found = {"general": plan(model, "general")}, scales(model)
    # Elsewhere a norm is neutral at 1, which every scheme writes: tests/peers/test_schemes.py.
    for scheme in SCHEMES if any(site.neutral == 0 for site in found) else ():
        with suppress(Exception):  # a scheme for other models
            plans[scheme] = plan(model, scheme)
    written = {scheme: {step.site.name: str(step.fill) for step in made} for scheme, made in plans.items()}
    plans = {  # those that are for such a model
        scheme: made for scheme, made in plans.items()
        if scheme == "general" or all(site.name in written[scheme] for site in found)
    }  # fmt: skip
    known = {view.owner_name for site in found for view in site.views}
    family.norms, family.centered = len(found), sum(site.neutral == 0 for site in found)
    family.unknown = sorted({
        f"{type(module).__name__} ({leaf})"
        for path, module in model.named_modules() if "norm" in type(module).__name__.lower() and path not in known
        for leaf, _ in module.named_parameters(recurse=False)
    })  # fmt: skip
    seen: set[tuple[object, ...]] = set()
    for site in found:
        module = model.get_submodule(site.owner_name)
        family.classes[type(module).__name__] = f"{site.neutral:g}"
        key = type(module), site.shape, *(fills.get(site.name, "") for fills in written.values())
        if key not in seen:
            seen.add(key)
            _measure(family, module, site, plans)
    if family.centered:
        family.planted = _planted(model, make)


def _measure(family: Family, module: nn.Module, site: Site, plans: dict[str, Plan]) -> None:
    for scheme, made in plans.items():
        norm = started(module, made, site.owner_name)
        if norm is None:
            if scheme == "general":
                family.off.append(f"{site.name}: not all of it is in the plan")
            continue
        measured = sizes(norm)
        if not measured:
            family.unmeasured.append(type(module).__name__)
            return
        best = min(measured, key=lambda size: abs(size - 1))
        known = [*family.measured.get(scheme, []), round(best, 5)]
        family.measured[scheme] = [min(known), max(known)]
        if abs(best - 1) > 0.05:
            family.off.append(f"{site.name} ({type(module).__name__}) after {scheme}: {best:.3f}")


def _planted(sketch: nn.Module, make: Callable[[], nn.Module]) -> str:
    """Plant mirror images in a model in memory: how many of them lint finds."""
    if (numel := sum(parameter.numel() for parameter in sketch.parameters())) > LARGEST:
        return f"not tried: {numel / 1e6:,.0f} million parameters"
    torch.manual_seed(0)
    model = make()
    found = scales(model)
    for site in found:  # the right start, whatever the class's own code does
        model.get_parameter(site.name).detach().fill_(site.neutral or 0.0)
    clean = [one.site for one in lint(model, select=["TI406"]) if one.site in {site.name for site in found}]
    ones = [site for site in found if site.neutral == 0]
    texts = [f"{len(clean)} false"] if clean else []
    for sort, planted, value in (
        ("1 for 0", ones, 1.0),
        ("0 for 1", [site for site in found if site.neutral == 1], 0.0),
    ):
        if planted:
            before = {site.name: model.get_parameter(site.name).detach().clone() for site in planted}
            for site in planted:
                model.get_parameter(site.name).detach().fill_(value)
            findings = [*lint(model, select=["TI406"])]
            named = {one.site for one in findings if one.site} & {site.name for site in planted}
            together = [re.match(r"(\d+) of \d+ norms? lets? nothing pass", one.message) for one in findings]
            hits = len(named) + sum(int(found[1]) for found in together if found)  # those in a block are told together
            worst = max((one.severity for one in findings), key=["note", "warning", "error"].index, default="nothing")
            texts.append(f"{sort}: {hits} of {len(planted)} ({worst})")
            for site in planted:
                model.get_parameter(site.name).detach().copy_(before[site.name])
    return "; ".join(texts)


# --- the page --------------------------------------------------------------------------------------------------------

HEAD: Final = """\
# Norms: where they do nothing

What `Neutral` and the schemes make of the norms of all families that transformers {version} ships, as
`tests/peers/norms.py` found it: every family is built on the meta device from a small configuration and planned, and
copies of its norms, with the values of the plan, are given inputs of root mean square 1. A norm that starts neutral
gives 1 out.

{families} kinds of configuration: {built} build a model, {normed} of them have norms whose neutral value is known, with
{norms:,} scales in all. In {general} families `general` starts every one at 1 (within 0.05). What could not be built or
measured is named below.

## Norms that are neutral at 0

They compute 1 + weight, or add their product to what passes. *Planted* is what lint (`TI406`) finds of mirror images:
all scales at 1 where 0 is meant, and all at 0 where 1 is. Zeros that end a branch may be meant, so that they are a note
as long as some norm lets something pass, and an error where none does.

| family | norms at 0 | of | classes | after `general` | after its scheme | planted |
|---|---|---|---|---|---|---|
"""


def span(values: list[float]) -> str:
    """The smallest and the largest of some sizes."""
    low, high = f"{values[0]:.3f}", f"{values[-1]:.3f}"
    return low if low == high else f"{low} – {high}"


def table_row(family: Family) -> str:
    classes = ", ".join(f"`{name}`" for name, neutral in sorted(family.classes.items()) if neutral == "0")
    own = sorted(scheme for scheme in family.measured if scheme != "general")
    others = [f"`{scheme}` {span(family.measured[scheme])}" for scheme in own]
    general = span(family.measured["general"]) if "general" in family.measured else "not measured"
    cells = [f"`{family.name}`", str(family.centered), str(family.norms), classes, general]
    cells += [", ".join(others) or "–", family.planted]
    return f"| {' | '.join(cells)} |"


def page(families: list[Family]) -> str:
    """The page that tells of these families."""
    made = [family for family in families if not family.error]
    normed = [family for family in made if family.norms]
    whole = [family for family in normed if not any("general" in text or "plan" in text for text in family.off)]
    head = HEAD.format(
        version=transformers.__version__, families=len(families), built=len(made), normed=len(normed),
        norms=sum(family.norms for family in normed), general=len(whole),
    )  # fmt: skip
    lines = [head + "\n".join(table_row(family) for family in made if family.centered)]
    lines += ["", "## Not at 1", ""]
    lines += [f"* `{family.name}`: {text}" for family in made for text in family.off] or ["None."]
    lines += ["", "## Not measured", "", "Norms that take other inputs than one tensor, with or without a gate.", ""]
    unmeasured = Counter(name for family in made for name in {*family.unmeasured})
    lines += [f"* `{name}`, in {_families(made, name)}" for name in sorted(unmeasured)] or ["None."]
    lines += [
        "",
        "## Not known",
        "",
        "Parameters of what is called a norm whose neutral value was not found; a plan",
        "",
    ]
    lines[-2] = "Parameters of what is called a norm whose neutral value was not found, which a plan lists as such."
    unknown = sorted({name for family in made for name in family.unknown})
    lines += [f"* {name}: {_families(made, name)}" for name in unknown] or ["None."]
    lines += ["", "## All families with norms", "", ", ".join(f"`{family.name}`" for family in normed) + "."]
    lines += ["", "## Not built", ""]
    errors: dict[str, list[str]] = {}
    for family in families:
        if family.error:
            errors.setdefault(_folded(family.error), []).append(f"`{family.name}`")
    lines += [f"* {', '.join(names)}: {text}" for text, names in sorted(errors.items())]
    return "\n".join(lines) + "\n"


def _families(made: list[Family], name: str) -> str:
    return ", ".join(f"`{family.name}`" for family in made if name in (*family.unmeasured, *family.unknown))


def _folded(error: str) -> str:
    """The text of an error; those of parts without a model of their own are one."""
    if "Unrecognized configuration class" in error:
        return "no model of its own: a part of another family's"
    return error.replace("|", "\\|").replace("<", "&lt;")


def kept() -> dict[str, Family]:
    """What was found of each family, by name."""
    found = json.loads(RESULTS.read_text("utf-8"))["families"] if RESULTS.exists() else {}
    return {name: Family(name, **record) for name, record in found.items()}


def keep(families: dict[str, Family]) -> None:
    """Write what was found, without what is empty, and the page that tells of it."""
    records = {
        name: {key: value for key, value in asdict(families[name]).items() if value and key != "name"}
        for name in sorted(families)
    }
    lines = [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in records.items()]
    head = f'{{"version": "{transformers.__version__}", "families": {{'
    RESULTS.write_text(head + "\n" + ",\n".join(lines) + "\n}}\n", "utf-8")
    PAGE.write_text(page([*families.values()]), "utf-8")


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    families = kept() if names else {}
    for name in names or sorted(CONFIG_MAPPING):
        families[name] = examined(name)
        print(json.dumps(asdict(families[name])), flush=True)
    keep(dict(sorted(families.items())))


if __name__ == "__main__":
    main(sys.argv[1:])
