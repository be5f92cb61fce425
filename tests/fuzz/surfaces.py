"""Surfaces: whatever reads an input of a stranger's, each as a function of a file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchinit
import torchinit.api
from torchinit import CheckpointError, Name, PlanError, Pretrained, Rule, RunError, open_checkpoint
from torchinit._text import plain
from torchinit.checkpoints.hub.cache import Cache, read_pins
from torchinit.cli import main
from torchinit.errors import TorchinitError
from torchinit.plans.fingerprint import Fingerprint
from torchinit.plans.plan import Plan
from torchinit.plans.planner import make_plan
from torchinit.plans.report import Report
from torchinit.recipes import decode_recipe, load_recipe

OURS = (TorchinitError, FileNotFoundError)


def outcome(read: Callable[[Path], object], path: Path) -> tuple[str, str]:
    """What came of an input, and what is wrong with that; any error but those of :data:`OURS` is let through."""
    try:
        found = read(path)
    except OURS as error:
        text = str(error)
        shown = "" if plain(text) == text else f"shows what a terminal would obey: {text!r}"
        return f"{type(error).__name__}: {text}", shown
    return "read", str(found or "")


def model() -> nn.Module:
    """What recipes are planned on, and files loaded into."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 6), nn.Embedding(5, 4))
    net.add_module("blocks", nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))))
    for number in range(3):
        net.register_parameter(f"w{number}", nn.Parameter(torch.full((4, 3), 7.0)))
    return net


def recipe(path: Path) -> None:
    """A recipe in a file: read, printed, planned on a model, written back as data."""
    _plan(load_recipe(path))


def data(path: Path) -> None:
    """A recipe as data of JSON, by way of Python."""
    _plan(decode_recipe(json.loads(path.read_bytes())))


def _plan(rules: Any) -> Plan:
    str(rules)
    plan = make_plan(torchinit.api.sites(model()), rules)
    str(plan)
    return plan


def initialized(path: Path) -> None:
    """A recipe that is carried out."""
    torchinit.initialize(model(), load_recipe(path), seed=0, strict=False)


def checkpoint(path: Path) -> str:
    """A file of weights: opened, each tensor looked at, shown, loaded."""
    from torchinit.cli.commands import files

    opened = open_checkpoint(path)
    for key in opened:
        try:
            info = opened.info(key)
            tensor = opened.read(key) if info.nbytes < 1 << 23 else None
        except CheckpointError:
            continue
        if tensor is not None and (tuple(tensor.shape), tensor.dtype) != (info.shape, info.dtype):
            return f"{key!r} is not what was said of it"
    shown = files.table(files.describe(opened, path, hashes=False)).text()
    return "" if plain(shown) == shown else f"shows what a terminal would obey: {shown!r}"


def loaded(path: Path) -> str:
    """A file of weights loaded into a model: all of what fits, or nothing."""
    net = nn.Module()
    for number in range(3):
        net.register_parameter(f"w{number}", nn.Parameter(torch.full((4, 3), 7.0)))
    try:
        torchinit.initialize(net, Rule(Name("**"), Pretrained(str(path), expect_missing=("**",))))
    except (CheckpointError, RunError):
        if any(parameter.ne(7).any() for parameter in net.parameters()):
            return "is loaded by half"
        raise
    return ""


def compared(path: Path) -> None:
    """A file of weights beside a model on the command line."""
    _command("check-ckpt", str(path), "--model", "tests.fuzz.surfaces:model")


def inspected(path: Path) -> None:
    """A file of weights on the command line, with the hashes of its tensors."""
    _command("inspect", str(path), "--hashes", "--json")


def converted(path: Path) -> None:
    """A file of weights that becomes one of safetensors."""
    with tempfile.TemporaryDirectory() as folder:
        _command("convert", str(path), f"{folder}/a.safetensors")


def _command(*words: str) -> None:
    os.environ["TORCHINIT_DEBUG"] = "1"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(words)


def renamed(path: Path) -> None:
    """A recipe's rename, and a key that it meets: ``[[pattern, new], ...]`` and ``[key, ...]``."""
    renames, keys = json.loads(path.read_bytes())
    tensors = {key: torch.zeros(1) for key in keys}
    pairs = tuple((pattern, new) for pattern, new in renames)
    rule = Rule(Name("**"), Pretrained(tensors, rename=pairs, expect_missing=("**",)))
    make_plan(torchinit.api.sites(model()), [rule])


def patterns(path: Path) -> None:
    """Globs and expressions of a recipe on a model whose names are given: ``[key, ...]`` and ``[name, ...]``."""
    entry, names = json.loads(path.read_bytes())
    net = nn.Module()
    for name in names:
        holder = net
        for part in name.split(".")[:-1]:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder.register_parameter(name.rpartition(".")[2], nn.Parameter(torch.zeros(2, 2)))
    with contextlib.suppress(PlanError):
        str(torchinit.plan(net, {"rules": [{"type": "Normal", **entry}]}, strict=True))


def plan(path: Path) -> None:
    """A saved plan."""
    str(Plan.from_json(path.read_text("utf-8", errors="replace")))


def report(path: Path) -> None:
    """A saved report."""
    str(Report.from_json(path.read_text("utf-8", errors="replace")))


def fingerprint(path: Path) -> None:
    """A saved fingerprint."""
    str(Fingerprint.from_json(path.read_text("utf-8", errors="replace")))


def trace(path: Path) -> None:
    """A saved trace."""
    from torchinit.tracing import Trace

    str(Trace.from_json(path.read_text("utf-8", errors="replace")))


def lockfile(path: Path) -> None:
    """A lock file."""
    read_pins(path)


def note(path: Path) -> None:
    """The note beside a file of the cache."""
    url = "https://example.org/a.pth"
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        place = cache.folder_of(url)
        place.mkdir()
        (place / "a.pth").write_bytes(b"")
        (place / ".entry.json").write_bytes(path.read_bytes())
        cache.find(url)
        cache.entries()


def differing(path: Path) -> None:
    """A file in the place of saved plans on the command line."""
    _command("diff", str(path), str(path))


def config(path: Path) -> None:
    """A file in the place of a model's settings on the command line."""
    _command("plan", f"transformers:{path}", "general")


SURFACES: dict[str, Callable[[Path], object]] = {
    function.__name__: function
    for function in (
        recipe, data, initialized, checkpoint, loaded, compared, inspected, converted, renamed, patterns, plan, report,
        fingerprint, trace, lockfile, note, differing, config,
    )
}  # fmt: skip


def warm_up() -> None:
    """Import all that the surfaces import when they are used."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"w0": torch.zeros(4, 3)}, path := Path(folder, "a.pth"))
        for surface in (checkpoint, loaded, compared, inspected, converted):
            surface(path)
        import numpy

        numpy.savez(Path(folder, "a.npz"), w0=numpy.zeros((4, 3)))
        checkpoint(Path(folder, "a.npz"))
        for suffix, text in {
            "json": '{"rules": [{"type": "Orthogonal", "name": "w0"}, {"type": "TruncNormal", "regex": "0.w.*"}]}',
            "toml": '[[rules]]\ntype = "Kaiming"\nname = "w0"\n',
            "yaml": "rules:\n- type: Normal\n  name: 'w*'\n  std: 1 / sqrt(fan_in)\n",
        }.items():
            (recipe_ := Path(folder, f"a.{suffix}")).write_text(text)
            recipe(recipe_)
            initialized(recipe_)
        for surface in (plan, report, fingerprint, trace):
            (said := Path(folder, "b.json")).write_text("{}")
            with contextlib.suppress(TorchinitError):
                surface(said)
