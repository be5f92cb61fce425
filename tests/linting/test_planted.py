"""Planted bugs: twenty and more ways to initialize a model wrongly, each as somebody wrote it, all found."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import torchinit
from torchinit import BaseModule, Constant, Finding, Findings, Kaiming, Layer, Leaf, Name, Normal, Prior, Rule, lint
from torchinit.core.sandbox import poisoned_memory


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The values that torch's own initialization draws are the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def only(findings: Findings, code: str) -> Finding:
    """The one finding of a code, and none of another code that is as severe."""
    found = [finding for finding in findings if finding.code == code]
    assert len(found) == 1, findings.table()
    assert {finding.code for finding in findings.at_least(found[0].severity)} == {code}, findings.table()
    return found[0]


class Rotary(nn.Module):
    """A rotary embedding as transformers keeps it: its frequencies are in no state dict."""

    inv_freq: Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, width, 2) / width), persistent=False)


class Net(nn.Module):
    """A little of everything: a table, blocks, a norm with statistics, a head."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width, padding_idx=0)
        self.rotary = Rotary()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 50, bias=False)


def test_the_model_they_are_planted_in_is_clean() -> None:
    assert tuple(lint(Net())) == ()


def test_buffer_forgotten_after_to_empty() -> None:
    with torch.device("meta"):
        model = Net()
    model.to_empty(device="cpu")
    state = Net().state_dict()
    model.load_state_dict(state)
    with torch.no_grad():
        model.rotary.inv_freq.zero_()  # what fresh memory holds on most systems
    found = only(lint(model), "TI105")
    assert (found.severity, found.site) == ("error", "rotary.inv_freq")
    assert "all are zero" in found.message


def test_buffer_forgotten_in_poisoned_memory() -> None:
    with torch.device("meta"):
        model = Net()
    with poisoned_memory():
        model.to_empty(device="cpu")
    model.load_state_dict(Net().state_dict())
    found = only(lint(model), "TI103")
    assert (found.site, found.message) == ("rotary.inv_freq", "all 8 values are NaN")


def test_statistics_forgotten_after_to_empty() -> None:
    model = Net()
    assert isinstance(model.norm.running_var, Tensor)
    model.norm.running_var.zero_()
    found = only(lint(model), "TI105")
    assert found.site == "norm.running_var"


def test_memory_that_held_something_else() -> None:
    model = Net()
    addresses = torch.arange(32 * 64, dtype=torch.int64) * 64 + 0x7F3A00000000
    model.blocks[1].get_submodule("1").weight.data = addresses.view(torch.float32)[: 64 * 32].reshape(64, 32)
    found = only(lint(model), "TI104")
    assert found.site == "blocks.1.1.weight"
    assert "below 1.18e-38" in found.message


def test_parameter_never_filled() -> None:
    class Prompt(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Parameter(torch.empty(4, 8))
            self.out = nn.Linear(8, 8)

    found = lint(Prompt())
    assert [(one.code, one.site) for one in found if one.code == "TI101"] == [("TI101", "tokens")]


def test_submodule_left_on_meta() -> None:
    model = Net()
    model.head.to("meta")
    found = only(lint(model), "TI102")
    assert found.site == "head.weight"


def test_checkpoint_that_matches_nothing() -> None:
    model = Net()
    state = {f"backbone.{name}": value for name, value in Net().state_dict().items()}
    model.load_state_dict(state, strict=False)
    found = only(lint(model, loaded=state), "TI201")
    assert found.severity == "error"
    assert "none of 19 keys is in the model" in found.message
    assert "without 'backbone' 19 would match" in found.message


def test_checkpoint_with_a_layer_renamed() -> None:
    model = Net()
    state = Net().state_dict()
    state["classifier.weight"] = state.pop("head.weight")
    model.load_state_dict(state, strict=False)
    findings = lint(model, loaded=state)
    assert [(one.code, one.severity) for one in findings] == [("TI201", "warning"), ("TI202", "warning")]
    assert "1 of 19 keys are not in the model: classifier.weight" in findings[0].message
    assert "1 parameter: head.weight" in findings[1].message


def test_init_after_loading() -> None:
    model = Net()
    state = Net().state_dict()
    model.load_state_dict(state)
    nn.init.xavier_uniform_(model.head.weight)
    found = only(lint(model, loaded=state), "TI203")
    assert found.site == "head.weight"
    assert found.message == "1,600 of 1600 values are not those that were loaded"


def test_init_twice_undoes_the_special_case() -> None:
    model = Net()
    rules = [Rule(Layer("Linear") & Leaf("weight"), Kaiming()), Rule(Name("head.weight"), Normal(std=0.001))]
    report = torchinit.initialize(model, rules, seed=0)

    def init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)

    model.apply(init_weights)
    assert {one.site for one in lint(model, report=report) if one.code == "TI706"} == {
        "blocks.0.1.weight", "blocks.0.2.weight", "blocks.1.1.weight", "blocks.1.2.weight", "head.weight"
    }  # fmt: skip


