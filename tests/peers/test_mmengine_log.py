"""Where mmengine's logger is in use the log goes there: all of it, once, and nowhere else."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.logs import unconfigured
from torchinit import mmengine as ours

with warnings.catch_warnings():  # importing it uses deprecated parts of torch
    warnings.simplefilter("ignore")
    from mmengine.logging import MMLogger


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The file of a logger as a Runner makes one."""
    logger = MMLogger.get_instance(request.node.name, log_file=str(tmp_path / "run.log"))
    yield tmp_path / "run.log"
    for handler in logger.handlers:
        handler.close()
    MMLogger._instance_dict.pop(request.node.name)


def lost(tmp_path: Path) -> Any:
    """A model with a checkpoint that does not fit."""
    torch.save({"backbone.0.weight": torch.zeros(2, 2)}, tmp_path / "c.pth")
    entry = {"type": "Pretrained", "checkpoint": str(tmp_path / "c.pth")}
    return ours.Sequential(nn.Linear(2, 2), init_cfg=entry)


@unconfigured()
def test_all_of_it_and_once(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = lost(tmp_path)
    model.init_cfg = [model.init_cfg, *({"type": "Normal", "layer": name} for name in ("Linaer", "Conv2d", "Linear"))]
    model.init_weights()
    assert capsys.readouterr() == ("", "")  # the handler of mmengine's logger writes to what was there before
    text = file.read_text()
    for line in (
        "load model from: ",
        "Loads checkpoint by local backend from path",
        "do not match exactly",
        "0 of 2 tensors match",
        "did you mean 'Linear'",  # a second warning, which mmengine's filter of duplicates must not take for the first
        "Layer('Conv2d') matches none of",
        "\n0.weight - torch.Size([2, 2]): \nNormalInit: mean=0, std=1, bias=0 \n",
    ):
        assert text.count(line) == 1, line


@unconfigured()
def test_a_handler_that_is_meant_for_it_gets_it_as_well(file: Path, tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "ours.log")
    logging.getLogger("torchinit").addHandler(handler)
    ours.Sequential(nn.Linear(2, 2)).init_weights()
    handler.close()
    assert (tmp_path / "ours.log").read_text() in file.read_text()


def test_who_configured_the_root_does_not_read_it_twice(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "torchinit.mmengine"):
        lost(tmp_path).init_weights()
    assert "do not match exactly" in file.read_text()
    assert caplog.messages == []
