"""Sites: every tensor of a model once, under its bare name, with all that a rule may ask about it."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from tests.strategies import models
from torchinit import FanError, sites
from torchinit.model import LayerClass, Site
from torchinit.model.sites import find_site, layer_class


def named(model: nn.Module) -> dict[str, Site]:
    return {site.name: site for site in sites(model)}


class Decoder(nn.Module):
    """An embedding whose table is the output layer's weight, too."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4, padding_idx=0, device=device)
        self.body = nn.Linear(4, 4, device=device)
        self.head = nn.Linear(4, 10, bias=False, device=device)
        self.head.weight = self.embed.weight


class Table(nn.Module):
    """A module with tensors of each kind on itself, and none in a layer that torch knows."""

    def __init__(self, tensor: Tensor, requires_grad: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensor, requires_grad=requires_grad)


@given(models())
def test_every_tensor_of_a_model_is_one_site(model: nn.Sequential) -> None:
    found = named(model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert set(found) == set(tensors)
    for name, site in found.items():
        assert (site.shape, site.dtype) == (tuple(tensors[name].shape), tensors[name].dtype)
        assert site.owner_name == name.rpartition(".")[0]
        assert site.owner.name == type(model.get_submodule(site.owner_name)).__name__
        assert site.leaf == name.rpartition(".")[2]
        assert site.numel == tensors[name].numel()


@given(models())
def test_the_order_is_that_of_apply(model: nn.Sequential) -> None:
    visited: list[int] = []
    model.apply(lambda module: visited.extend(id(tensor) for tensor in module.parameters(recurse=False)))
    found = sites(model)
    assert [id(model.get_parameter(site.name)) for site in found] == visited
    assert [site.position for site in found] == list(range(len(found)))


def test_meta_is_enough() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert sites(model) == sites(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))


def test_kinds_and_roles() -> None:
    found = named(nn.BatchNorm1d(4))
    assert {name: (site.kind, site.parameter_kind, site.state) for name, site in found.items()} == {
        "weight": ("parameter", "weight", "ready"),
        "bias": ("parameter", "bias", "ready"),
        "running_mean": ("buffer", "other", "ready"),
        "running_var": ("buffer", "other", "ready"),
        "num_batches_tracked": ("buffer", "other", "integer"),
    }


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_are_one_site(device: str) -> None:
    site = named(Decoder(device))["embed.weight"]
    assert [view.name for view in site.views] == ["embed.weight", "head.weight"]
    assert [view.owner.name for view in site.views] == ["Embedding", "Linear"]
    assert site.views[0].aliases == ()
    assert [view.zero_row for view in site.views] == [0, 0]
    assert "head.weight" not in named(Decoder(device))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_tied_by_data_are_one_site(device: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3, device=device), nn.Linear(3, 3, device=device))
    model[1].weight.data = model[0].weight.data
    assert [view.name for view in named(model)["0.weight"].views] == ["0.weight", "1.weight"]


def test_a_module_with_two_parents() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(OrderedDict(a=nn.Sequential(shared), b=nn.Sequential(shared)))
    site = named(model)["a.0.weight"]
    assert [view.name for view in site.views] == ["a.0.weight", "b.0.weight"]
    first, second = (view.position for view in site.views)
    assert first != second, "Module.apply visits it once a parent"


def test_a_module_under_two_names_of_one_parent() -> None:
    """Module.apply visits it once; both of its names are names of its tensors."""
    model = nn.Module()
    model.encoder = model.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.head = nn.Linear(2, 2)
    found = named(model)
    assert [view.name for view in found["encoder.1.weight"].views] == ["encoder.1.weight", "backbone.1.weight"]
    assert len({view.position for view in found["encoder.1.weight"].views}) == 1
    assert [site.position for site in found.values()] == list(range(6))


def test_views_of_one_memory() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    model[1].weight.data = model[0].weight.data.T
    found = named(model)
    assert found["0.weight"].shares == ("1.weight",)
    assert found["1.weight"].shares == ("0.weight",)
    assert found["0.bias"].shares == ()


