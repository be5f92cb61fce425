"""Following: what follows each layer, as a run of the model sees it, and unknown wherever only a run could tell."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import torchinit
from tests.ranks import fake_rank
from torchinit import Plan, sites
from torchinit.knowledge.following import with_activations
from torchinit.knowledge.gains import activation_of
from torchinit.model import Layout, Site


def follows(model: nn.Module) -> dict[str, str | None]:
    """What follows each layer, by the layer's name."""
    weights = [
        site for site in sites(model) if site.parameter_kind == "weight" and not (site.layout or Layout()).batch_axes
    ]
    return {site.name.removesuffix("weight").removesuffix("."): site.activation for site in weights}


class Residual(nn.Module):
    """A module with a forward of its own, which adds what it was given."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)  # type: ignore[no-any-return]


class Backwards(nn.Sequential):
    """A Sequential that is none."""

    def forward(self, x: Tensor) -> Tensor:
        for module in reversed(self):
            x = module(x)
        return x


class MyReLU(nn.ReLU):
    """A known activation under another name."""


class Doubled(nn.ReLU):
    """An activation that computes more than its base."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Squares(nn.Module):
    """An activation of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x**2


# --- Sequentials, against a run --------------------------------------------------------------------------------------

FOLLOWERS: dict[type[nn.Module], str | None] = {
    nn.Linear: "linear", nn.ReLU: "relu", MyReLU: "relu", nn.Tanh: "tanh", nn.LayerNorm: "norm", Squares: None,
    Doubled: None,
}  # fmt: skip
SEEN_THROUGH = (nn.Dropout, nn.Identity, nn.Flatten)

LEAVES: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Linear(4, 4), nn.ReLU, MyReLU, Doubled, Squares, nn.Tanh, nn.Dropout, nn.Identity, nn.Flatten,
    lambda: nn.LayerNorm(4),
)  # fmt: skip


def trees() -> st.SearchStrategy[nn.Module]:
    leaves = st.sampled_from(LEAVES).map(lambda make: make())

    def containers(inner: st.SearchStrategy[nn.Module]) -> st.SearchStrategy[nn.Module]:
        several = st.lists(inner, max_size=4)
        plain = several.map(lambda modules: nn.Sequential(*modules))
        return plain | several.map(lambda modules: Backwards(*modules)) | inner.map(Residual)

    return st.recursive(leaves, containers, max_leaves=12)


class Log:
    """The modules of a model in the order in which a run calls them; None where one does something of its own."""

    def __init__(self, model: nn.Module) -> None:
        self.events: list[nn.Module | None] = []
        for module in model.modules():
            if isinstance(module, (Residual, Backwards)):
                for wall in (module, *module.children()):  # not even the order of the children shows
                    wall.register_forward_pre_hook(lambda *_: self.events.append(None))
                    wall.register_forward_hook(lambda *_: self.events.append(None))
            if not isinstance(module, (*SEEN_THROUGH, Residual, nn.Sequential)):
                module.register_forward_pre_hook(lambda module, _: self.events.append(module))


@given(st.lists(trees(), max_size=5))
def test_sequentials_as_a_run_sees_them(modules: list[nn.Module]) -> None:
    model = nn.Sequential(*modules)
    log = Log(model)
    model(torch.zeros(1, 4))
    expected = {}
    names = {module: name for name, module in model.named_modules()}
    for module, after in pairwise([*log.events, nn.Linear(1, 1)]):
        if isinstance(module, nn.Linear):
            expected[names[module]] = FOLLOWERS[type(after)] if after is not None else None
    assert follows(model) == expected


# --- Sequentials, by hand --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (nn.LeakyReLU(0.2), "leaky_relu(0.2)"),
        (nn.LeakyReLU(0), "leaky_relu(0.0)"),
        (nn.PReLU(8, init=0.1), "prelu(0.1)"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(), "hardtanh"),
        (nn.Hardtanh(-2, 2), None),
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (nn.Mish(), "mish"),
        (nn.SELU(), "selu"),
        (nn.ELU(), "elu"),
        (nn.ELU(0.5), None),
        (nn.CELU(), "elu"),
        (nn.Hardswish(), "hardswish"),
        (nn.Tanh(), "tanh"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Softplus(), "softplus"),
        (nn.Softplus(beta=2), None),
        (nn.Softsign(), "softsign"),
        (nn.LogSoftmax(-1), "linear"),
        (nn.GLU(), None),
        (nn.BatchNorm1d(8), "norm"),
        (nn.GroupNorm(2, 8), "norm"),
        (nn.RMSNorm(8), "norm"),
        (nn.LSTM(8, 8), "linear"),
        (nn.Bilinear(8, 8, 8), "linear"),
        (nn.Sequential(), "linear"),
        (nn.ModuleList([nn.ReLU()]), None),
    ],
    ids=str,
)
def test_what_may_follow(module: nn.Module, name: str | None) -> None:
    for model in (nn.Sequential(nn.Linear(8, 8), module), nn.Sequential(nn.Sequential(nn.Linear(8, 8)), module)):
        assert next(iter(follows(model).values())) == name


@pytest.mark.parametrize(
    "between",
    [
        nn.Dropout2d(), nn.AlphaDropout(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.LPPool2d(2, 2),
        nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.Upsample(scale_factor=2), nn.PixelShuffle(2), nn.Flatten(),
        nn.Sequential(nn.Identity(), nn.Sequential()),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_seen_through(between: nn.Module) -> None:
    assert follows(nn.Sequential(nn.Conv2d(3, 4, 3), between, nn.Tanh())) == {"0": "tanh"}


@pytest.mark.parametrize(
    ("function", "name"), [(F.relu, "relu"), (F.gelu, "gelu"), (torch.tanh, "tanh"), (torch.cos, None), (len, None)]
)
def test_functions(function: object, name: str | None) -> None:
    assert activation_of(function) == name


def test_a_function_that_runs_in_place_of_a_modules_own_is_not_known() -> None:
    relu = nn.ReLU()
    relu.forward = torch.cos  # type: ignore[method-assign]
    assert follows(nn.Sequential(nn.Linear(2, 2), relu)) == {"0": None}


def test_a_layer_that_does_more_than_its_base_is_not_known() -> None:
    class Rectified(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    assert follows(nn.Sequential(nn.Linear(2, 2), Rectified(2, 2), nn.Tanh())) == {"0": None, "1": None}


def test_one_activation_in_many_places() -> None:
    act = nn.GELU()
    model = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), nn.Dropout(), act, nn.Linear(2, 2))
    assert follows(model) == {"0": "gelu", "2": "gelu", "5": "linear"}


def test_one_tensor_has_one_gain() -> None:
    layer = nn.Linear(2, 2)
    assert follows(nn.Sequential(layer, nn.ReLU(), nn.Linear(2, 2), layer)) == {"0": None, "2": "linear"}
    assert follows(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU())) == {"0": "relu"}
    model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 5, bias=False))
    model[1].weight = model[0].weight
    assert follows(model)["0"] == "linear"  # a look-up has no gain, and no say


def test_lazy_layers() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
    assert {site.activation for site in sites(model)} == {None}  # they have no weight yet
    with torch.no_grad():
        model(torch.zeros(2, 4))
    assert follows(model) == {"0": "relu", "3": "linear"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.Sequential,
    ],
)
def test_what_is_wrapped_inside(wrap: Any) -> None:
    model = nn.Sequential(wrap(nn.Linear(2, 2)), nn.Tanh())
    assert [site.activation for site in sites(model) if site.leaf == "weight"] == ["tanh"]


def test_a_model_that_is_cut_among_ranks_or_checkpointed_is_the_same() -> None:
    def make() -> Any:
        mlp = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.ReLU())
        return nn.Sequential(mlp, nn.TransformerEncoderLayer(4, 2, 8), nn.Linear(4, 2))

    plain = follows(make())
    with fake_rank(0, 2):
        model = make()
        for part in (model[0][0], model[0], model[1], model):
            fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
        assert follows(model) == plain
    model = make()
    model[0][0], model[1] = checkpoint_wrapper(model[0][0]), checkpoint_wrapper(model[1])
    assert follows(model) == plain


def test_what_is_called_module_is_wrapped_around_a_model_alone() -> None:
    """Inside, it is as likely the branch of a residual block."""
    block = Block(module=nn.Linear(2, 2))
    assert follows(block) == {"": "linear"}
    assert follows(nn.Sequential(block, nn.ReLU())) == {"0": None}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_of_other_kinds_are_unknown() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert follows(torch.jit.script(model)) == {"0": None}
    assert follows(torch.fx.symbolic_trace(model)) == {"0": None}
    assert follows(nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])) == {"0": None}


def test_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2))
    before, state = copy.deepcopy(vars(model[2])), torch.get_rng_state()
    sites(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert vars(model[2]).keys() == before.keys()


# --- blocks ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Modules by name; how it calls them is nobody's business."""

    def __init__(self, **modules: Any) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


