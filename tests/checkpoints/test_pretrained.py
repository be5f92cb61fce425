"""Pretrained: what is found is loaded and locked, what is not is said, and nothing is written before all is well."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import strategies
from tests.checkpoints.files import write
from torchinit import (
    CheckpointError,
    ConfigError,
    Constant,
    Leaf,
    Name,
    Normal,
    Plan,
    PlanError,
    Pretrained,
    Report,
    Rule,
    RunError,
    initialize,
    plan,
    sites,
)
from torchinit.checkpoints import Loaded
from torchinit.checkpoints.adapters import Drop, InputChannels, Transpose, WeightNorm
from torchinit.initializers.load_report import Cast
from torchinit.model import Box, Shard, Site
from torchinit.noise import Keyed
from torchinit.plans import local_shards, make_plan, run
from torchinit.recipes import recipe_to_data


class Net(nn.Module):
    """A stem, a norm with buffers and a counter, a table with a padding row, a head."""

    def __init__(self, classes: int = 5, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, dtype=dtype)
        self.norm = nn.BatchNorm2d(4, dtype=dtype)
        self.table = nn.Embedding(6, 4, padding_idx=0, dtype=dtype)
        self.head = nn.Linear(4, classes, dtype=dtype)


def trained(classes: int = 5) -> dict[str, Tensor]:
    """The state of a model whose every tensor holds something of its own."""
    model = Net(classes)
    with torch.no_grad():
        for number, tensor in enumerate(model.state_dict().values()):
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) / 8 + number)
    return dict(model.state_dict())


def whole(source: Any, **arguments: Any) -> Rule:
    return Rule(Name("**"), Pretrained(source, **arguments))


def assert_same(model: nn.Module, state: dict[str, Tensor]) -> None:
    held = model.state_dict()
    assert held.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(held[name], tensor.to(held[name].dtype)), name


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy", "npz", "sharded-safetensors", "sharded-zip"])
def test_every_tensor_is_loaded_buffers_counters_and_padding_rows_too(form: str, tmp_path: Path) -> None:
    path, model = write(form, tmp_path, trained()), Net()
    report = initialize(model, whole(str(path))).assert_ok(complete=True)
    assert_same(model, trained())
    (account,) = report.loads
    assert (account.found, account.wanted, account.unexpected) == (10, 10, ())
    assert account.elements[0] == account.elements[1] > 0
    assert report["norm.num_batches_tracked"].fill == f"norm.num_batches_tracked of {path}"
    assert model.state_dict()["norm.num_batches_tracked"].item() > 0


@given(st.lists(st.sampled_from(sorted(strategies.LAYERS)), min_size=1, max_size=5, unique=True), st.integers(0, 99))
def test_as_load_state_dict_does(chosen: list[str], seed: int) -> None:
    source, ours, theirs = strategies.build(chosen), strategies.build(chosen), strategies.build(chosen)
    initialize(source, Rule(Name("**"), Normal()), seed=seed)
    initialize(ours, whole(source))
    theirs.load_state_dict(source.state_dict())
    assert_same(ours, dict(theirs.state_dict()))


RECIPE = """
[[rules]]
type = "Normal"
std = 0.02
name = "**"

