"""Models of transformers whose ``_init_weights`` is a recipe: built, loaded in part, nested, without memory, run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.initialization import no_init_weights

from tests.peers.partly_loaded import OTHER, RULES, Bare, Config, alone, save, sites, without
from torchinit import (
    CheckpointError,
    ConfigError,
    PlanError,
    Pretrained,
    ReportError,
    Rule,
    RunError,
    fingerprint,
    initialize,
    materialize,
    mmengine,
    plan,
)
from torchinit.checkpoints.adapters import ResizeVocabulary
from torchinit.integrations.transformers import StartCallback, init_report, init_weights
from torchinit.plans.plan import LOADED


class Layers(Bare):
    """A model that starts by a recipe."""

    _init_weights = init_weights(RULES, seed=0)


class Body(Layers):
    """The layers as a model."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.post_init()


class WithHead(Body):
    """The same, and a head that a checkpoint of the body lacks; it asks twice for its weights."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.head = nn.Linear(8, 300)
        self.post_init()

    def forward(self, input_ids: Any, labels: Any = None, **_: Any) -> dict[str, Any]:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.head(hidden.mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


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


def marks(model: nn.Module) -> set[str]:
    every = (*model.named_parameters(), *model.named_buffers())
    return {name for name, tensor in every if getattr(tensor, "_is_hf_initialized", False)}


# -- built and loaded ---------------------------------------------------------------------------------------------


def test_built() -> None:
    model = WithHead(Config())
    report = init_report(model).assert_ok(complete=True)
    assert sites(model) == alone(WithHead)
    assert {record.name for record in report} == {name for name, _ in model.named_parameters()}
    assert marks(model) == set()


@pytest.mark.parametrize(
    "left_out",
    [
        (),  # the head
        ("layers.1.0.bias",),  # half of a module
        ("embed.weight", "stats.running_var", "stats.weight"),
        tuple(f"layers.{n}.{m}.{leaf}" for n in (0, 1) for m in (0, 2) for leaf in ("weight", "bias")),
    ],
)
def test_what_a_checkpoint_lacks_is_written_and_nothing_else(left_out: tuple[str, ...], saved: Path) -> None:
    model = WithHead.from_pretrained(without(saved, *left_out))
    state = load_file(saved / "model.safetensors")
    missing = {"head.weight", "head.bias", *left_out}
    now = {**model.state_dict()}
    assert now.keys() - missing == state.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in state.items())
    for name in {*missing, "positions"}:
        assert sites(model)[name] == alone(WithHead)[name]
    assert marks(model) == {*state}
    report = init_report(model).assert_ok(complete=True)
    assert {record.name for record in report} == {name for name in missing if "running" not in name}
    assert {name for name, why in report.skipped if why == LOADED} == {*state}
    assert report.buffers == report.unfilled == ()


def test_several_files_and_half_precision(saved: Path) -> None:
    model = Body.from_pretrained(saved)
    model.save_pretrained(saved / "sharded", max_shard_size="1KB")
    assert len([*(saved / "sharded").glob("*.safetensors")]) > 1
    loaded = WithHead.from_pretrained(saved / "sharded", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.embed.weight, model.embed.weight.bfloat16())
    expected = WithHead(Config()).bfloat16()
    initialize(expected, RULES, seed=0)
    assert torch.equal(loaded.head.weight, expected.head.weight)
    assert [record.dtype for record in init_report(loaded)] == ["bfloat16"] * 2


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
        assert "embed.weight" not in {record.name for record in init_report(loaded)}


@pytest.mark.parametrize("how", ["built", "again", "no_init_weights", "on meta", "table missing"])
def test_the_rule_of_the_table_is_that_of_the_head_whenever_they_are_tied(how: str, tmp_path: Path) -> None:
    rules = [{"type": "Normal", "std": 0.02, "layer": "Linear"}, {"type": "Normal", "std": 0.5, "layer": "Embedding"}]

    class HeadFirst(PreTrainedModel):
        config_class = Config
        _tied_weights_keys = {"head.weight": "embed.weight"}  # noqa: RUF012  # as transformers declares it

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.head = nn.Linear(8, 40, bias=False)
            self.embed = nn.Embedding(40, 8)
            self.post_init()

        def get_input_embeddings(self) -> nn.Module:
            return self.embed

        _init_weights = init_weights(rules, seed=0)

    config = Config(tie_word_embeddings=True)
    plain: Any = nn.ModuleDict({"embed": nn.Embedding(40, 8)})
    initialize(plain, rules[1:], seed=0)
    guard = {"no_init_weights": no_init_weights, "on meta": init_empty_weights}.get(how, nullcontext)
    with guard():
        model = HeadFirst(config)
    if how == "table missing":
        model.save_pretrained(tmp_path)
        model = HeadFirst.from_pretrained(without(tmp_path, "embed.weight", "head.weight"))
    elif how != "built":
        model.to_empty(device="cpu")
        model.tie_weights()
        for part in model.modules():
            vars(part).pop("_is_hf_initialized", None)
        model.init_weights()
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.embed.weight, plain.embed.weight)
    assert [record.name for record in init_report(model)] == ["embed.weight"]


def test_a_head_that_will_be_tied_needs_no_rule(tmp_path: Path) -> None:
    recipe = {
        "rules": [{"type": "Normal", "layer": ["Conv1D", "Embedding"]}, {"type": "Neutral", "layer": "LayerNorm"}]
    }

    class Model(GPT2LMHeadModel):
        _init_weights = init_weights(recipe, seed=2)

    model = Model(GPT2Config(n_embd=12, n_layer=1, n_head=2, vocab_size=40, n_positions=16))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert dict(init_report(model).skipped)["lm_head.weight"] == "will be tied to transformer.wte.weight"
    plain = _initialized(GPT2LMHeadModel(model.config), recipe, 2)
    assert sites(model) == sites(plain)
    _initialized(model, OTHER, 1).save_pretrained(tmp_path)
    table = "transformer.wte.weight"
    loaded = Model.from_pretrained(without(tmp_path, table))
    assert sites(loaded) == sites(model) | {table: sites(plain)[table]}


def test_the_buffers_of_a_class_of_transformers_are_made_by_its_code(tmp_path: Path) -> None:
    """Frequencies of rotary embeddings are in no checkpoint, and no module resets them."""

    class Llama(LlamaForCausalLM):
        _init_weights = init_weights("llama", seed=1)

    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
    )
    built = Llama(config)
    assert sites(built).items() >= sites(_initialized(LlamaForCausalLM(config), "llama", 1)).items()
    built.save_pretrained(tmp_path)
    loaded = Llama.from_pretrained(without(tmp_path, "model.layers.1.mlp.up_proj.weight"))
    assert sites(loaded) == sites(built)
    assert [record.name for record in init_report(loaded)] == ["model.layers.1.mlp.up_proj.weight"]


def _initialized(model: Any, recipe: Any, seed: int) -> Any:
    initialize(model, recipe, seed=seed)
    return model


# -- models within models -----------------------------------------------------------------------------------------

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}


class Classifier(PreTrainedModel):
    """The usual way to put a head on a model: that one stands within this one, and has an _init_weights of its own."""

    config_class = BertConfig

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(8, 3)
        self.post_init()

    _init_weights = init_weights(RULES, seed=0)


class HeadOnly(Classifier):
    """A recipe for the head alone."""

    _init_weights = init_weights({"rules": [{"type": "Constant", "val": 7, "name": "head.*"}]}, seed=0)


def test_the_recipe_goes_over_what_a_model_within_gave_itself(tmp_path: Path) -> None:
    model = Classifier(BertConfig(**SMALL))
    expected = sites(_initialized(Classifier(BertConfig(**SMALL)), RULES, 0))
    assert sites(model) == expected
    initialize(model, OTHER, seed=5)
    model.save_pretrained(tmp_path)
    left_out = ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.bias", "head.bias")
    loaded = Classifier.from_pretrained(without(tmp_path, *left_out))
    assert {name for name, digest in sites(loaded).items() if sites(model)[name] != digest} == {*left_out}
    assert all(sites(loaded)[name] == expected[name] for name in left_out)
    assert {record.name for record in init_report(loaded)} == {*left_out}


def test_what_was_loaded_is_among_the_skipped_once(tmp_path: Path) -> None:
    HeadOnly(BertConfig(**SMALL)).save_pretrained(tmp_path)
    names = [name for name, _ in init_report(HeadOnly.from_pretrained(tmp_path)).skipped]
    assert len(names) == len(set(names)) > 20


def test_what_it_does_not_cover_of_a_model_within_stays() -> None:
    model = HeadOnly(BertConfig(**SMALL))
    assert bool((model.head.weight == 7).all())
    assert model.bert.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.3)
    report = init_report(model).assert_ok(complete=True)
    assert {record.name for record in report} == {"head.weight", "head.bias"}


def test_a_model_within_that_has_a_recipe_keeps_it() -> None:
    class Outer(PreTrainedModel):
        config_class = Config

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.body = Body(config)
            self.head = nn.Linear(8, 3)
            self.post_init()

        _init_weights = init_weights({"rules": [{"type": "Constant", "val": 7, "name": "**"}]}, seed=0)

    model = Outer(Config())
    assert sites(model.body) == alone(Body)
    assert bool((model.head.weight == 7).all())
    assert {record.name for record in init_report(model)} == {"head.weight", "head.bias"}


def test_a_model_with_nothing_of_its_own_but_another_model(tmp_path: Path) -> None:
    """Transformers then never asks this one: all modules below are marked."""

    class Wrapped(PreTrainedModel):
        config_class = BertConfig

        def __init__(self, config: BertConfig) -> None:
            super().__init__(config)
            self.bert = BertModel(config)
            self.post_init()

        _init_weights = init_weights(RULES, seed=0)

    model = Wrapped(BertConfig(**SMALL))
    assert sites(model) == sites(_initialized(Wrapped(BertConfig(**SMALL)), RULES, 0))
    model.bert.pooler.dense.weight.data.fill_(3.0)
    model.init_weights()  # once more: what was trained since stays
    assert bool((model.bert.pooler.dense.weight == 3).all())


def test_within_a_model_of_another_kind(saved: Path) -> None:
    """A module that a constructor makes, of a model that knows nothing of recipes, built and loaded."""

    class Plain(PreTrainedModel):
        config_class = Config

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.body = Body(config)
            self.post_init()

    model = Plain(Config())
    assert sites(model.body) == alone(Body)
    initialize(model, OTHER, seed=5)
    model.save_pretrained(saved / "plain")
    loaded = Plain.from_pretrained(without(saved / "plain", "body.embed.weight", "body.layers.1.0.bias"))
    assert sites(loaded.body)["embed.weight"] == alone(Body)["embed.weight"]
    assert {record.name for record in init_report(loaded.body)} == {"embed.weight", "layers.1.0.bias"}


def test_a_subclass_with_a_recipe_of_its_own() -> None:
    class Sub(WithHead):
        _init_weights = init_weights({"rules": [{"type": "Constant", "val": 7, "name": "**"}]}, seed=0)

    assert bool((Sub(Config()).head.weight == 7).all())


def test_a_subclass_that_changes_a_little() -> None:
    class Sub(WithHead):
        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if isinstance(module, nn.Linear) and module.out_features == 300:
                module.bias.data.fill_(7.0)

    model = Sub(Config())
    assert bool((model.head.bias == 7).all())
    changed = {name for name, digest in sites(model).items() if alone(WithHead)[name] != digest}
    assert changed == {"head.bias"}


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_subclass_that_writes_over_what_was_loaded_is_named(saved: Path) -> None:
    class Spoiling(WithHead):
        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if isinstance(module, nn.Linear):
                module.weight.data.normal_(std=0.5)  # past the guard of transformers

    text = r"Spoiling\._init_weights\(Linear\) writes over what was loaded\n  layers\.1\.0\.weight$"
    with pytest.raises(RunError, match=text):
        Spoiling.from_pretrained(without(saved, "layers.1.0.bias"))


@pytest.mark.parametrize("how", ["data", "in place", "one row"])
def test_a_subclass_that_writes_to_another_module_is_named(how: str, saved: Path) -> None:
    class Meddling(WithHead):
        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if isinstance(module, nn.Linear) and module.out_features == 300:  # which is right in its head alone
                weight: Any = self.get_parameter("layers.0.0.weight" if how != "one row" else "embed.weight")
                with torch.no_grad():
                    if how == "data":
                        weight.data.normal_(std=0.5)
                    elif how == "in place":
                        weight.add_(1)
                    else:
                        weight[3].zero_()

    name = "layers.0.0.weight" if how != "one row" else "embed.weight"
    with pytest.raises(RunError, match=rf"Meddling\._init_weights writes over what was loaded\n  {name}$"):
        Meddling.from_pretrained(without(saved, "head.weight", "head.bias"))
    assert Meddling(Config()) is not None  # nothing is loaded when it is built


def test_code_by_hand_that_is_lost_within_from_pretrained(saved: Path) -> None:
    def by_initialize(model: nn.Module) -> None:
        initialize(model, RULES, seed=0)

    def by_materialize(model: nn.Module) -> None:
        materialize(model, RULES, seed=0)

    class Own(WithHead):
        _init_weights = PreTrainedModel._init_weights  # no recipe
        write: Any

        def init_weights(self) -> None:
            self.write()

    def by_init_cfg(model: nn.Module) -> None:
        mmengine.initialize(model, {"type": "Normal", "layer": "Linear"})

    for write in (by_initialize, by_materialize, by_init_cfg):
        Own.write = write
        text = "while from_pretrained builds a model .* what it writes there is lost. Give the class _init_weights ="
        with pytest.raises(RunError, match=text):
            Own.from_pretrained(saved)
    Own.write = by_initialize
    assert sites(Own(Config())) == alone(WithHead)


def test_a_recipe_by_hand_over_what_was_loaded_is_named(saved: Path) -> None:
    class Whole(Body):
        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.token = nn.Parameter(torch.zeros(8))
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            if module is self:
                initialize(self, RULES, seed=0)

    with pytest.raises(PlanError, match=r"\d+ tensors that transformers has loaded will be written over: .*from_pret"):
        Whole.from_pretrained(saved)


def test_a_parameter_without_a_rule(saved: Path) -> None:
    class Half(WithHead):
        _init_weights = init_weights({"rules": [{"type": "Normal", "name": "**.weight"}]}, seed=0)

    with pytest.raises(PlanError, match=r"no rule for layers\.0\.0\.bias"):
        Half(Config())
    with pytest.raises(PlanError, match=r"1 problem in the plan; nothing was written\n  no rule for head\.bias$"):
        Half.from_pretrained(saved)  # which has the others


def test_a_rule_in_vain_is_an_error_when_the_last_constructor_asks() -> None:
    """The first one asks when there is no head yet."""
    for name, error in (("head.bias", None), ("haed.bias", PlanError)):

        class Model(WithHead):
            _init_weights = init_weights({"rules": [*RULES["rules"], {"type": "Zeros", "name": name}]}, seed=0)

        if error is None:
            assert bool((Model(Config()).head.bias == 0).all())
        else:
            with pytest.raises(error, match=r"'haed\.bias'\) matches none of .*did you mean 'head\.bias'"):
                Model(Config())


def test_in_the_wrong_place() -> None:
    class Named(Body):
        reset = init_weights(RULES, seed=0)

    class Late(PreTrainedModel):
        config_class = Config

    with pytest.raises(RunError, match=r"was assigned to Named\.reset: write _init_weights = init_weights\(recipe"):
        Named(Config()).reset(nn.Linear(2, 2))
    Late._init_weights = init_weights(RULES, seed=0)
    model = Late(Config())
    with pytest.raises(RunError, match=r"was assigned to Late, after the class was made: write"):
        model._init_weights(model)


def test_without_a_record() -> None:
    with pytest.raises(RunError, match="no recipe has written to this Linear as its _init_weights"):
        init_report(nn.Linear(2, 2))


def test_an_older_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    old: Any = ModuleType("transformers")
    old.__version__, old.__path__ = "4.40.0", []
    monkeypatch.setitem(sys.modules, "transformers", old)
    monkeypatch.delitem(sys.modules, "transformers.initialization")
    with pytest.raises(RunError, match=r"transformers 4\.40\.0 does not mark the tensors .*'transformers>=5'.*only=lo"):
        init_weights(RULES, seed=0)


# -- without memory -----------------------------------------------------------------------------------------------


def test_without_the_weights_of_transformers() -> None:
    """``no_init_weights`` leaves the memory of the layers as it was; whoever then calls for weights gets them."""
    with no_init_weights():
        models = WithHead(Config()), WithHead(Config())
        models[0].initialize_weights()  # within, where torch.nn.init does nothing
    models[1].init_weights()
    assert [sites(model) for model in models] == [alone(WithHead)] * 2


def test_accelerate_gives_no_memory_and_takes_no_mark() -> None:
    with init_empty_weights():
        model = WithHead(Config())
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    model.init_weights()
    assert sites(model) == alone(WithHead)


def test_a_buffer_that_had_memory_and_lost_it_is_made() -> None:
    class Model(LlamaModel):
        _init_weights = init_weights(OTHER, seed=0)

    config = LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    with init_empty_weights():  # which gives buffers memory
        model = Model(config)
    assert not model.rotary_emb.inv_freq.is_meta
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(-1)
    model.init_weights()
    assert sites(model) == sites(Model(config))


def test_gathered_one_module_at_a_time() -> None:
    """As ZeRO-3 has it: parameters have no elements but while their module is asked for."""
    with no_init_weights():
        model = WithHead(Config())
    whole = {name: parameter.data for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.ds_shape = whole[name].shape
        parameter.data = torch.empty(0)
    names = {id(parameter): name for name, parameter in parameters.items()}
    for module in model.modules():
        own = [*module.parameters(recurse=False)]
        for parameter in own:
            parameter.data = whole[names[id(parameter)]]
        model._initialize_weights(module)
        for parameter in own:
            parameter.data = torch.empty(0)
    for name, parameter in parameters.items():
        parameter.data = whole[name]
    assert sites(model) == alone(WithHead)


def test_partitioned_and_not_gathered_is_an_error() -> None:
    with no_init_weights():
        model = WithHead(Config())
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    with pytest.raises(PlanError, match=r"embed\.weight has no elements.*gather it first"):
        model.initialize_weights()


# -- only= --------------------------------------------------------------------------------------------------------


class Headed(BertModel):
    """A head of nobody's recipe."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(8, 3)
        self.post_init()


