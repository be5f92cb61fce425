"""Base modules: the chain of init_weights, its log, its report, and what is left behind."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchinit.mmengine import (
    WEIGHT_INITIALIZERS,
    BaseInit,
    BaseModule,
    ModuleDict,
    ModuleList,
    Sequential,
    initialize,
    normal_init,
    update_init_info,
)

CONSTANT = {"type": "Constant", "val": 2.0, "bias": 1.0, "layer": "Linear"}


class Leaf(BaseModule):
    """One linear layer."""

    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.fc = nn.Linear(2, 2)


class Tree(BaseModule):
    """A leaf below it, and a layer of its own."""

    def __init__(self, init_cfg: Any = None, below: Any = None) -> None:
        super().__init__(init_cfg)
        self.leaf = Leaf(below)
        self.conv = nn.Conv2d(1, 1, 1)


class Custom(Leaf):
    """A leaf with code of its own."""

    def init_weights(self) -> Any:  # type: ignore[override]
        super().init_weights()
        with torch.no_grad():
            self.fc.bias.data[:1] = 7.0


class Plain(nn.Module):
    """No base module, with an init_weights all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def init_weights(self) -> None:
        self.weight.data = torch.full((3,), 4.0)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    logger, handler = logging.getLogger("torchinit"), logging.FileHandler(tmp_path / "init.log")
    logger.addHandler(handler)
    yield tmp_path / "init.log"
    logger.removeHandler(handler)
    handler.close()


def marks(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "_params_init_info" in vars(module)]


def test_a_childs_own_init_cfg_beats_its_parents() -> None:
    model = Tree(CONSTANT, {"type": "Constant", "val": 3.0, "layer": "Linear"})
    report = model.init_weights()
    assert report is not None
    assert model.leaf.fc.weight.unique().tolist() == [3.0]
    assert report["leaf.fc.weight"].over == ("ConstantInit: val=2.0, bias=1.0",)
    assert report.untouched == ("conv.weight", "conv.bias")


def test_later_entries_win_and_overrides_come_after_the_entry() -> None:
    model = Tree([CONSTANT, {**CONSTANT, "val": 5.0, "override": {"name": "conv", "type": "Constant", "val": -1.0}}])
    model.init_weights()
    assert model.leaf.fc.weight.unique().tolist() == [5.0]
    assert model.conv.weight.unique().tolist() == [-1.0]


def test_an_override_without_type_inherits_the_entry_and_dots_lead_further_down() -> None:
    model = Tree({"type": "Constant", "val": 5.0, "layer": "Nowhere", "override": {"name": "leaf.fc"}})
    model.init_weights()
    assert model.leaf.fc.weight.unique().tolist() == [5.0]