def lin(into: int = 4, out: int = 4) -> nn.Linear:
    return nn.Linear(into, out)


def inner() -> nn.ModuleList:
    return nn.ModuleList([lin()])


def test_torchs_transformer_layers() -> None:
    for activation, name in (("relu", "relu"), ("gelu", "gelu"), (nn.LeakyReLU(0.1), "leaky_relu(0.1)")):
        layer = nn.TransformerDecoderLayer(8, 2, 16, activation=activation)
        found = follows(layer)
        assert (found.pop("linear1"), found.pop("linear2")) == (name, "linear")
        assert set(found) == {
            f"{attn}{leaf}" for attn in ("self_attn.", "multihead_attn.") for leaf in ("in_proj_", "out_proj")
        }
        assert set(found.values()) == {"linear"}
    assert follows(nn.TransformerEncoderLayer(8, 2, 16, activation=torch.cos))["linear1"] is None


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (Block(fc1=lin(4, 8), act=nn.GELU(), fc2=lin(8, 4)), {"fc1": "gelu", "fc2": "linear"}),
        (Block(fc1=lin(4, 16), act=nn.SiLU(), fc2=lin(8, 4)), {"fc1": "silu", "fc2": "linear"}),  # a fused pair
        (Block(up_proj=lin(4, 8), down_proj=lin(8, 4), act_fn=F.relu), {"up_proj": "relu", "down_proj": "linear"}),
        (
            Block(gate_proj=lin(4, 8), up_proj=lin(4, 8), down_proj=lin(8, 4), act_fn=nn.SiLU()),
            {"gate_proj": "silu", "up_proj": "linear", "down_proj": "linear"},
        ),
        (Block(dense=lin(), intermediate_act_fn=nn.GELU()), {"dense": "gelu"}),
        (Block(q=lin(), k=lin(), v=lin(), o=lin()), dict.fromkeys("qkvo", "linear")),
        (Block(qkv=lin(4, 12), softmax=nn.Softmax(-1), proj=lin()), {"qkv": "linear", "proj": "linear"}),
        (
            Block(conv_reduce=nn.Conv2d(8, 2, 1), act1=nn.ReLU(), conv_expand=nn.Conv2d(2, 8, 1), gate=nn.Sigmoid()),
            {"conv_reduce": "relu", "conv_expand": "sigmoid"},
        ),
        # Another layer besides or in between, other sizes, no activation, two of them, or one that nobody knows.
        (Block(fc1=lin(), act=nn.GELU(), fc2=lin(), fc3=lin()), {"fc1": None, "fc2": None, "fc3": None}),
        (Block(fc1=lin(4, 1), act=nn.ReLU(), fc2=lin(4, 1)), {"fc1": None, "fc2": None}),
        (Block(fc1=lin(), fc2=lin()), {"fc1": None, "fc2": None}),
        (Block(mix=inner(), fc1=lin(), act=nn.GELU(), fc2=lin()), {"mix.0": None, "fc1": "gelu", "fc2": "linear"}),
        (Block(fc1=lin(), mix=inner(), act=nn.GELU(), fc2=lin()), {"fc1": None, "mix.0": None, "fc2": None}),
        (Block(fc1=lin(), norm=nn.LayerNorm(4), act=nn.GELU(), fc2=lin()), {"fc1": None, "fc2": "linear"}),
        (Block(act=nn.GELU(), fc1=lin(), fc2=lin(), norm=nn.LayerNorm(4)), {"fc1": "gelu", "fc2": "linear"}),
        (Block(fc1=lin(), act1=nn.ReLU(), fc2=lin(), act2=nn.ReLU()), {"fc1": "relu", "fc2": None}),
        (Block(fc1=lin(), one=nn.ReLU(), fc2=lin(), other=nn.Tanh()), {"fc1": None, "fc2": None}),
        (Block(fc1=lin(), act=Squares(), fc2=lin()), {"fc1": None, "fc2": None}),
        (Block(q=lin(), k=lin(), v=lin(), o=lin(), feature=nn.ELU()), dict.fromkeys("qkvo")),
        (Block(conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU()), {"conv": None}),
    ],
    ids=lambda value: "" if isinstance(value, dict) else " ".join(value._modules),
)  # fmt: skip
def test_blocks_by_their_layers(block: nn.Module, expected: dict[str, str | None]) -> None:
    assert follows(block) == expected
    inside = follows(nn.Sequential(block, nn.Dropout(), lin()))
    assert {name.removeprefix("0."): found for name, found in inside.items() if name != "2"} == expected


