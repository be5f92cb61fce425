"""Sides: what `mmengine.model` hands out in a process that is about to import mmcv, mmdet and mmpretrain.

=========== ==================================================================================================
mmengine    what it always does
torchinit   torchinit's classes and functions, under the same names; the packages imported after that cannot tell
hosted      the same, but BaseModel and whatever else mmengine derives from its BaseModule stays MMEngine's
broken      MMEngine with one bit and one draw too many, to show that a difference is seen
truthful    MMEngine led to tell the truth in its log, which goes by the mean of a parameter; its values are of no use
=========== ==================================================================================================
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn

# Where mmengine keeps the names of its initialization system, and torchinit's are put in their place.
STAND_INS = {
    "mmengine.model.base_module": ("BaseModule", "Sequential", "ModuleList", "ModuleDict"),
    "mmengine.model.weight_init": (
        *("BaseInit", "ConstantInit", "XavierInit", "NormalInit", "TruncNormalInit", "UniformInit", "KaimingInit"),
        *("Caffe2XavierInit", "PretrainedInit", "initialize", "update_init_info", "bias_init_with_prob"),
        *("constant_init", "xavier_init", "normal_init", "trunc_normal_init", "uniform_init", "kaiming_init"),
        *("caffe2_xavier_init", "trunc_normal_"),
    ),
    "mmengine.model.wrappers.utils": ("is_model_wrapper",),
}


def prepare(side: str) -> None:
    """Makes `mmengine.model` that of the side; nothing of mmengine.model may have been imported."""
    if side == "torchinit":
        _stand_in()
    elif side == "hosted":
        _rename()
    elif side == "broken":
        _break()
    elif side == "truthful":
        _tell_the_truth()
    elif side != "mmengine":
        raise ValueError(f"a side is mmengine, torchinit, hosted, broken or truthful, but got {side!r}")


def _stand_in() -> None:
    import torchinit.mmengine

    for path, names in STAND_INS.items():
        assert path not in sys.modules, f"{path} was imported before the stand-in"
        module = ModuleType(path)
        for name in names:
            setattr(module, name, getattr(torchinit.mmengine, name))
        sys.modules[path] = module
    import mmengine.model

    # An import binds the name in the parent package; a module that was there already is not imported.
    for path in STAND_INS:
        package, _, name = path.rpartition(".")
        setattr(sys.modules[package], name, sys.modules[path])
    assert issubclass(mmengine.model.BaseModel, torchinit.mmengine.BaseModule)


def _rename() -> None:
    """Only names: what mmengine.model itself has derived from its BaseModule, BaseModel above all, stays as it is."""
    import mmengine.model

    import torchinit.mmengine

    for path, names in STAND_INS.items():
        for name in names:
            setattr(sys.modules[path], name, getattr(torchinit.mmengine, name))
            if hasattr(mmengine.model, name):
                setattr(mmengine.model, name, getattr(torchinit.mmengine, name))
    assert not issubclass(mmengine.model.BaseModel, torchinit.mmengine.BaseModule)


def _break() -> None:
    from mmengine.model import weight_init

    kaiming, normal = weight_init.kaiming_init, weight_init.normal_init

    def one_value_one_bit_off(module: Any, *args: Any, **kwargs: Any) -> None:
        kaiming(module, *args, **kwargs)
        with torch.no_grad():
            first = module.weight.view(-1)[0]
            first.copy_(torch.nextafter(first, first + 1))

    def one_draw_too_many(module: Any, *args: Any, **kwargs: Any) -> None:
        normal(module, *args, **kwargs)
        torch.rand(1)

    # The classes look the functions up when they are called.
    weight_init.kaiming_init, weight_init.normal_init = one_value_one_bit_off, one_draw_too_many


def _tell_the_truth() -> None:
    """Lets MMEngine see each write: after each look at the parameters they get values that nobody would write."""
    from mmengine.model import base_module, weight_init

    look = weight_init.update_init_info

    def look_and_shake(module: Any, init_info: str) -> None:
        look(module, init_info)
        shake(module)

    weight_init.update_init_info = base_module.update_init_info = look_and_shake


def shake(module: Any) -> None:
    """Gives each parameter values that nobody would write; an open account of them gets their means."""
    account = getattr(module, "_params_init_info", {})
    for parameter in module.parameters():
        parameter.data.uniform_(0.3, 0.7)
        if parameter in account:
            account[parameter]["tmp_mean_value"] = parameter.data.mean()


def below_a_parent(model: nn.Module) -> Any:
    """A module whose one child is the model: MMEngine sees an overridden `init_weights` in children alone."""
    from mmengine.model import BaseModule

    class Parent(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.child = model

    return Parent()
