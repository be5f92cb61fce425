"""Checkpoints as MMEngine loads them: what fits is loaded, what does not is said, and no code runs."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.checkpoints.files import state, write
from torchinit import CheckpointError
from torchinit.initializers.load_report import Cast
from torchinit.mmengine import (
    BaseModule,
    CheckpointLoader,
    Sequential,
    _load_checkpoint,
    _load_checkpoint_with_prefix,
    load_checkpoint,
    load_state_dict,
)
from torchinit.mmengine.checkpoints import load_pretrained


def layer_of(value: float) -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.full((2, 2), value), "fc.bias": torch.full((2,), value)}


class Net(BaseModule):
    """One layer."""

    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.fc = nn.Linear(2, 2)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_plain_nested_and_wrapped(wrap: Any, tmp_path: Path) -> None:
    torch.save(wrap(layer_of(3.0)), tmp_path / "a.pth")
    net = Net({"type": "Pretrained", "checkpoint": str(tmp_path / "a.pth")})
    report: Any = net.init_weights()
    assert net.fc.weight.unique().tolist() == [3.0]
    assert report["fc.bias"].rule == f"PretrainedInit: load from {tmp_path / 'a.pth'}"


def test_pretrained_comes_last_whatever_its_place(tmp_path: Path) -> None:
    torch.save(layer_of(3.0), tmp_path / "a.pth")
    pretrained = {"type": "Pretrained", "checkpoint": f"file://{tmp_path / 'a.pth'}"}
    net = Net([pretrained, {"type": "Constant", "val": 1, "layer": "Linear"}])
    report: Any = net.init_weights()
    assert net.fc.weight.unique().tolist() == [3.0]
    assert report["fc.weight"].over == ("ConstantInit: val=1, bias=0",)


def test_prefix(tmp_path: Path) -> None:
    torch.save({f"backbone.{key}": value for key, value in layer_of(2.0).items()}, tmp_path / "a.pth")
    net = Net()
    assert load_pretrained(net, str(tmp_path / "a.pth"), prefix="backbone").found == 2
    assert net.fc.weight.unique().tolist() == [2.0]
    with pytest.raises(AssertionError, match=r"neck\. is not in the pretrained model$"):
        load_pretrained(net, str(tmp_path / "a.pth"), prefix="neck")
    with pytest.raises(AssertionError, match=r"bakbone\. is not in the pretrained model; did you mean 'backbone\.'\?"):
        load_pretrained(net, str(tmp_path / "a.pth"), prefix="bakbone")


def test_nothing_that_fits_is_loud_and_names_the_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({f"backbone.{key}": value for key, value in layer_of(2.0).items()}, tmp_path / "a.pth")
    load_pretrained(Net(), str(tmp_path / "a.pth"))
    assert "0 of 2 tensors match the model. With prefix='backbone.' 2 of 2 match." in caplog.messages[-1]
    torch.save({"model": layer_of(2.0)}, tmp_path / "b.pth")
    load_pretrained(Net(), str(tmp_path / "b.pth"))
    assert "under the key 'model'" in caplog.messages[-1]


REMEDIES = [
    ("backbone.{}", "With prefix='backbone.' 2 of 2", "With revise_keys=[['^backbone[.]', '']] 2 of 2"),
    ("module.net.{}", "With prefix='module.net.' 2 of 2", "With revise_keys=[['^module[.]net[.]', '']] 2 of 2"),
    ("_orig_mod.{}", "With prefix='_orig_mod.' 2 of 2", "With revise_keys=[['^_orig_mod[.]', '']] 2 of 2"),
    ("{}", "With load_checkpoint(..., revise_keys=[['^', 'net.']]) 2 of 2", "With revise_keys=[['^', 'net.']] 2 of 2"),
    ("other_{}x", "The file has other_fc.weightx, other_fc.biasx; the model has", "The file has other_fc.weightx"),
]


@pytest.mark.parametrize(("form", "pretrained", "checkpoint"), REMEDIES)
def test_the_remedy_is_in_the_words_of_the_function_that_was_called(
    form: str, pretrained: str, checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "a.pth")
    torch.save({form.format(key): value for key, value in layer_of(2.0).items()}, path)
    net: Any = nn.ModuleDict({"net": Net()}) if form == "{}" else Net()
    load_pretrained(net, path)
    assert f"0 of 2 tensors match the model. {pretrained}" in caplog.messages[-1]
    load_checkpoint(net, path, revise_keys=[])
    assert f"0 of 2 tensors match the model. {checkpoint}" in caplog.messages[-1]
    if said := re.search(r"revise_keys=(\[.*\]) 2 of 2", caplog.messages[-1]):
        load_checkpoint(net, path, strict=True, revise_keys=eval(said[1]))
    if said := re.search(r"prefix='(.*)' 2 of 2", pretrained):
        assert load_pretrained(net, path, prefix=said[1]).found == 2


def test_nothing_is_loaded_into_a_model_on_meta(tmp_path: Path) -> None:
    torch.save(layer_of(2.0), tmp_path / "a.pth")
    with torch.device("meta"):
        net = Net()
    for load in (load_pretrained, load_checkpoint):
        with pytest.raises(
            CheckpointError, match=r"is on the meta device \(fc.weight, fc.bias\).* torchinit.materialize"
        ):
            load(net, str(tmp_path / "a.pth"))


def test_the_counter_of_a_batch_norm_does_not_pass_for_a_loaded_tensor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    torch.save({f"neck.{key}": value for key, value in net.state_dict().items()}, tmp_path / "a.pth")
    load_pretrained(net, str(tmp_path / "a.pth"))
    assert "0 of 6 tensors match the model. With prefix='neck.' 6 of 6 match." in caplog.messages[-1]


def test_what_does_not_fit_is_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"fc.weight": torch.ones(3, 2), "other": torch.ones(1)}, tmp_path / "a.pth")
    account = load_pretrained(Net(), str(tmp_path / "a.pth"))
    text = "\n".join(caplog.messages)
    assert "size mismatch for fc.weight" in text
    assert "unexpected key in source state_dict: other" in text
    assert "missing keys in source state_dict: fc.bias" in text
    assert account.found == 0


def test_safetensors(tmp_path: Path) -> None:
    save_file(layer_of(5.0), tmp_path / "a.safetensors")
    net = Net()
    load_pretrained(net, str(tmp_path / "a.safetensors"))
    assert net.fc.bias.tolist() == [5.0, 5.0]


class Payload:
    """Runs code when it is unpickled by a loader that lets it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('code ran')",)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": layer_of(1.0), "extra": Payload()}, tmp_path / "a.pth")
    with pytest.raises(pickle.UnpicklingError):
        _load_checkpoint(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("missing.pth", FileNotFoundError, "missing.pth can not be found."),
        ("s3://bucket/a.pth", CheckpointError, "this kind of source is not registered"),
        ("http://example.org/a.pth", CheckpointError, "anyone on the way can change what comes by http"),
    ],
)
def test_sources_that_cannot_be_read(source: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        _load_checkpoint(source)


def test_a_file_without_weights(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(RuntimeError, match="No state_dict found in checkpoint file"):
        load_pretrained(Net(), str(tmp_path / "a.pth"))


def test_a_load_that_ends_in_the_middle_tells_so() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    net[1]._register_load_state_dict_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        load_state_dict(net, {name: torch.ones_like(tensor) for name, tensor in net.state_dict().items()})
    told = "2 of 4 entries had been copied, or found not to fit, by then: the module may be half-loaded"
    assert caught.value.__notes__ == [told]
    assert [bool((tensor == 1).all()) for tensor in net.state_dict().values()] == [True, True, False, False]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(CheckpointLoader._schemes._values)
    yield
    CheckpointLoader._schemes._values.clear()
    CheckpointLoader._schemes._values.update(before)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "sharded-safetensors"])
