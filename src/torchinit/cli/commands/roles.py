"""roles: print what each parameter of a model is for, and why."""

from __future__ import annotations

import argparse
import textwrap
from typing import Final

from torchinit._text import count, fold_numbers, format_table, one_line
from torchinit.cli import options


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    options.add_model(parser)
    options.add_json(parser)
    parser.add_argument("--all", action="store_true", help="a line for every parameter, not one for all that are alike")
    parser.add_argument("--unsure", action="store_true", help="only those whose role nobody knows")


def run(arguments: argparse.Namespace) -> int:
    """Print the roles of the parameters, a line for those of like blocks, and how many are not known."""
    from torchinit.knowledge import roles

    found = {
        name: role
        for name, role in roles(options.model_of(arguments, "meta")).items()
        if role.name != "buffer" and not (arguments.unsure and role.sure)
    }
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, role in found.items():
        key = name if arguments.all else fold_numbers(name)
        groups.setdefault((key, role.name, role.why), []).append(name)
    rows = [
        (name, f"x{len(names)}" if len(names) > 1 else "", role, why) for (name, role, why), names in groups.items()
    ]
    table = format_table(("name", "", "role", "why"), rows)
    if max(map(len, table.splitlines())) > _WIDTH:
        table = "\n".join(f"{name} {times}".rstrip() + f"\n{_wrapped(role, why)}" for name, times, role, why in rows)
    unsure = sum(not role.sure for role in found.values())
    last = f"{count(len(found), 'parameter')}: {unsure} unsure" if unsure else count(len(found), "parameter")
    data = {name: role._asdict() for name, role in found.items()}
    return options.show(arguments, data, f"{table}\n{last}")


_WIDTH: Final = 80


def _wrapped(role: str, why: str) -> str:
    """A role and its reason, in lines of their own below the name."""
    return textwrap.fill(f"{role}: {one_line(why)}", _WIDTH, initial_indent="    ", subsequent_indent="      ")
