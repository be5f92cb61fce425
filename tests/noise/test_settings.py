"""Settings: no mode of torch and no setting of the process changes a draw, and all are the user's again afterwards."""

from __future__ import annotations

import decimal
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchinit import (
    Kaiming,
    Name,
    Normal,
    Orthogonal,
    Pretrained,
    Rule,
    TruncNormal,
    Uniform,
    fingerprint,
    initialize,
    materialize,
    plan,
    seeded,
    trace,
)
from torchinit.checkpoints import adapters
from torchinit.initializers import DeltaOrthogonal, Sparse
from torchinit.noise.settings import plain_process, plain_thread

Context = Callable[[], AbstractContextManager[Any]]


class Passing(TorchFunctionMode):
    """A mode that looks on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Doubling(TorchFunctionMode):
    """A mode that makes all that is made without a dtype in double precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = {"dtype": torch.float64} if getattr(func, "__name__", "") in ("empty", "randn", "ones") else {}
        return func(*args, **{**wide, **(kwargs or {})})


class Zeroing(TorchFunctionMode):
    """A mode that takes the values from what is drawn or copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.zero_() if getattr(func, "__name__", "") in ("normal_", "copy_", "mul_") else result


class Skipping(TorchDispatchMode):
    """A mode that leaves out copies."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.ops.aten.copy_.default else func(*args, **(kwargs or {}))


@contextmanager
def changed(get: Callable[[], Any], change: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    change(value)
    try:
        yield
    finally:
        change(before)


@contextmanager
def flushing() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def all_filled() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def default_dtype(dtype: torch.dtype) -> Context:
    return lambda: changed(torch.get_default_dtype, torch.set_default_dtype, dtype)


def precision(text: str) -> Context:
    return lambda: changed(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, text)


SETTINGS: dict[str, Context] = {
    "float64": default_dtype(torch.float64),
    "bfloat16": default_dtype(torch.bfloat16),
    "float16": default_dtype(torch.float16),
    "on meta": lambda: torch.device("meta"),
    "on meta for good": lambda: changed(lambda: None, torch.set_default_device, "meta"),
    "flushing": flushing,
    "medium precision": precision("medium"),
    "deterministic": all_filled,
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast, float16": lambda: torch.autocast("cpu", torch.float16, cache_enabled=False),
    "passing": Passing,
    "doubling": Doubling,
    "zeroing": Zeroing,
    "skipping": Skipping,
    "no overrides": torch._C.DisableTorchFunction,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "warnings": lambda: warnings.catch_warnings(action="error"),
    "decimals": lambda: decimal.localcontext(decimal.Context(prec=2)),
    "another state": torch.random.fork_rng,
}


class Basis(nn.Module):
    """A buffer and a parameter that the module's own code computes."""

    angles: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(16, 16))
        self.register_buffer("angles", torch.empty(16))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.randn(16, 200) @ torch.randn(200, 16))
            self.angles.copy_(1 / 10000 ** (torch.arange(16) / 16))


def product(weight: Tensor) -> Tensor:
    """A function that computes in whatever torch computes in where nothing is said."""
    return torch.randn(len(weight), 300) @ torch.randn(300, weight.shape[1]) / torch.ones(3).sum()


def tiny(weight: Tensor) -> None:
    weight.copy_(torch.randn(weight.shape) * 1e-39)


def net(*, whole: bool = True) -> nn.ModuleDict:
    layers: dict[str, nn.Module] = {
        "line": nn.Linear(65, 33),
        "orthogonal": nn.Linear(65, 33),
        "kernel": nn.Conv2d(9, 12, 3),
        "wide": nn.Linear(50, 40, dtype=torch.float64),
        "brain": nn.Linear(70, 64, dtype=torch.bfloat16),
        "complex": nn.Linear(30, 30, dtype=torch.complex64),
        "sparse": nn.Linear(40, 50),
        "truncated": nn.Linear(300, 10),
        "code": nn.Linear(70, 60),
        "tiny": nn.Linear(30, 30),
        "small": nn.Linear(30, 30),
        "patches": nn.Conv2d(3, 16, 20),
        "basis": Basis(),
    }
    if whole:
        layers["turned"] = parametrizations.orthogonal(nn.Linear(20, 20))
        layers["normed"] = parametrizations.weight_norm(nn.Linear(20, 20))
    return nn.ModuleDict(layers)


