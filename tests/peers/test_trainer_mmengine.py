"""The stand-in: OpenMMLab's packages as they are, on torchinit; what it refuses, and how it is undone."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from torchinit.mmengine.standin import STAND_INS

PREFACE = "import json, sys, warnings\nwarnings.simplefilter('ignore')\n"
INSTALLED = f"{PREFACE}import torchinit.mmengine; torchinit.mmengine.install()\n"

# The head's init_cfg is written over the default one of its class; the others are mmpretrain's own.
MODEL = """
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

config = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=18, stem_channels=8, base_channels=8),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=4, in_channels=64, loss=dict(type="CrossEntropyLoss")),
)
"""
ALONE = """
import mmpretrain.models
from torchinit import fingerprint
torch.manual_seed(5)
init_default_scope("mmpretrain")
model = MODELS.build(config)
model.init_weights()
print("FINGERPRINT", fingerprint(model))
"""
TRAINED = """
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

import torchinit


class Keep(Hook):
    def before_train(self, runner):
        print("FINGERPRINT", torchinit.fingerprint(runner.model))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        print("LOSS", float(outputs["loss"]))


samples = [dict(inputs=torch.full((3, 32, 32), i), data_samples=DataSample().set_gt_label(i % 4)) for i in range(8)]
Runner(
    model=config,
    work_dir="work",
    train_dataloader=dict(
        dataset=samples, batch_size=4, sampler=dict(type="DefaultSampler"), collate_fn=dict(type="pseudo_collate")
    ),
    train_cfg=dict(by_epoch=True, max_epochs=2),
    optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
    default_hooks=dict(checkpoint=None),
    custom_hooks=[Keep()],
    randomness=dict(seed=5),
    default_scope="mmpretrain",
).train()
"""


def ran(code: str, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    return done.stdout


def told(output: str, word: str) -> list[str]:
    return [line.split()[1] for line in output.splitlines() if line.startswith(f"{word} ")]


def test_a_runner_trains_an_unmodified_model(tmp_path: Path) -> None:
    alone = ran(f"{INSTALLED}{MODEL}{ALONE}", tmp_path / "alone")
    ours = ran(f"{INSTALLED}{MODEL}{TRAINED}", tmp_path / "ours")
    theirs = ran(f"{PREFACE}{MODEL}{TRAINED}", tmp_path / "theirs")
    assert len(set(told(alone, "FINGERPRINT") + told(ours, "FINGERPRINT") + told(theirs, "FINGERPRINT"))) == 1
    assert told(ours, "LOSS") == told(theirs, "LOSS")
    assert len(told(ours, "LOSS")) == 4
    logs = [next((tmp_path / side / "work").glob("*/*.log")).read_text("utf-8") for side in ("ours", "theirs")]
    weight = "backbone.layer4.1.conv2.weight - torch.Size([64, 64, 3, 3]): \nKaimingInit:"
    assert [text.count(weight) for text in logs] == [1, 1]


BACKBONE = """
import timm
import torch
from mmengine.model import BaseModel
from mmpretrain.registry import MODELS


@MODELS.register_module()
class OnTimm(BaseModel):
    def __init__(self, skip_init=None):
        super().__init__(init_cfg=dict(type="Constant", val=1, layer=["Linear", "Conv2d", "BatchNorm2d"]))
        self.backbone = timm.create_model("resnet18", num_classes=0)
        self.head = torch.nn.Linear(512, 4)
        for tensor in self.backbone.parameters():  # as if they were trained
            torch.nn.init.constant_(tensor, 0.125)
        self.backbone.skip_init = skip_init

    def forward(self, inputs, data_samples=None, mode="tensor"):
        scores = self.head(self.backbone(torch.stack(inputs) / 8))
        return {"loss": scores.square().mean()}


config = dict(type="OnTimm")
"""


def test_a_backbone_of_timm_keeps_its_trained_weights(tmp_path: Path) -> None:
    """mmengine#1335: the Runner calls init_weights of whatever has one."""
    found = {}
    for skip in ("None", "True"):
        training = TRAINED.replace(
            "torchinit.fingerprint(runner.model))", "runner.model.backbone.conv1.weight.unique())"
        )
        setting = f"{BACKBONE}config['skip_init'] = {skip}\n"
        code = (
            f"{INSTALLED}from mmengine.registry import init_default_scope\nimport mmpretrain.models{setting}{training}"
        )
        found[skip] = ran(code, tmp_path / skip)
    assert "FINGERPRINT tensor([0.1250])" in found["True"].replace(", grad_fn=<Unique2Backward0>", "")
    assert "FINGERPRINT tensor([0.1250])" not in found["None"]


def test_all_messages_are_in_the_log_of_mmengine(tmp_path: Path) -> None:
    config = """
config["init_cfg"] = [dict(type="Normal", layer="Linaer"), dict(type="Constant", val=1, layer="Conv3d")]
from mmpretrain.models import LinearClsHead
class Head(LinearClsHead):
    def init_weights(self):
        import torchinit
        torchinit.initialize(self, {"rules": [dict(type="Zeros", name="fc.*"), dict(type="Ones", layer="LayerNrom")]})
MODELS.register_module(module=Head)
config["head"]["type"] = "Head"
"""
    output = ran(f"{INSTALLED}{MODEL}{config}{TRAINED}", tmp_path / "run")
    log = next((tmp_path / "run/work").glob("*/*.log")).read_text("utf-8")
    for text in ("Layer('Linaer') matches none of", "Layer('Conv3d') matches none of", "LayerNrom"):
        assert log.count(text) == 1 == output.count(text)


