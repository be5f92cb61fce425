"""Networks with starts that are known to be good or bad, for the probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Fill = Callable[[nn.Module], None]


def mlp(depth: int, act: type[nn.Module] = nn.ReLU, width: int = 128, inputs: int = 64) -> nn.Sequential:
    """A plain multilayer perceptron."""
    widths = [inputs, *[width] * depth]
    layers = [layer for one, two in pairwise(widths) for layer in (nn.Linear(one, two), act())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def filled(model: nn.Module, rule: Callable[[Tensor], object], bias: float | None = 0.0, but: str = "-") -> nn.Module:
    """The model with a rule carried out on its matrices, and one number in its biases (None: as they are)."""
    for name, parameter in model.named_parameters():
        if name.startswith(but):
            continue
        if parameter.dim() > 1:
            rule(parameter)
        elif bias is not None and name.endswith("bias"):
            nn.init.constant_(parameter, bias)
    return model


def normal(std: float) -> Callable[[Tensor], object]:
    """The rule that draws from N(0, std²)."""
    return lambda weight: nn.init.normal_(weight, std=std)


def kaiming(weight: Tensor) -> object:
    """The rule of He et al. for a ReLU."""
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def xavier(weight: Tensor) -> object:
    """The rule of Glorot and Bengio."""
    return nn.init.xavier_normal_(weight)


def vgg(depth: int = 13) -> nn.Sequential:
    """A VGG without norms, for images of 32 pixels."""
    layers: list[nn.Module] = []
    channels = 3
    for number in range(depth):
        wide = 16 * 2 ** min(2, number // 4)
        layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU()]
        channels = wide
        if number % 4 == 3:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Block(nn.Module):
    """A residual block of two layers, without a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        return x + self.fc2(torch.relu(self.fc1(x)))


class Residual(nn.Module):
    """Residual blocks between a stem and a head."""

    def __init__(self, depth: int = 48, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(32, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def residual(scale: float, head: float | None = None) -> nn.Module:
    """Kaiming everywhere, the last layer of each branch scaled, the head with its own std."""
    model = Residual()
    filled(model, kaiming)
    with torch.no_grad():
        for block in model.blocks.children():
            block.get_parameter("fc2.weight").mul_(scale)
        if head is not None:
            model.head.weight.normal_().mul_(head)
    return model


class Decoder(nn.Module):
    """A small language model of torch's own layers, before or after which the norms stand."""

    def __init__(
        self, depth: int = 6, width: int = 64, words: int = 500, first: bool = True, tied: bool = False
    ) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(words, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=first)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Any:
        x = self.table(ids) + self.places.weight[: ids.shape[1]]
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def decoder(std: float = 0.02, first: bool = True, depth: int = 6) -> nn.Module:
    """A decoder with normal weights, with pre-norms those that end a branch scaled by depth."""
    model = filled(Decoder(depth, first=first), normal(std))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if first and name.endswith(("out_proj.weight", "linear2.weight")):
                parameter.mul_(1 / math.sqrt(2 * depth))
    return model


def sharp_queries() -> nn.Module:
    """A decoder whose queries and keys are N(0, 1)."""
    model = decoder()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("in_proj_weight"):
                parameter[:128].normal_(std=1.0)
    return model


def without_gain(head: float) -> nn.Module:
    """The last norm's gain is zero, and perhaps the head."""
    model = decoder()
    with torch.no_grad():
        model.get_parameter("norm.weight").zero_()
        model.get_parameter("head.weight").mul_(head)
    return model


class Recurrent(nn.Module):
    """A recurrent layer whose last step is read."""

    def __init__(self, cell: Callable[..., nn.RNNBase], scale: float = 1.0, forget: float = 0.0) -> None:
        super().__init__()
        self.rnn = cell(8, 64, batch_first=True)
        self.head = nn.Linear(64, 10)
        with torch.no_grad():
            self.rnn.get_parameter("weight_hh_l0").mul_(scale)
            if forget:
                self.rnn.get_parameter("bias_hh_l0")[64:128] = forget

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x)[0][:, -1])


class Sine(nn.Module):
    """A SIREN: sines of 30 times what each layer gives."""

    def __init__(self, depth: int = 5, width: int = 128, omega: float = 30.0, own: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2 if not n else width, width) for n in range(depth))
        self.head, self.omega = nn.Linear(width, 1), omega
        for number, layer in enumerate(self.layers if own else ()):
            bound = 1 / 2 if not number else math.sqrt(6 / width) / omega
            nn.init.uniform_(layer.get_parameter("weight"), -bound, bound)

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.head(x)


