"""Hooks: what a module does to a checkpoint while it is loaded is done as torch does it, and told where it is not."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.utils.parametrizations import weight_norm

from tests.checkpoints.hooked import Node, cases, loaded
from tests.ranks import fake_rank
from torchinit import CheckpointError, Name, Normal, Pretrained, Rule, initialize
from torchinit.initializers import LoadReport
from torchinit.mmengine import BaseModule, load_checkpoint, load_state_dict
from torchinit.model.traversal import walk_modules


def by_torch(module: nn.Module, state: Any) -> Any:
    return module.load_state_dict(state, strict=False)


def texts_of(error: RuntimeError) -> list[str]:
    return [line for line in str(error).split("\n\t") if line.startswith(("size mismatch", "While"))]


@given(cases())
def test_any_hooks_do_what_they_do_in_torch(case: tuple[Node, OrderedDict[str, Tensor]]) -> None:
    node, state = case
    values, seen, result = loaded(node, state, by_torch)
    our_values, our_seen, ours = loaded(node, state, load_state_dict)
    assert our_seen == seen
    assert isinstance(ours, LoadReport)
    for name, tensor in values.items():
        assert torch.equal(our_values[name], tensor), name
    if isinstance(result, RuntimeError):
        wrong = [f"size mismatch for {site.site}: {site.why}" for site in ours.mismatched]
        assert wrong == texts_of(result)
    else:
        counters = [key for key in result.missing_keys if "num_batches_tracked" in key]
        assert [*ours.missing, *counters] == sorted(result.missing_keys, key=lambda key: key in counters)
        assert [*ours.unexpected] == result.unexpected_keys
    changed = {name for name, tensor in our_values.items() if bool((tensor > 0.25).any())}
    assert {*ours.loaded} <= changed | {name for name in values if name.startswith("norm") or ".norm" in name}


class Old(BaseModule):
    """A module whose checkpoints called its layer something else, by each of the ways there are to say so."""

    def __init__(self, how: str = "override", init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.new = nn.Linear(3, 3)
        if how != "override":
            register = getattr(self, how)
            register(lambda *args: self.rename(*args[-7:-5]))
        self.how = how

    @staticmethod
    def rename(state: dict[str, Tensor], prefix: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{prefix}old.{leaf}" in state:
                state[f"{prefix}new.{leaf}"] = state.pop(f"{prefix}old.{leaf}")

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        if self.how == "override":
            self.rename(state, prefix)
        super()._load_from_state_dict(state, prefix, *rest)


WAYS = ["override", "_register_load_state_dict_pre_hook", "register_load_state_dict_pre_hook"]


def old(prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}old.weight": torch.full((3, 3), 7.0), f"{prefix}old.bias": torch.ones(3)}


@pytest.mark.parametrize("way", WAYS)
def test_an_init_cfg_runs_the_hooks_of_its_module(way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(old(), path := tmp_path / "old.pth")
    module = Old(way, {"type": "Pretrained", "checkpoint": str(path)})
    report: Any = module.init_weights()
    assert module.new.weight.unique().tolist() == [7.0]
    assert report.loads[0].loaded == ("new.weight", "new.bias")
    assert report["new.weight"].rule == f"PretrainedInit: load from {path}"
    assert not [text for text in caplog.messages if "missing" in text or "match" in text]


@pytest.mark.parametrize("way", WAYS)
def test_two_levels_deep_with_others_beside(way: str, tmp_path: Path) -> None:
    net = nn.ModuleDict({"body": nn.ModuleDict({"block": Old(way)}), "head": nn.Linear(3, 2)})
    state = {**old("body.block."), **{f"head.{key}": value for key, value in nn.Linear(3, 2).state_dict().items()}}
    torch.save({"state_dict": state}, path := tmp_path / "old.pth")
    load_checkpoint(net, str(path), strict=True)
    assert net.state_dict()["body.block.new.bias"].tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(net.state_dict()["head.weight"], state["head.weight"])


def test_what_a_hook_has_made_is_what_the_account_tells_of(caplog: pytest.LogCaptureFixture) -> None:
    state = {key: value.half() * float("nan") for key, value in old().items()}
    account = load_state_dict(Old(), state)
    assert [(cast.site, str(cast)) for cast in account.casts] == [
        ("new.weight", "float16 -> float32"),
        ("new.bias", "float16 -> float32"),
    ]
    assert "state_dict: NaN or infinity in new.weight, new.bias" in caplog.messages


class Versioned(nn.Module):
    """Has changed what its weight means."""

    _version = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.told: Any = None

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        self.told = metadata.get("version"), metadata.get("extra")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_each_module_is_told_the_metadata_that_were_saved_with_it(tmp_path: Path) -> None:
    net: Any = nn.Sequential(nn.Sequential(Versioned()), Versioned())
    state = net.state_dict()
    state._metadata["0.0"]["extra"] = "kept"
    torch.save(state, path := tmp_path / "a.pth")
    load_checkpoint(net, str(path))
    inner = net[0]
    assert (inner[0].told, net[1].told) == ((3, "kept"), (3, None))
    load_checkpoint(net, str(path), revise_keys=[("^0[.]", "0.")])  # which makes another dict of it
    assert inner[0].told == (3, "kept")
    load_state_dict(net, dict(state))
    assert inner[0].told == (None, None)


@pytest.mark.parametrize("odd", [[1], {"": 1, "1": None}, 7])
def test_metadata_of_a_stranger_may_be_anything(odd: Any) -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    state: Any = net.state_dict()
    state._metadata = odd
    assert load_state_dict(net, state).complete


def test_a_hook_after_loading_must_not_return_anything() -> None:
    net = nn.Linear(1, 1)
    net.register_load_state_dict_post_hook(lambda *_: 1)
    with pytest.raises(AssertionError, match="`register_load_state_dict_post_hook` must not return anything"):
        load_state_dict(net, net.state_dict())


def test_what_a_hook_forgives_was_not_loaded() -> None:
    net = nn.Linear(2, 2)
    net.register_load_state_dict_post_hook(lambda _, keys: keys.missing_keys.clear())
    account = load_state_dict(net, {"weight": torch.ones(2, 2)})
    assert (account.loaded, account.expected, account.missing) == (("weight",), ("bias",), ())


def test_what_torch_could_not_copy_was_not_loaded(caplog: pytest.LogCaptureFixture) -> None:
    account = load_state_dict(nn.Linear(2, 2), {"weight": torch.ones(2, 2), "bias": [0.0, 0.0]})
    assert account.loaded == ("weight",)
    assert account.mismatched[0].site == "bias"
    assert 'While copying the parameter named "bias", expected torch.Tensor' in caplog.text


# --- rules do not run hooks, and say so --------------------------------------------------------------------------


def hints(module: nn.Module, state: Any, **options: Any) -> str:
    rules = [Rule(Name("**"), Normal()), Rule(Name("**"), Pretrained(state, **options))]
    try:
        (account,) = initialize(module, rules, seed=0).loads
    except CheckpointError as error:
        return str(error)
    return "\n".join(account.hints)


HINT = (
    r"Old may change what load_state_dict gives to new.weight, new.bias, by hooks .*load_checkpoint\(model, file\) runs"
)


@pytest.mark.parametrize("way", WAYS)
def test_a_rule_says_that_it_runs_no_hooks(way: str) -> None:
    state = {"x.weight": torch.ones(3, 3), "x.bias": torch.ones(4), "head.weight": torch.ones(2, 3)}
    net = nn.ModuleDict({"body": Old(way), "head": nn.Linear(3, 2, bias=False)})
    assert re.search(HINT.replace("new.", "body.new."), hints(net, state))


def test_where_sizes_differ_it_says_so_too() -> None:
    text = hints(Old(), {"new.weight": torch.ones(5, 3), "new.bias": torch.ones(3)})
    assert re.search(HINT.replace("new.weight, new.bias", "new.weight"), text)


@pytest.mark.parametrize(
    ("state", "options"),
    [
        ({"new.weight": torch.ones(3, 3), "new.bias": torch.ones(3)}, {}),
        ({"new.weight": torch.ones(3, 3)}, {"expect_missing": "new.bias"}),
        ({"net.new.weight": torch.ones(3, 3), "net.new.bias": torch.ones(3)}, {}),  # a prefix explains all of it
    ],
)
def test_where_nothing_is_lost_to_hooks_nothing_is_said(state: Any, options: Any) -> None:
    assert "by hooks" not in hints(Old(), state, **options)


TORCHS: dict[str, Callable[[], Any]] = {
    "norm": lambda: nn.BatchNorm1d(3),
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
    "weight norm": lambda: weight_norm(nn.Linear(3, 3)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3)),
    "checkpointed": lambda: nn.Sequential(checkpoint_wrapper(nn.Linear(3, 3))),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Linear(3, 3)), backend="eager"),
    "parallel": lambda: nn.Sequential(nn.DataParallel(nn.Linear(3, 3))),
    "somebody's wrapper": lambda: Wrapper(nn.Linear(3, 3)),
}


class Wrapper(nn.Module):
    """Keeps its part of the names out of checkpoints."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        itself: Any = self
        itself.register_load_state_dict_pre_hook(lambda *_: None)


@pytest.mark.parametrize("kind", TORCHS)
def test_hooks_of_torch_and_of_wrappers_do_not_count(kind: str) -> None:
    assert {place.hooks for place in walk_modules(TORCHS[kind]())} == {""}


def test_hooks_of_sharding_do_not_count() -> None:
    with fake_rank(0, 2):
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("hooks",))
        flat = FullyShardedDataParallel(nn.Sequential(nn.Linear(4, 4)), device_mesh=mesh, device_id=torch.device("cpu"))
        assert {place.hooks for place in walk_modules(flat)} == {""}
        parts: Any = nn.Sequential(Old(), nn.Linear(4, 4))
        fully_shard(parts[1], mesh=mesh)
        fully_shard(parts, mesh=mesh)._get_fsdp_state()._lazy_init()  # as its first step does
        assert parts[1]._load_state_dict_pre_hooks, "they are what is left out"
        assert {place.name: place.hooks for place in walk_modules(parts)} == {
            "0.new": "Old",
            "0": "Old",
            "1": "",
            "": "",
        }
