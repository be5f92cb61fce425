"""The public face: names by namespace, pinned here, each documented by example, and imported when it is used."""

from __future__ import annotations

import ast
import builtins
import inspect
import subprocess
import sys
import typing
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import torchinit
from torchinit import checkpoints, integrations

NAMESPACES = {
    "torchinit": """
        BaseModule CheckpointError ConfigError Constant FanError FetchError Kaiming Kinds Layer LeCun Leaf
        LockError MissingExtraError Name Neutral Normal Ones Orthogonal Plan PlanError Pretrained ProbeError Regex
        Report ReportError Roles Rule RunError Shape TorchinitError TruncNormal Uniform Within Xavier Zeros
        assert_healthy assert_initialized assert_meta_parity capture coord_check fingerprint gain initialize lint
        load_recipe lock
        lsuv materialize open_checkpoint plan preserves probe roles seeded show_log sites verify_replicas""",
    "torchinit.checkpoints": """
        Checkpoint Info Limits Loaded Pretrained RefusedPickleError fetch member_of open_checkpoint
        register_source""",
    "torchinit.checkpoints.adapters": """
        ADAPTERS Adapter BatchNormAffine Chain Dequantize Drop FoldBatchNorm Fuse HyperClone Inflate InputChannels
        Labels LoRA MergeExperts Net2Wider Only PoolHeads ReadPlan Rearrange Repeat ResizePatches ResizePositions
        ResizeRelativeBias ResizeVocabulary RopeOrder Rows Split Stack Transpose Unstack Upcycle UpcycleRouter
        WeightNorm WeightSelection""",
    "torchinit.distributed": "Shard initialize_shards verify_replicas verify_stages",
    "torchinit.initializers": """
        AlibiSlopes Bilinear Blocks Blockwise Caffe2Xavier Chrono Computed Constant DeformableRing DeltaOrthogonal
        DepthScaled Dirac Fill FromIndex ICNR Identity Initializer Kaiming LeCun LoadReport LogUniform Mapped MappedFill
        Moments Neutral Normal Ones Opaque Orthogonal Padded Prior Ramp RepeatedFill Scaled ScaledFill SinCos Sparse
        Stacked StackedFill TorchDefault TruncNormal Uniform VarianceScaling Xavier Zeros""",
    "torchinit.integrations": "fsdp lightning torchtitan trainers transformers",
    "torchinit.knowledge": "Profile Role RoleRule gain profile read_rules register_roles roles",
    "torchinit.linting": """
        CHECKS Finding Findings Hit SEVERITIES Severity assert_initialized assert_meta_parity check lint
        meta_parity""",
    "torchinit.mmengine": """
        BaseInit BaseModule Caffe2XavierInit CheckpointLoader ConstantInit KaimingInit MODEL_WRAPPERS ModuleDict
        ModuleList NormalInit PretrainedInit Registry Sequential TruncNormalInit UniformInit WEIGHT_INITIALIZERS
        XavierInit _load_checkpoint _load_checkpoint_with_prefix amend bias_init_with_prob bridge build_from_cfg
        caffe2_xavier_init constant_init initialize install is_model_wrapper kaiming_init load_checkpoint
        load_state_dict materialize normal_init trunc_normal_ trunc_normal_init uniform_init uninstall update_init_info
        xavier_init""",
    "torchinit.model": "Box LayerClass Layout Shard Site Slot register_layout",
    "torchinit.noise": "Global Keyed Noise STREAM",
    "torchinit.pages": "Distribution Figure Page Panel Section Series",
    "torchinit.plans": "Change Diff Fingerprint Plan Record Report Skipped Step local_shards make_plan run",
    "torchinit.probing": """
        CoordCheck CoordinateSlope Lsuv LsuvLayer Measurement OutputDistance PROBE_CHECKS Preservation Probe assert_flat
        assert_healthy coord_check lsuv predict preserves probe""",
    "torchinit.recipes": "INITIALIZERS RecipeLike decode_recipe load_recipe recipe_to_data schemes",
    "torchinit.rules": """
        All AnyOf Block Dtype Is Kinds Layer Leaf Name Not Recipe Regex Roles Rule SELECTORS Selector Shape Within""",
    "torchinit.tracing": "Lock Trace Write capture lock seeded trace",
    "torchinit.transfer": """
        Applied Base Factors Group Megatron Multiplier OPTIMIZERS PARAMETRIZATIONS Parametrization Settings
        TRANSFER_CHECKS TableRow Transfer TransferRow""",
}
"""What each namespace offers."""

# What the top level has besides, imported when it is used: namespaces, the names of MMEngine's page on initialization,
# and `trace`, which would hide torch's.
BESIDES = """
    Caffe2XavierInit ConstantInit KaimingInit NormalInit PretrainedInit TruncNormalInit UniformInit
    WEIGHT_INITIALIZERS XavierInit __version__ api bias_init_with_prob caffe2_xavier_init checkpoints
    constant_init distributed errors initializers integrations kaiming_init knowledge linting mmengine model
    noise normal_init pages plans probing recipes rules trace tracing transfer trunc_normal_init uniform_init
    xavier_init"""