[[rules]]
type = "Pretrained"
checkpoint = "{path}"
prefix = "backbone"
rename = [["^body[.]", ""]]
expect_missing = "head.**"
on_shape = {{ "table.**" = "skip" }}
adapt = {{ "stem.weight" = {{ type = "InputChannels" }} }}
dtype = "bfloat16"
layer = ["Conv2d", "BatchNorm2d", "Embedding", "Linear"]
"""


def test_in_a_recipe(tmp_path: Path) -> None:
    state = {f"backbone.body.{key}": value for key, value in trained().items() if not key.startswith("head")}
    state["backbone.body.stem.weight"] = state["backbone.body.stem.weight"].repeat(1, 2, 1, 1)
    state["backbone.body.table.weight"] = torch.ones(9, 4)
    path = write("zip", tmp_path, state)
    (tmp_path / "r.toml").write_text(RECIPE.format(path=path))
    model = Net()
    report = initialize(model, tmp_path / "r.toml", seed=0, strict=True)
    (account,) = report.loads
    assert account.adapted == (("stem.weight", "InputChannels()"),)
    assert account.declined == (("table.weight", "has shape [6, 4], but the file [9, 4]"),)
    assert account.expected == ("head.weight", "head.bias")
    assert Cast("norm.bias", (torch.float32, torch.bfloat16, torch.float32)) in account.casts
    assert report["norm.bias"].over == ("Name('**') -> Normal(std=0.02)",)
    assert report["head.weight"].fill == "Normal(std=0.02)"
    assert torch.equal(model.state_dict()["norm.running_var"], trained()["norm.running_var"].bfloat16().float())
    assert "declined table.weight" in report.table()
    assert Report.from_json(report.to_json()) == report


def test_a_plan_on_meta_reads_no_tensor_and_goes_to_json_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("safetensors", tmp_path, trained())
    with torch.device("meta"):
        sketch = Net()
    with monkeypatch.context() as patched:
        patched.setattr("torchinit.checkpoints.formats.base.Checkpoint.read", None)
        made = plan(sketch, [Rule(Name("**"), Normal()), whole(str(path), adapt={"stem.weight": InputChannels()})])
        again = Plan.from_json(made.to_json())
    assert again == made
    assert "100 % of the elements loaded, 10 of 10 sites" in made.summary()
    model = Net()
    run(again, local_shards(model), Keyed(0))
    assert_same(model, trained())


def test_tables_say_the_path_once_and_json_keeps_it(tmp_path: Path) -> None:
    path = str(write("zip", tmp_path, trained()))
    made, model = plan(Net(), whole(path)), Net()
    report = run(made, local_shards(model), Keyed(0))
    for outcome in (made, report):
        assert outcome.table().count(path) == 1
        assert f"stem.weight of {Path(path).name}" in outcome.table()
        assert outcome.to_json().count(path) > 10


def test_recipes_go_to_data_and_back(tmp_path: Path) -> None:
    from torchinit.recipes import decode_recipe

    path = str(write("zip", tmp_path, trained()))
    rule = whole(path, rename={"a": "b"}, on_shape={"x": "skip"}, adapt={"y": InputChannels()}, dtype=torch.float16)
    assert decode_recipe(json.loads(json.dumps(recipe_to_data((rule,))))) == (rule,)


def test_what_is_in_memory_cannot_go_to_json() -> None:
    made = plan(Net(), whole(trained()))
    with pytest.raises(ConfigError, match=r"dict in memory cannot be written as data"):
        made.to_json()


# --- what is not there, or does not fit ----------------------------------------------------------------------------


def test_nothing_that_matches_is_an_error_with_the_remedy() -> None:
    state = {f"backbone.{key}": value for key, value in trained().items()}
    text = (
        "dict in memory: 0 of 10 tensors match the model.\n"
        "    Every key of the file starts with 'backbone.'; with prefix='backbone.' 10 of 10 match"
    )
    for rules in (whole(state), [Rule(Name("**"), Normal()), whole(state, expect_missing="**")]):
        with pytest.raises(CheckpointError) as caught:
            plan(Net(), rules)
        assert str(caught.value) == text
    assert plan(Net(), whole(state, prefix="backbone")).loads[0].complete


def test_keys_that_differ_by_case_are_pointed_out() -> None:
    state = {key.upper(): value for key, value in trained().items()}
    with pytest.raises(CheckpointError, match=r"has 'stem.weight' and the file 'STEM.WEIGHT', which differ by"):
        plan(Net(), whole(state))


def without(*names: str) -> dict[str, Tensor]:
    return {key: value for key, value in trained().items() if key not in names}


def test_what_is_missing_and_has_no_other_rule_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"2 sites of 10 are not in the file, .*: norm.running_var, head.bias\."):
        plan(Net(), whole(without("head.bias", "norm.running_var")))
    assert plan(Net(), whole(without("head.bias"), expect_missing="head.*")).loads[0].expected == ("head.bias",)
    made = plan(Net(), whole(without("norm.num_batches_tracked")))
    assert made.loads[0].expected == ("norm.num_batches_tracked",)


def test_what_is_missing_stays_with_its_other_rules_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    rules = [Rule(Name("**"), Constant(7.0)), whole(without("head.bias"))]
    model = Net()
    with caplog.at_level(logging.WARNING, "torchinit"):
        report = initialize(model, rules)
    assert model.head.bias.unique().tolist() == [7.0]
    assert report.loads[0].missing == ("head.bias",)
    assert "1 site not in the file, left to other rules: head.bias" in caplog.text
    with pytest.raises(CheckpointError, match=r"1 site not in the file, left to other rules: head.bias"):
        initialize(model, rules, strict=True)


def test_shapes_that_differ() -> None:
    with pytest.raises(CheckpointError) as caught:
        plan(Net(7), whole(trained()))
    assert str(caught.value).splitlines() == [
        "dict in memory: 2 sites of 10 do not fit.",
        "    head.weight has shape [7, 4], but the file [5, 4]; ResizeVocabulary, Labels or Drop can adapt it",
        "    head.bias has shape [7], but the file [5]; ResizeVocabulary, Labels or Drop can adapt it",
        "    on_shape='skip' leaves what has another shape to its other rules",
    ]
    assert plan(Net(7), whole(trained(), on_shape="skip")).loads[0].found == 8
    with pytest.raises(CheckpointError, match=r"head.bias has shape"):
        plan(Net(7), whole(trained(), on_shape={"head.*": "skip", "head.bias": "error"}))


def test_an_adapter_that_cannot_is_a_mismatch() -> None:
    with pytest.raises(CheckpointError, match=r"norm.weight InputChannels\(\) needs a site of at least 2 dimensions"):
        plan(Net(), whole(trained(), adapt={"norm.weight": InputChannels()}))


def test_what_is_dropped_is_declined_and_stays_with_its_other_rules() -> None:
    rules = [Rule(Name("head.*"), Constant(7.0)), whole(trained(3), adapt={"head.*": Drop()})]
    model = Net()
    report = initialize(model, rules, strict=True)
    assert report.loads[0].declined == (("head.weight", "Drop()"), ("head.bias", "Drop()"))
    assert report.loads[0].unexpected == ()
    assert model.head.weight.unique().tolist() == [7.0]


def test_an_adapter_for_no_site_is_said_with_the_near_name(caplog: pytest.LogCaptureFixture) -> None:
    text = "dict in memory: adapt: 'haed.weight' matches no site; did you mean 'head.weight'?"
    rule = whole(trained(), adapt={"haed.weight": Drop()})
    with caplog.at_level(logging.WARNING, "torchinit"):
        initialize(Net(), rule)
    assert text in caplog.text
    with pytest.raises(CheckpointError, match="matches no site"):
        initialize(Net(), rule, strict=True)
    with pytest.raises(CheckpointError) as caught:
        plan(Net(7), rule)
    assert caught.value.problems[-1] == text
    with pytest.raises(CheckpointError, match=r"on_shape: 'tabel.weight' matches no site; did you mean 'table.weight'"):
        plan(Net(), whole(trained(), on_shape={"tabel.weight": "skip"}), strict=True)
    with pytest.raises(CheckpointError, match=r"expect_missing: 'haed.bias' matches no site; did you mean 'head.bias'"):
        plan(Net(), whole(without("head.bias"), expect_missing="haed.bias"))


def test_a_prefix_too_many() -> None:
    with pytest.raises(CheckpointError, match="with neither prefix nor rename 10 of 10 match"):
        plan(Net(), whole(trained(), prefix="backbone"))


@pytest.mark.parametrize(
    ("name", "tensor", "text"),
    [
        ("head.bias", torch.arange(5), r"head.bias is float32, but the file holds whole numbers \(int64\)"),
        ("head.bias", torch.ones(5, dtype=torch.bool), r"is float32, but the file holds truth values \(bool\)"),
        ("head.bias", torch.ones(5, dtype=torch.complex64), r"is float32, but the file holds complex numbers"),
        ("norm.num_batches_tracked", torch.tensor(1.0), r"is int64, but the file holds floats \(float32\)"),
    ],
)
def test_numbers_of_another_kind_never_pass(name: str, tensor: Tensor, text: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{text}[^\n]*\n +numbers of another kind are not cast: exclude these"):
        plan(Net(), whole({**trained(), name: tensor}))


def test_a_file_of_another_kind_altogether() -> None:
    state = {"weight": torch.ones(1, 2, dtype=torch.int8), "bias": torch.ones(1, dtype=torch.int8)}
    model, text = nn.Linear(2, 1), r"0 of 2 tensors match the model\.\n[^?]*numbers of another kind are not cast"
    with pytest.raises(CheckpointError, match=text):
        initialize(model, whole(state))
    initialize(model, whole({name: tensor.float() for name, tensor in state.items()}))
    assert model.bias.item() == 1.0


def test_keys_nobody_asked_for_and_those_outside_of_the_prefix() -> None:
    state = {
        **{f"net.{key}": value for key, value in trained().items()},
        "net.extra": torch.ones(1),
        "ema.x": torch.ones(1),
    }
    (account,) = plan(Net(), whole(state, prefix="net")).loads
    assert account.unexpected == ("net.extra",)
    assert account.notes == ("1 key outside of prefix 'net.'",)
    (account,) = plan(Net(), Rule(Name("head.**"), Pretrained(trained()))).loads
    assert (account.found, account.unexpected) == (2, ())


def test_two_keys_for_one_site_are_an_error() -> None:
    state = {**trained(), "module.head.bias": torch.ones(5), "_orig_mod.head.bias": torch.zeros(5)}
    assert plan(Net(), whole(state)).loads[0].found == 10
    del state["head.bias"]
    with pytest.raises(CheckpointError, match=r"head.bias may be any of module.head.bias, _orig_mod.head.bias in"):
        plan(Net(), whole(state))


def test_a_file_that_is_no_checkpoint_is_a_problem_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"<html>")
    rules = [whole(str(tmp_path / "a.pth")), Rule(Leaf("bias"), Normal(std=0.5)), whole("no/such.pth")]
    made = make_plan(sites(Net()), rules)
    with pytest.raises(CheckpointError, match=r"2 problems with checkpoints") as caught:
        made.check()
    assert [text.partition(": ")[2] or text for text in caught.value.problems] == [
        "is a web page, not weights: the address gave a page (a login? an error?) instead of the file",
        "no/such.pth can not be found.",
    ]
    with pytest.raises(CheckpointError, match=r"2 problems with checkpoints"):
        made.check(complete=True)
    assert [site for account in made.loads for site in account.missing] == [site.name for site in sites(Net())] * 2


def test_what_a_checkpoint_is_blamed_for_is_not_told_again() -> None:
    rule = whole({f"backbone.{key}": value for key, value in trained().items()})
    with pytest.raises(CheckpointError, match=r"^dict in memory: 0 of 10 tensors .*\n    Every key .* 10 of 10 match$"):
        plan(Net(), rule, complete=True)
    with pytest.raises(CheckpointError, match=r"^dict in memory: 1 site of 10 is not in the file"):
        plan(Net(), whole(without("head.bias")), complete=True)
    with pytest.raises(PlanError) as caught:
        plan(Net(), Rule(Name("stem.**"), Pretrained({"a": torch.ones(1)})), complete=True)
    assert [text.splitlines()[0] for text in caught.value.problems] == [
        "dict in memory: 0 of 2 tensors match the model.",
        *(f"no rule for {name}" for name in ("norm.weight", "norm.bias", "table.weight", "head.weight", "head.bias")),
    ]


def test_another_model_altogether_is_shown_by_names_of_both() -> None:
    state = {f"layer{n}.kernel": torch.ones(n) for n in range(1, 9)}
    with pytest.raises(CheckpointError) as caught:
        plan(Net(), whole(state))
    assert str(caught.value).splitlines()[1].strip() == (
        "The file has layer1.kernel, layer2.kernel, layer3.kernel and 5 more;"
        " the model has stem.weight, stem.bias, norm.weight and 6 more"
    )


def test_the_guess_is_in_the_account_as_arguments() -> None:
    state = {f"module.net.{key}": value for key, value in trained().items()}
    (account,) = make_plan(sites(Net()), [whole(state)]).loads
    assert account.guess is not None
    assert (account.guess.prefix, account.guess.matching) == ("net.", 10)
    assert plan(Net(), whole(state, prefix=account.guess.prefix, rename=account.guess.rename)).loads[0].complete


def test_a_prefix_is_found_below_wrappers() -> None:
    state = {f"module._orig_mod.net.{key}": value for key, value in trained().items()}
    assert plan(Net(), whole(state, prefix="net")).loads[0].complete
    assert plan(nn.DataParallel(Net()), whole(state, rename=[("^net[.]", "")])).loads[0].complete


# --- locks and ties ------------------------------------------------------------------------------------------------


def test_what_is_loaded_is_locked() -> None:
    later = Rule(Name("head.*"), Constant(0.0))
    with pytest.raises(PlanError) as caught:
        plan(Net(), [whole(trained()), later])
    (text,) = caught.value.problems
    assert text == (
        "rules[0] loads 2 sites, and rules[1] (Name('head.*') -> Constant(0)) would write over them: head.weight,"
        " head.bias. Put rules[0] last, exclude them from rules[1], or say lock = false in rules[0]"
    )
    model = Net()
    initialize(model, [whole(trained(), lock=False), later])
    assert not model.head.weight.any()
    initialize(model, [later, whole(trained())])
    assert_same(model, trained())


class Tied(nn.Module):
    """Two names of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.table.weight


