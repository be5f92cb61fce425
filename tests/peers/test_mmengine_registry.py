"""Initializers registered with MMEngine, or with a package built on it, are found by torchinit's init_cfg."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from mmengine.registry import WEIGHT_INITIALIZERS as THEIRS
from mmengine.registry import DefaultScope, Registry
from torch import nn

from torchinit import mmengine as ours

with warnings.catch_warnings():  # importing it uses deprecated parts of torch
    warnings.simplefilter("ignore")
    import mmengine.model


def filling(value: float, base: Any) -> Any:
    class Filling(base):
        """An initializer as a user writes it."""

        def __call__(self, module: nn.Module) -> None:
            nn.init.constant_(module.get_parameter("0.weight"), value)
            if hasattr(module, "_params_init_info"):
                info = ours.update_init_info if base is ours.BaseInit else mmengine.model.update_init_info
                info(module, f"Filling with {value}")

    return Filling


@pytest.fixture(scope="module", autouse=True)
def downstream() -> Iterator[None]:
    child = Registry("weight initializer", parent=THEIRS, scope="peerpackage")
    child.register_module(name="PeerFilling", module=filling(2.0, mmengine.model.BaseInit))
    child.register_module(name="PeerOwn", module=filling(3.0, ours.BaseInit))
    THEIRS.register_module(name="PeerRoot", module=filling(4.0, mmengine.model.BaseInit))
    yield
    THEIRS.children.pop("peerpackage")
    THEIRS.module_dict.pop("PeerRoot")


def value_after(init_cfg: dict[str, Any], base: Any = ours.Sequential) -> tuple[float, str]:
    model = base(nn.Linear(2, 2), init_cfg=init_cfg)
    report = model.init_weights()
    told = "" if report is None else report["0.weight"].rule
    return float(model[0].weight.detach().unique()), told


@pytest.mark.parametrize(
    ("init_cfg", "value"),
    [
        ({"type": "PeerRoot"}, 4.0),
        ({"type": "mmengine.PeerRoot"}, 4.0),
        ({"type": "peerpackage.PeerFilling"}, 2.0),
        ({"type": "PeerFilling", "_scope_": "peerpackage"}, 2.0),
        ({"type": "peerpackage.PeerOwn"}, 3.0),
        ({"type": "peerpackage.PeerRoot"}, 4.0),
    ],
)
def test_a_name_is_found_where_mmengine_finds_it(init_cfg: dict[str, Any], value: float) -> None:
    assert value_after(init_cfg, mmengine.model.Sequential)[0] == value
    assert value_after(init_cfg) == (value, f"Filling with {value}")


def test_the_default_scope_says_whose_names_are_meant() -> None:
    with pytest.raises(KeyError, match="PeerFilling is not in the"):
        value_after({"type": "PeerFilling"})
    with DefaultScope.overwrite_default_scope("peerpackage"):
        assert (
            value_after({"type": "PeerFilling"})[0]
            == value_after({"type": "PeerFilling"}, mmengine.model.Sequential)[0]
        )
        assert value_after({"type": "PeerRoot"})[0] == 4.0
    with DefaultScope.overwrite_default_scope("nobodys"):
        assert value_after({"type": "PeerRoot"})[0] == 4.0


@pytest.mark.parametrize("name", ["this.antigravity", "nobodys.Normal", "peerpackage.Nothing"])
def test_a_name_makes_nothing_be_imported(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(KeyError, match="is not in the"):
        value_after({"type": name})
    assert set(sys.modules) == before


def test_the_bridge_registers_with_mmengine_what_is_free_there() -> None:
    normal = THEIRS.get("Normal")
    ours.WEIGHT_INITIALIZERS.register_module(name="PeerBridged", module=filling(5.0, ours.BaseInit))
    ours.bridge()
    ours.bridge()
    assert THEIRS.get("Normal") is normal
    assert value_after({"type": "PeerBridged"}, mmengine.model.Sequential)[0] == 5.0


@pytest.mark.parametrize("how", ["default scope", "_scope_", "force"])
def test_what_a_user_has_registered_wins_over_what_is_built_in(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(mmengine.model.ConstantInit):
        def __call__(self, module: Any) -> None:
            nn.init.constant_(module[0].weight, 42.0)

    entry = {"type": "Constant", "val": 1, "layer": "Linear"}
    if how == "force":
        monkeypatch.setitem(THEIRS.module_dict, "Constant", Mine)
        found = [value_after(entry, base)[0] for base in (mmengine.model.Sequential, ours.Sequential)]
    else:
        package = THEIRS.children["peerpackage"]
        monkeypatch.setitem(package.module_dict, "Constant", Mine)
        scoped = {"_scope_": "peerpackage"} if how == "_scope_" else {}
        with DefaultScope.overwrite_default_scope(None if scoped else "peerpackage"):
            bases = (mmengine.model.Sequential, ours.Sequential)
            found = [value_after({**entry, **scoped}, base)[0] for base in bases]
    assert found == [42.0, 42.0]
