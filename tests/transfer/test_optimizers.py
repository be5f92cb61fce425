"""Optimizers: groups as Megatron-style code and torchtitan take them; each way to leave a transfer is a finding."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import torchinit
from tests.transfer.nets import Decoder, mlp
from torchinit import ConfigError
from torchinit.transfer import TRANSFER_CHECKS, Transfer


def test_megatron() -> None:
    transfer = Transfer(Decoder(64), Decoder(16))
    megatron = transfer.megatron(lr=0.01, min_lr=0.001, weight_decay=0.1, no_decay=["**.bias"])
    assert megatron.lr_mult == 0.25
    names = [name for name, _ in Decoder(64).named_parameters()]
    scaled = [name for name in names if megatron.scale_lr_cond(f"module.{name}")]
    assert scaled == [name for name in names if "layers" in name and name.endswith("weight") and "norm" not in name]
    assert [name for name in names if megatron.no_weight_decay_cond(name)] == [each for each in names if "bias" in each]
    override = next(each for each in megatron.overrides if "layers.0.self_attn.q_proj.weight" in each["name"])
    assert {key: value for key, value in override.items() if key != "name"} == {
        "max_lr": 0.0025, "min_lr": 0.00025, "wd_mult": 4.0, "eps": 2.5e-9,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="the transfer has no group with 'head'"):
        megatron.scale_lr_cond("head")
    deep = Transfer(Decoder(64, 4), Decoder(16, 2), parametrization="depth_mup").megatron(lr=0.01)
    with pytest.raises(ConfigError, match=r"one lr_mult cannot stand for the factors .* take overrides"):
        deep.lr_mult  # noqa: B018
    assert Transfer(mlp(16)).megatron(lr=0.01).lr_mult == 1


def test_an_init_method_draws_as_the_recipe_does() -> None:
    start = {"rules": [{"type": "Normal", "std": 0.2, "name": "*.weight"}, {"type": "Zeros", "name": "*.bias"}]}
    transfer = Transfer(mlp(64), mlp(16), start=start)
    drawn = transfer.init_method("2.weight")(torch.empty(200, 200))
    assert float(drawn.std()) == pytest.approx(0.1, rel=5 / 200)
    assert float(transfer.init_method("4.weight")(torch.empty(200, 200)).std()) == pytest.approx(0.2, rel=5 / 200)
    for glob in ("*.weight", "2.bias", "none"):
        with pytest.raises(ConfigError, match=f"an init_method is one normal distribution, but '{re.escape(glob)}' is"):
            transfer.init_method(glob)


def test_torchtitans_patterns_fit_each_parameter_once() -> None:
    groups = Transfer(Decoder(64), Decoder(16)).torchtitan(lr=0.01, weight_decay=0.1)
    for name, _ in Decoder(64).named_parameters():
        (group,) = (each for each in groups if re.search(each["pattern"], name))
        assert group["optimizer_name"] == "AdamW" and group["optimizer_kwargs"].keys() == {"lr", "weight_decay", "eps"}


def started(**options: Any) -> tuple[Any, Transfer, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model, base = Decoder(64), Decoder(16)
    transfer = Transfer(model, base, **options)
    torchinit.initialize(model, transfer.recipe, seed=0)
    transfer.apply()
    return model, transfer, torch.optim.AdamW(transfer.param_groups(lr=0.01, weight_decay=0.1))


def test_what_follows_the_table_has_no_findings_and_a_schedule_keeps_it() -> None:
    model, transfer, optimizer = started()
    assert not len(transfer.lint(model, optimizer))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert not len(transfer.lint(model, optimizer))  # all rates are zero at the first step
    optimizer.step()
    schedule.step()
    assert not len(transfer.lint(model, optimizer))
    assert dict(transfer.lint().skipped) == {"TI003": "an optimizer", "TI004": "an optimizer"}
    assert not len(Transfer(Decoder(64, tied=True), Decoder(16, tied=True), parametrization="standard").lint())


def untied(model: Any, transfer: Transfer, optimizer: Any) -> None:
    model.embed_tokens.weight = model.lm_head.weight


def cosine(model: Any, transfer: Transfer, optimizer: Any) -> None:
    """A schedule with one floor for all, after its last step."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2, eta_min=1e-3)
    for _ in range(2):
        optimizer.step()
        schedule.step()


