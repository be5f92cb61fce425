"""torchinit says how the weights of a PyTorch model start: as data, before anything is written, with proof after.

Everything here is imported when it is used; what is not here stands in its namespace, as :mod:`torchinit.noise`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "BaseModule",
    "CheckpointError",
    "ConfigError",
    "Constant",
    "FanError",
    "FetchError",
    "Kaiming",
    "Kinds",
    "Layer",
    "LeCun",
    "Leaf",
    "LockError",
    "MissingExtraError",
    "Name",
    "Neutral",
    "Normal",
    "Ones",
    "Orthogonal",
    "Plan",
    "PlanError",
    "Pretrained",
    "ProbeError",
    "Regex",
    "Report",
    "ReportError",
    "Roles",
    "Rule",
    "RunError",
    "Shape",
    "TorchinitError",
    "TruncNormal",
    "Uniform",
    "Within",
    "Xavier",
    "Zeros",
    "assert_healthy",
    "assert_initialized",
    "assert_meta_parity",
    "capture",
    "coord_check",
    "fingerprint",
    "gain",
    "initialize",
    "lint",
    "load_recipe",
    "lock",
    "lsuv",
    "materialize",
    "open_checkpoint",
    "plan",
    "preserves",
    "probe",
    "roles",
    "seeded",
    "show_log",
    "sites",
    "verify_replicas",
]

if TYPE_CHECKING:
    from torchinit import api as api
    from torchinit import checkpoints as checkpoints
    from torchinit import distributed as distributed
    from torchinit import errors as errors
    from torchinit import initializers as initializers
    from torchinit import integrations as integrations
    from torchinit import knowledge as knowledge
    from torchinit import linting as linting
    from torchinit import mmengine as mmengine
    from torchinit import model as model
    from torchinit import noise as noise
    from torchinit import pages as pages
    from torchinit import plans as plans
    from torchinit import probing as probing
    from torchinit import recipes as recipes
    from torchinit import rules as rules
    from torchinit import tracing as tracing
    from torchinit import transfer as transfer
    from torchinit.api import initialize, materialize, plan, sites
    from torchinit.checkpoints import Pretrained, open_checkpoint
    from torchinit.distributed import verify_replicas
    from torchinit.errors import (
        CheckpointError,
        ConfigError,
        FanError,
        FetchError,
        LockError,
        MissingExtraError,
        PlanError,
        ProbeError,
        ReportError,
        RunError,
        TorchinitError,
    )
    from torchinit.initializers import (
        Constant,
        Kaiming,
        LeCun,
        Neutral,
        Normal,
        Ones,
        Orthogonal,
        TruncNormal,
        Uniform,
        Xavier,
        Zeros,
    )
    from torchinit.knowledge import gain, roles
    from torchinit.linting.lint import assert_initialized, lint
    from torchinit.linting.parity import assert_meta_parity
    from torchinit.mmengine import WEIGHT_INITIALIZERS as WEIGHT_INITIALIZERS
    from torchinit.mmengine import BaseModule
    from torchinit.mmengine import Caffe2XavierInit as Caffe2XavierInit
    from torchinit.mmengine import ConstantInit as ConstantInit
    from torchinit.mmengine import KaimingInit as KaimingInit
    from torchinit.mmengine import NormalInit as NormalInit
    from torchinit.mmengine import PretrainedInit as PretrainedInit
    from torchinit.mmengine import TruncNormalInit as TruncNormalInit
    from torchinit.mmengine import UniformInit as UniformInit
    from torchinit.mmengine import XavierInit as XavierInit
    from torchinit.mmengine import bias_init_with_prob as bias_init_with_prob
    from torchinit.mmengine import caffe2_xavier_init as caffe2_xavier_init
    from torchinit.mmengine import constant_init as constant_init
    from torchinit.mmengine import kaiming_init as kaiming_init
    from torchinit.mmengine import normal_init as normal_init
    from torchinit.mmengine import trunc_normal_init as trunc_normal_init
    from torchinit.mmengine import uniform_init as uniform_init
    from torchinit.mmengine import xavier_init as xavier_init
    from torchinit.mmengine.log import show_log
    from torchinit.plans import Plan, Report
    from torchinit.plans.fingerprint import fingerprint
    from torchinit.probing.coordinates import coord_check
    from torchinit.probing.lsuv import lsuv
    from torchinit.probing.preserves import preserves
    from torchinit.probing.probe import assert_healthy, probe
    from torchinit.recipes import load_recipe
    from torchinit.rules import Kinds, Layer, Leaf, Name, Regex, Roles, Rule, Shape, Within
    from torchinit.tracing.capture import capture
    from torchinit.tracing.recorder import trace as trace
    from torchinit.tracing.regions import lock
    from torchinit.tracing.seeded import seeded

    __version__: str
else:
    from torchinit._lazy import attach as _attach

    _NAMES = {
        "api": "initialize materialize plan sites",
        "checkpoints": "Pretrained open_checkpoint",
        "distributed": "verify_replicas",
        "errors": "CheckpointError ConfigError FanError FetchError LockError MissingExtraError PlanError ProbeError"
        " ReportError RunError TorchinitError",
        "initializers": "Constant Kaiming LeCun Neutral Normal Ones Orthogonal TruncNormal Uniform Xavier Zeros",
        "knowledge": "gain roles",
        "linting.lint": "assert_initialized lint",
        "linting.parity": "assert_meta_parity",
        # MMEngine's page on initialization; BaseModule alone is in __all__
        "mmengine": "BaseModule Caffe2XavierInit ConstantInit KaimingInit NormalInit PretrainedInit TruncNormalInit"
        " UniformInit WEIGHT_INITIALIZERS XavierInit bias_init_with_prob caffe2_xavier_init constant_init kaiming_init"
        " normal_init trunc_normal_init uniform_init xavier_init",
        "mmengine.log": "show_log",
        "plans": "Plan Report",
        "plans.fingerprint": "fingerprint",
        "probing.coordinates": "coord_check",
        "probing.lsuv": "lsuv",
        "probing.preserves": "preserves",
        "probing.probe": "assert_healthy probe",
        "recipes": "load_recipe",
        "rules": "Kinds Layer Leaf Name Regex Roles Rule Shape Within",
        "tracing.capture": "capture",
        "tracing.regions": "lock",
        "tracing.recorder": "trace",  # `import *` leaves torch.trace alone: not in __all__
        "tracing.seeded": "seeded",
        "_version": "__version__",
    }
    _MODULES = (
        "api checkpoints distributed errors initializers integrations knowledge linting mmengine model noise pages"
        " plans probing recipes rules tracing transfer"
    )

    def _near(name: str) -> str:
        from torchinit.initializers.functions import hint

        return hint(name, __all__, as_call=True)

    __getattr__, __dir__ = _attach(__name__, _NAMES, _MODULES, _near)