@pytest.mark.parametrize("way", ["missing", "loading_info", "globs"])
def test_a_new_head(way: str, tmp_path: Path) -> None:
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path)
    model, info = Headed.from_pretrained(tmp_path, output_loading_info=True)
    before = fingerprint(model)
    only = {"missing": "missing", "loading_info": info, "globs": ["classifier.*"]}[way]
    report = initialize(model, RULES, seed=0, only=only)
    assert {record.name for record in report} == {"classifier.weight", "classifier.bias"}
    assert {change.name for change in before.diff(fingerprint(model))} == {"classifier.weight", "classifier.bias"}
    assert len(report.unchanged) == len(before.sites) - 2
    with pytest.raises(PlanError, match=r"no rule for classifier\.bias"):
        plan(model, {"rules": [{"type": "Normal", "name": "**.weight"}]}, only=only)


def test_a_model_that_nothing_was_loaded_into() -> None:
    with pytest.raises(PlanError, match="no tensor has the mark of transformers"):
        initialize(Headed(BertConfig(**SMALL)), RULES, seed=0, only="missing")


# -- new rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [True, False])
def test_more_tokens(mean: bool) -> None:
    """Transformers asks ``_init_weights`` for a table that is not part of the model yet."""
    model = WithHead(Config(vocab_size=40))
    old = model.embed.weight.detach().clone()
    model.resize_token_embeddings(44, mean_resizing=mean)
    assert model.embed.weight.shape == (44, 8)
    assert torch.equal(model.embed.weight[:40], old)


