"""The example of a plug-in: installed from its folder, found by its entry points, listed, used; and broken ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import torchinit
from torchinit import ConfigError
from torchinit.cli import main
from torchinit.knowledge import roles
from torchinit.linting import CHECKS, Hit, check, lint, select_checks
from torchinit.recipes import schemes
from torchinit.rules.rule import INITIALIZERS, SELECTORS

ROOT = Path(__file__).parents[1]
NET = "torchinit_backwards.layers:Net"

USE = """
import sys
import torch
import torchinit
from torchinit.linting import lint
assert not [name for name in sys.modules if name.startswith("torchinit_backwards")]
torchinit.initialize(torch.nn.Linear(2, 2), "general", seed=0)
assert not [name for name in sys.modules if name.startswith("torchinit_backwards")]
from torchinit_backwards.layers import Net

model = Net()
plan = torchinit.plan(model, "backwards", gain=2.0)
print(*(step.fill for step in plan), sep="; ")
torchinit.initialize(model, "backwards", seed=0).assert_ok()
print([role.name for role in torchinit.roles(model).values()])
print(torchinit.sites(model)[0].fans("true"))
print(lint(model).codes)
torch.nn.init.constant_(model[0].openness, 5.0)
print([str(finding) for finding in lint(model, select=["BW"])])
part = {"rules": [{"init": {"type": "Triangular", "width": 1}, "where": {"type": "Wide", "inputs": 17}}]}
print([record.name for record in torchinit.initialize(Net(), part, seed=0)])
print([record.name for record in torchinit.initialize(Net(), {"extends": "backwards", "rules": []}, seed=0)])
"""

USED = [
    "Normal(std=0.125); Triangular(width=0.1); Constant(0); Constant(0)",
    "['mlp.kernel', 'gate.openness', 'mlp.kernel', 'gate.openness']",
    "(16.0, 64.0)",
    "()",
    "['0.openness: BW101 warning: a value of 5, where the sigmoid is flat; start it at zero, half open']",
    "['2.kernel']",
    "['0.kernel', '2.kernel', '0.openness', '2.openness']",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed in, offline; of a copy, since setuptools writes beside the sources."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples/plugin", folder / "source")
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(folder / "site"), str(folder / "source")], check=True, timeout=300)
    return folder / "site"


def ran(installed: Path, *command: str) -> str:
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_each_of_the_seven_is_used_without_an_import(installed: Path) -> None:
    assert ran(installed, "-c", USE).splitlines() == USED


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("initializers", ["InverseWidth torchinit_backwards.init", "Triangular torchinit_backwards.init"]),
        ("selectors", ["Wide torchinit_backwards.selectors:Wide, of the package torchinit-backwards"]),
        ("layers", ["Backwards torchinit_backwards.layers.Backwards"]),
        ("roles", ["gate.openness torchinit_backwards, of the package torchinit-backwards", "attn.q torchinit"]),
        ("schemes", ["backwards torchinit_backwards, of the package torchinit-backwards"]),
        ("checks", ["BW101 open-gate A gate that starts wide open, or shut."]),
    ],
)
def test_each_is_listed(kind: str, lines: list[str], installed: Path) -> None:
    listed = [" ".join(line.split()) for line in ran(installed, "-m", "torchinit", "list", kind).splitlines()]
    assert [line for line in lines if not any(one.startswith(line) for one in listed)] == []


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (("plan", NET, "backwards"), "scheme 'backwards' reached 4 of 4 parameters"),
        (("check", NET, "backwards", "--select", "BW101"), "no findings"),
        (("explain", "backwards"), "standard deviation of what leaves a layer"),
        (("explain", "Wide"), "Weights whose layer takes at least so many inputs."),
        (("explain", "BW101"), "Beyond ±4 the slope"),
        (("explain", "Triangular"), "The sum of two uniform numbers"),
        (("roles", NET), "gate.openness"),
    ],
)
def test_commands(command: tuple[str, ...], text: str, installed: Path) -> None:
    assert text in ran(installed, "-m", "torchinit", *command)


# --- broken ones -----------------------------------------------------------------------------------------------------


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is installed, with the entry points of `entry_points.txt`, which the test writes."""
    info = tmp_path / "acme_init-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-init\nVersion: 1.0\n")
    (tmp_path / "acme_init_plugin").mkdir()
    (tmp_path / "acme_init_plugin/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_init_plugin", raising=False)
    for registry in (INITIALIZERS, SELECTORS):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    before = dict(CHECKS)
    monkeypatch.setattr("torchinit.linting.registry.CHECKS", before)
    return info / "entry_points.txt"