FILE = {"patches.weight": torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
RULES = [
    Rule(~Name("basis.**"), Normal(std=0.3)),
    Rule(Name("*.bias") & ~Name("complex.*"), Uniform(-1, 1)),
    *(Rule(f"{name}.weight", Orthogonal()) for name in ("orthogonal", "wide", "brain", "complex")),
    Rule("kernel.weight", DeltaOrthogonal()),
    Rule("sparse.weight", Sparse(0.3)),
    Rule("truncated.weight", TruncNormal(std=0.02)),
    Rule("code.weight", product),
    Rule("tiny.weight", tiny),
    Rule("small.weight", Normal(std=1e-39)),
    Rule("patches.weight", Pretrained(FILE, adapt={"patches.weight": adapters.ResizePatches()})),
    Rule("turned.weight", Orthogonal(), optional=True),
]


def initialized() -> Callable[[], nn.Module]:
    model = net()
    nn.init.zeros_(model.get_parameter("basis.weight"))

    def work() -> nn.Module:
        initialize(model, RULES, seed=0)
        return model

    return work


def materialized() -> Callable[[], nn.Module]:
    model = net(whole=False).to("meta")

    def work() -> nn.Module:
        materialize(model, RULES, seed=0)
        return model

    return work


@pytest.fixture(scope="module")
def expected() -> dict[Any, str]:
    return {make: fingerprint(make()()).total for make in (initialized, materialized)}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("make", [initialized, materialized])
def test_no_setting_changes_a_draw(make: Any, setting: Context, expected: dict[Any, str]) -> None:
    work, state = make(), torch.get_rng_state()
    with setting():
        inside = settings_of_torch()
        model = work()
        assert settings_of_torch() == inside
        assert fingerprint(model).total == expected[make]
    assert fingerprint(model).total == expected[make]
    assert torch.equal(torch.get_rng_state(), state)


def settings_of_torch() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_float32_matmul_precision(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        [type(mode) for mode in torch.overrides._get_current_function_mode_stack()],
        torch._C._len_torch_dispatch_stack(),
        5e-324 * float(1) == 0.0,
        torch.get_num_threads(),
    )


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_no_setting_changes_a_plan(setting: Context) -> None:
    model = net()
    planned = [(step.site, step.fill) for step in plan(model, RULES[:-1]).steps]
    with setting():
        assert [(step.site, step.fill) for step in plan(model, RULES[:-1]).steps] == planned


ENGINES = """
import torch
from tests.noise.test_settings import SETTINGS, initialized
from torchinit import fingerprint
if {flushing}:
    torch.set_flush_denormal(True)
torch.ones(1 << 20).mul_(2)
found = set()
for name in ("passing", "flushing", "on meta", "autocast", "skipping", "bfloat16"):
    work = initialized()
    with SETTINGS[name]():
        model = work()
    found.add(fingerprint(model).total)
print(*found)
"""


@pytest.mark.slow("starts processes that import torch")
@pytest.mark.parametrize(
    "variables",
    [
        {"TORCHINIT_ENGINE": "torch"},
        {"TORCHINIT_ENGINE": "numpy", "PYTHONHASHSEED": "7"},
        {"MKL_DYNAMIC": "FALSE", "MKL_NUM_THREADS": "4", "OMP_NUM_THREADS": "2"},
        {"OMP_NUM_THREADS": "1", "LC_ALL": "C", "ATEN_CPU_CAPABILITY": "default"},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_flushing", [False, True])
def test_nor_does_one_in_another_process(
    variables: dict[str, str], is_flushing: bool, expected: dict[Any, str]
) -> None:
    """By another engine too, whose workers begin while subnormal numbers are flushed."""
    code = ENGINES.format(flushing=is_flushing)
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, **variables},
    )  # fmt: skip
    # Capability of ATen changes what users' code computes in float32, as another processor would.
    assert len(told.stdout.split()) == 1
    if "ATEN_CPU_CAPABILITY" not in variables:
        assert told.stdout.strip() == expected[initialized]


def test_without_a_seed_functions_draw_as_by_hand() -> None:
    layer, theirs = nn.Linear(70, 60, bias=False), torch.empty(60, 70)
    with SETTINGS["float64"](), torch.no_grad():
        torch.manual_seed(0)
        initialize(layer, Rule("weight", product))
        torch.manual_seed(0)
        theirs.copy_(product(theirs))
    assert torch.equal(layer.weight, theirs)


def test_a_function_computes_in_double_precision_for_a_site_of_that() -> None:
    def third(weight: Tensor) -> Tensor:
        return torch.ones(weight.shape) / 3

    layers = nn.ModuleDict({"a": nn.Linear(3, 3, dtype=torch.float64), "b": nn.Linear(3, 3, dtype=torch.bfloat16)})
    with SETTINGS["float16"]():
        initialize(layers, Rule("*.weight", third), seed=0)
    assert torch.equal(layers.get_parameter("a.weight"), torch.full((3, 3), 1 / 3, dtype=torch.float64))
    assert torch.equal(layers.get_parameter("b.weight"), torch.full((3, 3), 1 / 3).bfloat16())


def test_functions_in_several_threads_have_the_draws_of_their_own_names() -> None:
    """Torch's generator and default dtype are the process's, so one function runs at a time.

    The layers are made before: a thread that makes one draws from torch's generator, which the function uses meanwhile.
    """
    layers = [nn.Linear(70, 60, bias=False, dtype=(torch.float32, torch.float64)[seed % 2]) for seed in range(16)]

    def run(seed: int) -> str:
        initialize(layers[seed], Rule("weight", product), seed=seed)
        return fingerprint(layers[seed]).total

    alone = [run(seed) for seed in range(16)]
    with SETTINGS["bfloat16"](), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(16))) == alone
        assert torch.get_default_dtype() == torch.bfloat16


