"""TI5 and TI6: dtypes, devices, ties, parametrizations, and tensors that nobody registered."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations

import torchinit
from tests.linting.models import Net, Rotary, apply, found, only, traced
from torchinit import Layer, Leaf, Normal, Rule, lint
from torchinit.linting import ConstructionRecorder
from torchinit.tracing import Trace


def test_std_where_float16_has_few_digits() -> None:
    model = Net()
    nn.init.normal_(model.head.weight, std=2e-5)
    found = only(lint(model.half()), "TI501")
    assert found.site == "head.weight"


def test_bias_of_another_dtype() -> None:
    model = Net().to(torch.bfloat16)
    model.blocks[0].get_submodule("1").bias = nn.Parameter(torch.zeros(64))
    found = only(lint(model), "TI503")
    assert (found.site, found.message) == ("blocks.0.1", "weight bfloat16 but bias float32")


def test_float16_that_overflows_when_squared() -> None:
    model = nn.Linear(4, 4).half()
    with torch.no_grad():
        model.weight[0, 0] = 300
    assert found(model, "TI502") == [("warning", "weight", "holds 300, and float16 ends at 65504")]
    assert found(model.to(torch.bfloat16), "TI502") == []


def test_a_module_on_two_devices() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with FakeTensorMode():  # a device that need not be there
        model[0].bias = nn.Parameter(torch.empty(4, device="cuda"))
    assert found(model, "TI504") == [("error", "0", "weight cpu but bias cuda:0")]


def test_state_spaces_and_scales_may_have_dtypes_of_their_own() -> None:
    model = nn.Linear(4, 4).to(torch.bfloat16)
    model.register_parameter("A_log", nn.Parameter(torch.zeros(4)))
    model.weight = nn.Parameter(model.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert found(model, "TI503") == []


class Frequencies(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        made = 10000.0 ** -(torch.arange(0, width, 2) / width)
        self.register_buffer("turns", made, persistent=False)
        self.register_buffer("short", made.half(), persistent=False)
        self.register_buffer("kept", made.clone())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_that_a_conversion_rounded(dtype: torch.dtype) -> None:
    model = nn.ModuleDict({"own": Frequencies(), "named": Rotary(), "fc": nn.Linear(4, 4)})
    assert found(model, "TI505") == []
    name = str(dtype).removeprefix("torch.")
    names = f"own.turns ({name} for float32), named.inv_freq ({name} for float32)"
    text = f"fewer digits than made in 2 buffers: {names}"
    assert found(copy.deepcopy(model).to(dtype), "TI505") == [("note", "", text)]
    assert found(model.double(), "TI505") == []
    with torch.device("meta"):
        sketch = nn.ModuleDict({"named": Rotary()}).to(torch.bfloat16)
    assert [severity for severity, *_ in found(sketch, "TI505")] == ["note"]


def test_what_is_made_in_half_precision_is_not_rounded() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("turns", torch.ones(4, dtype=torch.bfloat16), persistent=False)

    assert found(Half(), "TI505") == []


def test_weight_norm_untouched_by_init() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = torch.nn.utils.weight_norm(nn.Linear(8, 8))
    nn.init.zeros_(layer.weight.data)
    assert only(lint(layer), "TI603").site == "weight"


def test_tie_broken_by_to_empty() -> None:
    def make() -> Net:
        model = Net()
        model.head.weight = model.embed.weight
        return model

    with torch.device("meta"):
        model = make()
    plan = torchinit.plan(model, Rule(Leaf("weight") & Layer("Embedding"), Normal(std=0.02)))
    model.to_empty(device="cpu")
    model.load_state_dict(make().state_dict())
    found = [one for one in lint(model, recipe=plan, ignore=["TI106", "TI704"]) if one.code == "TI601"]
    assert [one.message for one in found] == ["should be one tensor with head.weight, and is not"]


def test_tie_broken_by_deepcopy() -> None:
    model = Net()
    model.embed = nn.Embedding(50, 32)
    model.head.weight = model.embed.weight
    model.head = copy.deepcopy(model.head)
    found = only(lint(model), "TI602")
    assert found.message == "holds the same values as head.weight, in memory of its own"


class Declared(nn.Module):
    """What a transformers model tells of its ties, in the way of version 5 or of those before."""

    def __init__(self, keys: object, tie: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20)
        self.config = SimpleNamespace(tie_word_embeddings=tie)
        self._tied_weights_keys = keys

    def get_input_embeddings(self) -> nn.Module:
        return self.embed


@pytest.mark.parametrize(
    ("keys", "site", "other"),
    [
        ({"head.weight": "embed.weight"}, "head.weight", "embed.weight"),
        (["head.weight", "head.bias"], "head.weight", "embed.weight"),
    ],
)
def test_ties_that_are_declared(keys: object, site: str, other: str) -> None:
    model = Declared(keys)
    text = f"should be one tensor with {other}, and is not"
    assert found(model, "TI601") == [("error", site, text)]
    assert found(nn.Sequential(model), "TI601") == [
        ("error", f"0.{site}", text.replace(other, f"0.{other}"))
    ]  # fmt: skip
    model.head.weight = model.embed.weight
    assert found(model, "TI601") == []
    assert found(Declared(keys, tie=False), "TI601") == []
    assert found(Declared({"gone.weight": "embed.weight"}), "TI601") == []


def test_weight_norm_that_was_not_touched() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = torch.nn.utils.weight_norm(nn.Linear(8, 8))
    assert found(layer, "TI603") == []


pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


def lost(model: nn.Module, write: Callable[[Any], object] = lambda _: None, **known: Any) -> list[str]:
    write(model)
    return [one.severity for one in lint(model, select=["TI603"], **known)]


def test_what_spectral_norm_computes_anew() -> None:
    fresh = torch.nn.utils.spectral_norm(nn.Linear(8, 8))
    assert lost(fresh, lambda one: nn.init.normal_(one.weight)) == []  # it is still the memory of weight_orig
    x = torch.randn(2, 8)
    for write, severity in (
        (lambda one: nn.init.normal_(one.weight), "error"),
        (lambda one: nn.init.zeros_(one.weight), "error"),
        (lambda one: one.weight.data.normal_(), "warning"),
    ):
        layer = torch.nn.utils.spectral_norm(nn.Linear(8, 8))
        layer(x)
        assert lost(layer) == []
        assert lost(layer, write) == [severity]
        layer(x)  # which computes it
        assert lost(layer) == []


def test_what_weight_norm_computes_anew() -> None:
    layer = torch.nn.utils.weight_norm(nn.Linear(8, 8))
    state = {name: torch.randn_like(value) for name, value in layer.state_dict().items()}
    assert lost(layer, lambda one: one.load_state_dict(state)) == []
    nn.init.normal_(layer.weight)
    assert lost(layer) == ["error"]
    assert lost(layer, loaded=state) == []
    layer(torch.randn(2, 8))  # a length that is not that of the direction any more
    assert lost(layer) == []


def put_eye(layer: nn.Module) -> nn.Module:
    layer.weight = torch.eye(8)
    return layer


PARAMETRIZATIONS: list[Callable[..., nn.Module]] = [
    parametrizations.orthogonal, parametrizations.spectral_norm, parametrizations.weight_norm
]  # fmt: skip


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize(
    ("write", "severities"),
    [
        (lambda one: nn.init.normal_(one.weight), ["warning"]),
        (lambda one: one.weight.data.zero_(), ["warning"]),
        (lambda one: one.weight[0].detach().mul_(9), ["warning"]),
        (put_eye, []),
        (lambda one: one(torch.randn(2, 8)), []),
        (lambda one: (nn.init.zeros_(one.weight), put_eye(one)), []),
        (lambda one: (put_eye(one), nn.init.zeros_(one.weight)), ["warning"]),
    ],
)
def test_a_write_to_what_a_parametrization_computed(
    parametrization: Callable[[nn.Module], nn.Module], write: Callable[[Any], object], severities: list[str]
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), parametrization(nn.Linear(8, 8)))
    with torchinit.trace(model) as seen:
        write(model[1])
    assert lost(model, trace=seen) == severities
    assert [write.site for write in seen.lost] == ["1.weight"] * len(severities)
    assert Trace.from_json(seen.to_json()) == seen
    if severities:
        assert "written in vain: 1.weight" in seen.summary()
        assert "test_ti5_ti6_tensors.py:" in lint(model, trace=seen, select=["TI603"])[0].line


def test_a_write_that_the_parametrization_keeps_is_not_lost() -> None:
    class Identity(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight

    layer = nn.Linear(8, 8)
    nn.utils.parametrize.register_parametrization(layer, "weight", Identity())
    with torchinit.trace(nn.Sequential(layer)) as seen:
        nn.init.normal_(layer.weight)
    assert seen.lost == ()


def test_a_constructor_that_writes_in_vain() -> None:
    recorder = ConstructionRecorder()
    with recorder:
        layer = nn.Linear(8, 8)
        model = nn.Sequential(parametrizations.orthogonal(layer))
        nn.init.normal_(layer.weight)
    assert lost(model, trace=recorder.of(model)) == ["warning"]


def test_tied_weight_drawn_through_both_layers() -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(20, 16), "head": nn.Linear(16, 20, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    def table(module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)

    def alike(module: nn.Module) -> None:
        if isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight)

    found = [one for one in traced(tied(), apply(table)) if one.code == "TI604"]
    assert [one.severity for one in found] == ["warning"]
    assert "and was drawn 2 times: normal_(mean=0, std=1), normal_(mean=0, std=0.02)" in found[0].message
    assert [one.severity for one in traced(tied(), apply(alike)) if one.code == "TI604"] == ["note"]


# --- one in several places --------------------------------------------------------------------------------------------


def pair(share: Callable[[Any], object]) -> nn.Module:
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkv"})
    share(model)
    return model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Sequential(*[nn.Linear(4, 4)] * 4), ("warning", "0", "is one with 1, 2, 3: weight, bias")),
        (lambda: nn.ParameterList([nn.Parameter(torch.randn(4))] * 4), ("warning", "0", "is one with 1, 2, 3")),
        (lambda: pair(lambda m: m.update({"k": m["q"]})), ("note", "q", "is one with k: weight, bias")),
        (lambda: pair(lambda m: setattr(m["k"], "weight", m["q"].weight)), ("note", "q", "is one with k: weight")),
        (lambda: nn.Sequential(*[nn.Linear(4, 4), nn.ReLU()] * 2), ("warning", "0", "is one with 2: weight, bias")),
        (
            lambda: nn.ModuleList([*[nn.Linear(4, 4)] * 2, nn.Linear(4, 4)]),
            ("note", "0", "is one with 1: weight, bias"),
        ),
        (lambda: nn.ModuleList([nn.Embedding(9, 4)] * 3), ("warning", "0", "is one with 1, 2: weight")),
    ],
)
def test_what_is_one_in_several_places(make: Callable[[], nn.Module], expected: tuple[str, ...]) -> None:
    assert found(make(), "TI605") == [expected]


def test_ties_that_are_meant_are_no_findings() -> None:
    model = Declared({"head.weight": "embed.weight"})
    model.head.weight = model.embed.weight
    plain = nn.ModuleDict({"table": nn.Embedding(9, 4), "again": nn.Embedding(9, 4), "head": nn.Linear(4, 9)})
    plain["again"].weight = plain["head"].weight = plain["table"].weight
    norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(3))
    for one in (model, plain, norms, nn.Sequential(*[nn.ReLU()] * 3)):
        assert found(one, "TI605") == []


# --- what is not registered -------------------------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self, **attributes: object) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("attributes", "severity", "site", "message"),
    [
        ({"w": torch.randn(8, 8)}, "warning", "0.w", "a tensor of 8x8 is not registered"),
        ({"w": torch.zeros(3, requires_grad=True)}, "warning", "0.w", "a tensor of 3 is not registered"),
        ({"w": [nn.Parameter(torch.zeros(3))]}, "warning", "0.w[0]", "a tensor of 3 is not registered"),
        ({"mean": torch.tensor([0.5, 0.4])}, "note", "", "plain attributes hold 1 tensor: 0.mean"),
        ({"eye": torch.eye(3).to_sparse(), "w": torch.randn(30, dtype=torch.complex64)}, "note", "",
         "plain attributes hold 2 tensors: 0.eye, 0.w"),
        ({"ids": torch.arange(30), "sketch": torch.empty(30, device="meta")}, "note", "",
         "plain attributes hold 2 tensors: 0.ids, 0.sketch"),
        ({"late": [nn.UninitializedParameter()]}, "warning", "0.late[0]", "a tensor of no shape yet is not registered"),
        ({"layers": [nn.Linear(3, 3)]}, "warning", "0.layers[0]", "Linear with 2 tensors is not registered"),
        ({"heads": {"a": nn.Linear(3, 3)}}, "warning", "0.heads['a']", "Linear with 2 tensors is not registered"),
        ({"deep": {"a": (nn.BatchNorm1d(3),)}}, "warning", "0.deep['a'][0]",
         "BatchNorm1d with 5 tensors is not registered"),
    ],
)  # fmt: skip
def test_what_is_not_registered(attributes: dict[str, object], severity: str, site: str, message: str) -> None:
    assert found(nn.Sequential(Plain(**attributes)), "TI606") == [(severity, site, message)]


def test_what_is_registered_elsewhere_is_no_finding() -> None:
    fc = nn.Linear(4, 4)
    model = Plain(again=[fc], weights=[fc.weight], view=fc.weight.detach()[0], acts=[nn.ReLU(), None, "x", 3])
    model.fc = fc
    hooked: nn.Module = torch.nn.utils.weight_norm(nn.Linear(8, 8))
    modules: list[nn.Module] = [model, hooked]
    modules += [torch.nn.utils.spectral_norm(nn.Linear(8, 8)), nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)]
    modules += [parametrization(nn.Linear(8, 8)) for parametrization in PARAMETRIZATIONS]
    for one in modules:
        assert found(nn.ModuleDict({"inner": one}), "TI606") == []
    hooked(torch.randn(1, 8))
    assert found(hooked, "TI606") == []
