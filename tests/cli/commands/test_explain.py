"""The commands `explain`, `list`, `roles` and `completion`: every argument has a meaning, every example runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchinit
from tests.catalogue import ENTRIES, ROOT
from tests.cli.given import TRANSFORMER
from torchinit.checkpoints import adapters
from torchinit.checkpoints.adapters import ADAPTERS
from torchinit.cli import main
from torchinit.cli.classes import arguments_of
from torchinit.cli.commands import COMMANDS, explain
from torchinit.errors import RunError
from torchinit.linting import CHECKS
from torchinit.model import Shard, Site
from torchinit.noise import Keyed
from torchinit.recipes import INITIALIZERS, schemes, to_rules
from torchinit.rules import SELECTORS
from torchinit.serialization.registry import ClassRegistry
from torchinit.transfer import PARAMETRIZATIONS

CLASSES = [(name, registry) for registry in (INITIALIZERS, SELECTORS, ADAPTERS) for name in registry]

# The shape that an initializer is for, where a matrix will not do.
SHAPES: dict[str, tuple[int, ...]] = {
    "Bilinear": (1, 1, 4, 4),
    "Blocks": (12, 4),
    "Chrono": (8,),
    "DeformableRing": (64,),
    "DeltaOrthogonal": (6, 4, 3),
    "Dirac": (4, 4, 3),
    "ICNR": (16, 4, 3, 3),
    "Stacked": (2, 4, 4),
    "StackedFill": (2, 4, 4),
}


def told(name: str, capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(["explain", name, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def python(code: str, **names: object) -> Any:
    """What the last line of a piece of code is worth."""
    *lines, last = code.splitlines()
    scope = dict(names)
    exec("\n".join(lines), scope)  # noqa: S102
    return eval(last, scope)


@pytest.mark.parametrize(("name", "registry"), CLASSES, ids=lambda value: value if isinstance(value, str) else "")
def test_both_examples_are_one_rule_of_the_class(
    name: str, registry: ClassRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    explained = told(name, capsys)
    (of_data,) = to_rules(tomllib.loads(explained["rules"]["TOML"]))
    (of_python,) = to_rules([python(explained["rules"]["Python"])])
    assert of_data == of_python
    holder = of_data.where if registry is SELECTORS else of_data.init
    wanted = registry.get(name)
    if registry is ADAPTERS:
        assert [type(adapter) for adapter in holder.adapt.values()] == [wanted]  # type: ignore[union-attr]
    else:
        assert type(holder) is wanted


@pytest.mark.parametrize("name", [*INITIALIZERS])
def test_the_example_of_an_initializer_writes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (rule,) = to_rules(tomllib.loads(told(name, capsys)["rules"]["TOML"]))
    shape = SHAPES.get(name, (8, 8))
    site = Site("h.3.norm.weight", shape, block=(3, 12), neutral=1.0)
    if name in ("Loaded", "Pretrained"):  # no such file here; tests/checkpoints has some
        return
    fill = rule.init.resolve(site)
    tensor = torch.full(shape, torch.nan)
    assert fill is not None
    if name == "Opaque":
        with pytest.raises(RunError, match="only its own code can write it"):
            fill.write(Shard.whole(site.name, tensor), Keyed(0))
        return
    fill.write(Shard.whole(site.name, tensor), Keyed(0))
    assert tensor.isfinite().all()


@pytest.mark.parametrize("name", [*SELECTORS])
def test_the_example_of_a_selector_selects(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(3, 4, 3)
            self.layers = nn.ModuleList(nn.ModuleDict({"attn": nn.Linear(4, 4)}) for _ in range(2))
            self.norm = nn.BatchNorm1d(4)
            self.head = nn.Linear(4, 2)

    model = Model()
    (rule,) = to_rules(tomllib.loads(told(name, capsys)["rules"]["TOML"]))
    matched = [site.name for site in torchinit.sites(model) if rule.where.matches(site)]
    assert 0 < len(matched) < len(torchinit.sites(model))


@pytest.mark.parametrize(("name", "registry"), CLASSES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_argument_has_a_meaning(name: str, registry: ClassRegistry) -> None:
    for argument in arguments_of(registry.get(name)):
        assert re.fullmatch(r"[\"A-Z0-9(].{8,}", argument.meaning), argument
        assert "``" not in argument.meaning
        assert not re.match(rf"{argument.name} (is|are) ", argument.meaning)


def test_the_table_of_meanings_has_no_row_in_vain() -> None:
    table = tomllib.loads(Path(explain.__file__).parents[1].joinpath("arguments.toml").read_text("utf-8"))
    known = {name: registry.get(name) for name, registry in CLASSES}
    taken = {argument.name for cls in known.values() for argument in arguments_of(cls)}
    for name, row in table.items():
        if isinstance(row, str):
            assert name in taken
        else:
            assert set(row) <= {argument.name for argument in arguments_of(known[name])}, name


def test_checks_and_schemes_show_how_they_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    for code in CHECKS:
        rules = told(code, capsys)["rules"]
        assert python(rules["Python"], torchinit=torchinit, model=model) is not None
        assert rules["command"] == f"torchinit check MODEL --select {code}"
        command = rules["command"].replace("MODEL", "torch.nn:Identity").split()
        assert main(command[1:]) == 0
        capsys.readouterr()
    for name in schemes():
        assert told(name, capsys)["rules"]["command"] == f"torchinit plan MODEL {name}"


# --- plug-ins --------------------------------------------------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with an initializer whose types are unknown, and one that cannot be imported."""
    info = tmp_path / "siren_init-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: siren-init\nVersion: 1.0\n")
    points = "[torchinit.initializers]\nSirenFirst = siren_init:SirenFirst\nBroken = siren_init:Absent\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "siren_init.py").write_text(
        "from dataclasses import dataclass\nfrom torchinit import Normal\n"
        "@dataclass(frozen=True)\nclass SirenFirst:\n    '''Sine networks.'''\n    omega: float\n"
        "    def resolve(self, site):\n        return Normal(std=self.omega)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(INITIALIZERS, "_registered", dict(INITIALIZERS._registered))


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_is_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["SirenFirst"] == "siren_init:SirenFirst, of the package siren-init"
    assert rows["Broken"] == "siren_init:Absent, of the package siren-init"
    explained = told("SirenFirst", capsys)
    assert explained["arguments"] == [{"name": "omega", "default": "", "choices": [], "meaning": "A number."}]
    assert explained["rules"] == {}  # nobody knows an omega
    assert main(["explain", "SirnFirst"]) == 2
    assert "did you mean 'SirenFirst'?" in capsys.readouterr().err
    assert main(["explain", "Broken"]) == 1
    assert "plug-in for initializer 'Broken' (siren_init:Absent) cannot be loaded" in capsys.readouterr().err