def test_an_activation_after_a_block_may_or_may_not_follow_its_last_layer() -> None:
    block = Block(fc1=lin(4, 8), act=nn.GELU(), fc2=lin(8, 4))
    assert follows(nn.Sequential(block, nn.ReLU())) == {"0.fc1": "gelu", "0.fc2": None}


def test_a_residual_block_of_convolutions() -> None:
    def conv() -> nn.Conv2d:
        return nn.Conv2d(4, 4, 3)

    block = Block(conv1=conv(), bn1=nn.BatchNorm2d(4), relu=nn.ReLU(), conv2=conv(), bn2=nn.BatchNorm2d(4))
    assert follows(block) == {"conv1": "norm", "conv2": "norm"}
    for norm in (nn.GroupNorm(2, 4), nn.LayerNorm((4, 8, 8)), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4)):
        assert follows(Block(conv=conv(), norm=norm)) == {"conv": "norm"}
    assert follows(Block(norm=nn.BatchNorm2d(4), conv=conv())) == {"conv": None}
    by_kind = Block(conv1=conv(), conv2=conv(), norm1=nn.BatchNorm2d(4), norm2=nn.BatchNorm2d(4))
    assert follows(by_kind) == {"conv1": None, "conv2": None}  # which norm follows which does not show
    assert follows(Block(conv=conv(), norm=nn.BatchNorm2d(8))) == {"conv": None}
    assert follows(Block(conv=conv(), dropout=nn.Dropout(), norm=nn.BatchNorm2d(4))) == {"conv": None}
    assert follows(Block(fc=lin(), norm=nn.BatchNorm1d(4))) == {"fc": "norm"}
    assert follows(Block(fc=lin(), norm=nn.LayerNorm(4))) == {
        "fc": None
    }  # as after the attention of BERT: a sum between


