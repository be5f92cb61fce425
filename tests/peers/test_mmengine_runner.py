"""A Runner of MMEngine that trains a model on torchinit's base modules: what its log file has, and what it loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = ("mmengine.model", "torchinit.mmengine")

TRAINING = """
import importlib, logging, sys, warnings
warnings.simplefilter("ignore")
import torch
from torch import nn
from mmengine.runner import Runner

library = importlib.import_module(sys.argv[1])


class Toy(library.BaseModule):
    def __init__(self, init_cfg):
        super().__init__(init_cfg)
        self.backbone = library.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=1, layer="Linear"))
        self.head = nn.Linear(2, 1)
        self.head.init_weights = lambda: nn.init.constant_(self.head.weight, 0.5)

    def train_step(self, data, optim_wrapper):
        loss = self.head(self.backbone(torch.stack(list(data)))).pow(2).mean()
        optim_wrapper.update_params(loss)
        return {"loss": loss}


torch.save({"model.backbone.0.weight": torch.full((2, 2), 7.0)}, "c.pth")
model = Toy([dict(type="Pretrained", checkpoint="c.pth", **eval(sys.argv[2])), dict(type="Normal", layer="Linaer")])
Runner(
    model=model,
    work_dir="work",
    train_dataloader=dict(dataset=[torch.ones(2)] * 4, batch_size=2, sampler=dict(type="DefaultSampler")),
    train_cfg=dict(by_epoch=True, max_epochs=1),
    optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)),
    default_hooks=dict(checkpoint=None),
    default_scope="mmengine",
).train()
print("WEIGHTS", model.backbone[0].weight.unique().tolist(), model.head.weight.unique().tolist())
"""


def trained(library: str, words: dict[str, str], folder: Path) -> tuple[str, str]:
    """What a training says in its log file, and what it prints."""
    command = [sys.executable, "-c", TRAINING, library, repr(words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    (file,) = folder.glob("work/*/*.log")
    return file.read_text("utf-8"), done.stdout


INFO = "- mmengine - INFO - "
WARNING = "- mmengine - WARNING - "
LOADS = f"{INFO}Loads checkpoint by local backend from path: c.pth"
NOT_EXACTLY = f"{WARNING}The model and loaded state dict do not match exactly"
NOTHING = f"{WARNING}c.pth: 0 of 4 tensors match the model. With prefix='model.' 1 of 4 match."
MISSPELT = f"{WARNING}NormalInit: mean=0, std=1, bias=0: init_cfg of Toy Layer('Linaer') matches none of"
BY_HAND = "head.weight - torch.Size([1, 2]): \nInitialized by user-defined `init_weights` in Linear  \n"
CASES = {
    "no prefix": ({}, [f"{INFO}load model from: c.pth", LOADS, NOT_EXACTLY, BY_HAND], [NOTHING, MISSPELT], [1.0]),
    "a prefix": (
        {"prefix": "model."},
        [f"{INFO}load model. in model from: c.pth", NOT_EXACTLY, "PretrainedInit: load from c.pth", BY_HAND],
        [LOADS, MISSPELT],
        [7.0],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_log_file_of_a_runner(case: str, tmp_path: Path) -> None:
    words, of_both, of_torchinit, weights = CASES[case]
    files = []
    for library, lines in zip(LIBRARIES, (of_both, [*of_both, *of_torchinit]), strict=True):
        (folder := tmp_path / library).mkdir()
        file, printed = trained(library, words, folder)
        assert [line for line in lines if file.count(line) != 1] == []
        assert [line for line in (*of_torchinit,) if file.count(line)] == (of_torchinit if lines != of_both else [])
        assert printed.count("do not match exactly") == 1
        assert f"WEIGHTS {weights} [0.5]" in printed
        files.append(re.findall(r"(?m)^([\w.]+ - torch\.Size.*\n.*)$", file))
    assert files[0] == files[1]  # who wrote each parameter