class Residual(nn.Module):
    """A block: a norm of the stream's width, and two matrices or more."""

    def __init__(self, width: int = 2, hidden: int = 4, *, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)


class Other(Residual):
    """A block of another class."""


class Mixture(Residual):
    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Residual(norm=False) for _ in range(experts))


class Stage(nn.Module):
    def __init__(self, depth: int, width: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)


class Unit(nn.Module):
    """As in a UNet: two lists side by side, of which none comes first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(width) for _ in range(2))
        self.attentions = nn.ModuleList(Residual(width) for _ in range(2))


class Net(nn.Module):
    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def bare(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(2, 2) for _ in range(count))


def stack(*classes: type[nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(cls() for cls in classes)


def pair(width: int) -> nn.Sequential:
    return nn.Sequential(Residual(width), Residual(width))


@pytest.mark.parametrize(
    ("model", "name", "block", "tower"),
    [
        (stack(Residual, Residual, Residual), "1.fc1", (1, 3), (1, 3)),
        (stack(Residual, Other, Residual), "2.fc1", (2, 3), (2, 3)),
        (stack(Residual, Other), "1.fc1", None, None),  # sublayers of one block
        (stack(Mixture, Mixture), "1.experts.2.fc1", (1, 2), (1, 2)),
        (nn.ModuleDict({"4": Residual(), "5": Residual()}), "5.fc1", (1, 2), (1, 2)),
        (nn.ModuleList([Stage(3), Stage(5)]), "1.blocks.4.fc1", (4, 5), (4, 5)),  # of one width: may be two models
        (nn.ModuleList([Stage(3), Stage(3)]), "1.blocks.2.fc1", (2, 3), (2, 3)),
        (nn.ModuleList([Stage(3, 2), Stage(3, 8)]), "1.blocks.1.fc1", (1, 3), (4, 6)),
        (nn.ModuleList([Stage(3, 2), Stage(3, 8)]), "1.norm", None, None),
        (nn.Sequential(Stage(1, 2), nn.Linear(2, 8), Stage(3, 8)), "2.blocks.1.fc1", (1, 3), (2, 4)),
        (nn.ModuleList(map(pair, (2, 2, 2))), "2.1.fc1", (1, 2), (5, 6)),
        (nn.Sequential(*map(pair, (2, 16, 32))), "1.0.fc1", (0, 2), (2, 6)),
        (Net(layer1=pair(2), layer2=pair(8)), "layer2.0.fc1", (0, 2), (2, 4)),
        (
            Net(stem=nn.Linear(2, 2), layer1=nn.Sequential(Residual(2)), layer2=nn.Sequential(Residual(8))),
            "layer2.0.fc1",
            (0, 1),
            (1, 2),
        ),
        (Net(stem=nn.Linear(2, 2), tower1=Stage(2).blocks, tower2=Stage(3).blocks), "tower2.1.fc1", (1, 3), (1, 3)),
        (Net(encoder=Stage(2), decoder=Stage(3, 8)), "decoder.blocks.1.fc1", (1, 3), (1, 3)),
        (nn.ModuleList([Unit(2), Unit(8)]), "1.attentions.1.fc1", (1, 2), None),
        (Net(layers=stack(Residual, Residual), heads=bare(3)), "heads.1", None, None),
        (Net(layers=bare(3)), "layers.1", (1, 3), (1, 3)),
        (nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3)), "2.0", (2, 3), (2, 3)),
        (Net(b1=Residual(), b2=Residual()), "b2.fc1", (1, 2), (1, 2)),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "1", None, None),  # layers, not blocks
        (nn.Sequential(nn.Sequential(nn.Linear(2, 2)), Stage(1).norm), "0.0", None, None),  # unlike
        (nn.Sequential(nn.Sequential(nn.Linear(2, 2))), "0.0", None, None),  # a wrapper, not a list
        (nn.ModuleDict({"a": Stage(1).norm, "b": Stage(1).norm}), "a", None, None),  # no order
        (nn.ModuleList(nn.LazyLinear(2) for _ in range(2)), "1", (1, 2), (1, 2)),
        (nn.ModuleList(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)) for _ in range(2)), "1", (1, 2), (1, 2)),
    ],
)
def test_the_place_among_blocks_and_stages(
    model: nn.Module, name: str, block: tuple[int, int] | None, tower: tuple[int, int] | None
) -> None:
    site = named(model)[f"{name}.weight"]
    assert (site.block, site.tower) == (block, tower)


class Wrapper(nn.Module):
    """What DistributedDataParallel and torch.compile look like from here."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: Wrapper("module", model),
        lambda model: Wrapper("_orig_mod", model),
        lambda model: Wrapper("module", Wrapper("_orig_mod", model)),
        torch.compile,
        nn.DataParallel,
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports deprecated parts of torch
def test_wrappers_leave_no_trace(wrap: type) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert sites(wrap(model)) == sites(model)
    root = nn.Linear(2, 3)
    assert sites(wrap(root)) == sites(root)


