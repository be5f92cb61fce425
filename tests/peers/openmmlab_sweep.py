"""Sweep: every config that mmpretrain and mmdet ship, on both sides.

    .venv-peers/bin/python tests/peers/openmmlab_sweep.py FOLDER [--largest 120] [--every 1] [--truth]

writes `mmengine.jsonl` and `torchinit.jsonl` into FOLDER and prints what differs. Configs that differ only in what is
no model (data, schedule, test settings) are one case; pretrained weights are left out of each, those that would still
download are left out whole. `--largest` is in millions of parameters, `--every 10` takes each tenth case, `--truth`
compares the logs, too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# A package of the environment is called tests, too.
sys.modules["tests"] = ModuleType("tests")
sys.modules["tests"].__path__ = [str(Path(__file__).parents[1])]

from tests.peers.openmmlab import (  # noqa: E402 - see above
    Case,
    Outcome,
    build,
    init_lines,
    is_unwritten,
    run_side,
    true_lines,
    without_checkpoints,
)

PACKAGES = ("mmpretrain", "mmdet")
NO_MODEL = ("data_preprocessor", "test_cfg", "train_aug")


def cases(largest: float) -> Iterator[Case]:
    """The distinct models of all configs, none above the limit."""
    from mmengine.config import Config

    seen: set[str] = set()
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent / ".mim" / "configs"
        for path in sorted(root.rglob("*.py")):
            try:
                read = Config.fromfile(path).get("model")
            except Exception as problem:  # noqa: BLE001 - some configs lack a file or a library
                print(f"{path.relative_to(root)}: {type(problem).__name__}: {problem}", file=sys.stderr)
                continue
            if not read or "type" not in read:
                continue
            config = without_checkpoints(read.to_dict())
            key = json.dumps({k: v for k, v in config.items() if k not in NO_MODEL}, default=str, sort_keys=True)
            if key not in seen and "://" not in key and millions(package, config) <= largest:
                seen.add(key)
                yield Case(f"{package}/{path.relative_to(root)}", package, config)


def millions(package: str, config: dict[str, Any]) -> float:
    """The size of a model, 0 where it cannot be built without memory."""
    try:
        with torch.device("meta"):
            return float(sum(parameter.numel() for parameter in build(package, config).parameters())) / 1e6
    except Exception:  # noqa: BLE001 - it is built in earnest later, where errors count
        return 0.0


def differing_lines(ours: Outcome, theirs: Outcome, truth: Outcome) -> Iterator[tuple[str, str, str, str]]:
    """The parameters of which a side does not say the truth: name, truth, MMEngine's text, torchinit's."""
    told, seen = init_lines(theirs.log), init_lines(ours.log)
    for key, text in true_lines(truth.log).items():
        says = ["" if is_unwritten(side.get(key, "")) else side.get(key, "") for side in (told, seen)]
        if says != [text, text]:
            yield key[0], text, says[0], says[1]


def main() -> None:
    """Runs the sweep and prints a line for each difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--largest", type=float, default=120.0)
    parser.add_argument("--every", type=int, default=1, help="take each n-th case")
    parser.add_argument("--truth", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    _silence_mmengine()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    todo = list(cases(chosen.largest))[:: chosen.every]
    print(f"{len(todo)} cases")
    sides = {side: run_side(side, todo, chosen.folder) for side in ("mmengine", "torchinit")}
    report(sides["mmengine"], sides["torchinit"])
    if chosen.truth:
        report_log(sides["mmengine"], sides["torchinit"], run_side("truthful", todo, chosen.folder))


def _silence_mmengine() -> None:
    from mmengine.logging import MMLogger

    MMLogger.get_instance("sweep").handlers.clear()


def report(theirs: dict[str, Outcome], ours: dict[str, Outcome]) -> None:
    """Prints which models differ, and which could not be built on either side."""
    for name, outcome in theirs.items():
        if different := outcome.differences(ours[name]):
            print(f"DIFFERS {name}: {len(different)}: {', '.join(different[:5])} {ours[name].message[:200]}")
    errors = Counter(outcome.error for outcome in theirs.values() if outcome.error)
    same = sum(not outcome.differences(ours[name]) for name, outcome in theirs.items())
    print(f"{same} of {len(theirs)} the same, {sum(errors.values())} of them with the same error: {dict(errors)}")
    sizes = sum(outcome.parameters for outcome in theirs.values() if not outcome.error)
    print(
        f"{sizes / 1e9:.1f} billion parameters; init_weights() took {seconds(theirs):.0f} s and {seconds(ours):.0f} s"
    )


def seconds(side: dict[str, Outcome]) -> float:
    """The time in `init_weights()` itself."""
    return float(sum(outcome.seconds for outcome in side.values()))


def report_log(theirs: dict[str, Outcome], ours: dict[str, Outcome], truth: dict[str, Outcome]) -> None:
    """Prints how many lines are untrue on each side, and torchinit's by kind.

    Where a module's own code calls another's `init_weights`, torchinit names that one, the truthful side the caller.
    """
    untrue, kinds = Counter[str](), Counter[tuple[str, str]]()
    for name, outcome in truth.items():
        for _, text, told, seen in differing_lines(ours[name], theirs[name], outcome) if not outcome.error else ():
            untrue["MMEngine"] += told != text
            untrue["torchinit"] += seen != text
            kinds[text, seen] += seen != text
    print(f"untrue lines: {dict(untrue)}")
    for (text, seen), number in kinds.most_common():
        if number:
            print(f"{number} x {seen!r} instead of {text!r}")


if __name__ == "__main__":
    main()