def test_what_a_file_holds(form: str, tmp_path: Path) -> None:
    held = _load_checkpoint(str(write(form, tmp_path, state())))
    assert held.keys() == state().keys()
    assert all(torch.equal(held[key], tensor) for key, tensor in state().items())


def test_what_is_given_back_does_not_depend_on_the_file(tmp_path: Path) -> None:
    for form in ("zip", "safetensors"):
        path = write(form, tmp_path, state())
        held = _load_checkpoint(str(path))
        path.write_bytes(b"")  # a mapped tensor would now crash the process
        assert all(torch.equal(held[key], tensor) for key, tensor in state().items())


@pytest.mark.parametrize(
    ("place", "error", "text"),
    [
        ("gpu", ValueError, "map_location must be the name of a device such as 'cpu', but got 'gpu'"),
        (3.5, TypeError, "map_location must be a device, a dict of devices, a function or None, but got 3.5"),
    ],
)
def test_places_that_are_none(place: Any, error: type[Exception], text: str, tmp_path: Path) -> None:
    path = str(write("zip", tmp_path, state()))
    with pytest.raises(error, match=text):
        _load_checkpoint(path, place)
    for good in (None, torch.device("cpu"), {"cuda:0": "cpu"}, lambda storage, _: storage):
        assert _load_checkpoint(path, good).keys() == state().keys()


