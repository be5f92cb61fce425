"""Models of transformers that ask a recipe for their weights: built, loaded in part, tied, built without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.initialization import no_init_weights

from tests.peers.partly_loaded import RULES, Bare, Config, alone, save, sites, without
from torchinit import RunError
from torchinit.integrations.fsdp import ParamInit, param_init_fn
from torchinit.integrations.trainers import init_weights
from torchinit.plans.plan import LOADED


class Layers(Bare):
    """A model that asks a recipe for the weights of each module."""

    def _init_weights(self, module: nn.Module) -> None:
        param_init_fn(self, RULES, seed=0)(module)


class Body(Layers):
    """The layers as a model."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.post_init()


class WithHead(Body):
    """The same, and a head that a checkpoint of the body lacks."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.head = nn.Linear(8, 300)
        self.post_init()


class Keeping(Layers):
    """A model that makes it once, which saves a plan for each of its layers."""

    init: ParamInit | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.head = nn.Linear(8, 300)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        self.init = self.init or param_init_fn(self, RULES, seed=0)
        self.init(module)


class Tied(Layers):
    """A model whose head is its table."""

    _tied_weights_keys = {"head.weight": "embed.weight"}  # noqa: RUF012  # as transformers declares it

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.head = nn.Linear(8, 40, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@pytest.fixture(autouse=True)
def _generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a body with other weights."""
    return save(Body(Config()), tmp_path)


@pytest.mark.parametrize("build", [WithHead, Keeping])
def test_built(build: Callable[[Config], Any]) -> None:
    assert sites(build(Config())) == alone(WithHead)


@pytest.mark.parametrize("build", [WithHead, Keeping])
@pytest.mark.parametrize("left_out", [(), ("layers.1.0.bias",), ("embed.weight", "stats.running_var", "stats.weight")])
def test_what_a_checkpoint_lacks_is_written_and_nothing_else(
    build: Any, left_out: tuple[str, ...], saved: Path
) -> None:
    model = build.from_pretrained(without(saved, *left_out))
    state = load_file(saved / "model.safetensors")
    missing = {"head.weight", "head.bias", "positions", *left_out}
    assert {*model.state_dict(), "positions"} - missing == {*state}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert {name: digest for name, digest in sites(model).items() if name in missing} == {
        name: digest for name, digest in alone(WithHead).items() if name in missing
    }


def test_what_was_done_is_told(saved: Path) -> None:
    model = Keeping.from_pretrained(saved)
    report = model.init.report.assert_ok(complete=True)
    assert [record.name for record in report] == ["head.weight", "head.bias"]
    assert {name for name, why in report.skipped if why == LOADED} == {*load_file(saved / "model.safetensors")}
    assert report.buffers == report.unfilled == ()


@pytest.mark.parametrize("left_out", [(), ("embed.weight",)])
def test_tied_weights_are_one(left_out: tuple[str, ...], saved: Path) -> None:
    settings = {"tie_word_embeddings": True}
    model = Tied(Config(**settings))
    assert model.head.weight is model.embed.weight
    assert sites(model) == alone(Tied, **settings)
    Config(**settings).save_pretrained(saved)
    loaded = Tied.from_pretrained(without(saved, *left_out))
    assert loaded.head.weight is loaded.embed.weight
    if left_out:
        assert sites(loaded)["embed.weight"] == alone(Tied, **settings)["embed.weight"]
    else:
        assert torch.equal(loaded.embed.weight, load_file(saved / "model.safetensors")["embed.weight"])


def test_without_the_weights_of_transformers() -> None:
    """``no_init_weights`` leaves the memory of the layers as it was; whoever then calls for weights gets them."""
    with no_init_weights():
        models = WithHead(Config()), WithHead(Config())
        models[0].initialize_weights()  # within, where torch.nn.init does nothing
    param_init_fn(models[1], RULES, seed=0)(models[1])
    assert [sites(model) for model in models] == [alone(WithHead)] * 2


def test_a_part_made_by_another_model_is_named(saved: Path) -> None:
    class Wrong(WithHead):
        def _init_weights(self, module: nn.Module) -> None:
            param_init_fn(self.layers, RULES, seed=0)(module)

    with pytest.raises(RunError, match=r"2 tensors of Linear: not part of the model .*\n  weight\n  bias"):
        Wrong.from_pretrained(saved)


def test_a_buffer_that_nobody_makes_is_named(saved: Path) -> None:
    """What ``from_pretrained`` does not load it gives bare memory."""

    class Blind(Body):
        def __init__(self, settings: Config) -> None:  # not kept under this name, so that nobody can build it anew
            super().__init__(settings)

    text = (
        r"1 tensor of Blind left unwritten; call super\(\)\._init_weights\(module\) first.*\n  positions: a buffer of B"
    )
    with pytest.raises(RunError, match=text):
        Blind.from_pretrained(without(saved, "embed.weight"))

    class Seeing(Blind):
        def _init_weights(self, module: nn.Module) -> None:
            if module is self:
                with torch.no_grad():
                    self.positions.copy_(torch.arange(4.0))
            super()._init_weights(module)

    assert Seeing.from_pretrained(saved).positions.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert Blind(Config()).positions.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_method_for_trainers_says_where_it_does_not_serve(saved: Path) -> None:
    class Whole(Body):
        init_weights = init_weights(RULES, seed=0)

    class Single(Body):
        _init_weights = init_weights(RULES, seed=0)  # type: ignore[assignment]  # the mistake

    assert sites(Whole(Config())) == alone(Body)
    with pytest.raises(
        RunError, match=r"init_weights was called while from_pretrained builds a model.* Give the class _init"
    ):
        Whole.from_pretrained(saved)
    with pytest.raises(RunError, match=r"writes a whole model, but was called for a Embedding\. Give Single _in"):
        Single(Config())


def test_the_method_leaves_alone_what_was_loaded(saved: Path) -> None:
    """Some trainers call it on any model that has it."""
    model = WithHead.from_pretrained(saved)
    before = sites(model)
    method = init_weights(RULES, seed=1)
    report = method(model)
    assert [record.name for record in report] == ["head.weight", "head.bias"]
    report.assert_ok(complete=True)
    assert {name for name, digest in sites(model).items() if before[name] != digest} == {"head.weight", "head.bias"}
