"""roles: print what each parameter of a model is for, and why."""

from __future__ import annotations

import argparse

from torchinit._folding import Column, Row, fold
from torchinit._tables import Table
from torchinit._text import count
from torchinit.cli import options


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    options.add_model(parser)
    options.add_json(parser)
    options.add_all(parser)
    parser.add_argument("--unsure", action="store_true", help="only those whose role nobody knows")


_COLUMNS = (Column("role"), Column("why", "range", spare=1))


def run(arguments: argparse.Namespace) -> int:
    """Print the roles of the parameters, a line for those of like blocks, and how many are not known."""
    from torchinit.knowledge import roles

    every = {name: role for name, role in roles(options.model_of(arguments, "meta")).items() if role.name != "buffer"}
    found = {name: role for name, role in every.items() if not (arguments.unsure and role.sure)}
    rows = (Row(name, (role.name, role.why)) for name, role in found.items())
    groups = fold(rows, _COLUMNS, among=every, full=arguments.all)
    unsure = sum(not role.sure for role in found.values())
    last = f"{count(len(found), 'parameter')}: {unsure} unsure" if unsure else count(len(found), "parameter")
    data = {name: role._asdict() for name, role in found.items()}
    return options.show(arguments, data, Table("tensor", _COLUMNS, groups, foot=(last,), tree=not arguments.all))
