"""Networks that did not set the thresholds of the probe: other families of libraries, and other nets made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.probe_nets import Net, filled, kaiming, mlp, normal, xavier


def lecun(weight: Tensor) -> object:
    """The rule of LeCun et al."""
    return nn.init.kaiming_normal_(weight, nonlinearity="linear")


def orthogonal(weight: Tensor) -> object:
    """Orthogonal matrices with the gain of a ReLU."""
    return nn.init.orthogonal_(weight, 2**0.5)


class Mixer(nn.Module):
    """An MLP-Mixer: layers across tokens, and across channels."""

    def __init__(self, depth: int = 8, width: int = 64, tokens: int = 24) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"n1": nn.LayerNorm(width), "across": two(tokens), "n2": nn.LayerNorm(width), "mlp": two(width)}
            )
            for _ in range(depth)
        )
        self.stem, self.head = nn.Linear(32, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for each in self.blocks:
            x = x + each["across"](each["n1"](x).mT).mT  # type: ignore[index]
            x = x + each["mlp"](each["n2"](x))  # type: ignore[index]
        return self.head(x.mean(1))


def two(width: int) -> nn.Sequential:
    """Two layers with a GELU between."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Recurrences(nn.Module):
    """A recurrent net that reads all steps, or the last one."""

    def __init__(self, cell: type[nn.RNNBase], last: bool, scale: float = 1.0, forget: float = 0.0) -> None:
        super().__init__()
        self.rnn, self.head, self.last = cell(8, 48, 2, batch_first=True), nn.Linear(48, 10), last
        with torch.no_grad():
            for name, parameter in self.rnn.named_parameters():
                if "weight_hh" in name:
                    parameter.mul_(scale)
                elif "bias_hh" in name and forget:
                    parameter[48:96] = forget

    def forward(self, x: Tensor) -> Any:
        y = self.rnn(x)[0]
        return self.head(y[:, -1] if self.last else y)


class UNet(nn.Module):
    """A U-Net without norms: down three times, up three times, with skips."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (16, 32, 64, 64)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 4, 2, 1) for a, b in reversed([*pairwise(sizes)]))
        self.join = nn.ModuleList(nn.Conv2d(2 * a, a, 3, padding=1) for a in (64, 32, 16))
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        kept = [torch.relu(self.stem(x))]
        for layer in self.down:
            kept.append(torch.relu(layer(kept[-1])))
        x = kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = torch.relu(join(torch.cat([torch.relu(up(x)), kept.pop()], 1)))
        return self.head(x)


class Plain(nn.Module):
    """A stack of residual attention blocks without any norm, each branch times a number."""

    def __init__(self, scale: float, depth: int = 16, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": nn.MultiheadAttention(width, 4, batch_first=True), "mlp": two(width)})
            for _ in range(depth)
        )
        self.stem, self.head, self.scale = nn.Linear(32, width), nn.Linear(width, 10), scale

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for each in self.blocks:
            x = x + self.scale * each["attn"](x, x, x, need_weights=False)[0]  # type: ignore[index]
            x = x + self.scale * each["mlp"](x)  # type: ignore[index]
        return self.head(x.mean(1))


def generator(std: float = 0.02) -> nn.Module:
    """The generator of a DCGAN."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(32, 64, 4), nn.BatchNorm2d(64), nn.ReLU()]
    for one, other in ((64, 32), (32, 16), (16, 16)):
        layers += [nn.ConvTranspose2d(one, other, 4, 2, 1), nn.BatchNorm2d(other), nn.ReLU()]
    return filled(nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh()), normal(std))


def discriminator(std: float = 0.02, norm: bool = True) -> nn.Module:
    """The discriminator of a DCGAN, with or without its batch norms."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2)]
    for one, other in ((16, 32), (32, 64), (64, 64)):
        middle = [nn.BatchNorm2d(other)] if norm else []
        layers += [nn.Conv2d(one, other, 4, 2, 1), *middle, nn.LeakyReLU(0.2)]
    return filled(nn.Sequential(*layers, nn.Conv2d(64, 1, 4)), normal(std))


class Sets(nn.Module):
    """DeepSets: a net for each element, their sum, a net for the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = mlp(4, inputs=16), mlp(4, inputs=10)

    def forward(self, x: Tensor) -> Any:
        return self.all(self.each(x).mean(1))


