"""Reader of hostile files: opens every file of a folder, in a process of its own, and says what became of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from torchinit import CheckpointError, Name, Pretrained, Rule, RunError, initialize, open_checkpoint


def model() -> nn.Module:
    """What the files would fit, or pretend to."""
    net = nn.Module()
    net.register_parameter("w", nn.Parameter(torch.full((4,), 7.0)))
    return net


def outcome(path: Path) -> str:
    """``refused`` with the text, or what else happened."""
    try:
        checkpoint = open_checkpoint(path)
        for key in checkpoint:
            if checkpoint.info(key).nbytes < 1 << 24:
                checkpoint.read(key).sum()
    except CheckpointError as error:
        text = str(error)
    else:
        return "opened"
    net = model()
    try:
        initialize(net, Rule(Name("**"), Pretrained(str(path))))
    except (CheckpointError, RunError):
        untouched = net.get_parameter("w").unique().tolist() == [7.0]
        return f"refused: {text}" if untouched else "left half loaded"
    return "loaded"


def main() -> None:
    """Prints one line of JSON a file, so that the last one tells where a crash was."""
    for path in sorted(Path(sys.argv[1]).iterdir()):
        print(json.dumps([path.name, None]), flush=True)
        print(json.dumps([path.name, outcome(path)]), flush=True)


if __name__ == "__main__":
    main()