def test_every_name_of_the_catalogue_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for entry in ENTRIES.values():
        for name in (entry["name"], *entry["name"].split(", ")):
            explained = told(name, capsys)
            assert explained["text"] and (explained["rules"] or "no" in entry), name
    rules = told("PiSSA", capsys)["rules"]
    (rule,) = to_rules(tomllib.loads(rules["TOML"]))
    assert isinstance(rule.init, torchinit.Pretrained)
    assert told("siren", capsys)["rules"]["command"] == "torchinit plan MODEL siren"
    assert "Not here: it needs a batch" in " ".join(told("LSUV", capsys)["text"])
    assert "TOML" in told("SIREN, inner layers", capsys)["rules"]


@pytest.mark.parametrize(
    ("name", "own"),
    [("CompleteP", "completep"), ("depth-μP", "depth_mup"), ("muP", "mup"), ("GPT-2", "gpt2"), ("T-Fixup", "t_fixup")],
)
def test_a_scheme_or_parametrization_as_papers_spell_it(
    name: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(name, capsys) == told(own, capsys)


def test_whatever_a_page_offers_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Initializers, selectors and adapters that pages call, and the words that transfer's guide names."""
    registries = (INITIALIZERS, SELECTORS, ADAPTERS)
    pages = [*ROOT.glob("docs/guides/*.md"), *ROOT.glob("docs/reference/*.md"), ROOT / "README.md"]
    called = {name for page in pages for name in re.findall(r"\b([A-Z]\w+)\(", page.read_text("utf-8"))}
    homes = (torchinit, torchinit.initializers, adapters)
    offered = {name for name in called if any(hasattr(getattr(home, name, None), "resolve") for home in homes[:2])}
    offered |= {name for name in called if isinstance(getattr(adapters, name, None), type)}
    offered |= {name for registry in registries for name in registry} | {*PARAMETRIZATIONS} | {*schemes()}
    assert len(offered) > 80
    for name in sorted(offered):
        assert told(name, capsys)["text"], name


def test_a_misspelt_name_of_a_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "HyperCloneing"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["explain", "WangX"]) == 2