def test_transformer_encoder_clones_its_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    found = only(lint(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)), "TI301")
    assert (found.severity, found.site) == ("error", "layers.0")
    assert "layers.1, layers.2: self_attn.out_proj.weight, self_attn.in_proj_weight, linear1.weight" in found.message


def test_one_seed_for_every_layer() -> None:
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            torch.manual_seed(42)
            module.reset_parameters()
    found = only(lint(model), "TI301")
    assert found.site == "blocks.0"


def test_one_seed_on_every_rank() -> None:
    model = Net()
    shards = []
    for _ in range(4):
        torch.manual_seed(1)
        shards.append(torch.randn(8, 64) * 0.02)
    model.get_parameter("blocks.0.2.weight").data = torch.cat(shards)
    found = only(lint(model), "TI302")
    assert found.message == "the 32 rows are 4 equal blocks of 8"


def test_queries_and_keys_start_equal() -> None:
    attention = nn.MultiheadAttention(16, 4)
    with torch.no_grad():
        weight = attention.get_parameter("in_proj_weight")
        weight.copy_(weight[:16].repeat(3, 1))
    assert only(lint(attention), "TI302").message == "the 48 rows are 3 equal blocks of 16"


def test_ranks_split_along_the_input_axis() -> None:
    model = nn.Sequential(nn.Linear(32, 24))
    with torch.no_grad():
        weight = model.get_parameter("0.weight")
        weight[:, 16:] = weight[:, :16]
    assert only(lint(model), "TI302").message == "the 32 columns are 2 equal blocks of 16"


def test_fill_for_all_weights_reaches_the_norms() -> None:
    model = Net()
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            nn.init.normal_(parameter, std=0.02)
    with torch.no_grad():
        model.embed.weight[0] = 0
    findings = lint(model)
    assert [(one.code, one.site) for one in findings] == [
        ("TI402", site) for site in ("blocks.0.0.weight", "blocks.1.0.weight", "norm.weight")
    ]


def test_constant_in_place_of_randomness() -> None:
    model = Net()
    nn.init.constant_(model.head.weight, 0.01)
    found = only(lint(model), "TI401")
    assert (found.site, found.message) == ("head.weight", "all 1,600 values are 0.01")


def test_std_that_float16_rounds_to_zero() -> None:
    model = Net().half()
    rule = Rule(Name("head.weight"), Normal(std=1e-9))
    torchinit.initialize(model, rule, seed=0)
    found = only(lint(model), "TI401")
    assert (found.severity, found.site) == ("note", "head.weight")


def test_std_where_float16_has_few_digits() -> None:
    model = Net()
    nn.init.normal_(model.head.weight, std=2e-5)
    found = only(lint(model.half()), "TI501")
    assert found.site == "head.weight"


