"""Models of the command line: found, built, or refused with the way out; their weights, in files safetensors reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchinit import CheckpointError
from torchinit.cli.frame import ModelError, UsageError, parse_arguments
from torchinit.cli.models import (
    CODES,
    build,
    compare,
    distinct,
    find,
    fingerprint_of,
    open_file,
    same_bits,
    write,
    write_state,
)

SOURCE = """
import torch
from torch import nn
import helper

class Wide(nn.Linear):
    def __init__(self, width=3):
        super().__init__(2, width)

    @classmethod
    def wider(cls):
        return cls(30)

def small(bias=True): return nn.Linear(2, 3, bias=bias)
def nothing(): return "no model"
def broken(): raise RuntimeError("no GPU here")
def leaves(): raise SystemExit(3)
def peeks(): return nn.Linear(2, int(torch.ones(1).item()))
ready = nn.Linear(2, 3)
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("")
    path = tmp_path / "my_models.py"
    path.write_text(SOURCE)
    return path


def test_factory_of_a_package_and_of_a_file(file: Path) -> None:
    linear = build("torch.nn:Linear", {"in_features": 2, "out_features": 3}, "meta")
    assert isinstance(linear, nn.Linear)
    assert linear.weight.is_meta
    for name in ("small", "Wide", "Wide.wider"):
        assert not next(build(f"{file}:{name}", {}, "cpu").parameters()).is_meta
    assert build(f"{file}:small", {"bias": False}, "cpu").bias is None
    assert str(file.parent) not in sys.path


def test_module_in_the_current_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert callable(find("my_models:small"))
    del sys.modules["my_models"]
    with pytest.raises(ModelError, match=r"no module 'my_model'; did you mean 'my_models'\?"):
        find("my_model:small")


def test_seed_of_the_factory_is_not_that_of_the_caller(file: Path) -> None:
    before = torch.get_rng_state()
    one, same, other = (build(f"{file}:small", {}, "cpu", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(next(one.parameters()), next(same.parameters()))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("smal", r"has no 'smal'; did you mean 'small'\?"),
        ("Wide.wide", r"has no 'Wide.wide'; did you mean 'wider'\?"),
        ("nothing", "returned a str, not a torch.nn.Module"),
        ("broken", r"(?s)raised RuntimeError: no GPU here\n  at .*my_models.py:16"),
        ("leaves", "raised SystemExit: 3"),
        ("ready", "is a model already; name a function or a class"),
        ("number", "is a int, which cannot be called"),
    ],
)
def test_what_is_no_factory(file: Path, name: str, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        build(f"{file}:{name}", {}, "cpu")


def test_wrong_argument_and_a_factory_that_needs_memory(file: Path) -> None:
    with pytest.raises(ModelError, match=r"TypeError: .* unexpected keyword argument 'bais'"):
        build(f"{file}:small", {"bais": 1}, "cpu")
    with pytest.raises(ModelError, match="with --device cpu it is built in memory"):
        build(f"{file}:peeks", {}, "meta")
    assert isinstance(build(f"{file}:peeks", {}, "cpu"), nn.Linear)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet", "'resnet' names no model; it is package.module:factory"),
        (":small", "names no model"),
        ("torch.nn:", "names no model"),
        ("torch.nnn:Linear", r"no module 'torch.nnn'; did you mean 'nn'\?"),
        ("no_such_package.models:f", "no module 'no_such_package'"),
    ],
)
def test_what_names_no_model(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find(text)


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("import no_such_thing\n")
    with pytest.raises(ModelError, match=r"no file '.*model.py'; did you mean '.*models.py'\?"):
        find(f"{tmp_path}/model.py:f")
    with pytest.raises(ModelError, match=r"(?s)loading .* raised ModuleNotFoundError: .*no_such_thing.*models.py:1"):
        find(f"{tmp_path}/models.py:f")
    (tmp_path / "models.py").write_text("def f(:\n")
    with pytest.raises(ModelError, match="raised SyntaxError"):
        find(f"{tmp_path}/models.py:f")


def test_package_whose_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fails_inside.py").write_text("import no_such_thing\n")
    (tmp_path / "fails_too.py").write_text("1 / 0\n")
    with pytest.raises(ModelError, match="importing fails_inside raised ModuleNotFoundError"):
        find("fails_inside:f")
    with pytest.raises(ModelError, match="importing fails_too raised ZeroDivisionError"):
        find("fails_too:f")


def test_file_that_is_named_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.py").write_text("")
    monkeypatch.chdir(tmp_path / "sub")
    with pytest.raises(ModelError, match="there is no module 'deeper'"):
        find("deeper:f")


def test_arguments_are_json_or_text() -> None:
    given = ["depth=2", "bias=false", "act=gelu", "sizes=[1, 2]", "empty="]
    assert parse_arguments(given) == {"depth": 2, "bias": False, "act": "gelu", "sizes": [1, 2], "empty": ""}
    with pytest.raises(UsageError, match="--arg takes key=value, but got 'depth'"):
        parse_arguments(["depth"])
    with pytest.raises(UsageError, match="--arg depth is given twice"):
        parse_arguments(["depth=1", "depth=2"])


def test_config_files_that_hold_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ModelError, match="there is no file"):
        build(f"transformers:{tmp_path}", {}, "meta")
    for text, message in (("{", r"config.json is not JSON: Expecting property name"), ("[]", "holds a list, not")):
        path.write_text(text)
        with pytest.raises(ModelError, match=message):
            build(f"transformers:{path}", {}, "meta")
    path.rename(tmp_path / "confg.json")
    with pytest.raises(ModelError, match=r"there is no file '.*config.json'; did you mean '.*confg.json'\?"):
        build(f"transformers:{path}", {}, "meta")


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(list(CODES)), SHAPES), max_size=6))
def test_safetensors_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    tensors = {name: _bits(*what) for name, what in wanted.items()}  # type: ignore[misc]
    write(path, tensors, {"format": "pt", "b": "2", "a": "ä"})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(same_bits(read[name], tensors[name]) for name in tensors)


