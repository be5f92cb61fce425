"""Options: whatever a function of the library takes, its command takes as well, or a reason says why not."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import torchinit
from torchinit import Normal
from torchinit.cli import _parser, main
from torchinit.cli.commands import COMMANDS as EVERY
from torchinit.cli.commands import checks
from torchinit.rules import Recipe
from torchinit.transfer import Transfer

_CODE = "an object of Python's: "
_RECIPE = "a recipe says it, and `torchinit apply` carries it out: "
_MODEL_KEEPS = "`--only` and the recipe's own `trainable` say which: "
_WHERE = {
    "trainable": f"{_MODEL_KEEPS}trainable = true", "under": f"{_CODE}a module of the model",
    "inside": f"{_CODE}a module of the model", "named": f"{_CODE}modules by names of one's own",
}  # fmt: skip
_RUN = {
    "progress": "the command has a bar of its own", "fingerprint": "`torchinit fingerprint` prints it",
    "verify": "`torchinit reproduce` proves more", "group": f"{_CODE}a group of processes",
    "device": "it writes a file, from the CPU",
}  # fmt: skip

# For each command the functions that it carries out, the options under other names, and reasons for those it lacks.
COMMANDS: dict[str, tuple[list[Callable[..., Any]], dict[str, str], dict[str, str]]] = {
    "transfer": ([Transfer.__init__, Transfer.groups], {"start": "recipe"}, {}),
    "grow": (
        [torchinit.Pretrained, torchinit.preserves],
        {"checkpoint": "old", "layers": "depth", "adapt": "width", "new": "model"},
        {
            **dict.fromkeys(("expect_missing", "expect_unexpected", "on_shape"), f"{_RECIPE}what does not fit"),
            **dict.fromkeys(("dtype", "finite", "map_location"), f"{_RECIPE}what is written"),
            "sha256": "`torchinit fetch --sha256` compares it", "lock": "there are no later rules",
            "order": "names are needed, to tell blocks", "batch": f"{_CODE}made for the old model",
        },
    ),
    "probe": ([torchinit.probe], {}, {"loss": f"{_CODE}a function", "prior": f"{_CODE}a measurement"}),
    "plan": ([torchinit.plan], {"arguments": "set"}, _WHERE),
    "apply": ([torchinit.initialize, torchinit.materialize], {"arguments": "set"}, _WHERE | _RUN),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_takes_what_the_functions_take(name: str) -> None:
    functions, renamed, reasons = COMMANDS[name]
    parsers = next(each for each in _parser([name])._actions if isinstance(each, argparse._SubParsersAction))
    options = {action.dest for action in parsers.choices[name]._actions}
    taken = {each for function in functions for each in inspect.signature(function).parameters} - {"self"}
    lacking = {each for each in taken if renamed.get(each, each) not in options}
    assert lacking == {*reasons}
    assert all(reasons.values())


_ON_CPU = "it is built in memory, since it is about values"
_NO_VALUES = "nothing of it depends on values"
# What each command takes that has the option on the left, and reasons for those that do not.
SHARED: list[tuple[set[str], str, dict[str, str]]] = [
    ({"recipe", "init"}, "set", {}),
    ({"beside"}, "beside_set", {}),
    ({"base"}, "base_arg", {}),
    ({"command"}, "json", {"completion": "code for a shell"}),
    ({"model"}, "device", dict.fromkeys(("apply", "grow", "fingerprint", "parity", "probe", "reproduce"), _ON_CPU)),
    (
        {"model"},
        "seed",
        {
            **dict.fromkeys(("plan", "diff", "check-ckpt", "roles", "transfer"), _NO_VALUES),
            "reproduce": "the report says it",
        },
    ),
]


@pytest.mark.parametrize(("those", "option", "reasons"), SHARED)
def test_what_one_command_takes_its_siblings_take(those: set[str], option: str, reasons: dict[str, str]) -> None:
    parsers = next(each for each in _parser(EVERY)._actions if isinstance(each, argparse._SubParsersAction))
    lacking = set()
    for name, parser in parsers.choices.items():
        inner = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
        parts = [*inner[0].choices.values()] if inner else [parser]
        options = [{"command", *(action.dest for action in part._actions)} for part in parts]
        if any(those & each and option not in each for each in options):
            lacking.add(name)
    assert lacking == {*reasons}
    assert all(reasons.values())


MODEL = ["torch.nn:Linear", "--arg", "in_features=4", "--arg", "out_features=3"]
UNHEARD = {  # the arguments of a recipe where there is none
    "plan": (["plan", *MODEL], "--set is for a recipe: give one"),
    "apply": (["apply", *MODEL, "-o", "out.safetensors"], "--set is for a recipe: give one"),
    "a plan": (["apply", MODEL[0], "plan.json", *MODEL[1:], "-o", "o.safetensors"], "--set is for a recipe; a plan"),
    "check": (["check", *MODEL], "--set is for a recipe: give one"),
    "probe": (["probe", *MODEL], "--set is for a recipe: give one"),
    "check-ckpt": (["check-ckpt", "a.safetensors", "--model", *MODEL], "--set is for a recipe: give one"),
    "diff": (["diff", "a.safetensors", "a.safetensors"], "--set is for two recipes"),
    "parity": (["parity", *MODEL], "arguments: are those of a recipe"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNHEARD)
def test_arguments_of_no_recipe_are_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"weight": torch.ones(3, 4)}, "a.safetensors")
    Path("r.toml").write_text(SET)
    assert main(["plan", MODEL[0], "r.toml", *MODEL[1:], "-o", "plan.json"]) == 0
    command, text = UNHEARD[case]
    capsys.readouterr()
    assert main([*command, "--set", "std=0.5"]) == 2
    assert text in capsys.readouterr().err


HUNGRY = """
import torch