def test_a_module_called_module_keeps_names_apart() -> None:
    model = nn.Linear(2, 2)
    model.add_module("module", nn.Linear(2, 2))
    assert sorted(named(model)) == ["bias", "module.bias", "module.weight", "weight"]


def made_in_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(2, 2)


def quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.zeros(2, 2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("tensor", "state"),
    [
        (torch.zeros(2, 2), "ready"),
        (torch.zeros(()), "ready"),
        (torch.zeros(0, 2), "ready"),
        (torch.zeros(4, 2).T, "ready"),
        (torch.zeros(2, 2, dtype=torch.complex64), "ready"),
        (torch.zeros(2, 2, dtype=torch.bfloat16), "ready"),
        (torch.zeros(2, 2, dtype=torch.float8_e4m3fn), "ready"),
        (torch.zeros(2, 2, dtype=torch.float8_e8m0fnu), "quantized"),
        (torch.zeros(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "quantized"),
        (torch.zeros(2, 2, dtype=torch.int8), "integer"),
        (torch.zeros(2, 2, dtype=torch.bool), "integer"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(1, 2).expand(3, 2), "overlapping"),
        (torch.zeros(6).as_strided((3, 3), (1, 1)), "overlapping"),
        (made_in_inference_mode(), "inference"),
    ],
)
def test_states(tensor: Tensor, state: str) -> None:
    (site,) = sites(Table(tensor, requires_grad=False))
    assert (site.state, site.shape) == (state, tuple(tensor.shape))


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_quantized() -> None:
    assert sites(Table(quantized(), requires_grad=False))[0].state == "quantized"


def test_lazy_layers() -> None:
    found = named(nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()))
    assert found["0.weight"].state == found["1.running_mean"].state == "lazy"
    assert found["0.weight"].owner.name == "LazyLinear"
    assert found["0.weight"].shape == ()


def test_fans_need_two_dimensions() -> None:
    with pytest.raises(FanError, match=r"'norm\.weight' has shape \(5,\): fans need at least 2 dimensions\. Give it"):
        Site("norm.weight", (5,)).fans()


def test_fans_fall_back_on_torchs_axes() -> None:
    assert Site("w", (3, 4)).fans("true") == (4, 3)


def test_layer_class() -> None:
    known = layer_class(nn.Conv2d)
    assert known.name == "Conv2d"
    assert known.bases == ("_ConvNd",)
    assert known.lineage[0] == "torch.nn.modules.conv.Conv2d"
    for name in ("Conv2d", "_ConvNd", "Module", "torch.nn.Conv2d", "torch.nn.modules.conv.Conv2d", "torch.Conv2d"):
        assert known.is_a(name), name
    for name in ("Conv", "conv.Conv2d", "torch.nn.modules.Linear", "nn.Conv2d", "torch.n.Conv2d"):
        assert not known.is_a(name), name


def test_find_by_any_name() -> None:
    known = sites(Decoder())
    assert find_site(known, "head.weight") is find_site(known, "embed.weight") is not None
    assert find_site(known, "tail.weight") is None


def test_a_site_can_be_made_by_hand() -> None:
    assert Site("w", (2,)).owner == LayerClass("Module")
    assert hash(Site("w", (2,))) == hash(Site("w", (2,)))