def test_a_tied_tensor_under_either_name_or_both() -> None:
    values = torch.arange(12.0).view(4, 3)
    for state in (
        {"table.weight": values},
        {"head.weight": values},
        {"table.weight": values, "head.weight": values + 0},
    ):
        model = Tied()
        report = initialize(model, whole(state)).assert_ok()
        assert torch.equal(model.head.weight, values)
        assert report.loads[0].unexpected == ()


def test_a_tied_tensor_with_two_values_is_an_error_before_anything_is_written() -> None:
    values, model = torch.arange(12.0).view(4, 3), Tied()
    before = model.head.weight.detach().clone()
    with pytest.raises(
        RunError, match=r"^1 site .*\n.* is one tensor in the model, but .* other values as 'head.weight'"
    ):
        initialize(model, whole({"table.weight": values, "head.weight": values + 1}))
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (
            {"other": torch.ones(3)},
            r"0 of 1 tensors match .*\n    The file has other; the model has head\.weight",
        ),
        ({"head.weight": torch.ones(5, 3)}, r"head\.weight has shape \[4, 3\], but the file \[5, 3\]"),
    ],
)
def test_a_tied_tensor_that_is_matched_under_its_second_name_alone(state: dict[str, torch.Tensor], text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        plan(Tied(), Rule(Name("head.weight"), Pretrained(state)))


# --- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nothing_is_written_where_something_is_not_finite(value: float) -> None:
    state, model = trained(), Net()
    state["head.bias"] = torch.tensor([0.0, 1.0, value, 2.0, 3.0])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(RunError, match=r"head.bias: head.bias holds NaN or infinity in dict in memory; finite = false"):
        initialize(model, whole(state))
    assert_same(model, before)
    initialize(model, whole(state, finite=False))
    assert torch.equal(model.head.bias, state["head.bias"]) or torch.isnan(model.head.bias[2])


def test_casts_are_listed_and_what_does_not_fit_is_refused() -> None:
    state = {key: value.double() if value.is_floating_point() else value for key, value in trained().items()}
    model = Net(dtype=torch.bfloat16)
    report = initialize(model, whole(state))
    assert {str(cast) for cast in report.loads[0].casts} == {"float64 -> bfloat16"}
    assert_same(model, state)
    state["head.bias"][0] = 1e6
    with pytest.raises(RunError, match=r"head.bias goes up to 1e\+06, beyond the largest number of torch.float16"):
        initialize(Net(dtype=torch.float16), whole(state))


def test_whole_numbers_keep_to_their_range() -> None:
    model = nn.Module()
    model.register_buffer("ids", torch.zeros(2, dtype=torch.int8))
    initialize(model, whole({"ids": torch.tensor([1, -128])}))
    assert model.get_buffer("ids").tolist() == [1, -128]
    with pytest.raises(RunError, match=r"ids holds whole numbers from 1 to 128, which torch.int8 cannot"):
        initialize(model, whole({"ids": torch.tensor([1, 128])}))


@given(st.data())
def test_a_shard_gets_its_slice(data: st.DataObject) -> None:
    shape = data.draw(strategies.shapes(least=1))
    box = data.draw(strategies.slices(shape))
    values = torch.arange(float(torch.Size(shape).numel())).view(shape)
    shard = strategies.part("w", shape, box)
    fill = Loaded({"w": values}, ("w",))
    fill.prepare(shard)
    fill.write(shard, Keyed(0))
    assert torch.equal(shard.local, values[box])


@given(st.data())
def test_a_shard_gets_its_slice_of_what_an_adapter_makes(data: st.DataObject) -> None:
    shape = data.draw(strategies.shapes(least=2, most=2))
    box = data.draw(strategies.slices(shape))
    values = torch.arange(float(torch.Size(shape).numel())).view(shape)
    shard = strategies.part("w", shape, box)
    fill = Loaded({"w": values.T.contiguous()}, ("w",), "w", Transpose())
    fill.prepare(shard)
    fill.write(shard, Keyed(0))
    assert torch.equal(shard.local, values[box])


def test_a_shard_reads_no_more_than_its_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchinit.checkpoints.formats.base import Checkpoint

    path, asked = write("safetensors", tmp_path, {"w": torch.ones(8, 4)}), []
    read = Checkpoint.read

    def spy(self: Checkpoint, key: str, box: Box | None = None) -> Tensor:
        asked.append(box)
        return read(self, key, box)

    monkeypatch.setattr(Checkpoint, "read", spy)
    shard = Shard("w", torch.empty(2, 4), (8, 4), (4, 0))
    fill = Loaded(str(path), ("w",))
    fill.prepare(shard)
    fill.write(shard, Keyed(0))
    assert asked == [Box((4, 0), (2, 4))] * 2


def test_a_file_that_changes_between_plan_and_run(tmp_path: Path) -> None:
    path = write("zip", tmp_path, {"w": torch.ones(2)})
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.zeros(2)))
    made = plan(model, whole(str(path)))
    write("zip", tmp_path, {"w": torch.ones(3)})
    with pytest.raises(RunError, match=r"w: w has another shape by now: \[3\]"):
        run(made, local_shards(model), Keyed(0))
    write("zip", tmp_path, {"v": torch.ones(2)})
    with pytest.raises(RunError, match=r"holds no 'w'"):
        run(made, local_shards(model), Keyed(0))
    assert not model.get_parameter("w").any()