class Graph(nn.Module):
    """A graph convolution on a ring with chords: neighbours are averaged, then a layer."""

    mix: Tensor

    def __init__(self, depth: int = 4, nodes: int = 24) -> None:
        super().__init__()
        ring = torch.eye(nodes)
        mix = sum(torch.roll(ring, by, 0) for by in (-5, -1, 0, 1, 5)) / 5
        self.register_buffer("mix", mix)
        self.layers = nn.ModuleList(nn.Linear(32 if not at else 64, 64) for at in range(depth))
        self.head = nn.Linear(64, 7)

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(self.mix @ x))
        return self.head(x)


class Flow(nn.Module):
    """Affine couplings: half of the vector scales and shifts the other; the last layers begin with a std."""

    def __init__(self, std: float, depth: int = 12, width: int = 16) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Linear(width // 2, 64), nn.ReLU(), nn.Linear(64, width)) for _ in range(depth)
        )
        for step in self.steps:
            nn.init.normal_(step.get_parameter("2.weight"), std=std)
            nn.init.zeros_(step.get_parameter("2.bias"))

    def forward(self, x: Tensor) -> Any:
        for step in self.steps:
            kept, other = x.chunk(2, 1)
            scale, shift = step(kept).chunk(2, 1)
            x = torch.cat([other * scale.exp() + shift, kept], 1)
        return x


