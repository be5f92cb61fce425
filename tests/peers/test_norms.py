"""Norms of transformers and timm: each says itself at which value it does nothing, and the schemes start it there."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from tests.peers import norms as norms_of_families
from tests.peers.families import small
from torchinit import Plan, initialize, lint, plan, sites

TABLE: dict[str, int | None] = json.loads(Path(__file__).with_name("norm_classes.json").read_text("utf-8"))["neutral"]
TRANSFORMERS = Path(transformers.__file__).parent

# --- class by class --------------------------------------------------------------------------------------------------

ABSENT = {
    "Apertus1p5TextRMSNorm", "HYV4VLRMSNorm", "Inkling2LoopRMSNorm", "LaraMiniRMSNorm", "LaraMiniRMSNormGated",
}  # fmt: skip
"""In the survey, which is of transformers 5.24, and not in the release that these tests run with."""

ARGUMENTS = {"group_size": 8, "num_heads": 4, "head_dim": 8, "feature_dims": (4,), "num_groups": 1, "eps": 1e-6}
WIDTH = 32


@cache
def modules_of_classes() -> dict[str, str]:
    """The module of each class of transformers' models, read from the files."""
    found: dict[str, str] = {}
    for file in sorted((TRANSFORMERS / "models").glob("*/*.py")):
        if not file.name.startswith("modular_"):
            name = ".".join(("transformers", *file.relative_to(TRANSFORMERS).with_suffix("").parts))
            for match in re.finditer(r"^ *class (\w+)\(", file.read_text("utf-8"), re.MULTILINE):
                found.setdefault(match[1], name)
    return found


def built(name: str) -> nn.Module:
    """A norm of this class, 32 wide."""
    module = importlib.import_module(modules_of_classes()[name])
    cls = getattr(module, name)
    named = [one for one in inspect.signature(cls.__init__).parameters.values() if one.kind <= 1][1:]
    given: list[Any] = [ARGUMENTS.get(one.name, WIDTH) for one in named[:1]] or [WIDTH]
    if named and named[0].name == "config":
        given = [next(value for key, value in vars(module).items() if key.endswith("Config") and key[:3] != "Pre")()]
    required = {one.name: ARGUMENTS.get(one.name, WIDTH) for one in named[1:] if one.default is one.empty}
    norm: nn.Module = cls(*given, **required)
    return norm


def test_what_this_release_lacks() -> None:
    assert set(TABLE) - set(modules_of_classes()) == ABSENT


@pytest.mark.parametrize("name", sorted(set(TABLE) - ABSENT))
def test_every_norm_of_the_survey_says_what_the_survey_says(name: str) -> None:
    norm = built(name)
    for site in sites(norm):
        if site.kind == "parameter":
            expected = TABLE[name] if site.leaf != "bias" else 0
            assert site.neutral == expected, site.name


TIMM: dict[str, tuple[Callable[[], nn.Module], dict[str, float | None]]] = {
    "LayerNorm2d": (lambda: timm.layers.LayerNorm2d(16), {"weight": 1, "bias": 0}),
    "RmsNorm": (lambda: timm.layers.RmsNorm(16), {"weight": 1}),
    "RmsNorm2d": (lambda: timm.layers.RmsNorm2d(16), {"weight": 1}),
    "SimpleNorm": (lambda: timm.layers.SimpleNorm(16), {"weight": 1}),
    "GroupNorm1": (lambda: timm.layers.GroupNorm1(16), {"weight": 1, "bias": 0}),
    "BatchNormAct2d": (lambda: timm.layers.BatchNormAct2d(16), {"weight": 1, "bias": 0}),
    "GroupNormAct": (lambda: timm.layers.GroupNormAct(16, group_size=4), {"weight": 1, "bias": 0}),
    "LayerNormAct2d": (lambda: timm.layers.LayerNormAct2d(16), {"weight": 1, "bias": 0}),
    "FilterResponseNormAct2d": (lambda: timm.layers.FilterResponseNormAct2d(16), {"weight": 1, "bias": 0}),
    "FilterResponseNormTlu2d": (lambda: timm.layers.FilterResponseNormTlu2d(16), {"weight": 1, "bias": 0, "tau": 0}),
    "EvoNorm2dB0": (lambda: timm.layers.EvoNorm2dB0(16), {"weight": 1, "bias": 0, "v": None}),
    "EvoNorm2dS0": (lambda: timm.layers.EvoNorm2dS0(16, group_size=4), {"weight": 1, "bias": 0, "v": None}),
    "GlobalResponseNorm": (lambda: timm.layers.grn.GlobalResponseNorm(16), {"weight": 0, "bias": 0}),
    "LayerScale": (lambda: timm.layers.LayerScale(16), {"gamma": None}),
    "LayerScale2d": (lambda: timm.layers.LayerScale2d(16), {"gamma": None}),
    "PReLU": (lambda: timm.layers.PReLU(16), {"weight": None}),
}