@pytest.mark.parametrize("form", ["safetensors", "zip", "npz", "sharded-safetensors"])
def test_files_that_are_replaced_while_they_are_loaded(form: str, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    path = write(form, tmp_path, trained())
    write(form, other, {key: torch.full_like(value, 7) for key, value in trained().items()})
    model = Net()

    def replace(_: object) -> None:
        for file in other.glob("*.*"):
            file.replace(tmp_path / file.name)

    rule = Rule(Name("**"), Pretrained(str(path)))
    initialize(model, rule, progress=replace)  # what was looked through is what is written
    assert not [*other.glob("*.*")]
    for key, value in trained().items():
        assert torch.equal(model.state_dict()[key], value)
    initialize(model, rule)
    assert all((value == 7).all() for value in model.state_dict().values())


def test_a_hash_is_asked_for_at_plan_and_at_run(tmp_path: Path) -> None:
    from torchinit.checkpoints.hub.cache import hash_of

    path, model = write("zip", tmp_path, trained()), Net()
    made = plan(model, whole(str(path), sha256=hash_of(path).upper()))
    with pytest.raises(CheckpointError, match=r"is not the file that was asked for"):
        plan(model, whole(str(path), sha256="0" * 64))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(RunError, match=r"is not the file that was asked for"):
        run(made, local_shards(model), Keyed(0))


def test_many_weights_under_weight_norm_have_one_remedy() -> None:
    layers = [nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)) for _ in range(3)]
    state = nn.ModuleDict({"ups": nn.Sequential(*layers), "post": nn.Linear(3, 2)}).state_dict()
    model = nn.ModuleDict({"ups": nn.Sequential(*(nn.Linear(3, 3) for _ in range(3))), "post": nn.Linear(3, 2)})
    remedy = "with adapt={'ups.*.weight': WeightNorm(parametrized=True)} 3 more would be found"
    with pytest.raises(CheckpointError, match=re.escape(remedy)):
        initialize(model, whole(state))
    initialize(model, whole(state, adapt={"ups.*.weight": WeightNorm(parametrized=True)}))
    assert all(torch.allclose(model.get_parameter(f"ups.{at}.weight"), layers[at].weight) for at in range(3))
    state["ups.1.weight"] = state.pop("ups.1.parametrizations.weight.original1")
    with pytest.raises(
        CheckpointError, match=r"(?s)adapt=\{'ups.0.weight': WeightNorm\(.*\)\} 1 more .*\{'ups.2.weight': Weight"
    ):
        initialize(model, whole(state))


