"""convert: write the weights of a checkpoint as .safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchinit._text import count, one_line
from torchinit.checkpoints import open_checkpoint
from torchinit.cli import options, weights


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("file", metavar="IN", help="a path, a URL or another source of weights")
    parser.add_argument("output", type=Path, metavar="OUT", help="the .safetensors to write")
    options.add_part(parser)
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Write the file, whole or not at all, and print what is in it."""
    weights.check_output(arguments.output, force=arguments.force)
    checkpoint = open_checkpoint(arguments.file, part=arguments.part)
    texts = {key: text for key, text in checkpoint.metadata.items() if not key.startswith("torchinit.")}
    tensors, tied = weights.write_state(arguments.output, {key: checkpoint.read(key) for key in checkpoint}, texts)
    part = f" {checkpoint.part!r}" if checkpoint.part else ""
    size = sum(tensor.nbytes for tensor in tensors.values())
    print(f"{arguments.output}: {count(len(tensors), 'tensor')}, {size:,} bytes, from {checkpoint.format}{part}")
    for text in [*checkpoint.notes, *(f"{name} is {first}" for name, first in tied.items())]:
        print(f"  {one_line(text)}")
    return 0
