"""Only: what is chosen is written, all else is left alone and proven to be; a recipe that covers too little is told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchinit
from torchinit import (
    ConfigError,
    Normal,
    Ones,
    PlanError,
    Pretrained,
    Report,
    ReportError,
    Rule,
    RunError,
    fingerprint,
    initialize,
    materialize,
    plan,
)
from torchinit.plans.plan import LEFT, LOADED

RULES = [Rule("**", Normal(std=0.02))]


class Net(nn.Module):
    """A trained body and a new head; a table that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 3)
        self.register_buffer("table", torch.arange(4.0), persistent=False)


def state() -> dict[str, Tensor]:
    net = initialized(Net())
    return {name: tensor for name, tensor in net.state_dict().items() if name.startswith("body.")}


def initialized(model: Any) -> Any:
    initialize(model, [Rule("**", Ones())], seed=0)
    return model


def marked(model: Any, *globs: str) -> Any:
    """The model with tensors marked as transformers marks those that it has loaded."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if any(torchinit.model.names.glob_matches(glob, name) for glob in globs):
            setattr(tensor, "_is_hf_initialized", True)  # noqa: B010  # no attribute of a tensor's own
    return model


def load_report() -> Any:
    model = Net()
    rule = Rule("**", Pretrained({name: tensor.clone() for name, tensor in state().items()}, expect_missing="head.*"))
    (account,) = initialize(model, [rule], seed=0, strict=True).loads
    return account


KEYS = ["head.weight", "head.bias"]
CHOICES: dict[str, Callable[[Any], Any]] = {
    "globs": lambda _: ["head.*"],
    "a glob": lambda _: "head.*",
    "names": lambda _: {*KEYS},
    "loading_info": lambda _: {"missing_keys": {*KEYS}, "unexpected_keys": set(), "error_msgs": []},
    "mismatched": lambda _: {"missing_keys": ["head.bias"], "mismatched_keys": [("head.weight", (9, 4), (3, 4))]},
    "load_state_dict": lambda model: model.load_state_dict(state(), strict=False),
    "LoadReport": lambda _: load_report(),
    "missing": lambda model: marked(model, "body.**") and "missing",
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_what_is_chosen_is_written_and_the_rest_proven_unchanged(choice: Callable[[Any], Any]) -> None:
    model = initialized(Net())
    before = fingerprint(model)
    only = choice(model)
    report = initialize(model, RULES, seed=0, only=only).assert_ok(complete=False)
    assert [record.name for record in report] == KEYS
    assert {change.name for change in before.diff(fingerprint(model))} == {*KEYS}
    left = {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias", "table", "body.1.running_mean"}
    left |= {"body.1.running_var", "body.1.num_batches_tracked"}
    assert {*report.unchanged} == left
    assert {why for _, why in report.skipped} <= {LEFT, LOADED}
    assert "8 tensors proven unchanged" in report.summary()
    assert Report.from_json(report.to_json()) == report
    planned = plan(Net() if only != "missing" else model, RULES, only=only)
    assert [step.site.name for step in planned] == KEYS


def test_the_values_are_those_of_the_whole() -> None:
    whole, part = Net(), Net()
    initialize(whole, RULES, seed=3)
    initialize(part, RULES, seed=3, only="head.*")
    assert torch.equal(whole.head.weight, part.head.weight)


def test_nothing_was_missing() -> None:
    model = Net()
    report = initialize(model, RULES, seed=0, only={"missing_keys": []})
    assert len(report) == 0
    assert len(report.unchanged) == 10


def test_a_recipe_that_covers_too_little_names_what_is_left() -> None:
    model = initialized(Net())
    before = fingerprint(model)
    with pytest.raises(PlanError, match=r"1 problem in the plan; nothing was written\n  no rule for head\.bias$"):
        initialize(model, [Rule("**.weight", Normal())], seed=0, only=["head.*"])
    with pytest.raises(PlanError, match=r"no rule for head\.bias"):
        plan(marked(Net(), "body.**"), [Rule("**.weight", Normal())], only="missing")
    assert fingerprint(model).total == before.total


def test_a_rule_is_in_vain_where_it_matches_nothing_of_the_whole_model() -> None:
    rules = [Rule("head.*", Normal()), Rule("body.**", Ones())]
    assert len(plan(Net(), rules, only="head.*", strict=True)) == 2
    with pytest.raises(PlanError, match=r"'haed\.\*'"):
        plan(Net(), [*rules, Rule("haed.*", Normal())], only="head.*", strict=True)


@pytest.mark.parametrize("only", [["haed.*"], {"missing_keys": ["haed.weight"]}])
def test_a_name_that_nothing_has(only: Any) -> None:
    with pytest.raises(PlanError, match=r"only=: no tensor of the model is called 'haed\.\S+'; did you mean 'head\."):
        plan(Net(), RULES, only=only)


def test_a_word_that_is_nearly_missing() -> None:
    with pytest.raises(PlanError, match="called 'mising'; did you mean 'missing'"):
        plan(Net(), RULES, only="mising")


@pytest.mark.parametrize(
    ("only", "text"),
    [
        (3, "only=: a name is text, but got 3"),
        ([None], "only=: a name is text"),
        (["head..weight"], "only=: a name is dotted text"),
        ({"missing": []}, "has missing_keys, but got the"),
    ],
)
def test_what_is_no_choice(only: Any, text: str) -> None:
    with pytest.raises((TypeError, ConfigError), match=text):
        initialize(Net(), RULES, seed=0, only=only)


def test_without_any_mark_nothing_is_known_to_be_missing() -> None:
    with pytest.raises(PlanError, match=r"only='missing': no tensor has the mark of transformers"):
        initialize(Net(), RULES, seed=0, only="missing")


def test_a_buffer_whose_mark_got_lost_stays_with_its_module() -> None:
    """Buffers are other tensors after a move, without the attributes of those before."""
    model = marked(Net(), "body.**").double()
    rules = [Rule("**", Normal(), buffers=True)]
    assert {record.name for record in initialize(model, rules, seed=0, only="missing")} == {*KEYS}


# -- ties and shared memory ---------------------------------------------------------------------------------------


def tied() -> Any:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    return model


def test_half_of_a_tie() -> None:
    with pytest.raises(PlanError, match=r"1\.weight is tied to 0\.weight, which would change with it: name both"):
        plan(tied(), RULES, only=["1.weight"])
    assert [step.site.name for step in plan(tied(), RULES, only=["0.weight", "1.weight"])] == ["0.weight"]


def test_the_account_of_a_load_tells_that_the_other_half_was_loaded() -> None:
    """``load_state_dict`` says that the head is missing, although its tensor came under the table's name."""
    model = tied()
    keys = model.load_state_dict({"0.weight": torch.ones(5, 3)}, strict=False)
    assert keys.missing_keys == ["1.weight", "2.weight", "2.bias"]
    assert [record.name for record in initialize(model, RULES, seed=0, only=keys)] == ["2.weight", "2.bias"]
    assert bool((model[0].weight == 1).all())


