"""Tracing on the init code of transformers and timm, which nobody here wrote: any order, the plan, lost checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm.models
import torch
import transformers
from timm.models._efficientnet_builder import efficientnet_init_weights
from timm.models._manipulate import named_apply
from torch import nn

from tests.peers.foreign import MODELS
from torchinit import LockError, capture, lock, plan, seeded, trace
from torchinit.initializers import Opaque
from torchinit.tracing import Write

Code = Callable[[Any], object]


def below(module: nn.Module, *, backwards: bool = False) -> Iterator[nn.Module]:
    """The modules of a tree, children first; backwards, the last child comes first."""
    children = list(module.children())
    for child in reversed(children) if backwards else children:
        yield from below(child, backwards=backwards)
    yield module


def transformers_init(model: Any, *, backwards: bool = False) -> None:
    """What ``init_weights`` does, without its look at what has been initialized already."""
    with torch.no_grad():
        for module in below(model, backwards=backwards):
            model._init_weights(module)


TIMM: dict[str, Code] = {
    "timm/vit_tiny_patch16_224": lambda model: model.init_weights(),
    "timm/swin_tiny_patch4_window7_224": lambda model: model.init_weights(),
    "timm/resnet18": lambda model: model.init_weights(),
    "timm/convnext_atto": lambda model: named_apply(
        partial(timm.models.convnext._init_weights, head_init_scale=1.0), model
    ),
    "timm/regnetx_002": lambda model: named_apply(
        partial(timm.models.regnet._init_weights, zero_init_last=True), model
    ),
    "timm/mobilenetv3_small_050": efficientnet_init_weights,
}

FAMILIES = ("gpt2", "llama", "bert", "vit", "mixtral", "mamba", "t5")


def assert_same_but(models: list[nn.Module], excused: set[str]) -> None:
    one, other = models
    theirs = dict(other.named_parameters())
    differs = {name for name, parameter in one.named_parameters() if not torch.equal(parameter, theirs[name])}
    assert differs <= excused


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_in_reverse_order(name: str) -> None:
    models = [MODELS[name](), MODELS[name]()]
    traces = []
    for model, backwards in zip(models, (False, True), strict=True):
        for parameter in model.parameters():
            nn.init.constant_(parameter, 7.0)
        with seeded(model, 1) as seen:
            transformers_init(model, backwards=backwards)
        traces.append(seen)
    assert [seen.unwritten for seen in traces] == [(), ()]
    # BERT's table is tied to its decoder: whichever of them comes last decides about the padding row.
    assert_same_but(models, {"bert.embeddings.word_embeddings.weight"} if name == "bert" else set())


@pytest.mark.parametrize("name", TIMM)
def test_timm_in_reverse_order(name: str) -> None:
    models = [MODELS[name](), MODELS[name]()]
    for module in models[1].modules():
        module._modules = dict(reversed(module._modules.items()))
    for model in models:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 7.0)
        with seeded(model, 1) as seen:
            TIMM[name](model)
        left = {key for key, parameter in model.named_parameters() if bool((parameter == 7.0).all())}
        assert set(seen.unwritten) == left  # what their own code leaves as it was built is named
    assert_same_but(models, set())


def test_the_plan_of_gpt2_is_that_of_the_recipe() -> None:
    with torch.device("meta"):
        model = MODELS["gpt2"]()
    captured = capture(model, transformers_init)
    assert plan(model, "gpt2").diff(captured) == ()
    assert len(captured) > 20


def test_a_diff_tells_where_a_model_and_a_recipe_differ() -> None:
    model = MODELS["bert"]()
    (change,) = plan(model, "bert").diff(capture(model, transformers_init))
    # The tied decoder draws the padding row again, after the table has made it zero.
    assert str(change).startswith(
        "changed bert.embeddings.word_embeddings.weight: Padded(fill=Normal(mean=0.0, std=0.02)"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_no_fill_is_opaque_and_told(name: str) -> None:
    captured = capture(MODELS[name](), transformers_init)
    opaque = {step.site.name.rpartition(".")[2] for step in captured if isinstance(step.fill, Opaque)}
    assert opaque == {
        "llama": {"inv_freq", "original_inv_freq"},
        "mixtral": {"inv_freq", "original_inv_freq"},
        "mamba": {"A_log", "bias"},
    }.get(name, set())
    assert captured.problems == ()


def test_timms_truncated_normals_are_recognised() -> None:
    captured = capture(MODELS["timm/vit_tiny_patch16_224"](), TIMM["timm/vit_tiny_patch16_224"])
    assert str(captured["head.weight"].fill) in {"TruncNormal(std=0.02)", "Constant(0)"}
    assert str(captured["blocks.0.attn.qkv.weight"].fill) == "TruncNormal(std=0.02)"
    assert captured["blocks.0.attn.qkv.weight"].notes == ("timm.layers.trunc_normal_",)


# --- a checkpoint that is drawn over -----------------------------------------------------------------------


class Config(transformers.PretrainedConfig):
    model_type = "tiny"


class Tiny(transformers.PreTrainedModel):
    """Init code that writes through ``.data``, as much code outside of transformers does."""

    config_class = Config
    opened: Any = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.fc, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=0.02)
            module.bias.data.zero_()

    def initialize_weights(self) -> None:
        if Tiny.opened is None:
            super().initialize_weights()
            return
        with Tiny.opened(self):
            super().initialize_weights()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights that are all seven, without one bias."""
    model = Tiny(Config())
    model.save_pretrained(tmp_path)
    state = {name: torch.full_like(value, 7.0) for name, value in model.state_dict().items() if name != "fc.bias"}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def loaded(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if getattr(parameter, "_is_hf_initialized", False)]


def test_a_loaded_value_that_is_drawn_again_is_found(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Write] = []

    class Watched:
        def __init__(self, model: Tiny) -> None:
            self.names, self.tracing = loaded(model), trace(model)

        def __enter__(self) -> None:
            self.seen = self.tracing.__enter__()

        def __exit__(self, *error: Any) -> None:
            self.tracing.__exit__(*error)
            found.extend(write for name in self.names for write in self.seen.of(name))

    monkeypatch.setattr(Tiny, "opened", Watched)
    model = Tiny.from_pretrained(checkpoint)
    assert torch.equal(model.other.weight, torch.full((4, 4), 7.0))
    assert bool((model.fc.weight.abs() < 1).all())  # transformers says nothing of this
    (write,) = found
    assert (write.site, write.operation, write.module) == ("fc.weight", "normal_", "fc")
    line = int(write.line.rpartition(":")[2])
    assert "module.weight.data.normal_" in Path(__file__).read_text("utf-8").splitlines()[line - 1]


def test_with_a_lock_it_is_stopped(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked:
        def __init__(self, model: Tiny) -> None:
            self.lock, self.tracing = lock(model, loaded(model)), trace(model)

        def __enter__(self) -> None:
            self.tracing.__enter__()

        def __exit__(self, *error: Any) -> None:
            self.tracing.__exit__(*error)
            self.lock.release()

    monkeypatch.setattr(Tiny, "opened", Locked)
    with pytest.raises(LockError, match=r"fc\.weight is locked, and .*test_tracing\.py:\d+ would write it: normal_"):
        Tiny.from_pretrained(checkpoint)
