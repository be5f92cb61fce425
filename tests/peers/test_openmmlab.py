"""Real models of OpenMMLab start with the same bits under torchinit as under MMEngine, and the log is true.

The harness is openmmlab.py with openmmlab_sides.py, the list of models openmmlab_models.py. Every config that
mmpretrain and mmdet ship is run by hand: `.venv-peers/bin/python tests/peers/openmmlab_sweep.py --help`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.openmmlab import Outcome, init_lines, is_unwritten, run_side, true_lines
from tests.peers.openmmlab_models import INNER_WRITERS, MODELS, WHOLE, WRONG

NAMES = [case.name for case in MODELS]
BY_NAME = {case.name: case for case in MODELS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One for all sides: the log names the checkpoint's path.
    return tmp_path_factory.mktemp("openmmlab")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> dict[str, Outcome]:
    return run_side("mmengine", (*MODELS, *WRONG), folder)


@pytest.fixture(scope="module")
def ours(folder: Path) -> dict[str, Outcome]:
    return run_side("torchinit", (*MODELS, *WRONG), folder)


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, Outcome]:
    return run_side("truthful", MODELS, folder)


@pytest.fixture(scope="module")
def hosted(folder: Path) -> dict[str, Outcome]:
    return run_side("hosted", WHOLE, folder)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits(theirs: dict[str, Outcome], ours: dict[str, Outcome], name: str) -> None:
    assert theirs[name].error == "", f"MMEngine itself cannot make {name}: {theirs[name].message}"
    assert len(theirs[name].state) > 0
    assert theirs[name].differences(ours[name]) == (), ours[name].message


@pytest.mark.parametrize("name", [case.name for case in WHOLE])
def test_same_bits_below_a_module_of_mmengine(
    theirs: dict[str, Outcome], hosted: dict[str, Outcome], name: str
) -> None:
    assert theirs[name].differences(hosted[name]) == (), hosted[name].message


@pytest.mark.parametrize("name", [case.name for case in WRONG])
def test_same_exception_and_no_trace(theirs: dict[str, Outcome], ours: dict[str, Outcome], name: str) -> None:
    assert theirs[name].error
    assert ours[name].error == theirs[name].error, ours[name].message
    assert not [mark for mark in ours[name].leftovers if "_params_init_info" in mark]


@pytest.mark.parametrize("name", NAMES)
def test_log_tells_the_truth(truth: dict[str, Outcome], ours: dict[str, Outcome], name: str) -> None:
    expected = true_lines(truth[name].log)
    told = {key: "" if is_unwritten(text) else text for key, text in init_lines(ours[name].log).items()}
    assert list(told) == list(expected)
    inner = INNER_WRITERS.get(name, {})
    assert told == {key: inner.get(key[0], text) for key, text in expected.items()}


@pytest.mark.parametrize("name", NAMES)
def test_log_is_mmengines_line_for_line_where_that_is_true(
    theirs: dict[str, Outcome], ours: dict[str, Outcome], truth: dict[str, Outcome], name: str
) -> None:
    expected, told = true_lines(truth[name].log), init_lines(ours[name].log)
    right = {
        key: text
        for key, text in init_lines(theirs[name].log).items()
        if expected[key] == ("" if is_unwritten(text) else text) and key[0] not in INNER_WRITERS.get(name, {})
    }
    assert {key: told[key] for key in right} == right


def test_harness_sees_one_bit_and_one_draw(theirs: dict[str, Outcome], tmp_path: Path) -> None:
    cases = [BY_NAME[name] for name in ("resnet-cifar", "head-retina", "lenet")]
    broken = run_side("broken", cases, tmp_path)
    one_bit = theirs["resnet-cifar"].differences(broken["resnet-cifar"])
    assert "conv1.weight" in one_bit and "<generators>" not in one_bit
    assert "<generators>" in theirs["head-retina"].differences(broken["head-retina"])
    assert theirs["lenet"].differences(broken["lenet"]) == ()
