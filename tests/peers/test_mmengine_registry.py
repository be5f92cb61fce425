"""Initializers registered with MMEngine, or with a package built on it, are found by torchinit's init_cfg."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import WEIGHT_INITIALIZERS as THEIRS
from mmengine.registry import DefaultScope, Registry, build_from_cfg
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


ENTRY: dict[str, Any] = {"type": "Constant", "val": 1, "layer": "Linear"}


def owns(value: float) -> type:
    """MMEngine's class with a call of its own, as users write one."""

    class Mine(mmengine.model.ConstantInit):
        def __call__(self, module: Any) -> None:
            nn.init.constant_(module[0].weight, value)

    return Mine


def on_both_sides(entry: dict[str, Any]) -> list[float]:
    return [value_after(entry, base)[0] for base in (mmengine.model.Sequential, ours.Sequential)]


@pytest.mark.parametrize("module", [mmengine.model.NormalInit, mmengine.model.UniformInit])
def test_a_built_in_class_under_the_name_of_another(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(THEIRS.module_dict, "Constant", module)
    entry = {"type": "Constant", "a": 3.0, "b": 3.0} if "Uniform" in module.__name__ else {"type": "Constant", "std": 0}
    assert on_both_sides({**entry, "layer": "Linear"}) == [3.0 if "a" in entry else 0.0] * 2


def test_a_package_over_what_is_registered_at_either_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(THEIRS.module_dict, "Constant", owns(41.0))
    monkeypatch.setitem(ours.WEIGHT_INITIALIZERS._modules, "Constant", owns(40.0))
    assert value_after(ENTRY)[0] == 40.0
    monkeypatch.setitem(THEIRS.children["peerpackage"].module_dict, "Constant", owns(42.0))
    assert value_after(ENTRY)[0] == 40.0
    assert on_both_sides({**ENTRY, "_scope_": "peerpackage"}) == [42.0, 42.0]
    assert on_both_sides({**ENTRY, "type": "peerpackage.Constant"}) == [42.0, 42.0]
    with DefaultScope.overwrite_default_scope("peerpackage"):
        assert on_both_sides(ENTRY) == [42.0, 42.0]


@pytest.mark.parametrize("registry", [Registry, ours.Registry])
def test_a_package_that_has_moved_over_is_found_by_its_scope(registry: Any) -> None:
    """Its own registry hangs on torchinit's, and the scope is set by MMEngine's Runner."""
    root = THEIRS if registry is Registry else ours.WEIGHT_INITIALIZERS
    child = registry("weight initializer", parent=root, scope="moved")
    child.register_module(name="Constant", module=owns(42.0))
    child.register_module(name="Orthogonal", module=owns(43.0))  # which torchinit has, and MMEngine has not
    try:
        with DefaultScope.overwrite_default_scope("moved"):
            assert value_after(ENTRY)[0] == 42.0
            assert value_after({**ENTRY, "type": "Orthogonal"})[0] == 43.0
        assert value_after({**ENTRY, "_scope_": "moved"})[0] == 42.0
        assert value_after({**ENTRY, "type": "Orthogonal", "_scope_": "moved"})[0] == 43.0
        assert value_after(ENTRY)[0] == 1.0
    finally:
        root.children.pop("moved")


def test_a_tree_of_ones_own_is_looked_through_as_mmengines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any tree, any scope, any name: the same thing is built, or nothing on both sides."""
    built: list[list[Any]] = []
    for number, registry in enumerate((Registry, ours.Registry)):
        root = registry("thing", scope="trunk")
        branch = registry("thing", parent=root, scope="branch")
        leaf = registry("thing", parent=branch, scope="leaf")
        other = registry("thing", parent=root, scope="other", locations=[f"other_things{number}"])
        monkeypatch.setattr(sys, f"other_things{number}", other, raising=False)
        code = f"import sys\nsys.other_things{number}.register_module(name='D', module=lambda: 'other D')\n"
        (tmp_path / f"other_things{number}.py").write_text(code, "utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        for each, names in ((root, "ABC"), (branch, "B"), (leaf, "C")):
            for name in names:
                each.register_module(name=name, module=lambda text=f"{each.scope} {name}": text)
        built.append([])
        for default, scope, start, kind in product(
            (None, "trunk", "branch", "leaf", "other", "nobodys"),
            (None, "branch", "leaf", "other"),
            (root, branch, leaf, other),
            ("A", "B", "C", "D", "trunk.A", "branch.A", "branch.B", "branch.C", "other.D", "nobodys.A"),
        ):
            with DefaultScope.overwrite_default_scope(default):
                try:
                    made = start.build({"type": kind, **({"_scope_": scope} if scope else {})})
                except (KeyError, RuntimeError):
                    made = "an error"
            built[-1].append((default, scope, start.scope, kind, made))
    assert built[1] == built[0]
    assert sum(made != "an error" for *_, made in built[0]) > 500


@pytest.mark.parametrize("kind", ["Pretrained", mmengine.model.PretrainedInit, ours.PretrainedInit])
def test_mmengines_own_classes_stand_for_torchinits(kind: Any, tmp_path: Path) -> None:
    """As configs in Python have them; a Pretrained is then carried out last, too."""
    torch.save({"0.0.weight": torch.full((2, 2), 7.0), "0.0.bias": torch.zeros(2)}, tmp_path / "a.pth")
    inner = ours.Sequential(
        nn.Linear(2, 2), init_cfg={"type": mmengine.model.ConstantInit, "val": 3, "layer": "Linear"}
    )
    model = ours.Sequential(inner, init_cfg={"type": kind, "checkpoint": str(tmp_path / "a.pth")})
    report = model.init_weights()
    assert report is not None
    assert report["0.0.weight"].rule == f"PretrainedInit: load from {tmp_path / 'a.pth'}"
    assert report["0.0.weight"].over == ("ConstantInit: val=3, bias=0",)
    assert model.get_parameter("0.0.weight").unique().tolist() == [7.0]


@pytest.mark.parametrize("kind", [dict, ConfigDict, Config])
def test_configs_of_mmengine_are_built_as_dicts_are(kind: Any) -> None:
    for build, root in ((build_from_cfg, THEIRS), (ours.build_from_cfg, ours.WEIGHT_INITIALIZERS)):
        made = build(kind({"type": "Constant", "bias": 2}), root, kind({"val": 1, "bias": 3}))
        assert (type(made).__name__, made.val, made.bias) == ("ConstantInit", 1, 2)


@pytest.mark.parametrize("wrap", [dict, ConfigDict, lambda entry: Config({"init_cfg": [entry]}).init_cfg])
def test_configs_of_mmengine_as_an_init_cfg(wrap: Any) -> None:
    entry = {**ENTRY, "override": [{"type": "Constant", "val": 5, "bias": 6, "name": "0"}]}
    assert on_both_sides(wrap(entry)) == [5.0, 5.0]