def test_everything_else_in_it_comes_along(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(1, 1).state_dict(), "meta": {"epoch": 3}}, tmp_path / "a.pth")
    held = load_checkpoint(nn.Linear(1, 1), str(tmp_path / "a.pth"))
    assert held["meta"] == {"epoch": 3}
    assert held["state_dict"]._metadata == {"": {"version": 1}}


def test_below_a_prefix(tmp_path: Path) -> None:
    torch.save({"state_dict": {"net.a": torch.ones(1), "b": torch.ones(1)}}, tmp_path / "a.pth")
    assert list(_load_checkpoint_with_prefix("net", str(tmp_path / "a.pth"))) == ["a"]
    with pytest.raises(AssertionError, match=r"^trunk\. is not in the pretrained model$"):
        _load_checkpoint_with_prefix("trunk", str(tmp_path / "a.pth"))


def test_keys_are_revised_in_turn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"encoder.fc.weight": torch.ones(1, 1), "encoder.fc.bias": torch.ones(1)}, tmp_path / "a.pth")
    model = nn.Sequential(nn.Linear(1, 1))
    load_checkpoint(model, str(tmp_path / "a.pth"), revise_keys=[("^encoder[.]", ""), ("^fc[.]", "0.")], strict=True)
    assert model.state_dict()["0.weight"].item() == 1.0
    load_checkpoint(model, str(tmp_path / "a.pth"))
    assert "0 of 2 tensors match the model. With revise_keys=[['^encoder[.]fc[.]', '0.']] 2 of 2" in caplog.text


def test_strict(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 1), "other": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(RuntimeError, match=r"(?s)do not match exactly.*size mismatch for weight.*key.*: other.*: bias"):
        load_checkpoint(nn.Linear(1, 1), str(tmp_path / "a.pth"), strict=True)
    with pytest.raises(RuntimeError, match=r"missing keys in source state_dict: bias"):
        load_state_dict(nn.Linear(1, 1), {"weight": torch.ones(1, 1)}, strict=True)


def test_wrappers_are_looked_through_on_both_sides(tmp_path: Path) -> None:
    torch.save({"module.0.weight": torch.ones(1, 1), "module.0.bias": torch.ones(1)}, tmp_path / "a.pth")
    model = nn.DataParallel(nn.Sequential(nn.DataParallel(nn.Linear(1, 1))))
    load_checkpoint(model, str(tmp_path / "a.pth"), strict=True)
    account = load_pretrained(model, str(tmp_path / "a.pth"))
    assert (account.loaded, account.complete) == (("0.weight", "0.bias"), True)


def test_loggers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"weight": torch.ones(1, 1)}, tmp_path / "a.pth")
    path, mine = str(tmp_path / "a.pth"), logging.getLogger("mine")
    with caplog.at_level(logging.INFO):
        load_checkpoint(nn.Linear(1, 1), path, logger="silent")
        assert not caplog.records
        load_checkpoint(nn.Linear(1, 1), path, logger=mine)
    assert [record.name for record in caplog.records] == ["mine", "mine"]
    assert caplog.messages == [
        f"Loads checkpoint by local backend from path: {path}",
        "The model and loaded state dict do not match exactly\n\nmissing keys in source state_dict: bias\n",
    ]


def test_values_that_are_odd_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"weight": torch.tensor([[float("nan")]]), "bias": torch.ones(1, dtype=torch.int64)}, tmp_path / "a.pth")
    account = load_pretrained(nn.Linear(1, 1), str(tmp_path / "a.pth"))
    assert account.casts == (Cast("bias", (torch.int64, torch.float32)),)
    assert f"{tmp_path / 'a.pth'}: NaN or infinity in weight" in caplog.messages
    assert f"{tmp_path / 'a.pth'}: numbers of another kind, int64 -> float32, for bias" in caplog.messages