ROOT = Path(torchinit.__file__).parent
LAZY = [torchinit, checkpoints, integrations]
UNDOCUMENTED = {"_load_checkpoint", "_load_checkpoint_with_prefix", "bridge"}


def changes(pinned: str, names: Collection[str]) -> list[str]:
    """What came and what went, a name each."""
    before = set(pinned.split())
    return sorted([f"+{name}" for name in names if name not in before] + [f"-{name}" for name in before - set(names)])


def lazy_homes(module: ModuleType) -> dict[str, str]:
    """Each name that the package imports when it is used, with the module that it is taken from."""
    table: dict[str, str] = vars(module)["_NAMES"]
    return {name: f"{module.__name__}.{home}" for home, names in table.items() for name in names.split()}


def lazy_modules(module: ModuleType) -> dict[str, str]:
    """Each module that is an attribute of the package without being imported, with the package."""
    return dict.fromkeys(vars(module)["_MODULES"].split(), module.__name__)


def typed_homes(path: Path) -> dict[str, str]:
    """Each name that the file imports for type checkers alone, with the module that it is taken from."""
    (block,) = (node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_names_are_pinned(namespace: str) -> None:
    names = import_module(namespace).__all__
    assert list(names) == sorted(set(names))
    assert changes(NAMESPACES[namespace], names) == []
    assert changes(NAMESPACES[namespace], [*names[1:], "new"]) == sorted(["+new", f"-{names[0]}"])
    assert all(hasattr(import_module(namespace), name) for name in names)


def test_every_package_is_pinned_or_private() -> None:
    packages = {f"torchinit.{path.parent.name}" for path in ROOT.glob("*/__init__.py")}
    assert packages - set(NAMESPACES) == {"torchinit.cli", "torchinit.serialization"}


def test_lazy_names_are_pinned() -> None:
    names = {*lazy_homes(torchinit), *lazy_modules(torchinit)}
    assert set(torchinit.__all__) <= names <= set(dir(torchinit))
    assert changes(BESIDES, names - set(torchinit.__all__)) == []
    assert changes(BESIDES, {*BESIDES.split(), "new"} - {"noise"}) == ["+new", "-noise"]


@pytest.mark.parametrize("module", LAZY)
def test_type_checkers_see_what_is_imported(module: ModuleType) -> None:
    homes = {name: home for name, home in lazy_homes(module).items() if name != "__version__"}
    assert typed_homes(Path(str(module.__file__))) == {**homes, **lazy_modules(module)}
    assert all(isinstance(getattr(module, name), ModuleType) for name in lazy_modules(module))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'torchinit' has no attribute 'Xaver'"):
        _ = torchinit.Xaver  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'Adam' from 'torchinit'"):
        from torchinit import Adam  # type: ignore[attr-defined]  # noqa: F401


def test_import_star_shadows_nothing() -> None:
    taken = {name for place in (builtins, typing, torch, nn, nn.init, nn.functional) for name in dir(place)}
    assert set(torchinit.__all__) & taken == set()
    assert {"trace", "Identity"} <= taken


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_public_names_are_documented_by_example(namespace: str) -> None:
    module = import_module(namespace)
    for name in set(module.__all__) - UNDOCUMENTED:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue  # aliases of types have no docstring of their own
        document = inspect.getdoc(value) or ""
        assert document, f"{name} has no docstring"
        if not (isinstance(value, type) and issubclass(value, BaseException)):
            assert ">>>" in document, f"the docstring of {name} has no example"


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_namespace_is_on_the_page(namespace: str) -> None:
    folder = Path(__file__).parents[1] / "docs/reference"
    pages = [page.read_text("utf-8") for page in (folder / "api.md", *folder.glob("api/*.md"))]
    assert sum(f".. automodule:: {namespace}\n" in page for page in pages) == 1


def loaded(code: str) -> set[str]:
    """The packages that this code loads, in a process of its own."""
    printing = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-W", "error:::torchinit", "-c", f"{code}\n{printing}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split())


def test_all_names_load_torch_and_the_standard_library_alone() -> None:
    found = loaded("from torchinit import *") - loaded("import torch")
    assert "torchinit" in found
    assert found - {"torchinit"} <= sys.stdlib_module_names


COMMAND = """
from torchinit.cli import main
try:
    main({words})
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    "code",
    ["import torchinit", "from torchinit import ConfigError", "from torchinit.checkpoints import Limits"]
    + [
        COMMAND.format(words=words)
        for words in (["--help"], ["--version"], ["cache", "--help"], ["cache", "ls"], ["no"])
    ],
)
def test_torch_is_not_loaded(code: str) -> None:
    found = loaded(code)
    assert "torchinit" in found
    assert not {"torch", "numpy"} & found


def test_torch_is_loaded_by_what_needs_it() -> None:
    assert "torch" in loaded("from torchinit import plan")
    assert "torch" in loaded(COMMAND.format(words=["list"]))