BASH = """
source {file}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
_shtab_torchinit torchinit "${{COMP_WORDS[$COMP_CWORD]}}" "${{COMP_WORDS[$((COMP_CWORD-1))]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = "source {file}; complete -C 'torchinit {words}' | cut -f1"

CASES = [
    ("torchinit pl", "plan"),
    ("torchinit list ad", "adapters"),
    ("torchinit check --fail-on w", "warning"),
    ("torchinit plan --comp", "--complete"),
    ("torchinit cache v", "verify"),
]


def printed(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    file = tmp_path / f"torchinit.{shell}"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    return file


def ran(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_bash(words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = printed("bash", tmp_path, capsys)
    assert ran(["bash", "-c", BASH.format(file=file, words=words)]).split() == [expected]


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish here")
@pytest.mark.parametrize(("words", "expected"), CASES)
def test_fish(words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, words = printed("fish", tmp_path, capsys), words.removeprefix("torchinit ")
    assert ran(["fish", "-c", FISH.format(file=file, words=words)]).split() == [expected]


def test_zsh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = printed("zsh", tmp_path, capsys)
    text = file.read_text("utf-8")
    assert text.startswith("#compdef torchinit\n")
    assert all(f"\n    {name}:'" in text for name in COMMANDS)
    if shutil.which("zsh"):
        ran(["zsh", "-n", str(file)])


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "shell completion needs an optional dependency: pip install 'torchinit[cli]'" in capsys.readouterr().err


def test_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err


def test_roles(capsys: pytest.CaptureFixture[str]) -> None:
    """Like blocks are one line, unless all are asked for; JSON has every parameter."""
    assert main(["roles", TRANSFORMER]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tensor", "×", "role", "why"]
    assert len(lines) < 30
    assert main(["roles", TRANSFORMER, "--all"]) == 0
    every = capsys.readouterr().out.splitlines()
    assert main(["roles", TRANSFORMER, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert every[-1].startswith(f"{len(data)} parameters")
    assert len(every) == len(data) + 2
    assert data["wte.weight"]["name"] == "embed.token"
    assert main(["roles", TRANSFORMER, "--unsure", "--json"]) == 0
    unsure = json.loads(capsys.readouterr().out)
    assert unsure == {name: role for name, role in data.items() if not role["sure"]}


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("initializers", "Kaiming"),
        ("selectors", "Layer"),
        ("adapters", "Fuse"),
        ("layers", "Conv2d"),
        ("schemes", "gpt2"),
        ("nonlinearities", "gelu"),
    ],
)
def test_list(what: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert name in [line.split()[0] for line in lines]
    assert all(len(line.split()) > 1 for line in lines)
    assert main(["list", what, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(lines)


def test_everything_listed_can_be_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("initializers", "selectors", "adapters", "schemes"):
        assert main(["list", what, "--json"]) == 0
        for name in json.loads(capsys.readouterr().out):
            assert main(["explain", name]) == 0
            out = capsys.readouterr().out
            assert out.startswith(f"{name}: ")
            assert ":math:" not in out
            assert "``" not in out


def test_explain_tells_formula_arguments_and_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "depthscaled"]) == 0
    out = capsys.readouterr().out
    assert "factor = 1 / sqrt(branches · n)" in out
    assert "\n  init, required\n    The initializer that is changed" in out
    assert "\n  by = 'depth' (depth, index)\n" in out
    assert "https://arxiv.org/abs/1908.11365" in out
    assert ">>> DepthScaled(Normal(std=0.02)).resolve(site)" in out
    assert main(["explain", "Normal", "--json"]) == 0
    told = {"name": "std", "default": "1.0", "choices": [], "meaning": "The standard deviation of the values."}
    assert json.loads(capsys.readouterr().out)["arguments"][1] == told
    assert main(["explain", "mixture"]) == 0
    text = capsys.readouterr().out
    assert "Source: Jiang et al." in text
    assert re.search(r"router_std = std \(0 to 10\)\n +standard deviation of the routers", text)


def test_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "Kaimng"]) == 2
    assert (
        "no initializer, selector, adapter, check, scheme or parametrization 'Kaimng'; did you mean 'Kaiming'?"
        in capsys.readouterr().err
    )