def test_a_head_that_the_file_ties_to_its_embedding() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    state = {"embed.weight": torch.randn(9, 4)}
    remedy = "another rule, for Name('head.weight'), with rename=[['^embed[.]', 'head.']] takes a copy"
    with pytest.raises(CheckpointError, match=re.escape(remedy)):
        initialize(model, whole(state))
    copy = Rule(Name("head.weight"), Pretrained(state, rename=(("^embed[.]", "head."),)))
    initialize(model, [whole(state), copy])
    assert torch.equal(model.get_parameter("head.weight"), state["embed.weight"])
    assert torch.equal(model.get_parameter("embed.weight"), state["embed.weight"])


def test_a_loaded_fill_shows_what_is_not_as_usual_and_no_secret() -> None:
    fill = Loaded("https://me:secret@example.org/a.pth", ("w",), finite=False)
    assert repr(fill) == "Loaded('https://example.org/a.pth', ('w',), finite=False)"
    assert repr(Loaded("a.pth", ("w",))) == "Loaded('a.pth', ('w',))"


def test_a_file_that_cannot_be_had_lacks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    made = make_plan(sites(nn.Linear(2, 2)), [Rule(Name("**"), Constant(0.0)), whole("nowhere.pth")])
    assert made.loads[0].warnings == ()
    assert "can not be found" in made.loads[0].problems[0]


