"""`torchinit fingerprint`: a digest of each tensor of a model or a weight file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from torchinit import fingerprint as take
from torchinit._text import columns
from torchinit.cli import options, weights
from torchinit.errors import count
from torchinit.plans import Fingerprint

if TYPE_CHECKING:
    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("fingerprint", help="print a digest of each tensor of a model or a weight file")
    options.add_model(parser)
    options.add_json(parser)
    parser.add_argument("--seed", type=int, default=0, help="where the factory's own draws start (default: 0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the fingerprint, of a file if the model is the name of one."""
    if arguments.model.endswith(".safetensors"):
        found = weights.fingerprint_of(Path(arguments.model))
    else:
        found = take(options.model_of(arguments, "cpu", arguments.seed))
    print(found.to_json() if arguments.json else table(found))
    return 0


def table(found: Fingerprint) -> str:
    """The digests, a line each, and the total, also that of what a file of weights would hold."""
    lines = [columns(("digest", "name"), [(digest, name) for name, digest in found.sites.items()])]
    lines += [f"{name} is {first}" for name, first in found.aliases.items()]
    lines.append(f"{found.total}  total of {count(len(found.sites), 'site')}")
    if found.transient:
        left_out = count(len(found.transient), "buffer")
        lines.append(f"{found.persistent.total}  without {left_out} that no state dict holds")
    return "\n".join(lines)