class Field(nn.Module):
    """A NeRF: sines of the coordinates, eight layers with a skip, density and colour."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 128) for width in (60, 128, 128, 128, 188, 128, 128, 128))
        self.head = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Any:
        angles = (x[..., None] * 2.0 ** torch.arange(10)).flatten(1)
        start = y = torch.cat([angles.sin(), angles.cos()], 1)
        for at, layer in enumerate(self.layers):
            y = torch.relu(layer(torch.cat([y, start], 1) if at == 4 else y))
        return self.head(y)


class Highway(nn.Module):
    """A highway net: gates that carry, open or shut by their bias."""

    def __init__(self, bias: float, depth: int = 30, width: int = 64) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)
        for gate in self.gates:
            nn.init.constant_(gate.get_parameter("bias"), bias)

    def forward(self, x: Tensor) -> Any:
        for gate, layer in zip(self.gates, self.layers, strict=True):
            share = torch.sigmoid(gate(x))
            x = share * torch.relu(layer(x)) + (1 - share) * x
        return self.head(x)


class ReZero(nn.Module):
    """Residual layers that each begin at a number."""

    def __init__(self, alpha: float, depth: int = 60, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mlp(1, width=width, inputs=width)[:2] for _ in range(depth))
        self.alphas = nn.ParameterList(torch.tensor(alpha) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Any:
        for block, alpha in zip(self.blocks, self.alphas, strict=True):
            x = x + alpha * block(x)
        return self.head(x)


def sounds(rule: Callable[[Tensor], object] | None) -> nn.Module:
    """Twelve convolutions over time."""
    layers: list[nn.Module] = [nn.Conv1d(1, 32, 9, 2), nn.ReLU()]
    for _ in range(11):
        layers += [nn.Conv1d(32, 32, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 10))
    return filled(model, rule) if rule else model


def actor() -> nn.Module:
    """A policy with orthogonal layers and a small head."""
    model = filled(mlp(3, nn.Tanh), orthogonal)
    nn.init.orthogonal_(model.get_parameter("6.weight"), 0.01)
    return model


def relu_like(act: type[nn.Module], rule: Callable[[Tensor], object], depth: int = 20) -> nn.Module:
    """A perceptron with another activation."""
    return filled(mlp(depth, act), rule)


def unseen() -> Iterator[Net]:
    """The networks that are made here, good and bad."""
    tokens = partial(torch.randn, 16, 24, 32)
    yield Net("Mixer 8, torch's own", Mixer, batch=tokens)
    yield Net("Mixer 8, N(0, 1)", lambda: filled(Mixer(), normal(1.0)), "TI802 TI804 TI810 TI813 TI818", "", tokens)
    yield Net(
        "Mixer 8, constant 0.02", lambda: filled(Mixer(), lambda w: nn.init.constant_(w, 0.02)), "TI812", "", tokens
    )
    yield Net("GRU 2, all steps", lambda: Recurrences(nn.GRU, last=False))
    yield Net("GRU 2, recurrent weights times 5", lambda: Recurrences(nn.GRU, True, 5.0), "TI809 TI818", "rnn")
    yield Net("RNN 2, recurrent weights times 4", lambda: Recurrences(nn.RNN, True, 4.0), "TI809 TI818", "rnn")
    yield Net("LSTM 2, last step, forget bias 2", lambda: Recurrences(nn.LSTM, True, forget=2.0))
    yield Net("U-Net, Kaiming", lambda: filled(UNet(), kaiming))
    yield Net("U-Net, N(0, 0.001)", lambda: filled(UNet(), normal(0.001)), "TI801 TI803")
    yield Net("U-Net, N(0, 0.5)", lambda: filled(UNet(), normal(0.5)), "TI802 TI804 TI810 TI818")
    yield Net("attention without norms, branches / 4", lambda: Plain(0.25), batch=tokens)
    yield Net(
        "attention without norms, N(0, 0.5)", lambda: filled(Plain(1.0), normal(0.5)), "TI802 TI804 TI808", "", tokens
    )
    yield Net("DCGAN generator", generator, batch=lambda: torch.randn(16, 32, 1, 1))
    yield Net("DCGAN discriminator", discriminator)
    yield Net(
        "DCGAN discriminator without norms, N(0, 0.002)", lambda: discriminator(0.002, norm=False), "TI801 TI803", "0"
    )
    yield Net("DeepSets, Kaiming", lambda: filled(Sets(), kaiming), batch=lambda: torch.randn(32, 6, 16))
    yield Net(
        "DeepSets, N(0, 0.01)", lambda: filled(Sets(), normal(0.01)), "TI801 TI803", "", lambda: torch.randn(32, 6, 16)
    )
    yield Net("graph 4, Kaiming", lambda: filled(Graph(), kaiming), batch=tokens)
    yield Net("graph 24, torch's own", lambda: Graph(24), "TI801 TI803 TI805", "layers", tokens)
    yield Net("couplings 12, last layers 0", lambda: Flow(0.0), batch=partial(torch.randn, 64, 16))
    yield Net(
        "couplings 12, last layers N(0, 1)",
        lambda: Flow(1.0),
        "TI802 TI804 TI815 TI818",
        "",
        partial(torch.randn, 64, 16),
    )
    yield Net("NeRF, Kaiming", lambda: filled(Field(), kaiming), batch=lambda: torch.randn(64, 3))
    yield Net("NeRF, N(0, 0.01)", lambda: filled(Field(), normal(0.01)), "TI801 TI803", "", lambda: torch.randn(64, 3))
    yield Net("highway 30, gates at -2", lambda: Highway(-2.0))
    yield Net("highway 30, gates at 4", lambda: Highway(4.0), "TI801 TI803")
    yield Net("ReZero 60", lambda: ReZero(0.0))
    yield Net("ReZero 60, all at 1", lambda: filled(ReZero(1.0), kaiming), "TI802 TI804 TI818")
    yield Net("sound 12, Kaiming", lambda: sounds(kaiming))
    yield Net("sound 12, torch's own", lambda: sounds(None), "TI801 TI803 TI805")
    yield Net("actor, orthogonal", actor)
    yield Net("MLP 20 SELU, LeCun", lambda: relu_like(nn.SELU, lecun))
    yield Net("MLP 20 SELU, N(0, 1)", lambda: relu_like(nn.SELU, normal(1.0)), "TI802 TI804", "0")
    yield Net("MLP 20 ELU, N(0, 0.01)", lambda: relu_like(nn.ELU, normal(0.01)), "TI801 TI803", "0")
    yield Net("MLP 20 SiLU, Kaiming", lambda: relu_like(nn.SiLU, kaiming))
    yield Net("MLP 20 softsign, Xavier", lambda: relu_like(nn.Softsign, xavier))
    yield Net("MLP 20 hardtanh, N(0, 1)", lambda: relu_like(nn.Hardtanh, normal(1.0)), "TI804 TI807 TI810 TI818")
    yield Net("MLP 20 PReLU, orthogonal", lambda: relu_like(nn.PReLU, orthogonal))
    yield Net("MLP 20 ReLU, biases 10", lambda: filled(mlp(20), xavier, 10.0), "TI801 TI805", "")
    yield Net("MLP 8, a layer at zero", stopped, "TI801 TI811")


def stopped() -> nn.Module:
    """A perceptron of which one layer is zero, with its bias."""
    model = filled(mlp(8), kaiming)
    nn.init.zeros_(model.get_parameter("6.weight"))
    return model


# --- other families of libraries -------------------------------------------------------------------------------------

TEXT: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 160,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "GPTNeoXForCausalLM": TEXT,
    "Phi3ForCausalLM": {**TEXT, "pad_token_id": 0},
    "Olmo2ForCausalLM": TEXT,
    "ElectraForMaskedLM": {**TEXT, "embedding_size": 32},
    "RobertaForMaskedLM": TEXT,
    "AlbertForMaskedLM": {**TEXT, "embedding_size": 32},
    "BartForConditionalGeneration": {
        "vocab_size": 400, "d_model": 64, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 160,
        "decoder_ffn_dim": 160, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    },
    "DeiTForImageClassification": {**TEXT, "image_size": 32, "patch_size": 8},
    "SegformerForSemanticSegmentation": {"hidden_sizes": [16, 32, 64, 64], "decoder_hidden_size": 32},
    "ResNetForImageClassification": {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 2, 2, 1]},
}  # fmt: skip
TIMM: dict[str, dict[str, Any]] = {
    "lcnet_050": {}, "tinynet_e": {}, "resnest14d": {}, "repvgg_a0": {}, "nf_regnet_b0": {}, "edgenext_xx_small": {},
    "pvt_v2_b0": {}, "visformer_tiny": {"img_size": 64}, "gmixer_12_224": {"img_size": 64}, "dla34": {},
    "mobilevit_xxs": {},
}  # fmt: skip


def of_others() -> Iterator[Net]:
    """Models of packages that are not model collections, as they start without a checkpoint."""

    def voices() -> nn.Module:
        return nn.Sequential(nn.LSTM(40, 256, 3, batch_first=True), _Last(), nn.Linear(256, 256), nn.ReLU())

    def resnet(name: str) -> nn.Module:
        from mmpretrain import get_model

        model: nn.Module = get_model(name)
        model.init_weights()
        return model.backbone

    yield Net("Resemblyzer's encoder over 160 frames", voices, "TI809", "0", lambda: torch.randn(16, 160, 40))
    yield Net(
        "mmpretrain mobilenet_v2", partial(resnet, "mobilenet-v2_8xb32_in1k"), batch=lambda: torch.randn(16, 3, 64, 64)
    )


class _Last(nn.Module):
    """The last step of a recurrent layer's outputs."""

    def forward(self, found: Any) -> Any:
        return found[0][:, -1]


def spoil(model: nn.Module, change: Callable[[str, Tensor], object]) -> nn.Module:
    """The model with all its parameters changed."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            change(name, parameter)
    return model


def without_norms(model: nn.Module) -> nn.Module:
    """The model with all its batch norms taken out."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], nn.Identity())
    return model


def larger(factor: float, *words: str) -> Callable[[str, Tensor], object]:
    """Matrices whose name has one of these words, times a factor."""
    return lambda name, p: p.mul_(factor) if p.dim() > 1 and any(word in name for word in words or ("",)) else None


def zeros(*words: str) -> Callable[[str, Tensor], object]:
    """Parameters whose name has one of these words, at zero."""
    return lambda name, p: p.zero_() if any(word in name for word in words) else None
