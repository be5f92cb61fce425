"""grow: make a model of another depth or width out of a checkpoint, and prove what is promised."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from torch import nn

from torchinit._text import plain
from torchinit._version import __version__
from torchinit.api import draft, initialize
from torchinit.checkpoints import Pretrained
from torchinit.checkpoints.adapters import Adapter, HyperClone, Net2Wider, WeightSelection
from torchinit.cli import models, options, weights
from torchinit.cli.errors import UsageError
from torchinit.errors import TorchinitError
from torchinit.initializers.load_report import LoadReport
from torchinit.noise import Keyed
from torchinit.plans.run import local_shards
from torchinit.plans.run import run as carry_out
from torchinit.probing import Preservation, preserves
from torchinit.rules.rule import Rule
from torchinit.rules.selectors import Name
from torchinit.serialization.validation import check_number

_WIDTHS: Final[dict[str, type[Adapter]]] = {"net2net": Net2Wider, "hyperclone": HyperClone, "select": WeightSelection}


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    option = parser.add_argument
    option("old", metavar="OLD", help="a path, a URL or another source of the weights to start from")
    options.add_model(parser, "--into")
    text = "stack, interleave or identity for more blocks, first or even for fewer, or their numbers: 0,2,4"
    option("--depth", metavar="HOW", help=text)
    option("--width", choices=[*_WIDTHS], help="copies of units, copies of all, or for fewer some of them")
    option("--noise", type=float, help="of net2net the standard deviation, of hyperclone the signal to it in decibels")
    option("--seed", type=int, default=0, help="where noise and choices come from (default: 0)")
    options.add_part(parser)
    option("--prefix", help="take the keys that begin with this, without it")
    option("--rename", nargs=2, action="append", default=[], metavar=("PATTERN", "NEW"), help="as re.sub; repeatable")
    option("-o", "--output", type=Path, required=True, metavar="FILE", help="the .safetensors to write")
    option("--force", action="store_true", help="overwrite the output if it exists")
    option("--proof", action="store_true", help="run both models; where a promise is broken, write nothing")
    option("--old-model", metavar="MODEL", help="the model of OLD, for --proof (default: the factory of --into)")
    option("--old-arg", action="append", default=[], metavar="KEY=VALUE", help="an argument of it; others are as --arg")
    option("--atol", type=float, default=1e-5, help="how far apart outputs may be, in their RMS (default: 1e-5)")
    options.add_all(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print the account; 1, and no file, where both models compute something else in spite of it."""
    weights.check_output(arguments.output, force=arguments.force)
    if arguments.into is None:
        raise UsageError("the model to make is needed: --into MODEL")
    if arguments.old_model or arguments.old_arg:
        arguments.proof = True
    arguments.model = arguments.into
    if not (arguments.depth or arguments.width):
        raise UsageError("say what grows: --depth, --width or both; `torchinit apply` loads a file as it is")
    rule = _rule(arguments, grown=True)
    model = options.model_of(arguments, "cpu", arguments.seed)
    plan = draft(model, rule).check(complete=True, strict="model")
    old = _old(arguments) if arguments.proof else None
    carry_out(plan, local_shards(model), Keyed(arguments.seed), stats=False).assert_ok()
    proof = preserves(old, model, atol=arguments.atol) if old else None
    broken = proof is not None and not proof and plan.loads[0].promise != "none"
    if not broken:
        how = {"torchinit.depth": arguments.depth, "torchinit.width": arguments.width}
        origin = {"torchinit.version": __version__, **{key: text for key, text in how.items() if text}}
        weights.write_state(arguments.output, model.state_dict(), origin)
    _show(arguments, plan.loads[0], proof, broken)
    return 1 if broken else 0


def _show(arguments: argparse.Namespace, account: LoadReport, proof: Preservation | None, broken: bool) -> None:
    if arguments.json:
        output = None if broken else str(arguments.output)
        proven = None if proof is None else proof.to_dict()
        options.show(arguments, {**account.to_dict(), "proof": proven, "output": output}, "")
        return
    options.show_table(arguments, account)
    if proof is not None:
        print(plain(str(proof)))
    if broken:
        print(plain(f"{arguments.output} was not written: the promise is broken"))


def _rule(arguments: argparse.Namespace, *, grown: bool = False) -> Rule:
    try:
        more = {"layers": _depth(arguments.depth), "adapt": _width(arguments)} if grown else {}
        Keyed(arguments.seed)
        check_number("--atol", arguments.atol, least=0)
        renames = tuple((old, new) for old, new in arguments.rename)
        source = Pretrained(arguments.old, arguments.prefix, rename=renames, part=arguments.part, **more)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return Rule(Name("**"), source)


def _depth(text: str | None) -> Any:
    """The layers that ``--depth`` names."""
    if text and "new" in text:
        raise UsageError("--depth: a new block needs rules of its own, and so a recipe; identity has some")
    if text is None or text[:1].isalpha():
        return text
    return [int(each) if each.strip().isdecimal() else each for each in text.split(",")]


def _width(arguments: argparse.Namespace) -> dict[str, Adapter]:
    """The adapter that ``--width`` names, for all sites."""
    kind, noise = arguments.width, arguments.noise
    if kind is None or kind == "select":
        if noise is not None:
            raise UsageError("--noise goes with --width net2net or hyperclone")
        return {"**": WeightSelection()} if kind else {}
    word = "noise" if kind == "net2net" else "snr"
    options_of: dict[str, Any] = {"seed": arguments.seed, **({} if noise is None else {word: noise})}
    return {"**": _WIDTHS[kind](**options_of)}


def _old(arguments: argparse.Namespace) -> nn.Module:
    """The model that OLD holds the weights of, with these weights."""
    given = {**models.parse_arguments(arguments.arg), **models.parse_arguments(arguments.old_arg, "--old-arg")}
    if arguments.old_model:
        given = models.parse_arguments(arguments.old_arg, "--old-arg")
    model = models.build(arguments.old_model or arguments.into, given, "cpu", arguments.seed)
    try:
        initialize(model, _rule(arguments), stats=False, strict="model")
    except TorchinitError as error:
        way_out = "say which it is by --old-model or --old-arg"
        raise UsageError(f"--proof: OLD does not fit its model; {way_out}\n{error}") from error
    return model