def test_transformers_names_the_first_of_a_tie_that_is_missing() -> None:
    model = marked(tied(), "2.*")
    (record,) = initialize(model, RULES, seed=0, only={"missing_keys": ["0.weight"]})
    assert record.name == "0.weight"


def test_a_view_of_what_is_left_alone() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.Linear(4, 6))
    model[1].weight = nn.Parameter(model[0].weight.data[:3])
    with pytest.raises(PlanError, match=r"only=: 1\.weight lies in the memory of 0\.weight, which is left alone"):
        plan(model, RULES, only=["1.*"])


def test_half_of_a_computed_weight() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    marked(model, "0.*", "1.bias", "1.parametrizations.weight.original0")
    with pytest.raises(PlanError, match=r"a part of 1\.weight was loaded, and a part was not"):
        plan(model, RULES, only="missing")


# -- the proof ----------------------------------------------------------------------------------------------------


def test_a_trained_weight_that_a_rule_writes_is_named() -> None:
    model = initialized(Net())

    def spoils(tensor: Tensor) -> Tensor:
        model.body[0].weight.data[0, 0] = 5.0
        return tensor.zero_()

    with pytest.raises(ReportError, match=r"1 site changed that only= leaves alone.*\n  body\.0\.weight$"):
        initialize(model, [Rule("head.*", spoils)], seed=0, only="head.*")


def test_a_recipe_for_all_of_a_loaded_model_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = marked(Net(), "body.0.*")
    with caplog.at_level(logging.WARNING, "torchinit"):
        initialize(model, RULES, seed=0)
    assert "2 tensors that transformers has loaded will be written over: body.0.weight, body.0.bias" in caplog.text
    caplog.clear()
    initialize(model, RULES, seed=0, only="missing")
    assert "written over" not in caplog.text


# -- materialize --------------------------------------------------------------------------------------------------


def half_loaded() -> tuple[Any, Any]:
    with torch.device("meta"):
        model = Net()
    return model, model.load_state_dict(state(), strict=False, assign=True)


def test_what_a_load_left_on_meta_gets_memory() -> None:
    model, keys = half_loaded()
    kept = model.body[0].weight
    report = materialize(model, RULES, seed=0, only=keys)
    whole = Net()
    initialize(whole, RULES, seed=0)
    assert torch.equal(model.head.weight, whole.head.weight)
    assert model.body[0].weight is kept
    assert model.table.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert {*report.unchanged} == {name for name in fingerprint(model).sites if name.startswith("body.")}
    assert [record.name for record in report] == [*KEYS, "table"]


def test_a_part_alone_gets_memory() -> None:
    with torch.device("meta"):
        model = Net()
    materialize(model, RULES, seed=0, only="head.*")
    assert (model.head.weight.is_meta, model.body[0].weight.is_meta) == (False, True)


def test_materialize_refuses_what_has_memory_and_what_has_no_recipe() -> None:
    model, _ = half_loaded()
    with pytest.raises(RunError, match=r"it has memory already: call torchinit\.initialize"):
        materialize(model, RULES, seed=0, only="body.**")
    with pytest.raises(ConfigError, match="only is for a recipe"):
        materialize(model, only="head.*")
    with pytest.raises(PlanError, match=r"no rule for head\.bias"):
        materialize(model, [Rule("head.weight", Ones())], seed=0, only="head.*")
    assert model.head.weight.is_meta


def test_a_file(tmp_path: Path) -> None:
    """The account of a file that lacks the head chooses the head."""
    torch.save(state(), tmp_path / "body.pth")
    model = Net()
    load = Rule("**", Pretrained(str(tmp_path / "body.pth"), expect_missing="head.*"))
    account = initialize(model, [load], seed=0).loads[0]
    report = initialize(model, RULES, seed=0, only=account)
    assert [record.name for record in report] == KEYS
