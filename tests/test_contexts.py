"""Contexts: what a user has set around a call, such as a default device, changes nothing of what the call does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict_saver import save

import torchinit
from tests.checkpoints.adapters.test_read_plans import CASES, tensors
from tests.checkpoints.files import write
from torchinit import Name, Normal, Pretrained, Rule, RunError, mmengine
from torchinit.checkpoints.adapters import low_rank
from torchinit.cli import main
from torchinit.distributed import Shard, initialize_shards
from torchinit.initializers import Mapped, SinCos, Uniform
from torchinit.knowledge import profile
from torchinit.transfer import Transfer

RECIPE = [
    {"type": "Kaiming", "layer": ["Linear", "Conv2d"], "nonlinearity": "auto"},
    {"type": "Orthogonal", "name": "head.weight"},
    {"type": "Sparse", "sparsity": 0.5, "name": "wide.weight"},
    {"type": "Mapped", "init": {"type": "Uniform", "a": 1, "b": 2}, "function": "log", "name": "head.bias"},
]
ALL = Rule(Name("**"), Normal())


class Net(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.wide, self.head = nn.Linear(4, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        out: Tensor = self.head(torch.relu(self.wide(x)))
        return out


def net(width: int = 12) -> Net:
    torch.manual_seed(0)
    return Net(width)


def on_cpu(width: int = 12, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    with torch.device("cpu"):
        return Net(width).float()


def values(model: nn.Module) -> list[Any]:
    return [each.tolist() for each in model.state_dict().values()]


def images() -> tuple[Net, Tensor]:
    return net(), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def vectors() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def written(model: nn.Module, *given: Any, **options: Any) -> Any:
    torch.manual_seed(5)
    report = torchinit.initialize(model, *given, **options)
    return values(model), [(record.name, record.fill, record.measured) for record in report]


def from_meta(model: nn.Module) -> Any:
    report = torchinit.materialize(model, RECIPE, seed=0)
    return values(model), [(record.name, record.measured) for record in report]


def in_parts(model: Net) -> Any:
    parts = [Shard("a", model.head.weight.detach()[low : low + 2], (5, 12), (low, 0)) for low in (0, 2)]
    return str(initialize_shards({"a": parts}, Rule("a", Normal()), seed=0)["a"].measured), values(model)


def traced(model: Net) -> Any:
    with torchinit.trace(model) as trace, torchinit.lock(model, "conv.*"):
        nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return [str(write) for write in trace.writes], values(model)


def keyed(model: Net) -> Any:
    with torchinit.seeded(model, 3):
        model.head.reset_parameters()
        nn.init.trunc_normal_(model.wide.weight)
        model.wide.bias.data.copy_(torch.randn(12, device="cpu", dtype=torch.float32))
    return values(model)


def own_start(model: nn.Module) -> Any:
    made = mmengine.Sequential(
        model, init_cfg=[{"type": "Kaiming", "layer": "Conv2d"}, {"type": "Normal", "layer": "Linear"}]
    )
    made.init_weights(seed=4)
    return values(made)


def loaded(model: nn.Module, path: Path) -> Any:
    mmengine.load_checkpoint(model, str(path), map_location="cpu")
    return values(model)


def read(path: Path) -> Any:
    checkpoint = torchinit.open_checkpoint(path)
    return [
        (key, str(tensor.dtype), str(tensor.device), tensor.tolist())
        for key in checkpoint
        for tensor in [checkpoint.read(key)]
    ]


def printed(*argv: str) -> str:
    with redirect_stdout(StringIO()) as out:
        assert main(argv) in (0, 1)
    return out.getvalue()


def planned(model: nn.Module) -> Any:
    made = torchinit.plan(model, RECIPE)
    return str(made), [step.fill.moments(step.site.shape) for step in made]


def width_of(model: nn.Module) -> Any:
    made = Transfer(model, on_cpu(4))
    return [str(row) for row in made.rows]


JOBS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "plan": (net, planned),
    "sites and roles": (net, lambda model: (str(torchinit.sites(model)), str(torchinit.roles(model)))),
    "initialize": (net, lambda model: written(model, RECIPE, seed=1)),
    "initialize, without a seed": (net, lambda model: written(model, RECIPE)),
    "initialize, a function": (
        net,
        lambda model: written(
            model, {"head.weight": nn.init.xavier_normal_, "**.bias": lambda tensor: tensor.fill_(2.0)}, seed=1
        ),
    ),
    "initialize, a table": (
        net,
        lambda model: written(
            model, [Rule("wide.weight", SinCos()), Rule("head.bias", Mapped(Uniform(1, 2), "log"))], seed=1
        ),
    ),
    "initialize, a scheme": (net, lambda model: written(model, "general", seed=1)),
    "materialize": (lambda: net().to("meta"), from_meta),
    "initialize_shards": (net, in_parts),
    "fingerprint": (net, lambda model: torchinit.fingerprint(model).total),
    "verify_stages and replicas": (net, lambda model: [str(each) for each in torchinit.lint(model, select=["TI9"])]),
    "lint": (net, lambda model: [str(each) for each in torchinit.lint(model, recipe=RECIPE)]),
    "trace and lock": (net, traced),
    "seeded": (net, keyed),
    "capture": (net, lambda model: str(torchinit.capture(model, lambda copy: copy.head.reset_parameters()))),
    "init_cfg": (net, own_start),
    "gain and profile": (
        lambda: None,
        lambda _: (torchinit.gain(torch.tanh), profile(nn.GELU()), profile(lambda x: x * torch.ones(1))),
    ),
    "probe": (images, lambda given: str(torchinit.probe(*given))),
    "probe, inputs made": (vectors, lambda model: str(torchinit.probe(model))),
    "lsuv": (images, lambda given: (str(torchinit.lsuv(*given)), values(given[0]))),
    "preserves": (images, lambda given: str(torchinit.preserves(given[0], given[0], given[1]))),
    "coord_check": (
        images,
        lambda given: str(torchinit.coord_check(on_cpu, widths=(8, 16), seeds=1, steps=1, batch=given[1])),
    ),
    "transfer": (net, width_of),
    "explain": (lambda: None, lambda _: printed("explain", "Kaiming")),
}


@contextmanager
def by_default(set_to: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "torch.device": lambda: torch.device("meta"),
    "set_default_device": lambda: by_default(torch.set_default_device, "meta", None),
    "float64": lambda: by_default(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: by_default(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("job", JOBS)
def test_jobs(job: str, context: str) -> None:
    if job == "coord_check" and "device" not in context:
        pytest.skip("it builds models, as the user has set, which are others then")
    make, work = JOBS[job]
    plain, within = make(), make()
    expected = work(plain)
    with CONTEXTS[context]():
        found = work(within)
    assert repr(found) == repr(expected)


@pytest.mark.parametrize("context", CONTEXTS)
def test_adapters(context: str) -> None:
    for case in CASES:
        held = tensors(case)
        expected = case.adapter.adapt(held, case.shape, case.key)
        low_rank._LAST.clear()  # made once for all the factors of a layer
        with CONTEXTS[context]():
            found = case.adapter.adapt(held, case.shape, case.key)
        low_rank._LAST.clear()
        assert (found.dtype, found.device, found.tolist()) == (expected.dtype, expected.device, expected.tolist()), case


FORMS = ("safetensors", "zip", "legacy", "npz", "npy", "sharded-safetensors", "distributed")


def saved(form: str, folder: Path) -> Path:
    state = {name: tensor.clone() for name, tensor in net().state_dict().items()}
    if form == "npy":
        numpy = __import__("numpy")
        numpy.save(folder / "head.weight.npy", state["head.weight"].numpy())
        return folder / "head.weight.npy"
    if form == "distributed":
        save(state, checkpoint_id=folder / "saved", no_dist=True)
        return folder / "saved"
    return write(form, folder, state)


def opened(path: Path) -> Any:
    return torchinit.open_checkpoint(path, trust=path.is_dir())


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files(form: str, context: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    path, models = saved(form, tmp_path), [Net(), Net()]
    expected = net().state_dict()
    with CONTEXTS[context]():
        checkpoint = opened(path)
        tensors = {key: checkpoint.read(key) for key in checkpoint}
        torchinit.initialize(models[0], Rule(Name("head.weight"), Pretrained(checkpoint)), seed=0)
        if form not in ("npy", "npz", "distributed"):
            mmengine.load_checkpoint(models[1], str(path), map_location="cpu", strict=True)
            assert values(models[1]) == [each.tolist() for each in expected.values()]
        converted = form != "distributed" and printed("inspect", str(path), "--hashes", "--json")
    for key, tensor in tensors.items():
        assert torch.equal(tensor, expected[key]), key
        assert tensor.dtype == expected[key].dtype
    assert torch.equal(models[0].head.weight, expected["head.weight"])
    if converted:
        assert json.loads(converted) == json.loads(printed("inspect", str(path), "--hashes", "--json"))


def test_within_a_mode_of_stand_ins_what_needs_values_says_so(tmp_path: Path) -> None:
    checkpoint = opened(saved("safetensors", tmp_path))
    with FakeTensorMode():
        for job in (lambda: checkpoint.read("head.weight"), lambda: profile(torch.tanh)):
            with pytest.raises(RunError, match="within FakeTensorMode tensors are stand-ins, with no values to read"):
                job()
    assert torch.equal(checkpoint.read("head.weight"), net().head.weight)


def test_what_is_imported_under_a_default_device() -> None:
    """Rooms are imported when they are used, and so are the tensors that they hold made, if they hold any."""
    code = (
        "import torch; model = torch.nn.Linear(300, 300); torch.set_default_device('meta'); import torchinit as t\n"
        "with t.trace(model) as trace, t.seeded(model, 0): torch.nn.init.normal_(model.weight)\n"
        "print(t.lint(model, trace=trace))"
    )
    plain = code.replace("torch.set_default_device('meta');", "")
    code, plain = (each.replace("model = ", "torch.manual_seed(0); model = ") for each in (code, plain))
    texts = [
        run([sys.executable, "-c", each], capture_output=True, text=True, check=True).stdout for each in (code, plain)
    ]
    assert texts[0] == texts[1]
