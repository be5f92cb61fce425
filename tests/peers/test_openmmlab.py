"""Real models of mmpretrain and mmdet start with the same bits under torchinit as under MMEngine.

The harness is in openmmlab.py, the list of models in openmmlab_models.py; every config that the two packages ship is run
by hand: `.venv-peers/bin/python tests/peers/openmmlab_sweep.py`.
"""

from __future__ import annotations

import pytest

from tests.peers.openmmlab import Outcome, init_lines, run_side
from tests.peers.openmmlab_models import MODELS, TRUER_LINES, WRONG

Sides = tuple[dict[str, Outcome], dict[str, Outcome]]
NAMES = [case.name for case in MODELS]
BY_NAME = {case.name: case for case in (*MODELS, *WRONG)}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    # One folder for both: the log names the checkpoint's path.
    folder = tmp_path_factory.mktemp("openmmlab")
    cases = (*MODELS, *WRONG)
    return run_side("mmengine", cases, folder), run_side("torchinit", cases, folder)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits(sides: Sides, name: str) -> None:
    theirs, ours = sides[0][name], sides[1][name]
    assert theirs.error == "", f"MMEngine itself cannot make {name}: {theirs.message}"
    assert len(theirs.state) > 0
    assert theirs.differences(ours) == (), ours.message


@pytest.mark.parametrize("name", [case.name for case in WRONG])
def test_same_exception(sides: Sides, name: str) -> None:
    theirs, ours = sides[0][name], sides[1][name]
    assert theirs.error
    assert (ours.error, ours.leftovers) == (theirs.error, ours.leftovers)


@pytest.mark.parametrize("name", NAMES)
def test_same_log_where_mmengine_tells_the_truth(sides: Sides, name: str) -> None:
    theirs, ours = (init_lines(side[name].log) for side in sides)
    assert [line[:2] for line in ours] == [line[:2] for line in theirs]
    assert {(a[0], a[2], b[2]) for a, b in zip(theirs, ours, strict=True) if a != b} == TRUER_LINES.get(name, set())


def test_harness_sees_one_bit_and_one_draw(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("broken")
    cases = [BY_NAME["resnet-cifar"], BY_NAME["head-retina"], BY_NAME["lenet"]]
    right, broken = run_side("mmengine", cases, folder), run_side("broken", cases, folder)
    one_bit = right["resnet-cifar"].differences(broken["resnet-cifar"])
    assert "conv1.weight" in one_bit and "<generators>" not in one_bit
    assert "<generators>" in right["head-retina"].differences(broken["head-retina"])
    assert right["lenet"].differences(broken["lenet"]) == ()