def test_norms_by_name() -> None:
    class LayerNorm2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    class NormedLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(4, 4))

    class FrozenBatchNorm2d(LayerNorm2d):
        pass

    found = {
        norm: follows(nn.Sequential(nn.Conv2d(3, 4, 1), norm()))
        for norm in (LayerNorm2d, NormedLinear, FrozenBatchNorm2d)
    }
    assert [each["0"] for each in found.values()] == ["norm", None, None]


# --- as data ---------------------------------------------------------------------------------------------------------


def test_the_fact_goes_to_json_and_an_older_plan_is_read() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 4))
    made = torchinit.plan(model, "general")
    again = Plan.from_json(made.to_json())
    assert again == made
    assert again["0.weight"].site.activation == "leaky_relu(0.2)"
    data = json.loads(made.to_json())
    del data["reach"]
    for step in data["steps"]:
        del step["site"]["activation"], step["site"]["frozen"], step["rule"]["scheme"]
    older = Plan.from_json(json.dumps(data))
    assert older["0.weight"].site.activation is None
    assert older["0.weight"].fill == made["0.weight"].fill


def test_sites_are_told_once_and_again() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    assert with_activations(model, sites(model)) == sites(model)
    other = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert with_activations(other, sites(model))[0].activation == "relu"


def test_a_site_by_itself_is_unknown() -> None:
    assert Site("w", (4, 4)).activation is None
