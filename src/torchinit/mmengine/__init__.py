"""MMEngine's initialization: base modules, initializers by name, functions, the log, and its way to load checkpoints.

::

    -from mmengine.model import BaseModule, kaiming_init
    +from torchinit.mmengine import BaseModule, kaiming_init

An ``init_cfg`` is read by MMEngine's rules here, and here alone; a recipe is read by :mod:`torchinit.recipes`.
"""

from __future__ import annotations

from torchinit.mmengine.base_module import BaseModule, ModuleDict, ModuleList, Sequential
from torchinit.mmengine.biases import bias_init_with_prob
from torchinit.mmengine.checkpoints import (
    CheckpointLoader,
    _load_checkpoint,
    _load_checkpoint_with_prefix,
    load_checkpoint,
    load_state_dict,
)
from torchinit.mmengine.functional import (
    caffe2_xavier_init,
    constant_init,
    kaiming_init,
    normal_init,
    trunc_normal_,
    trunc_normal_init,
    uniform_init,
    xavier_init,
)
from torchinit.mmengine.init_cfg import amend, initialize
from torchinit.mmengine.initializers import (
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
from torchinit.mmengine.registry import (
    MODEL_WRAPPERS,
    WEIGHT_INITIALIZERS,
    Registry,
    bridge,
    build_from_cfg,
    is_model_wrapper,
)
from torchinit.mmengine.standin import install, uninstall
from torchinit.mmengine.starting import materialize

__all__ = [
    "BaseInit",
    "BaseModule",
    "Caffe2XavierInit",
    "CheckpointLoader",
    "ConstantInit",
    "KaimingInit",
    "MODEL_WRAPPERS",
    "ModuleDict",
    "ModuleList",
    "NormalInit",
    "PretrainedInit",
    "Registry",
    "Sequential",
    "TruncNormalInit",
    "UniformInit",
    "WEIGHT_INITIALIZERS",
    "XavierInit",
    "_load_checkpoint",
    "_load_checkpoint_with_prefix",
    "amend",
    "bias_init_with_prob",
    "bridge",
    "build_from_cfg",
    "caffe2_xavier_init",
    "constant_init",
    "initialize",
    "install",
    "is_model_wrapper",
    "kaiming_init",
    "load_checkpoint",
    "load_state_dict",
    "materialize",
    "normal_init",
    "trunc_normal_",
    "trunc_normal_init",
    "uniform_init",
    "uninstall",
    "update_init_info",
    "xavier_init",
]