def test_user_code_is_seen_to_the_parameter(log: Path) -> None:
    class Model(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.custom = Custom({"type": "Constant", "val": 1.0, "bias": 1.0, "layer": "Linear"})
            self.plain = Plain()

    report = Model().init_weights()
    assert report is not None
    assert report["custom.fc.weight"].rule == "ConstantInit: val=1.0, bias=1.0"
    assert report["custom.fc.bias"].rule == "Initialized by user-defined `init_weights` in Custom"
    assert report["plain.weight"].rule == "Initialized by user-defined `init_weights` in Plain"
    assert (
        "\nplain.weight - torch.Size([3]): \nInitialized by user-defined `init_weights` in Plain  \n" in log.read_text()
    )


def test_the_tops_own_code_is_seen() -> None:
    report: Any = Custom().init_weights()
    assert [record.name for record in report] == ["fc.bias"]


def test_a_rewrite_that_keeps_the_mean_has_its_true_writer() -> None:
    class Swap(Leaf):
        def init_weights(self) -> Any:  # type: ignore[override]
            super().init_weights()
            nn.init.constant_(self.fc.weight, 2.0)

    class Model(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.swap = Swap(CONSTANT)

    report = Model().init_weights()
    assert report is not None
    assert report["swap.fc.weight"].rule == "Initialized by user-defined `init_weights` in Swap"


def test_the_log_without_a_file_goes_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "torchinit"):
        Leaf(CONSTANT).init_weights()
    assert "\nfc.weight - torch.Size([2, 2]): \nConstantInit: val=2.0, bias=1.0 \n " in caplog.messages


def test_what_nobody_writes_says_so(log: Path) -> None:
    Tree(CONSTANT).init_weights()
    line = "conv.bias - torch.Size([1]): \nThe value is the same before and after calling `init_weights` of Tree  \n"
    assert line in log.read_text()


def test_a_second_call_warns_and_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = Leaf(CONSTANT)
    model.init_weights()
    nn.init.zeros_(model.fc.weight)
    model.init_weights()
    assert "init_weights of Leaf has been called more than once." in caplog.messages
    assert model.fc.weight.unique().tolist() == [0.0]


def test_is_init_keeps_a_child_from_its_own_but_not_from_its_parents() -> None:
    model = Tree(CONSTANT, {**CONSTANT, "val": 9.0})
    model.leaf.is_init = True
    model.init_weights()
    assert model.is_init
    assert model.leaf.fc.weight.unique().tolist() == [2.0]


def test_an_exception_leaves_nothing_behind() -> None:
    class Broken(Leaf):
        fails = True

        def init_weights(self) -> Any:  # type: ignore[override]
            if self.fails:
                raise RuntimeError("not today")
            super().init_weights()

    class Model(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.broken = Broken(CONSTANT)

    model = Model()
    with pytest.raises(RuntimeError, match="not today"):
        model.init_weights()
    assert marks(model) == []
    Broken.fails = False
    report = model.init_weights()
    assert report is not None
    assert report["broken.fc.weight"].rule.startswith("ConstantInit")


def test_nothing_is_left_and_the_module_copies_and_pickles() -> None:
    model = Tree(CONSTANT)
    model.init_weights()
    assert marks(model) == []
    assert set(model.state_dict()) == {"leaf.fc.weight", "leaf.fc.bias", "conv.weight", "conv.bias"}
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert again.is_init
    assert again.init_cfg == CONSTANT


def test_the_init_cfg_is_copied_and_shown() -> None:
    said = copy.deepcopy(CONSTANT)
    model = Leaf(said)
    said["val"] = 0.0
    model.init_weights()
    assert model.init_cfg == CONSTANT
    assert repr(model).endswith(f"\ninit_cfg={CONSTANT}")
    assert "init_cfg" not in repr(Leaf())


@pytest.mark.parametrize("wrap", [nn.Sequential, lambda m: nn.ModuleList([m]), lambda m: nn.ModuleDict({"0": m})])
def test_below_a_plain_container(wrap: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Model(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.box = wrap(Leaf(CONSTANT))

    model = Model()
    model.init_weights()
    assert model.box.get_submodule("0").fc.weight.unique().numel() > 1
    assert any("does not reach box.0" in message for message in caplog.messages)
    reached = Model()
    report: Any = reached.init_weights(containers=True)
    assert reached.box.get_submodule("0").fc.weight.unique().tolist() == [2.0]
    assert report.unused == ()


def test_containers_of_our_own() -> None:
    models: tuple[Any, ...] = (
        Sequential(Leaf(CONSTANT), nn.Linear(1, 1), init_cfg={**CONSTANT, "val": 8.0}),
        ModuleList([Leaf(CONSTANT), nn.Linear(1, 1)], init_cfg={**CONSTANT, "val": 8.0}),
    )
    for model in models:
        model.init_weights()
        assert model[0].fc.weight.unique().tolist() == [2.0]
        assert model[1].weight.item() == 8.0
    table: Any = ModuleDict({"a": Leaf(CONSTANT)}, init_cfg={**CONSTANT, "val": 8.0})
    table.init_weights()
    assert table["a"].fc.weight.unique().tolist() == [2.0]


def test_wrappers_are_entered() -> None:
    class Model(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = nn.DataParallel(Leaf(CONSTANT))

    model = Model()
    model.init_weights()
    assert model.wrapped.module.fc.weight.unique().tolist() == [2.0]


def test_a_seed_draws_by_name_and_leaves_torchs_generator_alone() -> None:
    class Drawing(Leaf):
        def init_weights(self) -> Any:  # type: ignore[override]
            normal_init(self.fc, std=0.1)

    class Model(BaseModule):
        def __init__(self, extra: bool) -> None:
            super().__init__()
            if extra:
                self.before = Leaf({"type": "Normal", "layer": "Linear"})
            self.leaf = Leaf({"type": "Normal", "layer": "Linear"})
            self.drawing = Drawing()

    small, large = Model(extra=False), Model(extra=True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small.init_weights(seed=1)
    large.init_weights(seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(small.leaf.fc.weight, large.leaf.fc.weight)
    assert torch.equal(small.drawing.fc.weight, large.drawing.fc.weight)
    assert not torch.equal(small.leaf.fc.weight, large.before.fc.weight)


def test_stats_are_measured_when_asked_for() -> None:
    report: Any = Sequential(
        nn.Linear(64, 64), init_cfg={"type": "Normal", "std": 0.5, "layer": "Linear"}
    ).init_weights(stats=True)
    report.assert_ok()
    assert report["0.weight"].measured.std == pytest.approx(0.5, rel=0.1)


def test_a_new_parameter_on_the_way_is_refused() -> None:
    class Growing(Leaf):
        def init_weights(self) -> Any:  # type: ignore[override]
            self.fc.weight = nn.Parameter(torch.ones(2, 2))

    class Model(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.growing = Growing()

    model = Model()
    with pytest.raises(AssertionError, match=r"Find a new :obj:`Parameter` named `fc\.weight`"):
        model.init_weights()
    assert marks(model) == []


def test_a_module_added_on_the_way_is_initialized_with_the_rest() -> None:
    class Late(BaseModule):
        def init_weights(self) -> Any:  # type: ignore[override]
            self.fc = nn.Linear(2, 2)
            initialize(self, CONSTANT)

    late = Late()
    late.init_weights()
    assert late.fc.weight.unique().tolist() == [2.0]


def test_unfilled_memory_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Bare(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(3, 3))
            self.scale = nn.Parameter(torch.ones(3))

    Bare().init_weights()
    assert [message for message in caplog.messages if "nobody has written" in message] == [
        "nobody has written weight: it holds whatever its memory held before"
    ]


def test_a_user_initializer_with_and_without_update_init_info() -> None:
    @WEIGHT_INITIALIZERS.register_module(name="TestTold")
    class Told(BaseInit):
        def __call__(self, module: nn.Module) -> None:
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    nn.init.constant_(part.weight, 6.0)
            if hasattr(module, "_params_init_info"):
                update_init_info(module, init_info=self._get_init_info())

        def _get_init_info(self) -> str:
            return f"Told with bias={self.bias}"

    @WEIGHT_INITIALIZERS.register_module(name="TestSilent")
    class Silent:
        def __call__(self, module: Any) -> None:
            nn.init.constant_(module.conv.bias, 1.5)

    model = Tree([{"type": "TestTold", "bias": 3}, {"type": "TestSilent"}])
    report = model.init_weights()
    assert report is not None
    assert report["leaf.fc.weight"].rule == "Told with bias=3"
    assert report["conv.bias"].rule == "Silent"
    initialize(model, {"type": "TestTold"})


def test_update_init_info_outside_of_a_session() -> None:
    with pytest.raises(AssertionError, match="Can not find `_params_init_info`"):
        update_init_info(nn.Linear(1, 1), "somebody")


@pytest.mark.parametrize(
    ("init_cfg", "error", "text"),
    [
        ([3], AssertionError, "an init_cfg is a dict or a list of dicts, but holds 3"),
        ({"layer": "Linear"}, KeyError, '`init_cfg` must contain the key "type"'),
    ],
)
def test_bad_init_cfgs_of_a_base_module(init_cfg: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Leaf(init_cfg).init_weights()