def test_new_rows_by_a_rule() -> None:
    models = [WithHead(Config(vocab_size=40)) for _ in range(2)]
    for model in models:
        old = {"embed.weight": model.embed.weight.detach().clone()}
        model.resize_token_embeddings(44)
        rows = Pretrained(old, adapt={"**": ResizeVocabulary(spread=1e-5, seed=0)})
        report = initialize(model, Rule("embed.weight", rows), seed=0, only=["embed.weight"])
        assert torch.equal(model.embed.weight[:40], old["embed.weight"])
        assert len(report.unchanged) == len(fingerprint(model).sites) - 1
    assert fingerprint(models[0]).total == fingerprint(models[1]).total


def test_a_folder_whose_index_misses_a_file(tmp_path: Path) -> None:
    model = WithHead(Config())
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    other = WithHead(Config())
    initialize(other, OTHER, seed=1)
    report = initialize(other, Rule("**", Pretrained(str(tmp_path))), seed=0)
    assert len(report.loads[0].loaded) == len(model.state_dict())
    assert torch.equal(other.head.weight, model.head.weight)
    victim = sorted(tmp_path.glob("*.safetensors"))[0]
    victim.unlink()
    with pytest.raises(CheckpointError, match=rf"names '{victim.name}', but .* can not be found"):
        initialize(other, Rule("**", Pretrained(str(tmp_path))), seed=0)


