"""Recipe files: formats, limits, and files that are broken or hostile."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import torchinit._limits as limits
from torchinit import ConfigError, MissingExtraError, Normal, load_recipe

TEXTS = {
    "a.toml": '[[rules]]\ntype = "Normal"\nstd = 1e-3\nname = "**"\n',
    "a.json": '{"rules": [{"type": "Normal", "std": 1e-3, "name": "**"}]}',
    "a.yaml": "rules:\n- {type: Normal, std: 1e-3, name: '**'}\n",
    "a.yml": "---\nrules:\n- &a {type: Normal, std: 1e-3, name: '**'}\n",
    "b.TOML": '\ufeff[[rules]]\ntype = "Normal"\nstd = 1e-3\nname = "**"\n',
}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("name", TEXTS)
def test_formats(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, TEXTS[name])
    assert load_recipe(path) == load_recipe(str(path))
    assert [rule.init for rule in load_recipe(path)] == [Normal(std=1e-3)]


def test_anchors_of_yaml_may_be_used(tmp_path: Path) -> None:
    text = "rules:\n- &first {type: Normal, std: 0.1, name: a}\n- {<<: *first, name: b}\n- *first\n"
    assert [str(rule.where) for rule in load_recipe(write(tmp_path, "a.yaml", text))] == [
        "Name('a')", "Name('b')", "Name('a')",
    ]  # fmt: skip


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a.toml", "rules = [{}]")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert caught.value.headline == f"2 mistakes in {path}"


BOMB = "a: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(40)
)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "rules = [,\n1]", r"a\.toml: Invalid value \(at line 1, column 10\)"),
        ("a.toml", "rules = []\nrules = []\n", r"a\.toml: Cannot overwrite a value \(at line 2"),
        ("a.json", '{"rules": [],\n"x"}', r"a\.json: Expecting ':' delimiter: line 2 column 4"),
        ("a.json", '{"rules": [], "rules": []}', r"a\.json: the key 'rules' stands twice in one table"),
        ("a.json", "[" * 5_000, r"a\.json: is nested too deeply"),
        ("a.json", '{"rules": ' + "9" * 5000 + "}", r"a\.json: Exceeds the limit"),
        (
            "a.yaml",
            "rules: []\nrules: []",
            r'a\.yaml: line 2: while constructing a mapping, found duplicate key "rules"',
        ),
        ("a.yaml", "rules: [", r"a\.yaml: line 1: while parsing a flow node, expected"),
        (
            "a.yaml",
            "rules: !!python/object/apply:os.system ['true']",
            r"a\.yaml: .*could not determine a constructor",
        ),
        ("a.yaml", "rules: []\n---\nrules: []", r"a\.yaml: line 2: expected a single document"),
        ("a.yaml", "rules: \x07", r"a\.yaml: (?s:.*)special characters are not allowed"),
        ("a.yaml", BOMB, rf"a\.yaml: holds more than {limits.RECIPE_VALUES:,} values"),
        ("a.yaml", "rules: &a [*a]", r"a\.yaml: is nested too deeply"),
        ("a.ini", "", r"a\.ini: a recipe is a file of type \.toml, \.json, \.yaml, \.yml, not '\.ini'"),
        ("a.toml", "#" * (limits.RECIPE_BYTES + 1), rf"a\.toml: has more than {limits.RECIPE_BYTES:,} bytes"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe(write(tmp_path, name, text))


def test_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"a\.toml: 'utf-8' codec can't decode"):
        load_recipe(path)


def test_missing_files(tmp_path: Path) -> None:
    write(tmp_path, "recipe.toml", "")
    with pytest.raises(ConfigError, match=r"there is no file '.*recipy\.toml'; did you mean 'recipe\.toml'\?"):
        load_recipe(tmp_path / "recipy.toml")
    with pytest.raises(ConfigError, match=r"there is no file '.*nowhere.recipe\.toml'$"):
        load_recipe(tmp_path / "nowhere" / "recipe.toml")
    with pytest.raises(
        ConfigError, match=r"there is no file 'lama' and no scheme of this name; did you mean 'llama'\?"
    ):
        load_recipe("lama")
    with pytest.raises(ConfigError, match=r"a recipe is a file of type .*, not 'none'"):
        load_recipe(tmp_path)


def test_a_file_comes_before_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(load_recipe("gpt2")) > 1
    write(tmp_path, "gpt2", "")
    with pytest.raises(ConfigError, match="gpt2: a recipe is a file of type"):
        load_recipe("gpt2")


def test_yaml_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    with pytest.raises(MissingExtraError, match=r"reading YAML needs .*pip install 'torchinit\[yaml\]'"):
        load_recipe(write(tmp_path, "a.yaml", "rules: []"))


def test_anchors_and_keys_that_are_odd(tmp_path: Path) -> None:
    anew = "rules:\n- {name: &a x, type: Zeros}\n- {name: &a y, type: Ones}\n- {name: *a, type: Ones}\n"
    rules = load_recipe(write(tmp_path, "a.yaml", anew))
    assert [str(rule.where) for rule in rules] == ["Name('x')", "Name('y')", "Name('y')"]
    with pytest.raises(ConfigError, match=r"a.yaml: unhashable type"):
        load_recipe(write(tmp_path, "a.yaml", "rules:\n- {[{a: 1}]: b}\n"))