def _bits(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    size = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2, (*shape, size), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def test_same_values_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.arange(6.0).view(2, 3).T, "n": torch.tensor(3)}
    write(tmp_path / "1.safetensors", tensors, {"x": "1", "y": "2"})
    write(tmp_path / "2.safetensors", dict(reversed(tensors.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    assert torch.equal(load_file(tmp_path / "1.safetensors")["a"], tensors["a"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_buffer("empty", torch.ones(0))
        self.register_buffer("empty_too", torch.ones(0))


def test_tied_tensor_is_written_once_and_its_other_name_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_state(path, Tied().state_dict(), {"torchinit.seed": "0"})
    assert load_file(path).keys() == {
        "embed.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
        "norm.num_batches_tracked", "empty", "empty_too",
    }  # fmt: skip
    with safe_open(path, "pt") as file:
        told = file.metadata()
    assert json.loads(told["torchinit.tied"]) == {"head.weight": "embed.weight"}
    assert (told["format"], told["torchinit.seed"]) == ("pt", "0")


def test_what_the_format_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for tensor in (torch.ones(2, dtype=torch.complex128), torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta")):
        with pytest.raises(UsageError, match="x cannot be written: safetensors has no"):
            write(path, {"x": tensor}, {})

    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"scale": 1}

        def set_extra_state(self, state: object) -> None:
            del state

    with pytest.raises(UsageError, match="_extra_state is a dict; safetensors holds tensors only"):
        distinct(Extra(2, 3).state_dict())
    assert list(tmp_path.iterdir()) == []


def test_old_file_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    write(path, {"x": torch.ones(2)}, {})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("torchinit.cli.models.feed", full)
    with pytest.raises(OSError, match="no space left"):
        write(path, {"x": torch.zeros(2)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_compare_names_every_difference(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    same, nan = torch.ones(2), torch.tensor([float("nan"), 1.0])
    tensors = {"same": same, "nan": nan, "value": torch.zeros(3), "shape": torch.zeros(3), "dtype": same, "gone": same}
    others = {
        "same": same, "nan": nan, "value": torch.tensor([0.0, 0.5, 0.0]), "shape": torch.zeros(4),
        "dtype": same.bfloat16(), "new": same, "zero": torch.zeros(2),
    }  # fmt: skip
    write(a, {**tensors, "zero": -torch.zeros(2)}, {})
    write(b, others, {})
    assert [str(change) for change in compare(a, b)] == [
        "changed dtype: [2] float32 -> [2] bfloat16, 0 elements apart by up to 0",
        "removed gone: [2] float32",
        "added new: [2] float32",
        "changed shape: [3] float32 -> [4] float32",
        "changed value: [3] float32 -> [3] float32, 1 element apart by up to 0.5",
        "changed zero: [2] float32 -> [2] float32, 0 elements apart by up to 0",
    ]
    assert compare(a, a) == ()


def test_what_is_no_weight_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(UsageError, match="there is no file"):
        compare(path, path)
    path.write_bytes(b"nonsense" * 10)
    with pytest.raises(CheckpointError, match="is not a valid safetensors file"):
        compare(path, path)


@pytest.mark.parametrize("tied", ["{", "[]", '{"b": 3}'])
def test_metadata_of_ours_that_a_stranger_wrote_are_refused(tmp_path: Path, tied: str) -> None:
    path = tmp_path / "w.safetensors"
    write(path, {"a": torch.ones(2)}, {"torchinit.tied": tied})
    with pytest.raises(
        CheckpointError, match=r"torchinit\.tied (is not JSON|is not a table|are not names of its tensors)"
    ):
        fingerprint_of(path)


def test_a_file_knows_the_names_of_a_tied_tensor(tmp_path: Path) -> None:
    model, path = Tied(), tmp_path / "w.safetensors"
    write_state(path, model.state_dict(), {})
    found = fingerprint_of(path)
    assert found.aliases
    assert all(found.of(name) is not None for name in model.state_dict())


def test_tensors_of_a_file_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "w.safetensors")
    tensors, tied = open_file(tmp_path / "w.safetensors")
    assert (sorted(tensors), tensors["a"].tolist(), tied) == (["a", "b"], [1.0, 1.0], {})