class Own(nn.Module):
    """A layer that a plug-in describes."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(2, 3))


def test_a_layout_that_cannot_be_loaded(offer: Path) -> None:
    offer.write_text(f"[torchinit.layouts]\n{Own.__module__}.Own = acme_init_plugin:gone\n")
    with pytest.raises(
        ConfigError, match=r"plug-in for layer 'tests\.test_plugin_example\.Own' \(acme_init_plugin:gone\)"
    ):
        torchinit.sites(Own())
    assert torchinit.sites(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "FileNotFoundError"),
        ("rules = [{ role = 'a.b', leaf = 3 }]", "ConfigError: these are not rules of roles"),
        ("rules = [", "ConfigError: these are not rules of roles"),
    ],
)
def test_roles_that_cannot_be_read(text: str | None, why: str, offer: Path) -> None:
    offer.write_text("[torchinit.roles]\nacme = acme_init_plugin\n")
    if text is not None:
        (offer.parents[1] / "acme_init_plugin/acme.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf"plug-in for roles 'acme' \(acme_init_plugin\) cannot be loaded: {why}"):
        roles(Own())


@pytest.mark.parametrize(("text", "why"), [(None, "FileNotFoundError"), ("rules = [", "TOMLDecodeError")])
def test_a_scheme_that_cannot_be_read(text: str | None, why: str, offer: Path) -> None:
    offer.write_text("[torchinit.schemes]\nacme = acme_init_plugin\nllama = acme_init_plugin\n")
    if text is not None:
        (offer.parents[1] / "acme_init_plugin/acme.toml").write_text(text)
    assert schemes()["acme"] == "acme_init_plugin, of the package acme-init"
    with pytest.raises(ConfigError, match=rf"plug-in for scheme 'acme' \(acme_init_plugin\) cannot be loaded: {why}"):
        torchinit.load_recipe("acme")
    assert torchinit.load_recipe("llama")  # its own name is nobody else's
    with pytest.raises(ConfigError, match="did you mean 'acme'"):
        torchinit.load_recipe("acmee")


def test_a_package_that_is_gone(offer: Path) -> None:
    offer.write_text("[torchinit.schemes]\nacme = acme_init_gone\n")
    with pytest.raises(ConfigError, match="ModuleNotFoundError: there is no package 'acme_init_gone'"):
        torchinit.load_recipe("acme")


def test_a_scheme_with_a_mistake(offer: Path) -> None:
    offer.write_text("[torchinit.schemes]\nacme = acme_init_plugin\n")
    (offer.parents[1] / "acme_init_plugin/acme.toml").write_text('[[rules]]\ntype = "Nrmal"\nlayer = "Linear"\n')
    with pytest.raises(ConfigError, match=r"mistake in acme\n  rules\[0\]\.type: unknown initializer 'Nrmal'"):
        torchinit.load_recipe("acme")


def test_a_selector_that_is_none(offer: Path) -> None:
    offer.write_text("[torchinit.selectors]\nEven = acme_init_plugin:__doc__\nGone = acme_init_plugin:Gone\n")
    for name, why in (("Even", "TypeError"), ("Gone", "AttributeError")):
        recipe = {"rules": [{"init": 1, "where": {"type": name}}]}
        with pytest.raises(ConfigError, match=rf"plug-in for selector '{name}' \(.*\) cannot be loaded: {why}"):
            torchinit.plan(Own(), recipe)


def test_checks_that_cannot_be_used(offer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offer.write_text("[torchinit.checks]\nACME101 = acme_init_plugin:gone\n")
    with pytest.raises(ConfigError, match=r"plug-in for check 'ACME101' \(acme_init_plugin:gone\) cannot be loaded"):
        lint(Own())
    assert main(["list", "checks"]) == 1
    assert "plug-in for check 'ACME101'" in capsys.readouterr().err


def test_a_check_that_does_not_register(offer: Path) -> None:
    offer.write_text("[torchinit.checks]\nACME101 = acme_init_plugin:__doc__\n")
    with pytest.raises(ConfigError, match=r"cannot be used: it has no function with the decorator .*check\('ACME101'"):
        lint(Own())


@pytest.mark.usefixtures("offer")
def test_codes_of_checks() -> None:
    def own(target: object) -> list[Hit]:
        """A check."""
        return []

    for code in ("acme101", "ACME", "A1", "101"):
        with pytest.raises(ValueError, match=f"capitals and then digits, such as 'ACME101', but got '{code}'"):
            check(code, "note", "sites", "")(own)
    with pytest.raises(ValueError, match="the check 'TI401' is taken: it is constant-weight"):
        check("TI401", "note", "sites", "")(own)
    check("ACME101", "note", "sites", "")(own)
    assert [one.code for one in select_checks(["ACME"], [])] == ["ACME101"]
    assert [one.code for one in select_checks(["own"], [])] == ["ACME101"]
    with pytest.raises(ConfigError, match="'A' is not a check"):
        select_checks(["A"], [])