def autoencoder() -> nn.Module:
    """A convolutional autoencoder, as torch starts it."""
    down = [layer for c in ((3, 16), (16, 32), (32, 64)) for layer in (nn.Conv2d(*c, 3, 2, 1), nn.ReLU())]
    up = [layer for c in ((64, 32), (32, 16)) for layer in (nn.ConvTranspose2d(*c, 4, 2, 1), nn.ReLU())]
    return nn.Sequential(*down, *up, nn.ConvTranspose2d(16, 3, 4, 2, 1))


def dead_layer() -> nn.Module:
    """A perceptron of which no unit of the third layer passes its ReLU."""
    model = filled(mlp(6), kaiming)
    nn.init.constant_(model.get_parameter("4.bias"), -30.0)
    return model


def loud_head() -> nn.Module:
    """A perceptron whose head is N(0, 1)."""
    model = filled(mlp(4), kaiming)
    nn.init.normal_(model.get_parameter("8.weight"))
    return model


class Net(NamedTuple):
    """A start: how it is made, and the codes of which one at least is to be found; none of a good one.

    ``at`` is the module, or the beginning of its name, at which it is to be found; ``batch`` makes inputs, where the
    probe is not to make them itself.
    """

    name: str
    make: Callable[[], nn.Module]
    codes: str = ""
    at: str = ""
    batch: Callable[[], Tensor] | None = None


def hand_made() -> Iterator[Net]:
    """The networks that are made here."""
    yield Net("MLP 30 ReLU, N(0, 0.02)", lambda: filled(mlp(30), normal(0.02)), "TI801 TI803", "0")
    yield Net("MLP 30 ReLU, N(0, 1)", lambda: filled(mlp(30), normal(1.0)), "TI802 TI804 TI815", "0")
    yield Net("MLP 30 ReLU, torch's own", lambda: mlp(30), "TI801 TI803 TI805", "0")
    yield Net("MLP 30 ReLU, Xavier", lambda: filled(mlp(30), xavier), "TI801 TI803", "0")
    yield Net("MLP 30 ReLU, Kaiming", lambda: filled(mlp(30), kaiming))
    yield Net("MLP 6 ReLU, torch's own", lambda: mlp(6))
    yield Net("MLP 30 tanh, Xavier", lambda: filled(mlp(30, nn.Tanh), xavier))
    yield Net("MLP 30 tanh, N(0, 0.5)", lambda: filled(mlp(30, nn.Tanh), normal(0.5)), "TI804 TI807")
    yield Net("MLP 10 sigmoid, torch's own", lambda: mlp(10, nn.Sigmoid), "TI801 TI803 TI805", "0")
    yield Net("MLP 30 GELU, Kaiming", lambda: filled(mlp(30, nn.GELU), kaiming))
    yield Net("MLP 6, a dead layer", dead_layer, "TI801 TI806 TI811", "5")
    yield Net("MLP 4, head N(0, 1)", loud_head, "TI810")
    yield Net("MLP 6, constant 0.01", lambda: filled(mlp(6), lambda w: nn.init.constant_(w, 0.01)), "TI812")
    yield Net("VGG 14, torch's own", vgg, "TI801 TI803 TI805", "0")
    yield Net("VGG 14, Kaiming", lambda: filled(vgg(), kaiming))
    yield Net("residual 48, Kaiming", lambda: residual(1.0), "TI802 TI804", "blocks")
    yield Net("residual 48, branches / sqrt(48)", lambda: residual(48**-0.5, 0.1))
    yield Net("residual 48, Fixup", lambda: residual(0.0, 0.0))
    yield Net("pre-LN 48, N(0, 0.02) scaled", lambda: decoder(depth=48))
    yield Net("post-LN 48, N(0, 0.02)", lambda: decoder(first=False, depth=48))
    yield Net("post-LN 48, Xavier", lambda: filled(Decoder(48, first=False), xavier), "TI805", "blocks")
    yield Net("pre-LN 6, queries and keys N(0, 1)", sharp_queries, "TI808", "blocks")
    yield Net("pre-LN 6, tied N(0, 1)", lambda: filled(Decoder(tied=True), normal(0.02), but="table"), "TI810")
    yield Net("pre-LN 6, last gain 0", lambda: without_gain(1.0))
    yield Net("pre-LN 6, last gain 0 and head 0", lambda: without_gain(0.0), "TI811")
    yield Net("RNN, last of 50 steps, torch's own", lambda: Recurrent(nn.RNN), "TI809", "rnn")
    yield Net("RNN, recurrent weights times 3", lambda: Recurrent(nn.RNN, 3.0), "TI809", "rnn")
    yield Net("LSTM, forget bias 1", lambda: Recurrent(nn.LSTM, forget=1.0))
    yield Net("SIREN", Sine)
    yield Net("SIREN, torch's hidden layers", lambda: Sine(own=False), "TI804 TI818")
    yield Net("autoencoder, torch's own", autoencoder)