def reloaded(model: Any, transfer: Transfer, optimizer: Any) -> None:
    for module in model.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()


def one_rate(model: Any, transfer: Transfer, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.01


def one_eps(model: Any, transfer: Transfer, optimizer: Any) -> None:
    optimizer.param_groups[-1]["eps"] = 1e-8


def default_eps(model: Any, transfer: Transfer, optimizer: Any) -> None:
    """One eps, torch's, where all factors are alike."""
    optimizer.param_groups = [group for group in optimizer.param_groups if group["eps"] < 1e-8]
    for group in optimizer.param_groups:
        group["eps"] = 1e-8


def one_decay(model: Any, transfer: Transfer, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1


def torchs_biases(model: Any, transfer: Transfer, optimizer: Any) -> None:
    model.layers[0].mlp.up_proj.reset_parameters()


def forgotten(model: Any, transfer: Transfer, optimizer: Any) -> None:
    optimizer.param_groups.pop()


CASES = [
    (reloaded, "TI001", {"lm_head", "layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"}, "is not multiplied by"),
    (torchs_biases, "TI002", {"layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.bias"}, "in the transfer"),
    (one_rate, "TI003", None, "4 times 0.0025 of the table"),
    (cosine, "TI003", None, "4 times 0.00025 of the table"),
    (forgotten, "TI003", None, "no group of the optimizer has it, and it learns"),
    (one_eps, "TI004", None, "its eps is 1e-08"),
    (default_eps, "TI004", None, "its eps is 1e-08, 4 times 2.5e-09 of the table"),
    (one_decay, "TI004", None, "its weight_decay is 0.1"),
    (untied, "TI005", {"lm_head.weight"}, "it is 'embed_tokens.weight' as well, and in the transfer it is not"),
]


@pytest.mark.parametrize(("change", "code", "names", "text"), CASES, ids=lambda each: getattr(each, "__name__", None))
def test_each_way_to_leave_it(change: Any, code: str, names: set[str] | None, text: str) -> None:
    model, transfer, optimizer = started()
    change(model, transfer, optimizer)
    found = [each for each in transfer.lint(model, optimizer) if each.code == code]
    assert found and all(each.severity == TRANSFER_CHECKS[code].severity for each in found)
    assert names is None or {each.site for each in found} == names
    assert any(text in each.message for each in found), [*map(str, found)]


@pytest.mark.parametrize("eps", [4e-8, 1e-6, 1e-8])
@pytest.mark.parametrize("bias", [True, False])
def test_the_eps_of_the_base_is_anyone_s(eps: float, bias: bool) -> None:
    """Scaled by the table it may be torch's default, too; one that nobody has scaled is found where factors differ."""

    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4, bias=bias))

    model = net(256)
    transfer = Transfer(model, net(64))
    optimizer = torch.optim.AdamW(transfer.param_groups(lr=1e-3, eps=eps))
    with transfer.apply():
        assert not [each for each in transfer.lint(model, optimizer) if each.code == "TI004"]
        plain = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=eps)
        found = [each.site for each in transfer.lint(model, plain) if each.code == "TI004"]
    assert found == (["0.weight", "0.bias", "2.weight"] if bias or eps == 1e-8 else [])


def test_every_check_has_a_case() -> None:
    assert {code for _, code, *_ in CASES} == set(TRANSFER_CHECKS)


def test_a_load_that_unties() -> None:
    model = Decoder(64, tied=True)
    transfer = Transfer(model, Decoder(16, tied=True))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with transfer.apply():
        assert "as one, and the model has not" in str(transfer.lint()[0])
    with pytest.raises(
        ConfigError, match=r"the model has no parameter 'embed_tokens.weight', which the transfer is for"
    ):
        transfer.lint(mlp(8))