def test_the_registries_of_mmengine_and_of_packages_build_ours(tmp_path: Path) -> None:
    code = f"""{INSTALLED}
import mmengine.model, mmpretrain.models
from mmengine.registry import Registry, WEIGHT_INITIALIZERS
from mmengine.model.weight_init import KaimingInit
from mmpretrain.registry import MODELS
child = Registry("weight initializer", parent=WEIGHT_INITIALIZERS, scope="mine")
@child.register_module()
class Mine(mmengine.model.BaseInit):
    def __call__(self, module):
        module.weight.data.fill_(3)
assert type(WEIGHT_INITIALIZERS.build(dict(type="Kaiming", layer="Linear"))) is KaimingInit
assert type(child.build(dict(type="Kaiming", layer="Linear"))) is KaimingInit
assert KaimingInit is torchinit.mmengine.KaimingInit
import torch
model = mmengine.model.Sequential(torch.nn.Linear(2, 2), init_cfg=[])
mmengine.model.initialize(model[0], dict(type="Mine", _scope_="mine"))
assert model[0].weight.unique().tolist() == [3]
assert issubclass(mmengine.model.BaseModel, torchinit.mmengine.BaseModule)
assert mmengine.model.base_module.BaseModule is torchinit.mmengine.BaseModule
assert all(issubclass(MODELS.get(name), torchinit.mmengine.BaseModule) for name in ("ResNet", "LinearClsHead"))
"""
    ran(code, tmp_path)


LATE = r"RunError: mmengine.model.base_module has been imported before torchinit.mmengine.install(), so that what is"


@pytest.mark.parametrize(
    ("imported", "users"),
    [("mmengine.runner", "MMEngine's: mmengine (2 modules)."), ("mmcv.cnn", "mmengine (2 modules), mmcv (")],
)
def test_too_late_is_an_error_that_names_who_has_it(imported: str, users: str) -> None:
    code = f"{PREFACE}import {imported}, torchinit.mmengine\ntorchinit.mmengine.install()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    last = done.stderr.splitlines()[-1]
    assert LATE in last
    assert users in last
    assert "Call it as the first line of the program" in last


def test_a_part_of_mmengine_that_needs_no_model_may_be_imported_before(tmp_path: Path) -> None:
    code = f"{PREFACE}import mmengine, mmengine.registry, mmengine.config\n{INSTALLED}import mmengine.model as m\n"
    ran(f"{code}assert m.BaseModule is torchinit.mmengine.BaseModule", tmp_path)


def test_uninstall_before_anything_was_imported_leaves_nothing(tmp_path: Path) -> None:
    code = f"""{INSTALLED}
torchinit.mmengine.install()
torchinit.mmengine.uninstall()
torchinit.mmengine.uninstall()
import mmengine.model
from mmengine.registry import WEIGHT_INITIALIZERS
assert mmengine.model.BaseModule.__module__ == "mmengine.model.base_module"
assert {{cls.__module__ for cls in WEIGHT_INITIALIZERS.module_dict.values()}} == {{"mmengine.model.weight_init"}}
"""
    assert ran(code, tmp_path) == ""


def test_uninstall_afterwards_gives_back_mmengines_own(tmp_path: Path) -> None:
    code = f"""{INSTALLED}
import mmengine.model
from mmengine.registry import WEIGHT_INITIALIZERS
torchinit.mmengine.uninstall()
from mmengine.model.weight_init import constant_init
from mmengine.model import weight_init, BaseModule, KaimingInit
names = (mmengine.model.BaseModule, BaseModule, KaimingInit, constant_init, mmengine.model.constant_init)
assert {{each.__module__.partition(".")[0] for each in names}} == {{"mmengine"}}
assert weight_init.__file__.endswith("weight_init.py")
assert {{cls.__module__ for cls in WEIGHT_INITIALIZERS.module_dict.values()}} == {{"mmengine.model.weight_init"}}
import torch
made = BaseModule(dict(type="Constant", val=2, layer="Linear"))
made.fc = torch.nn.Linear(2, 2)
made.init_weights()
assert made.fc.weight.unique().tolist() == [2]
"""
    text = "WARNING - torchinit.mmengine.uninstall(): classes of mmengine keep torchinit's base modules"
    assert text in ran(code, tmp_path)


@pytest.mark.parametrize("path", STAND_INS)
def test_every_public_name_of_mmengines_module_is_there(path: str) -> None:
    package = find_spec("mmengine")
    assert package is not None
    file = Path(package.submodule_search_locations[0], *path.split(".")[1:]).with_suffix(".py")  # type: ignore[index]
    nodes = ast.parse(file.read_text("utf-8")).body
    names = [node.name for node in nodes if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    assert sorted(name for name in names if not name.startswith("_") or name == "trunc_normal_") == sorted(
        STAND_INS[path].split()
    )


def test_without_mmengine_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "import sys; sys.modules['mmengine'] = None\nimport torchinit.mmengine; torchinit.mmengine.install()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "ImportError: torchinit.mmengine.install() needs MMEngine: pip install mmengine" in done.stderr


def test_an_mmengine_without_such_modules_is_named(tmp_path: Path) -> None:
    (tmp_path / "mmengine/model").mkdir(parents=True)
    for name in ("mmengine/__init__.py", "mmengine/model/__init__.py", "mmengine/model/base_module.py"):
        (tmp_path / name).write_text("")
    code = "import sys; sys.path.insert(0, '.')\nimport torchinit.mmengine; torchinit.mmengine.install()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert "RunError: the mmengine that is installed has no mmengine.model.weight_init, which" in done.stderr
