"""`torchinit convert`: the weights of any checkpoint as a .safetensors file, which cannot run code."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from torchinit import open_checkpoint
from torchinit._text import count, one_line
from torchinit.checkpoints.formats.safetensors import TIED
from torchinit.cli import options, weights

if TYPE_CHECKING:
    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("convert", help="write the weights of a checkpoint as .safetensors")
    parser.add_argument("file", metavar="IN", help="a path, a URL or another source of weights")
    parser.add_argument("output", type=Path, metavar="OUT", help="the .safetensors to write")
    options.add_part(parser)
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the file, whole or not at all, and says what is in it."""
    weights.check_output(arguments.output, force=arguments.force)
    checkpoint = open_checkpoint(arguments.file, part=arguments.part)
    tensors, tied = weights.distinct({key: checkpoint.read(key) for key in checkpoint})
    texts = {key: text for key, text in checkpoint.metadata.items() if not key.startswith("torchinit.")}
    extra = {TIED: json.dumps(tied, sort_keys=True)} if tied else {}
    weights.write(arguments.output, tensors, {"format": "pt", **texts, **extra})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    part = f" {checkpoint.part!r}" if checkpoint.part else ""
    print(f"{arguments.output}: {count(len(tensors), 'tensor')}, {size:,} bytes, from {checkpoint.format}{part}")
    for text in [*checkpoint.notes, *(f"{name} is {first}" for name, first in tied.items())]:
        print(f"  {one_line(text)}")
    return 0