def make(width=8):
    net = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 3))
    if float(torch.ones(())) != 1:  # needs memory
        raise ValueError
    return net
"""
SET = """
rules = [{ type = "Normal", std = "std", name = "**" }]
[arguments]
std = 0.02
"""

LOADS = """
[[rules]]
type = "Pretrained"
checkpoint = "a.safetensors"
name = "**"
when = { of = "all" }

[[rules]]
type = "Pretrained"
checkpoint = "a.safetensors"
prefix = "net"
name = "**"
when = { of = "net" }

[arguments.of]
choices = ["all", "net"]
default = "all"
"""


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "net.py:make", "r.toml"],
        ["roles", "net.py:make"],
        ["diff", "r.toml", "r.toml", "--model", "net.py:make"],
        ["check-ckpt", "a.safetensors", "--model", "net.py:make"],
        ["transfer", "net.py:make", "--base", "net.py:make", "--base-arg", "width=4"],
    ],
)
def test_code_that_needs_memory_gets_it(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(HUNGRY)
    Path("r.toml").write_text(SET)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
    save_file({name: tensor.detach() for name, tensor in net.state_dict().items()}, "a.safetensors")
    assert main(command) == 2
    assert "with --device cpu it is built in memory" in capsys.readouterr().err
    assert main([*command, "--device", "cpu"]) == 0
    capsys.readouterr()


def test_the_arguments_of_a_probed_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They make the start that is measured, and that of ``--beside`` has its own."""
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(SET)
    seen = list[Any]()

    def probed(model: torch.nn.Module, *, recipe: Recipe, **more: Any) -> Any:
        seen.append([rule.init for rule in recipe])
        return torchinit.probe(model, recipe=recipe, **more)

    monkeypatch.setattr(checks, "probe", probed)
    command = ["probe", *MODEL, "--recipe", "r.toml", "--set", "std=0.5"]
    main([*command, "--beside", "r.toml", "--beside-set", "std=0.25", "--html", "page.html"])
    assert seen == [[Normal(0, 0.5)], [Normal(0, 0.25)]]
    assert main([*command, "--beside-set", "std=0.25"]) == 2
    assert "--beside-set goes with --beside" in capsys.readouterr().err


def test_the_arguments_of_a_recipe_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"net.weight": torch.ones(3, 4), "net.bias": torch.ones(3)}, "a.safetensors")
    Path("r.toml").write_text(LOADS)
    command = ["check-ckpt", "--model", *MODEL, "--recipe", "r.toml"]
    assert main(command) == 1
    assert main([*command, "--set", "of=net"]) == 0
    capsys.readouterr()
    assert main(["convert", "a.safetensors", "b.safetensors", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "output": "b.safetensors", "tensors": 2, "bytes": 60, "format": "safetensors", "part": "", "notes": [],
        "tied": {},
    }  # fmt: skip