# -- the Trainer --------------------------------------------------------------------------------------------------


class Words(torch.utils.data.Dataset[dict[str, Any]]):
    """Eight rows of four tokens."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": torch.arange(index, index + 4), "labels": torch.tensor(index)}


def trainer(folder: Path, callback: StartCallback, *, steps: int, **given: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=2, per_device_train_batch_size=4, report_to=[],
        logging_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    return Trainer(args=arguments, train_dataset=Words(), callbacks=[callback], **given)


def start_of(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "torchinit.json").read_text())
    return data


def test_a_trainer_starts_from_the_weights_of_one_process_and_resumes(tmp_path: Path) -> None:
    callback = StartCallback()
    trainer(tmp_path, callback, steps=2, model_init=lambda: WithHead(Config())).train()
    start = start_of(tmp_path)
    assert start["start"]["fingerprint"]["sites"] == alone(WithHead)
    assert {record["name"] for record in start["start"]["report"]["records"]} == {
        name for name, _ in WithHead(Config()).named_parameters()
    }
    checkpoint = tmp_path / "checkpoint-2"
    assert start_of(checkpoint)["start"] == start["start"]
    assert start_of(checkpoint)["weights"]["total"] != start["start"]["fingerprint"]["total"]

    resumed = trainer(tmp_path, StartCallback(compare=True), steps=4, model_init=lambda: WithHead(Config()))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert start_of(tmp_path) == start
    assert start_of(tmp_path / "checkpoint-4")["start"] == start["start"]

    state = load_file(checkpoint / "model.safetensors")
    state["head.bias"][0] += 1
    save_file(state, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ReportError, match=r"1 tensor of the resumed model not as checkpoint-2 was .*\n  head\.bias$"):
        trainer(tmp_path, StartCallback(compare=True), steps=4, model_init=lambda: WithHead(Config())).train(
            resume_from_checkpoint=str(checkpoint)
        )
    (checkpoint / "torchinit.json").write_text('{"format": "torchinit-start-1", "start": null}')
    with pytest.raises(ConfigError, match="has no fingerprint of weights"):
        trainer(tmp_path, StartCallback(compare=True), steps=4, model=WithHead(Config())).train(
            resume_from_checkpoint=str(checkpoint)
        )
    (checkpoint / "torchinit.json").unlink()
    with pytest.raises(RunError, match=r"there is no .*checkpoint-2/torchinit\.json to compare with: StartC"):
        trainer(tmp_path, StartCallback(compare=True), steps=4, model=WithHead(Config())).train(
            resume_from_checkpoint=str(checkpoint)
        )


def test_a_report_of_ones_own_and_a_second_call_of_train(tmp_path: Path) -> None:
    model = WithHead(Config())
    report = initialize(model, RULES, seed=4)
    job = trainer(tmp_path, StartCallback(report), steps=2, model=model)
    job.train()
    first = start_of(tmp_path)
    assert first["start"]["report"] == json.loads(report.to_json())
    job.train()
    assert start_of(tmp_path) == first