@pytest.mark.parametrize("inner", [True, False])
def test_the_backbone_of_a_classifier(
    inner: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MMEngine takes what lies below backbone. out of what its table of classifiers names, and nothing else."""
    held = {"backbone.weight": torch.full((1, 1), 5.0), "backbone.bias": torch.ones(1), "head.weight": torch.ones(2)}
    torch.save({"state_dict": held, "meta": 1} if inner else held, tmp_path / "vgg.pth")
    sources = {"mmcls://vgg": tmp_path / "vgg.pth"}
    monkeypatch.setattr("torchinit.mmengine.checkpoints.fetch", lambda source: sources.get(source, Path(source)))
    model = Sequential(nn.Linear(1, 1), init_cfg={"type": "Pretrained", "checkpoint": "mmcls://vgg"})
    assert CheckpointLoader.load_checkpoint("mmcls://vgg").keys() == {"state_dict"}
    account = load_pretrained(model[0], "mmcls://vgg")
    assert account.complete
    assert model.get_parameter("0.weight").item() == 5.0
    with caplog.at_level(logging.INFO):
        model.init_weights()
    assert "Loads checkpoint by mmcls backend from path: mmcls://vgg" in caplog.messages
    assert any(text.startswith("mmcls://vgg: 0 of 2 tensors match the model.") for text in caplog.messages)


@pytest.mark.parametrize(
    ("source", "backend"),
    [
        ("a.pth", "local"), ("file:///a.pth", "local"), ("https://a.org/a.pth", "http"), ("hf://a/b", "hf"),
        ("open-mmlab://a", "openmmlab"), ("openmmlab://a", "openmmlab"), ("modelzoo://a", "torchvision"),
    ],
)  # fmt: skip
def test_what_the_way_to_a_source_is_called(
    source: str, backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(source: str) -> Path:
        raise CheckpointError("not now")

    monkeypatch.setattr("torchinit.mmengine.checkpoints.fetch", fails)
    with caplog.at_level(logging.INFO), pytest.raises(CheckpointError, match="not now"):
        load_checkpoint(nn.Linear(1, 1), source)
    assert caplog.messages == [f"Loads checkpoint by {backend} backend from path: {source}"]


def test_schemes_of_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    @CheckpointLoader.register_scheme(prefixes=["shop://", r"(\S+\:)?shelf://"])
    def load_from_shop(filename: str, map_location: Any) -> Any:
        return {"state_dict": {"weight": torch.full((1, 1), 4.0), "bias": torch.ones(1)}, "from": filename}

    model = nn.Linear(1, 1)
    with caplog.at_level(logging.INFO):
        assert load_checkpoint(model, "shop://a")["from"] == "shop://a"
    assert caplog.messages == ["Loads checkpoint by shop backend from path: shop://a"]
    assert CheckpointLoader.load_checkpoint("lab:shelf://b")["from"] == "lab:shelf://b"
    assert model.weight.item() == 4.0
    with pytest.raises(KeyError, match=r"shop://: registered already; force=True replaces it"):
        CheckpointLoader.register_scheme("shop://", lambda *_: None)
    CheckpointLoader.register_scheme("shop://", lambda *_: {"x": 1}, force=True)
    assert CheckpointLoader.load_checkpoint("shop://a") == {"x": 1}
    with pytest.raises(CheckpointError, match=r"this kind of source is not registered"):
        CheckpointLoader.load_checkpoint("shed://a")


def test_a_pickle_is_refused_by_name_and_as_torch_refuses_it(tmp_path: Path) -> None:
    from http.cookies import SimpleCookie

    torch.save({"state_dict": {}, "args": SimpleCookie()}, tmp_path / "a.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"is refused: its pickle asks for http.cookies.SimpleCookie, and"):
        _load_checkpoint(str(tmp_path / "a.pth"))
    torch.save([1], tmp_path / "b.pth")
    with pytest.raises(RuntimeError, match=r"No state_dict found in checkpoint file"):
        load_checkpoint(nn.Linear(1, 1), str(tmp_path / "b.pth"))


def test_the_report_of_init_weights_has_the_account(tmp_path: Path) -> None:
    class Net(BaseModule):
        """One layer."""

        def __init__(self) -> None:
            super().__init__({"type": "Pretrained", "checkpoint": str(tmp_path / "a.pth")})
            self.fc = nn.Linear(2, 2)

    torch.save({"fc.weight": torch.ones(2, 2), "old": torch.ones(1)}, tmp_path / "a.pth")
    report: Any = Net().init_weights()
    (account,) = report.loads
    assert (account.loaded, account.missing, account.unexpected) == (("fc.weight",), ("fc.bias",), ("old",))
    assert "66.6 % of the elements loaded, 1 of 2 sites, 1 missing, 1 unexpected" in report.summary()
