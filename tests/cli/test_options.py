"""Options: whatever a function of the library takes, its command takes as well, or a reason says why not."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import torchinit
from torchinit.cli import _parser
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
