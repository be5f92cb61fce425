"""MMEngine's initialization: base modules, initializers by name, functions, and the log."""

from __future__ import annotations

from torchinit.modules.amend import amend
from torchinit.modules.base_module import (
    BaseModule,
    ModuleDict,
    ModuleList,
    Sequential,
    as_before_on_error,
    call_for,
)
from torchinit.modules.biases import bias_init_with_prob
from torchinit.modules.functional import (
    caffe2_xavier_init,
    constant_init,
    kaiming_init,
    normal_init,
    trunc_normal_,
    trunc_normal_init,
    uniform_init,
    xavier_init,
)
from torchinit.modules.init_cfg import initialize_module
from torchinit.modules.initializers import (
    WEIGHT_INITIALIZERS,
    BaseInit,
    Caffe2XavierInit,
    ConstantInit,
    KaimingInit,
    NormalInit,
    PretrainedInit,
    TruncNormalInit,
    UniformInit,
    XavierInit,
    update_init_info,
)
from torchinit.modules.registry import Registry, build_from_cfg
from torchinit.modules.starting import OwnStart, own_resets
from torchinit.modules.wrappers import MODEL_WRAPPERS, is_model_wrapper

__all__ = [
    "MODEL_WRAPPERS",
    "WEIGHT_INITIALIZERS",
    "BaseInit",
    "BaseModule",
    "Caffe2XavierInit",
    "ConstantInit",
    "KaimingInit",
    "ModuleDict",
    "ModuleList",
    "NormalInit",
    "OwnStart",
    "PretrainedInit",
    "Registry",
    "Sequential",
    "TruncNormalInit",
    "UniformInit",
    "XavierInit",
    "amend",
    "as_before_on_error",
    "bias_init_with_prob",
    "build_from_cfg",
    "caffe2_xavier_init",
    "call_for",
    "constant_init",
    "initialize_module",
    "is_model_wrapper",
    "kaiming_init",
    "normal_init",
    "own_resets",
    "trunc_normal_",
    "trunc_normal_init",
    "uniform_init",
    "update_init_info",
    "xavier_init",
]