def test_std_that_was_forgotten() -> None:
    model = nn.Sequential(nn.Linear(256, 256))
    nn.init.normal_(model.get_parameter("0.weight"))
    found = only(lint(model), "TI404")
    assert "with 256 inputs makes what passes 16.1 times as large" in found.message


def test_truncated_normal_by_inversion() -> None:
    weight = torch.empty(512, 512)
    uniform = torch.empty_like(weight).uniform_(-1, 1)
    uniform[3, 4] = -1  # what rounding makes of some values in float32
    model = nn.Linear(512, 512)
    model.weight.data = (uniform.erfinv() * math.sqrt(2) * 0.02).clamp(-2, 2)
    found = only(lint(model), "TI403")
    assert "98 standard deviations out" in found.message


def test_padding_row_wiped_out() -> None:
    model = Net()
    nn.init.normal_(model.embed.weight, std=0.02)
    found = only(lint(model), "TI405")
    assert (found.site, found.severity) == ("embed.weight", "warning")


def test_weight_norm_untouched_by_init() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = torch.nn.utils.weight_norm(nn.Linear(8, 8))
    nn.init.zeros_(layer.weight.data)
    assert only(lint(layer), "TI603").site == "weight"


def test_weight_norm_of_today_untouched_by_init() -> None:
    layer = parametrizations.weight_norm(nn.Linear(8, 8))
    rule = Rule(Leaf("weight"), Normal(std=1.0))
    with torch.no_grad():
        nn.init.normal_(layer.weight, std=1.0)  # a temporary
    assert only(lint(layer, recipe=rule), "TI704").site == "weight"


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


def test_prior_lost() -> None:
    model = Net()
    model.head = nn.Linear(32, 50)
    nn.init.zeros_(model.head.bias)
    found = only(lint(model, recipe=Rule(Name("head.bias"), Prior(0.01)), ignore=["TI106"]), "TI704")
    assert (found.site, "mean is 0, planned -4.59512" in found.message) == ("head.bias", True)


def test_nan_in_two_rows() -> None:
    model = Net()
    with torch.no_grad():
        model.embed.weight[7:9] = float("nan")
    assert only(lint(model), "TI103").message == "64 of 1600 values are NaN"


def test_units_that_are_zero() -> None:
    model = Net()
    with torch.no_grad():
        model.head.weight[[3, 9]] = 0
    assert only(lint(model), "TI303").message == "2 of 50 units are zero throughout: 3, 9"


def test_transposed_convolution_by_torch_s_fan() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(16, 32, 3))
    rules = [Rule(Layer("ConvTranspose2d") & Leaf("weight"), Kaiming(mode="fan_in")), Rule(Leaf("bias"), Constant(0))]
    torchinit.initialize(model, rules, seed=0)
    found = only(lint(model, recipe=rules), "TI703")
    assert found.message == "fans by torch's count 288 in, 144 out; true 144 in, 288 out; used: torch"


def test_rule_misspelt() -> None:
    found = only(lint(Net(), recipe=Rule(Layer("Liner"), Normal())), "TI701")
    assert "did you mean 'Linear'" in found.message


def test_general_rule_after_the_special_one() -> None:
    model = Net()
    rules = [Rule(Name("head.weight"), Constant(0)), Rule(Layer("Linear") & Leaf("weight"), Normal(std=0.02))]
    torchinit.initialize(model, rules, seed=0)
    found = only(lint(model, recipe=rules), "TI702")
    assert "rules[0]" in found.message
    assert "matches 1 site, and all go to rules[1]" in found.message


def test_bias_of_another_dtype() -> None:
    model = Net().to(torch.bfloat16)
    model.blocks[0].get_submodule("1").bias = nn.Parameter(torch.zeros(64))
    found = only(lint(model), "TI503")
    assert (found.site, found.message) == ("blocks.0.1", "weight bfloat16 but bias float32")
