"""Models of the command line: found, built, or refused with a text that says what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from torchinit.cli.frame import ModelError, UsageError, parse_arguments
from torchinit.cli.models import build, find

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
