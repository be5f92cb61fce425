"""`torchinit check-ckpt`: what of a model a file of weights holds, before anything is loaded."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from torchinit import Account, Name, Pretrained, Rule, make_plan, open_checkpoint, sites
from torchinit.cli import options
from torchinit.cli.errors import UsageError

if TYPE_CHECKING:
    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("check-ckpt", help="compare a file of weights with a model; nothing is loaded")
    parser.add_argument("file", metavar="FILE", help="a path, a URL or another source of weights")
    options.add_model(parser, "--model")
    options.add_part(parser)
    parser.add_argument("--prefix", help="take the keys that begin with this, without it")
    parser.add_argument(
        "--rename", nargs=2, action="append", default=[], metavar=("PATTERN", "NEW"), help="as re.sub; may be repeated"
    )
    parser.add_argument(
        "--expect-missing", action="append", default=[], metavar="GLOB", help="what the file need not have"
    )
    parser.add_argument("--skip-shapes", action="store_true", help="what differs in shape is left out, no finding")
    parser.add_argument("--sha256", help="the hash that the file must have")
    parser.add_argument("--device", choices=("meta", "cpu"), default="meta", help="where the model is built")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the account; 1 if anything of the model is missing or does not fit."""
    if arguments.model is None:
        raise UsageError("what is missing shows on a model: give --model")
    account = _account(arguments)
    print(json.dumps(asdict(account), indent=2) if arguments.json else account.table())
    return 0 if account.complete else 1


def _account(arguments: argparse.Namespace) -> Account:
    open_checkpoint(arguments.file, part=arguments.part)  # a file that is not there is a mistake of usage
    try:
        rule = Pretrained(
            arguments.file,
            arguments.prefix,
            rename=tuple((old, new) for old, new in arguments.rename),
            expect_missing=tuple(arguments.expect_missing),
            on_shape="skip" if arguments.skip_shapes else "error",
            part=arguments.part,
            sha256=arguments.sha256,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    model = options.model_of(arguments, arguments.device)
    (account,) = make_plan(sites(model), [Rule(Name("**"), rule)]).loads
    return account