@pytest.mark.parametrize(("make", "expected"), TIMM.values(), ids=TIMM)
def test_norms_of_timm(make: Callable[[], nn.Module], expected: dict[str, float | None]) -> None:
    found = {site.leaf: site.neutral for site in sites(make()) if site.kind == "parameter"}
    assert found == expected


# --- model by model --------------------------------------------------------------------------------------------------

CENTERED: dict[str, dict[str, Any]] = {
    "gemma": {}, "gemma2": {}, "gemma3_text": {}, "recurrent_gemma": {}, "t5gemma": {}, "t5gemma2": {},
    "vaultgemma": {}, "qwen3_next": {}, "qwen3_5_text": {}, "qwen3_5_moe_text": {}, "minimax_m3_vl_text": {},
    "step3p7": {}, "muse_glimmer_text": {}, "muse_spark_text": {}, "videoprism_vision_model": {}, "convnextv2": {},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
}  # fmt: skip
"""Families with norms that are neutral at 0."""

ORDINARY: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "mixtral": {}, "qwen3": {}, "olmo2": {}, "phi3": {}, "cohere": {}, "mamba": {},
    "glm4": {}, "deepseek_v3": {}, "gpt_oss": {}, "bert": {}, "vit": {}, "convnext": {}, "gpt_neox": {}, "bloom": {},
    "t5": {}, "clip": {}, "mobilebert": {}, "xlstm": {}, "resnet": {},
}  # fmt: skip

MODELS: dict[str, Callable[[], nn.Module]] = {
    name: partial(small, name, **settings) for name, settings in {**CENTERED, **ORDINARY}.items()
}

LLAMAS = {
    "gemma", "gemma2", "gemma3_text", "vaultgemma", "qwen3_next", "llama", "mistral", "mixtral", "qwen3", "olmo2",
    "phi3",
}  # fmt: skip
"""Those whose norms have the names that the scheme knows."""


def test_no_family_is_absent() -> None:
    assert [name for name in MODELS if name not in CONFIG_MAPPING] == []


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in TABLE or isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm))
        if next(module.parameters(recurse=False), None) is not None
    }