def test_parametrized_weights_are_loaded_through_their_parametrization() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    model = nn.Sequential(layer)
    state = {"0.weight": torch.arange(6.0).view(2, 3) + 1, "0.bias": torch.ones(2)}
    initialize(model, whole(state))
    assert torch.allclose(layer.weight, state["0.weight"])
    held, plain = dict(model.state_dict()), nn.Sequential(nn.Linear(3, 2))
    remedy = r"with adapt=\{'0.weight': WeightNorm\(parametrized=True\)\} 1 more would be found"
    with pytest.raises(CheckpointError, match=remedy):
        plan(plain, whole(held))
    initialize(plain, whole(held, adapt={"0.weight": WeightNorm(parametrized=True)}))
    assert torch.allclose(plain.get_parameter("0.weight"), state["0.weight"])
    del held["0.parametrizations.weight.original1"]
    with pytest.raises(CheckpointError, match=r"0.weight is computed by a parametrization in the file"):
        plan(plain, whole(held))


def test_buffers_outside_of_the_state_are_none_of_its_business() -> None:
    model = nn.Module()
    model.register_buffer("positions", torch.zeros(3), persistent=False)
    model.register_parameter("w", nn.Parameter(torch.zeros(2)))
    (account,) = plan(model, whole({"w": torch.ones(2), "positions": torch.ones(3)})).loads
    assert account.loaded == ("w",)


