"""Lightning: the callback writes what one process alone would, alone, under DDP and FSDP2, never over a resumed run."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import sys
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from tests.processes import on_ranks, results
from torchinit import ConfigError, PlanError, RunError, fingerprint, initialize
from torchinit.integrations.lightning import InitCallback
from torchinit.model.dtensor import local_part

RECIPE: dict[str, Any] = {"rules": [{"type": "Kaiming", "layer": "Linear"}, {"type": "Zeros", "name": "**.bias"}]}
PACKAGES = ("lightning.pytorch", "pytorch_lightning")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as L
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def expected(seed: int = 3) -> str:
    """The total of the same model initialized alone."""
    found = initialize(nn.ModuleDict({"net": net()}), RECIPE, seed=seed, fingerprint=True).fingerprint
    assert found is not None
    return found.total


def weights(model: nn.Module) -> dict[str, str]:
    """The digests of the parameters: statistics of norms are each rank's own."""
    sites = fingerprint(model).sites
    return {name: sites[name] for name, _ in model.named_parameters()}


class Whole(L.LightningModule):
    """Made in the constructor, as most are; `steps` are the outputs, `first` the fingerprint before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ""
        self.build()

    def build(self) -> None:
        self.net = net()

    def on_train_start(self) -> None:
        self.first = fingerprint(self).total
        self.first_weights = weights(self)
        self.sharded = {name for name, each in self.named_parameters() if each.shape != local_part(each).shape}

    def on_train_end(self) -> None:
        self.last_weights = weights(self)

    def training_step(self, batch: Any, _: int) -> Any:
        return self.net(batch).pow(2).mean()

    validation_step = test_step = predict_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Configured(Whole):
    def build(self) -> None:
        pass

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = net()


class SetUp(Configured):
    def configure_model(self) -> None:
        pass

    def setup(self, stage: str) -> None:
        Configured.configure_model(self)


class SetUpAlone(Whole):
    """Without a `configure_model` of its own."""

    def build(self) -> None:
        pass

    def setup(self, stage: str) -> None:
        self.net = net()


class OnMeta(Whole):
    def build(self) -> None:
        with torch.device("meta"):
            self.net = net()


class Sharded(Whole):
    """FSDP2 on the CPU, from the meta device or not."""

    def __init__(self, device: str = "meta") -> None:
        self.built_on = device
        super().__init__()

    def build(self) -> None:
        pass

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            with torch.device(self.built_on):
                self.net = net()
            for layer in (self.net[0], self.net[2], self.net):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


def batches(seed: int = 0) -> Any:
    return DataLoader(torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)), batch_size=4)  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: Any, package: ModuleType = L, **words: Any) -> Any:
    logging.getLogger(package.__name__).setLevel(logging.ERROR)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    words = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder, **quiet, **words}
    return package.Trainer(callbacks=list(callbacks), **words)


@pytest.mark.parametrize("made", [Whole, Configured, SetUp, SetUpAlone, OnMeta])
def test_one_process(made: type[Whole], tmp_path: Path) -> None:
    model, callback = made(), InitCallback(RECIPE, seed=3)
    run = trainer(tmp_path, callback)
    run.fit(model, batches())
    assert callback.report is not None
    callback.report.assert_ok()
    assert model.first == expected() == callback.start["fingerprint"]
    assert fingerprint(model).total != model.first
    assert not {"configure_model", "setup"} & vars(model).keys()


@pytest.mark.parametrize("name", PACKAGES)
def test_it_is_a_callback_of_the_package_in_use(name: str, tmp_path: Path) -> None:
    import_module(name)
    callback = InitCallback(RECIPE, seed=3)
    assert isinstance(callback, (import_module(name).Callback, InitCallback))
    assert repr(callback) == "InitCallback(seed=3)"
    for twin in (pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):
        assert (type(twin).__mro__[1], twin.rules, twin.seed) == (InitCallback, callback.rules, 3)


def test_a_module_of_pytorch_lightning(tmp_path: Path) -> None:
    old = import_module("pytorch_lightning")
    methods = {key: vars(Whole)[key] for key in ("build", "on_train_start", "training_step", "configure_optimizers")}

    def __init__(self: Any) -> None:  # noqa: N807
        old.LightningModule.__init__(self)
        self.build()

    model = type("Old", (old.LightningModule,), {**methods, "__init__": __init__})()
    trainer(tmp_path, InitCallback(RECIPE, seed=3), package=old).fit(model, batches())
    assert model.first == expected()


@pytest.mark.parametrize("made", [Whole, Configured])
def test_a_resumed_run_goes_on_as_it_was(made: type[Whole], tmp_path: Path) -> None:
    whole, first = made(), InitCallback(RECIPE, seed=3)
    trainer(tmp_path / "whole", first, max_epochs=2).fit(whole, batches())
    half = made()
    run = trainer(tmp_path / "half", InitCallback(RECIPE, seed=3))
    run.fit(half, batches())
    trained = fingerprint(half).total
    resumed, callback = made(), InitCallback(RECIPE, seed=4)
    trainer(tmp_path / "resumed", callback, max_epochs=2).fit(
        resumed, batches(), ckpt_path=run.checkpoint_callback.best_model_path
    )
    assert resumed.first == trained
    assert fingerprint(resumed).total == fingerprint(whole).total
    assert callback.report is None
    assert callback.start == {"seed": 3, "fingerprint": expected(3)}


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
@pytest.mark.parametrize("made", [Whole, Configured])
def test_other_verbs_write_nothing(verb: str, made: type[Whole], tmp_path: Path) -> None:
    model, callback = made(), InitCallback({"rules": [{"type": "Ones", "name": "**"}]}, seed=3)
    getattr(trainer(tmp_path, callback), verb)(model, batches())
    assert callback.report is None
    assert set(model.get_parameter("net.0.weight").flatten().tolist()) != {1.0}


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    model, callback = Configured(), InitCallback(RECIPE, seed=3)
    run = trainer(tmp_path, callback)
    run.fit(model, batches())
    trained, report = fingerprint(model).total, callback.report
    run.fit_loop.max_epochs = 2
    run.fit(model, batches())
    assert model.first == trained
    assert callback.report is report
    callback.setup(run, model, "fit")
    callback.setup(run, model, "fit")
    model.configure_model()
    assert callback.report is report


def test_hooks_called_twice_before_the_run(tmp_path: Path) -> None:
    model, callback = Configured(), InitCallback(RECIPE, seed=3)
    run = trainer(tmp_path, callback)
    callback.setup(run, model, "fit")
    callback.setup(run, model, "fit")
    model.configure_model()
    assert fingerprint(model).total == expected()
    assert not {"configure_model", "setup"} & vars(model).keys()


class Empty(Whole):
    def build(self) -> None:
        pass


class TooLate(Empty):
    def configure_model(self) -> None:
        pass


@pytest.mark.parametrize("made", [Empty, TooLate])
def test_a_module_without_parameters_is_told_what_to_do(made: type[Whole], tmp_path: Path) -> None:
    message = f"{made.__name__} has no parameters yet.* Build its layers in __init__, setup or configure_model"
    with pytest.raises(RunError, match=message):
        trainer(tmp_path, InitCallback(RECIPE)).fit(made(), batches())


class Failing(Configured):
    def setup(self, stage: str) -> None:
        raise ValueError("no data")


def test_a_run_that_fails_leaves_nothing_on_the_module(tmp_path: Path) -> None:
    model = Failing()
    with pytest.raises(ValueError, match="no data"):
        trainer(tmp_path, InitCallback(RECIPE)).fit(model, batches())
    assert not {"configure_model", "setup"} & vars(model).keys()


def test_mistakes_are_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Kaimng"):
        InitCallback({"rules": [{"type": "Kaimng", "layer": "Linear"}]})
    with pytest.raises(TypeError, match="seed"):
        InitCallback(RECIPE, seed=None)  # type: ignore[arg-type]
    model = Whole()
    before = fingerprint(model).total
    with pytest.raises(PlanError, match=r"net\.1\.weight"):
        trainer(tmp_path, InitCallback(RECIPE, complete=True)).fit(model, batches())
    assert fingerprint(model).total == before


def test_without_lightning_or_with_an_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class LightningModule:
        pass

    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    monkeypatch.setattr("torchinit.integrations.lightning._PACKAGES", ("no_such_lightning",))
    with pytest.raises(ImportError, match="needs Lightning: pip install lightning"):
        InitCallback(RECIPE)
    old = ModuleType("old_lightning")
    vars(old).update(LightningModule=LightningModule, Callback=object, __version__="1.9")
    monkeypatch.setitem(sys.modules, "old_lightning", old)
    monkeypatch.setattr("torchinit.integrations.lightning._PACKAGES", ("old_lightning",))
    with pytest.raises(ImportError, match=r"old_lightning 1\.9 has no hook configure_model.*'lightning>=2\.0'"):
        InitCallback(RECIPE)


# --- ranks -----------------------------------------------------------------------------------------------------------


def on_rank(
    rank: int, folder: str, made: type[Whole], seeds: list[int], recipes: list[Any], words: dict[str, Any]
) -> Any:
    """A run on this rank; how it started, and what it trained; with `resume` how a second run goes on."""
    warnings.simplefilter("ignore")
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0")
    os.environ.update(TORCHELASTIC_RUN_ID="none", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    torch.manual_seed(rank)  # as users forget to
    sizes = {name: words.pop(name) for name in list(words) if name.endswith("_parallel_size")}
    strategy = partial(words.pop("strategy"), **sizes)
    model, callback = made(), InitCallback(recipes[rank], seed=seeds[rank])
    resume = words.pop("resume", False)
    words = {"use_distributed_sampler": False, **words}
    run = trainer(Path(folder), callback, devices=2, strategy=strategy(), **words)
    run.fit(model, batches(rank))
    assert model.sharded == (set(model.first_weights) if made is Sharded else set())
    path = run.strategy.broadcast(run.checkpoint_callback.best_model_path)
    trained = model.last_weights
    if not resume:
        return model.first, trained, callback.report is not None
    model, callback = made(), InitCallback(recipes[rank], seed=seeds[rank] + 1)
    run = trainer(Path(folder) / "resumed", callback, devices=2, strategy=strategy(), **{**words, "max_epochs": 2})
    run.fit(model, batches(rank), ckpt_path=path)
    return model.first_weights, trained, callback.report is not None


CASES: dict[str, tuple[type[Whole], dict[str, Any]]] = {
    "ddp": (Whole, {"strategy": DDPStrategy}),
    "ddp, configure_model": (Configured, {"strategy": DDPStrategy}),
    "ddp, meta": (OnMeta, {"strategy": DDPStrategy}),
    "fsdp2": (Sharded, {"strategy": ModelParallelStrategy, "data_parallel_size": 2, "tensor_parallel_size": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks(case: str, tmp_path: Path) -> None:
    made, words = CASES[case]
    (tmp_path / "job").mkdir()
    found = results(on_ranks(2, on_rank, tmp_path / "job", str(tmp_path), made, [3, 3], [RECIPE] * 2, words))
    assert [first for first, _, _ in found] == [expected(), expected()]
    assert all(is_written for *_, is_written in found)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_resume(case: str, tmp_path: Path) -> None:
    made, words = CASES[case]
    (tmp_path / "job").mkdir()
    arguments = str(tmp_path), made, [3, 3], [RECIPE] * 2, {**words, "resume": True}
    found = results(on_ranks(2, on_rank, tmp_path / "job", *arguments))
    assert all(first == trained for first, trained, _ in found)
    assert not any(is_written for *_, is_written in found)


def test_two_ranks_with_other_recipes_or_seeds_are_told(tmp_path: Path) -> None:
    other = {"rules": [{"type": "Xavier", "layer": "Linear"}, {"type": "Zeros", "name": "**.bias"}]}
    for number, (seeds, recipes, text) in enumerate(
        [([3, 4], [RECIPE] * 2, "the seed is 3 on rank 0, 4 on rank 1"), ([3, 3], [RECIPE, other], "net.0.weight: ")]
    ):
        (tmp_path / str(number)).mkdir()
        found = on_ranks(
            2, on_rank, tmp_path / str(number), str(tmp_path), Whole, seeds, recipes, {"strategy": DDPStrategy}
        )
        for error in found:
            assert isinstance(error, RunError), error
            assert "the ranks do not start alike; nothing was written" in str(error)
            assert text in str(error)
