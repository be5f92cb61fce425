"""Loading: what fits is loaded, what does not is said, and no code runs."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from torchinit import CheckpointError
from torchinit.mmengine import BaseModule, _load_checkpoint, load_checkpoint
from torchinit.mmengine.checkpoints import load_pretrained, load_state_dict


def state(value: float) -> dict[str, torch.Tensor]:
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
    torch.save(wrap(state(3.0)), tmp_path / "a.pth")
    net = Net({"type": "Pretrained", "checkpoint": str(tmp_path / "a.pth")})
    report: Any = net.init_weights()
    assert net.fc.weight.unique().tolist() == [3.0]
    assert report["fc.bias"].rule == f"PretrainedInit: load from {tmp_path / 'a.pth'}"


def test_pretrained_comes_last_whatever_its_place(tmp_path: Path) -> None:
    torch.save(state(3.0), tmp_path / "a.pth")
    pretrained = {"type": "Pretrained", "checkpoint": f"file://{tmp_path / 'a.pth'}"}
    net = Net([pretrained, {"type": "Constant", "val": 1, "layer": "Linear"}])
    report: Any = net.init_weights()
    assert net.fc.weight.unique().tolist() == [3.0]
    assert report["fc.weight"].over == ("ConstantInit: val=1, bias=0",)


def test_prefix(tmp_path: Path) -> None:
    torch.save({f"backbone.{key}": value for key, value in state(2.0).items()}, tmp_path / "a.pth")
    net = Net()
    assert load_pretrained(net, str(tmp_path / "a.pth"), prefix="backbone").found == 2
    assert net.fc.weight.unique().tolist() == [2.0]
    with pytest.raises(AssertionError, match=r"neck\. is not in the pretrained model$"):
        load_pretrained(net, str(tmp_path / "a.pth"), prefix="neck")
    with pytest.raises(AssertionError, match=r"bakbone\. is not in the pretrained model; did you mean 'backbone\.'\?"):
        load_pretrained(net, str(tmp_path / "a.pth"), prefix="bakbone")


def test_nothing_that_fits_is_loud_and_names_the_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({f"backbone.{key}": value for key, value in state(2.0).items()}, tmp_path / "a.pth")
    load_pretrained(Net(), str(tmp_path / "a.pth"))
    assert "0 of 2 tensors match the model. With prefix='backbone.' 2 of 2 match." in caplog.messages[-1]
    torch.save({"model": state(2.0)}, tmp_path / "b.pth")
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
    torch.save({form.format(key): value for key, value in state(2.0).items()}, path)
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
    torch.save(state(2.0), tmp_path / "a.pth")
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
    save_file(state(5.0), tmp_path / "a.safetensors")
    net = Net()
    load_pretrained(net, str(tmp_path / "a.safetensors"))
    assert net.fc.bias.tolist() == [5.0, 5.0]


class Payload:
    """Runs code when it is unpickled by a loader that lets it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('code ran')",)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": state(1.0), "extra": Payload()}, tmp_path / "a.pth")
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