def test_one_site_alone() -> None:
    init = Pretrained({"w": torch.ones(2)})
    assert init.resolve(Site("w", (2,))) == Loaded(init.checkpoint, ("w",))
    assert init.resolve(Site("v", (2,))) is None
    with pytest.raises(CheckpointError, match=r"w has shape \[3\], but the file \[2\]"):
        init.resolve(Site("w", (3,)))


# --- arguments -----------------------------------------------------------------------------------------------------


BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: Pretrained(3), TypeError, "a checkpoint is a path, an address, a dict or a model, but got an int"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", on_shape="crop"), ValueError, "on_shape must be one of error, skip"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", on_shape={"a": "crop"}), ValueError, "on_shape must be one of error, skip"),  # type: ignore[dict-item]
    (lambda: Pretrained("a", adapt=Drop()), TypeError, "adapt gives an adapter to each glob, "),  # type: ignore[arg-type]
    (lambda: Pretrained("a", adapt={"b": "Drop"}), TypeError, r"adapt\['b'\] must be an adapter "),  # type: ignore[dict-item]
    (lambda: Pretrained("a", expect_missing="a..b"), ValueError, "expect_missing: a name is dotted text"),
    (lambda: Pretrained("a", expect_missing={"b"}), TypeError, "expect_missing must be text or a list, but got {'b'}"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", expect_missing=(3,)), TypeError, "expect_missing: a name is text, but got 3"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", on_shape=None), ValueError, "on_shape must be one of error, skip, but got None"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", on_shape=["skip"]), ValueError, "on_shape must be one of error, skip"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", on_shape={3: "skip"}), TypeError, "on_shape: a name is text, but got 3"),  # type: ignore[dict-item]
    (lambda: Pretrained("a", adapt={"a..b": Drop()}), ValueError, "adapt: a name is dotted text"),
    (lambda: Pretrained("a", prefix=3), TypeError, "prefix must be text, but got 3"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", part=True), TypeError, "part must be text, but got True"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", sha256=b"0" * 64), TypeError, "sha256 must be text, but got b'0"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", finite=0), TypeError, "finite must be true or false, but got 0"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", lock="no"), TypeError, "lock must be true or false, but got 'no'"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", dtype="float33"), TypeError, "dtype must be a torch.dtype or the name of one, but got"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", dtype=float), TypeError, "dtype must be a torch.dtype or the name of one, but got"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", dtype=torch.int8), ValueError, "dtype rounds floats, so it must hold floats, but got"),
    (lambda: Pretrained("a", map_location=3), TypeError, "map_location must be the name of a device, but got 3"),  # type: ignore[arg-type]
    (lambda: Pretrained("a", map_location="meta"), ValueError, "map_location: adapters need values"),
    (lambda: Pretrained(""), ValueError, "a checkpoint needs a path or an address, but got ''"),
    (lambda: Pretrained("a", sha256="abc"), ValueError, "sha256 must be 64 hexadecimal digits"),
    (lambda: Pretrained("a", rename=(("(", ""),)), ConfigError, "is not a rename"),
    (lambda: Pretrained("a", map_location="here"), ValueError, "map_location: "),
    (lambda: Pretrained({}), CheckpointError, "dict in memory: is empty"),
    (lambda: Loaded("a", ()), ValueError, "Loaded needs a key of the checkpoint"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_arguments_that_cannot_be(number: int) -> None:
    make, error, text = BAD[number]
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    "pairs", [3, None, "ab", ["ab"], [("a",)], [("a", 3)], [("a", "b", "c")], {"a": 3}, [None]], ids=repr
)
def test_renames_that_are_no_pairs(pairs: Any) -> None:
    with pytest.raises(TypeError, match=r"rename is a list of \(pattern, replacement\), but got"):
        Pretrained("a", rename=pairs)


