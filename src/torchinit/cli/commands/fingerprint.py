"""fingerprint: print a digest of each tensor of a model or a weight file."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchinit._text import count, format_table
from torchinit.cli import options, weights
from torchinit.plans.fingerprint import fingerprint


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    options.add_model(parser)
    options.add_json(parser)
    parser.add_argument("--seed", type=int, default=0, help="where the factory's own draws start (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Print the digests, a line each, and the total, also that of what a file of weights would hold."""
    if arguments.model.endswith(".safetensors"):
        digests = weights.fingerprint_of(Path(arguments.model))
    else:
        digests = fingerprint(options.model_of(arguments, "cpu", arguments.seed))
    lines = [format_table(("digest", "name"), [(digest, name) for name, digest in digests.sites.items()])]
    lines += [f"{name} is {first}" for name, first in digests.aliases.items()]
    lines.append(f"{digests.total}  total of {count(len(digests.sites), 'site')}")
    if digests.transient:
        left_out = count(len(digests.transient), "buffer")
        lines.append(f"{digests.persistent.total}  without {left_out} that no state dict holds")
    return options.show(arguments, digests.to_dict(), "\n".join(lines))