def outputs(norm: nn.Module) -> list[float]:
    """The sizes of what a norm gives out for inputs of each layout that it takes, gated and not."""
    width = max(parameter.numel() for parameter in norm.parameters())
    found = []
    heads = (getattr(norm, "num_heads", 1), width // getattr(norm, "num_heads", 1))
    for shape in ((3, 5, width), (3, width, 5, 7), (3, 5, 7, width), (3, width, 5), (3, 5, *heads)):
        for gates in ((), (torch.ones(shape),)):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            try:
                y = norm(x, *gates)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                continue
            found.append(float(y.detach().float().square().mean().sqrt()) if isinstance(y, Tensor) else -1.0)
    return found


# Their base class writes 1 into whatever is called a norm.
DOUBLED = {"MuseGlimmerTextCenteredRMSNorm", "NemotronLayerNorm1P"}


@pytest.mark.parametrize("name", MODELS)
def test_general_starts_every_norm_as_its_own_class_does(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    before = {path: outputs(norm) for path, norm in norms(model).items()}
    assert before
    assert all(before.values())
    initialize(model, "general", seed=0)
    _compare(model, before)


@pytest.mark.parametrize("name", sorted(LLAMAS))
def test_llama_does_so_too(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    before = {path: outputs(norm) for path, norm in norms(model).items()}
    initialize(model, "llama", seed=0)
    _compare(model, before)


def _compare(model: nn.Module, before: dict[str, list[float]]) -> None:
    for path, norm in norms(model).items():
        times = 2 if type(norm).__name__ in DOUBLED else 1  # and no longer
        assert [times * size for size in outputs(norm)] == pytest.approx(before[path], rel=1e-5), path


@pytest.mark.parametrize("name", sorted(set(CENTERED) - {"muse_glimmer_text", "nemotron"}))
@pytest.mark.parametrize("scheme", ["llama", "general"])
def test_the_right_start_is_right(name: str, scheme: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    findings = lint(model, recipe=scheme, select=["TI402", "TI406", "TI704"])
    wrong = {one.site.rpartition(".")[0] for one in findings if one.site}
    assert wrong.isdisjoint(norms(model)), findings.table()


@pytest.mark.parametrize("name", ["muse_glimmer_text", "nemotron"])
def test_a_start_that_doubles_is_found(name: str) -> None:
    model = MODELS[name]()
    found = {one.site: one.severity for one in lint(model, select=["TI406"])}
    doubled = {f"{path}.weight" for path, norm in norms(model).items() if type(norm).__name__ in DOUBLED}
    assert doubled
    assert found == dict.fromkeys(doubled, "warning")


def test_zeros_at_the_end_of_residual_branches_are_no_error() -> None:
    findings = lint(timm.create_model("resnet18"), select=["TI406"])
    assert [(one.severity, one.site) for one in findings] == [("note", "")]
    assert findings[0].message.startswith("8 of 20 norms let nothing pass: layer1.0.bn2.weight")


@pytest.mark.parametrize("name", ["gemma2", "qwen3_next", "convnextv2", "bert"])
def test_on_the_meta_device_it_is_the_same_plan(name: str) -> None:
    here = plan(MODELS[name](), "general")
    with torch.device("meta"):
        sketch = MODELS[name]()
    there = plan(sketch, "general")
    assert [(step.site, step.fill) for step in there] == [(step.site, step.fill) for step in here]
    assert Plan.from_json(there.to_json()) == there


def test_a_plan_says_that_a_norm_is_not_known() -> None:
    """ZAYA's takes queries and keys, and what it holds is a temperature."""
    from transformers.models.zaya.modeling_zaya import ZayaConfig, ZayaQKNorm

    made = plan(nn.ModuleDict({"qk_norm": ZayaQKNorm(ZayaConfig())}), "general")
    assert [one.site.name for one in made.declined] == ["qk_norm.temp"]


# --- all families ----------------------------------------------------------------------------------------------------


def test_the_page_of_all_families_is_up_to_date() -> None:
    families = norms_of_families.kept()
    page = norms_of_families.PAGE.read_text("utf-8")
    assert norms_of_families.page([*families.values()]) == page, "run: python -m tests.peers.norms FAMILY"
    assert set(families) == set(CONFIG_MAPPING)
    for name in CENTERED:
        assert f"\n| `{name}` | " in page


@pytest.mark.parametrize("name", ["gemma2", "qwen3_next", "convnextv2", "nemotron", "llama", "bit", "bark"])
def test_what_the_page_says(name: str) -> None:
    now, then = norms_of_families.examined(name), norms_of_families.kept()[name]
    assert replace(now, measured={}) == replace(then, measured={})
    assert now.measured.keys() == then.measured.keys()
    for scheme, ends in now.measured.items():
        assert ends == pytest.approx(then.measured[scheme], abs=1e-3)


def test_families_whose_norms_are_neutral_at_zero() -> None:
    """Every one that was built starts right, and every mirror image that was planted is found."""
    centered = [family for family in norms_of_families.kept().values() if family.centered]
    assert len(centered) >= len(CENTERED)
    for family in centered:
        assert not family.off, family.off
        assert family.measured["general"] == pytest.approx([1.0, 1.0], abs=0.05)
        for hit, of in re.findall(r"(\d+) of (\d+)", family.planted):
            assert hit == of, family.planted


def test_no_family_starts_off_neutral() -> None:
    assert {family.name: family.off for family in norms_of_families.kept().values() if family.off} == {}
