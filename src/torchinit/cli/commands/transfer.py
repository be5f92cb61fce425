"""transfer: print how start, multipliers and learning rates of a model follow from those of its base."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from torchinit._text import abbreviate, format_table
from torchinit.cli import options
from torchinit.cli.errors import UsageError

if TYPE_CHECKING:
    from torchinit.transfer import Group

_PARAMETRIZATIONS = ("mup", "completep", "depth_mup", "standard")


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    option = parser.add_argument
    options.add_model(parser)
    base = parser.add_mutually_exclusive_group(required=True)
    base.add_argument("--base", metavar="BASE", help="the small model, as MODEL, or a file that Base.save wrote")
    base.add_argument("--base-width", type=int, metavar="N", help="the model itself at this width is the base")
    option("--base-arg", action="append", default=[], metavar="KEY=VALUE", help="an argument of BASE's factory")
    option("--parametrization", choices=_PARAMETRIZATIONS, default="mup", help="default: mup")
    option("--optimizer", default="adamw", metavar="NAME", help="adam, adamw, lion, sgd, muon (default: adamw)")
    option("--form", choices=("table8", "folded"), default="table8", help="folded: no multiplier but in the weights")
    option("--alpha", type=float, default=1.0, help="of completep: branches are times 1 / blocks^alpha (default: 1)")
    option("--lr", type=float, default=1.0, help="the base's learning rate (default: 1, so that factors are printed)")
    option("--weight-decay", type=float, default=0.0, help="the base's weight decay (default: 0)")
    option("--eps", type=float, help="the base's eps (default: the optimizer's)")
    option("--recipe", metavar="RECIPE", help="what starts the base: a file, or the name of a scheme")
    option("--fixed", action="append", default=[], metavar="GLOB[:AXIS]", help="what grows, and is not a width")
    option("--save-base", metavar="FILE", help="write the base's shapes and start, to be given as BASE")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table, the multipliers and the groups of the optimizer."""
    from torchinit.cli import models
    from torchinit.transfer import Base, Transfer

    model = options.model_of(arguments, "meta")
    start = options.recipe_of(arguments.recipe) if arguments.recipe else None
    if arguments.base_width is not None:
        base = Base.of_width(model, arguments.base_width, start)
    elif Path(arguments.base).is_file():
        if arguments.recipe or arguments.base_arg:
            raise UsageError("a saved base has its start with it: --recipe and --base-arg are for a model")
        base = Base.load(arguments.base)
    else:
        given = models.parse_arguments(arguments.base_arg, "--base-arg")
        base = Base.of(models.build(arguments.base, given, "meta"), start)
    if arguments.save_base:
        base.save(arguments.save_base)
    transfer = Transfer(
        model, base, parametrization=arguments.parametrization, form=arguments.form, optimizer=arguments.optimizer,
        alpha=arguments.alpha, fixed=arguments.fixed,
    )  # fmt: skip
    groups = transfer.groups(lr=arguments.lr, weight_decay=arguments.weight_decay, eps=arguments.eps)
    data = {**transfer.to_dict(), "groups": [asdict(each) for each in groups]}
    return options.show(arguments, data, f"{transfer}\n\n{_table(groups)}")


def _table(groups: list[Group]) -> str:
    rows = [
        [
            abbreviate(each.names, 3), each.optimizer, f"{each.lr:.6g}", f"{each.weight_decay:.6g}",
            "-" if each.eps is None else f"{each.eps:.3g}",
        ]
        for each in groups
    ]  # fmt: skip
    return format_table(["group", "optimizer", "lr", "weight decay", "eps"], rows)