def test_arguments_are_kept_as_plain_data() -> None:
    said: Any = {
        "rename": {"a": "b"},
        "dtype": "bfloat16",
        "map_location": torch.device("cpu"),
        "expect_missing": ["a"],
    }
    init = Pretrained("a", **said)
    assert (init.rename, init.dtype, init.map_location) == ((("a", "b"),), torch.bfloat16, "cpu")
    assert init.expect_missing == ("a",)
    assert Pretrained("a", rename=[]) == Pretrained("a")  # type: ignore[arg-type]


def test_mistakes_in_a_recipe_come_with_their_place() -> None:
    from torchinit.recipes import decode_recipe

    entries = [
        {"type": "Pretrained", "checkpoint": "a", "prefx": "b", "name": "**"},
        {"type": "Pretrained", "checkpoint": "a", "on_shape": {"a": "crop"}, "name": "**"},
        {"type": "Pretrained", "checkpoint": "a", "bias": 0, "layer": "Linear"},
        {"type": "Pretrained", "checkpoint": "a", "sha256": "abc", "name": "**"},
        {"type": "Pretrained", "checkpoint": "a", "blocks": 3, "name": "**"},
    ]
    with pytest.raises(ConfigError) as caught:
        decode_recipe({"rules": entries})
    assert caught.value.problems == (
        "rules[0].prefx: Pretrained has no argument 'prefx'; did you mean 'prefix'?",
        "rules[1].on_shape['a']: must be one of 'error', 'skip', but got 'crop'",
        "rules[2].bias: is loaded with the rest by Pretrained; give it a rule of its own",
        "rules[3]: Pretrained: sha256 must be 64 hexadecimal digits, but got 'abc'",
        "rules[4].blocks: means nothing beside Pretrained, which loads a tensor as it is",
    )
