"""Ends: which matrices with fixed outputs end a model, and which are read again inside of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from torch import nn

from torchinit.transfer import Transfer


class Net(nn.Module):
    """Layers by their names; how a forward pass would join them is not looked at."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def conv(inputs: int, outputs: int, size: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, bias=False)


def stem(width: int) -> dict[str, nn.Module]:
    return {"stem": conv(3, width, 3), "body": conv(width, width, 3)}


def shared(width: int) -> Net:
    head, other = conv(width, 9), conv(width, 9)
    other.weight = head.weight
    return Net(**stem(width), p3=head, p4=other)


def several(width: int, count: int, outputs: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(conv(width, width, 3), conv(width, outputs)) for _ in range(count))


NETS: dict[str, tuple[Callable[[int], nn.Module], list[str], list[str]]] = {  # with what ends it, and what does not
    "segmentation": (lambda w: nn.Sequential(*stem(w).values(), conv(w, 21)), ["2.weight"], []),
    "a map of one class": (lambda w: nn.Sequential(*stem(w).values(), conv(w, 1)), ["2.weight"], []),
    "a kernel": (lambda w: nn.Sequential(*stem(w).values(), conv(w, 3, 7)), ["2.weight"], []),
    "upsampling": (
        lambda w: nn.Sequential(*stem(w).values(), nn.ConvTranspose2d(w, w, 2), nn.ConvTranspose2d(w, 21, 2)),
        ["3.weight"], [],
    ),
    "volumes and signals": (
        lambda w: Net(a=nn.Conv3d(1, w, 3), b=nn.Conv3d(w, 2, 1), c=nn.Conv1d(1, w, 3), d=nn.Conv1d(w, 5, 1)),
        ["b.weight", "d.weight"], [],
    ),
    "detection": (
        lambda w: Net(**stem(w), conv_cls=conv(w, 80, 3), conv_reg=conv(w, 4, 3), obj=conv(w, 1)),
        ["conv_cls.weight", "conv_reg.weight", "obj.weight"], [],
    ),
    "heads of several scales, and an integral over bins": (
        lambda w: Net(**stem(w), cv2=several(w, 2, 64), cv3=several(w, 2, 80), dfl=conv(16, 1)),
        ["cv2.0.1.weight", "cv2.1.1.weight", "cv3.0.1.weight", "cv3.1.1.weight"], [],
    ),
    "one head for two maps": (shared, ["p3.weight"], []),
    "a bottleneck": (
        lambda w: Net(**stem(w), squeeze=conv(w, 8), expand=conv(8, w), out=conv(w, 2)),
        ["out.weight"], ["squeeze.weight"],
    ),
    "the laterals of a pyramid": (
        lambda w: Net(**stem(w), lateral=conv(w, 32), fpn=conv(32, 32, 3), cls=conv(32, 9)), [], ["lateral.weight"],
    ),
    "outputs beside growing ones": (
        lambda w: Net(**stem(w), low=conv(w, 12), aspp=conv(w, 2 * w), fuse=conv(2 * w + 12, w), aux=conv(w, 21)),
        ["aux.weight"], ["low.weight"],
    ),
    "layers that each add twelve": (
        lambda w: Net(stem=conv(3, w), a=conv(w, 12), b=conv(w + 12, 12), c=conv(w + 24, 12), out=conv(w + 36, 5)),
        ["out.weight"], ["a.weight", "b.weight", "c.weight"],
    ),
    "outputs at each place, as one row": (
        lambda w: Net(**stem(w), policy=conv(w, 2), moves=nn.Linear(2 * 64, 99)), [], ["policy.weight"],
    ),
    "fc1, fc2 and fc3": (
        lambda w: Net(conv1=conv(1, w), fc1=nn.Linear(w, w), fc2=nn.Linear(w, 2 * w), fc3=nn.Linear(2 * w, 10)),
        ["fc3.weight"], [],
    ),
    "fc2 alone": (lambda w: Net(fc1=nn.Linear(8, w), fc2=nn.Linear(w, 10)), ["fc2.weight"], []),
    "fc2 in a wrapper": (lambda w: Net(net=Net(fc1=nn.Linear(8, w), fc2=nn.Linear(w, 10))), ["net.fc2.weight"], []),
    "fc2 of blocks around a tied table": (
        lambda w: Net(
            table=nn.Embedding(50, 32),
            layers=nn.ModuleList(Net(fc1=nn.Linear(32, w), fc2=nn.Linear(w, 32)) for _ in "ab"),
        ),
        [], ["layers.0.fc2.weight", "layers.1.fc2.weight"],
    ),
    "fc2 of a stream of its own width": (
        lambda w: Net(fc1=nn.Linear(32, w), fc2=nn.Linear(w, 32), head=nn.Linear(32, 50)),
        ["head.weight"], ["fc2.weight"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("widths", [(64, 16), (60, 18), (16, 64)])
@pytest.mark.parametrize("case", NETS)
def test_what_ends_a_model(case: str, widths: tuple[int, int]) -> None:
    make, ends, inside = NETS[case]
    rows = {row.name: row for row in Transfer(*map(make, widths)).rows}
    assert [name for name, row in rows.items() if row.kind == "output"] == ends
    assert [name for name, row in rows.items() if any("fixed outputs" in note for note in row.notes)] == inside
    assert all(rows[name].kind == "hidden" for name in inside)


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"optimizer": "muon"}, {"form": "folded"}])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d])
def test_a_convolution_of_one_place_is_a_linear_layer(kind: Any, settings: dict[str, Any]) -> None:
    """It computes the same on maps of one place, so all that is transferred is the same."""
    sizes = [*pairwise((8, 1, 1, 5))]

    def net(layer: Callable[[int, int], nn.Module], width: int) -> nn.Sequential:
        grown = [tuple(width if size == 1 else size for size in each) for each in sizes]
        return nn.Sequential(*(layer(*each) for each in grown))

    nets = [Transfer(net(layer, 64), net(layer, 16), **settings) for layer in (lambda a, b: kind(a, b, 1), nn.Linear)]
    convolved, linear = ([(row.kind, row.factors, row.growth) for row in each.rows] for each in nets)
    assert convolved == linear
