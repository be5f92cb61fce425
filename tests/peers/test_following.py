"""What follows the layers of models that nobody here wrote: as a run of them sees it, and in the blocks of timm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import timm
import torch
from timm.layers import ConvNormAct, GluMlp, Mlp, SwiGLU
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import BertConfig, LlamaConfig
from transformers.models.bert.modeling_bert import BertIntermediate, BertPooler
from transformers.models.llama.modeling_llama import LlamaMLP

from tests.peers.foreign import MODELS
from tests.recipes.test_general import passed_on
from torchinit import plan, sites

IDS = torch.arange(1, 9)[None]
PIXELS = {"pixel_values": torch.zeros(1, 3, 32, 32)}
INPUTS: dict[str, Mapping[str, Any]] = {
    "t5": {"decoder_input_ids": IDS},
    "vit": PIXELS,
    "swin": PIXELS,
    "convnext": PIXELS,
    "wav2vec2": {"input_values": torch.randn(1, 4000)},
    "whisper": {"input_features": torch.randn(1, 8, 64), "decoder_input_ids": IDS},
    "clip": PIXELS,
}
NOT_TEXT = {"vit", "swin", "convnext", "wav2vec2", "whisper"}

NONLINEAR: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", Tensor.relu: "relu", F.gelu: "gelu", F.silu: "silu", torch.tanh: "tanh",
    Tensor.tanh: "tanh", torch.sigmoid: "sigmoid", Tensor.sigmoid: "sigmoid", F.hardswish: "hardswish", F.elu: "elu",
    torch.pow: "gelu_tanh",  # the first thing that the long form of it does
}  # fmt: skip


class Watch(TorchFunctionMode):
    """Which nonlinear functions are called with the output of which layer, or a part of it, as it left the layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[str, Tensor]] = {}  # the tensors, too, so that no other one takes their memory
        self.seen: dict[str, set[str]] = {}
        for name, module in model.named_modules():
            if any(parameter.dim() > 1 for parameter in module._parameters.values() if parameter is not None):
                module.register_forward_hook(self._remember(name))

    def _remember(self, name: str) -> Callable[..., None]:
        def remember(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                self.outputs[output.untyped_storage().data_ptr()] = name, output
                self.seen.setdefault(name, set())

        return remember

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in NONLINEAR and isinstance(args[0], Tensor):
            name, _ = self.outputs.get(args[0].untyped_storage().data_ptr(), ("", None))
            if name:
                approximate = "_tanh" if (kwargs or {}).get("approximate") == "tanh" else ""
                self.seen[name].add(NONLINEAR[func] + approximate)
        return func(*args, **(kwargs or {}))


def inputs_of(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if name.startswith("timm/"):
        return (torch.randn(1, 3, 224 if "224" in name else 64, 224 if "224" in name else 64),), {}
    return (), {**({} if name in NOT_TEXT else {"input_ids": IDS}), **INPUTS.get(name, {})}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_said_that_a_run_does_not_see(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    said = {site.owner_name: site.activation for site in sites(model) if site.parameter_kind == "weight"}
    args, kwargs = inputs_of(name)
    with torch.no_grad(), Watch(model) as watch:
        model(*args, **kwargs)
    for layer, functions in watch.seen.items():
        if follower := said.get(layer):
            # QuickGELU, x * sigmoid(1.702 x), begins with a product.
            assert functions == ({follower} - {"linear", "norm", "quick_gelu"}), layer


ENOUGH = {"gpt2": 1.0, "llama": 0.9, "bert": 0.65, "t5": 1.0, "vit": 0.8, "clip": 0.85, "timm/resnet18": 0.9}


@pytest.mark.parametrize("name", ENOUGH)
def test_most_is_known(name: str) -> None:
    layers = [site for site in sites(MODELS[name]()) if site.layout and site.layout.in_axes and not site.layout.lookup]
    known = sum(site.activation is not None for site in layers)
    assert known / len(layers) >= ENOUGH[name], [site.name for site in layers if site.activation is None]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (Mlp(8, 16), {"fc1": "gelu", "fc2": "linear"}),
        (GluMlp(8, 16, act_layer=nn.SiLU), {"fc1": "silu", "fc2": "linear"}),
        (SwiGLU(8, 16), {"fc1_g": "silu", "fc1_x": "linear", "fc2": "linear"}),
        (ConvNormAct(3, 8, 3), {"conv": "norm"}),
        (timm.models.resnet.BasicBlock(8, 8), {"conv1": "norm", "conv2": "norm"}),
        (timm.models.resnet.Bottleneck(32, 8), {"conv1": "norm", "conv2": "norm", "conv3": "norm"}),
        (LlamaMLP(LlamaConfig()), {"gate_proj": "silu", "up_proj": "linear", "down_proj": "linear"}),
        (BertIntermediate(BertConfig(hidden_act="relu")), {"dense": "relu"}),
        (BertPooler(BertConfig()), {"dense": "tanh"}),
    ],
    ids=lambda value: "" if isinstance(value, dict) else type(value).__name__,
)
def test_blocks(block: nn.Module, expected: dict[str, str]) -> None:
    found = {site.owner_name: site.activation for site in sites(block) if len(site.shape) > 1}
    assert found == expected


def test_timms_resnet_50() -> None:
    def make() -> nn.Module:
        model: nn.Module = timm.create_model("resnet50", num_classes=10, zero_init_last=False)
        return model

    ratios = passed_on(make, (8, 3, 64, 64), "general")
    assert all(0.1 < ratio < 10 for ratio in ratios), ratios
    followers = Counter(step.site.activation for step in plan(make(), "general") if len(step.site.shape) > 1)
    assert followers == {"norm": 53, None: 1}  # the classifier