@pytest.mark.parametrize("mode", [Passing, Doubling])
def test_other_peoples_code_draws_the_same_within_a_mode(mode: Context) -> None:
    """nn.init's functions that look at their draws are known through the mode's own frames."""

    def drawn() -> str:
        layer = nn.Linear(65, 33)
        with torch.no_grad(), seeded(layer, 0):
            nn.init.orthogonal_(layer.weight)
            nn.init.trunc_normal_(layer.bias)
        return fingerprint(layer).total

    alone = drawn()
    with mode():
        assert drawn() == alone


def test_a_line_of_a_mode_is_not_the_author() -> None:
    layer = nn.Linear(3, 3)
    with Passing(), trace(layer) as seen:
        nn.init.normal_(layer.weight)
    assert {write.line.rpartition(":")[0].rpartition("/")[2] for write in seen.writes} == {"test_settings.py"}
    assert "__torch_function__" not in {write.call for write in seen.writes}


def test_traces_still_see_what_runs_within_them() -> None:
    model = parametrizations.weight_norm(nn.Linear(4, 4))
    with torch.device("meta"), trace(model) as seen:
        initialize(model, Rule("weight", Kaiming()), seed=0)
    assert "weight" in {write.site for write in seen.writes}


def test_everything_is_as_before_after_an_error() -> None:
    def fails(_: Tensor) -> None:
        raise KeyError("inside")

    with SETTINGS["bfloat16"](), SETTINGS["medium precision"](), SETTINGS["autocast"](), Passing(), flushing():
        before = settings_of_torch()
        with pytest.raises(Exception, match="raised KeyError"):
            initialize(nn.Linear(3, 3), Rule("weight", fails), seed=0)
        assert settings_of_torch() == before


def test_settings_within_settings() -> None:
    with SETTINGS["float64"](), plain_thread(), plain_process(torch.float32), torch.device("meta"):
        assert (torch.get_default_dtype(), torch.empty(1).device.type) == (torch.float32, "meta")
        with plain_thread(), plain_process(torch.complex128):
            assert (torch.get_default_dtype(), torch.empty(1).device.type) == (torch.float64, "cpu")
        assert (torch.get_default_dtype(), torch.empty(1).device.type) == (torch.float32, "meta")
