"""What MMEngine finds under ``weight`` and ``bias`` besides parameters: buffers, attributes, computed tensors."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from torchinit.mmengine import BaseModule, NormalInit, Sequential, update_init_info

NORMAL = {"type": "Normal", "std": 0.1, "bias": 0.5, "layer": ["Linear", "Reader", "Holder", "Kept"]}


class Reader(nn.Module):
    """Its weight is a property that gives a child's parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.inner.table = nn.Parameter(torch.zeros(4, 4))

    @property
    def weight(self) -> Any:
        return self.inner.table


class Holder(nn.Module):
    """Its weight is a plain tensor."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["weight"] = torch.zeros(4)


class Kept(nn.Module):
    """Its weight is a buffer, its bias a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(4))
        self.bias = True


def normals(*shapes: tuple[int, ...]) -> list[Tensor]:
    """What a normal of 0.1 draws for the shapes, one after the other, from seed 0."""
    torch.manual_seed(0)
    return [nn.init.normal_(torch.empty(shape), 0, 0.1) for shape in shapes]


def test_every_kind_of_weight_is_drawn_in_the_order_of_apply() -> None:
    model = Sequential(Holder(), Reader(), Kept(), nn.Linear(4, 4), init_cfg=NORMAL)
    expected = normals((4,), (4, 4), (4,), (4, 4))
    torch.manual_seed(0)
    model.init_weights()
    found = [cast("Any", model)[n].weight for n in range(4)]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_property_that_gives_a_parameter_is_recorded_as_a_write_to_it() -> None:
    report = Sequential(Reader(), init_cfg=NORMAL).init_weights()
    assert report is not None
    assert report["0.inner.table"].rule == "NormalInit: mean=0, std=0.1, bias=0.5"


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_computed_weight_is_drawn_and_keeps_its_value(wrap: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = Sequential(wrap(nn.Linear(4, 4)), nn.Linear(4, 4), init_cfg=NORMAL)
    before = cast("Any", model)[0].weight.detach().clone()
    _, second = normals((4, 4), (4, 4))
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING, "torchinit"):
        report = model.init_weights()
    assert torch.equal(cast("Any", model)[0].weight, before)
    assert torch.equal(cast("Any", model)[1].weight, second)
    assert "0.weight is neither a parameter nor a buffer" in caplog.text
    assert report is not None
    assert any(name.startswith("0.parametrizations.weight") for name in report.untouched)


def test_an_entry_of_a_recipe_writes_through_a_parametrization() -> None:
    layer = parametrizations.weight_norm(nn.Linear(4, 4))
    Sequential(layer, init_cfg={"type": "Constant", "val": 2.0, "name": "0.weight"}).init_weights()
    torch.testing.assert_close(layer.weight, torch.full((4, 4), 2.0))


def test_layers_that_are_no_bare_names_match_nothing_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    with caplog.at_level(logging.WARNING, "torchinit"):
        NormalInit(layer=["torch.nn.Linear", cast("Any", nn.Linear), "", cast("Any", 3)])(layer)
    assert torch.equal(layer.weight, before)
    assert "'torch.nn.Linear' matches nothing: give the bare name of a class, 'Linear'" in caplog.text
    assert "torch.nn.modules.linear.Linear'> matches nothing: give the bare name of a class, 'Linear'" in caplog.text


class Marking(nn.Module):
    """Tells who wrote what as MMEngine's own function does: by the marks on the modules."""

    def __init__(self) -> None:
        super().__init__()
        self.written = nn.Parameter(torch.zeros(2))
        self.left = nn.Parameter(torch.zeros(2))

    def init_weights(self) -> None:
        marks: Any = self.__dict__["_params_init_info"]
        nn.init.zeros_(self.written)  # the mean stays what it was
        for parameter in self.parameters():
            assert parameter in marks
            if marks[parameter]["tmp_mean_value"] != parameter.data.mean().cpu():
                marks[parameter]["init_info"] = "Marking did"
                marks[parameter]["tmp_mean_value"] = parameter.data.mean().cpu()
        assert sorted(marks[self.left]) == ["init_info", "tmp_mean_value"]
        assert len(marks[self.left]) == 2
        with pytest.raises(KeyError, match="other"):
            marks[self.left]["other"]
        with pytest.raises(KeyError, match="init_info"):
            del marks[self.left]["init_info"]


def test_marks_answer_by_what_was_seen() -> None:
    report = Sequential(Marking()).init_weights()
    assert report is not None
    assert report["0.written"].rule == "Marking did"
    assert report.untouched == ("0.left",)


def test_update_init_info_outside_of_init_weights() -> None:
    with pytest.raises(AssertionError, match="Can not find `_params_init_info`"):
        update_init_info(BaseModule(), "text")


def _mmengines_account(module: nn.Module) -> dict[torch.Tensor, dict[str, Any]]:
    return {p: {"init_info": "unwritten", "tmp_mean_value": p.data.mean()} for p in module.parameters()}


def test_update_init_info_in_a_tree_that_mmengine_initializes() -> None:
    module = nn.Linear(2, 2)
    module._params_init_info = account = _mmengines_account(module)  # type: ignore[assignment]
    nn.init.constant_(module.weight, 7.0)
    update_init_info(module, "by somebody")
    assert account[module.weight] == {"init_info": "by somebody", "tmp_mean_value": torch.tensor(7.0)}
    assert account[module.bias]["init_info"] == "unwritten"
    module.bias = nn.Parameter(torch.zeros(2))
    with pytest.raises(AssertionError, match="Find a new :obj:`Parameter` named `bias`"):
        update_init_info(module, "by somebody")
