"""Real models of OpenMMLab through the meta device: the bits of `init_weights(seed=0)`, alone and on ranks.

Every model of the list, by hand: `.venv-peers/bin/python tests/peers/openmmlab_meta.py FOLDER 0 1`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = str(Path(__file__).with_name("openmmlab_meta.py"))
ALONE = (
    *("resnet", "resnet-pretrained", "hrnet", "swin", "mae", "retinanet", "det-dcn", "head-rtmdet", "vit"),
    *("segformer", "cgnet", "lite-hrnet"),
)
ON_RANKS = ("resnet-pretrained", "head-retina")


def outcomes(folder: Path, world: int, names: tuple[str, ...]) -> list[dict[str, dict[str, Any]]]:
    """What each rank found of each model."""
    commands = [[sys.executable, WORKER, str(folder), str(rank), str(world), *names] for rank in range(world)]
    ranks = [subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for each in commands]
    for process in ranks:
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors[-4000:]
    lines = [(folder / f"{rank}.jsonl").read_text().splitlines() for rank in range(world)]
    return [{item.pop("name"): item for item in map(json.loads, each)} for each in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return outcomes(tmp_path_factory.mktemp("alone"), 1, ALONE)[0]


@pytest.mark.parametrize("name", [name for name in ALONE if name != "vit"])
def test_the_bits_of_init_weights(alone: dict[str, dict[str, Any]], name: str) -> None:
    found = alone[name]
    assert found.get("error") is None
    assert found["differing"] == []
    assert found["written"] > 0


def test_a_parameter_that_only_a_constructor_makes_is_named(alone: dict[str, dict[str, Any]]) -> None:
    text = alone["vit"]["error"]
    assert text.startswith(
        "RunError: 1 tensor left unwritten\n  cls_token: a parameter of VisionTransformer that no init"
    )
    assert "param='cls_token'" in text


def test_sharded_by_fsdp2(tmp_path: Path) -> None:
    for found in outcomes(tmp_path, 2, ON_RANKS):
        assert [(name, each.get("error"), each.get("differing")) for name, each in found.items()] == [
            (name, None, []) for name in ON_RANKS
        ]
