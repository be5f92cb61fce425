"""Commands: the functions that :func:`torchinit.cli.frame.command` makes commands, in files by subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "plan": ("starts", "show what a recipe will write where; nothing is written"),
    "apply": ("starts", "initialize a model, write it to a file, print the report"),
    "reproduce": ("starts", "make a start again from its report or its file of weights, and prove that it is the same"),
    "check": ("checks", "build a model and find what is wrong with its initial values"),
    "parity": ("checks", "compare a model from the meta device, as it starts, with one that is built in memory"),
    "probe": ("checks", "run a model once forward and back, and judge its start"),
    "inspect": ("files", "show what a file of weights holds; nothing in it is run"),
    "convert": ("files", "write the weights of a checkpoint as .safetensors"),
    "check-ckpt": ("files", "compare a file of weights with a model; nothing is loaded"),
    "fetch": ("cache", "fetch a checkpoint and print where it lies"),
    "cache": ("cache", "list, verify or remove what was fetched"),
    "diff": ("diff", "compare two recipes, plans, reports, fingerprints or weight files"),
    "fingerprint": ("diff", "print a digest of each tensor of a model or a weight file"),
    "grow": ("sizes", "make a model of another depth or width out of a checkpoint, and prove what is promised"),
    "transfer": ("sizes", "print how start, multipliers and learning rates of a model follow from those of its base"),
    "roles": ("explain", "print what each parameter of a model is for, and why"),
    "list": ("explain", "list initializers, selectors, adapters, layers, roles, schemes, checks or nonlinearities"),
    "explain": (
        "explain",
        "tell what an initializer, a selector, an adapter, a check, a scheme or a parametrization does",
    ),
    "completion": ("explain", "print the code with which a shell completes commands, options and files"),
}
"""Each command with its file and its line of help: the files are not imported for it, since most import torch."""
