"""peft: what is frozen stays as it is, adapters keep their start or get one by a recipe; a real training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from torchinit import Kaiming, PlanError, Rule, Zeros, fingerprint, initialize
from torchinit.integrations.transformers import StartCallback, init_weights

CONFIG = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40,
}  # fmt: skip
LORA = [Rule("**.lora_A.**", Kaiming(a=5**0.5, distribution="uniform")), Rule("**.lora_B.**", Zeros())]
ADAPTERS = ["**.lora_A.**", "**.lora_B.**"]


class Llama(LlamaForCausalLM):
    """A base whose start is a recipe's."""

    _init_weights = init_weights("llama", seed=0)


@pytest.fixture(autouse=True)
def _generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def wrapped(base: Any) -> Any:
    return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def of_base(model: Any) -> dict[str, str]:
    """The digests of the base by their names in it."""
    sites = fingerprint(model).sites
    names = {name: name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in sites}
    return {names[name]: digest for name, digest in sites.items() if "lora_" not in name}


def test_the_base_keeps_its_start_and_the_adapters_theirs() -> None:
    base = Llama(LlamaConfig(**CONFIG))
    before = fingerprint(base).sites
    model = wrapped(base)
    assert of_base(model) == before
    zero = [bool((parameter == 0).all()) for name, parameter in model.named_parameters() if "lora_B" in name]
    assert zero == [True] * 4


def test_adapters_by_a_recipe_and_nothing_else() -> None:
    model, again = (wrapped(Llama(LlamaConfig(**CONFIG))) for _ in range(2))  # torch draws other adapters
    before = fingerprint(model)
    report = initialize(model, LORA, seed=0, only=ADAPTERS).assert_ok()
    assert len(report) == 8
    assert all("lora_" in change.name for change in before.diff(fingerprint(model)))
    assert {*report.unchanged} == {name for name in before.sites if "lora_" not in name}
    initialize(again, LORA, seed=0, only=ADAPTERS)
    assert fingerprint(again).total == fingerprint(model).total
    with pytest.raises(PlanError, match=r"no rule for base_model\..*lora_B\.default\.weight"):
        initialize(model, LORA[:1], seed=0, only=ADAPTERS)


def test_training_saving_and_resuming_leave_the_base_alone(tmp_path: Path) -> None:
    class Words(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict[str, Any]:
            words = torch.arange(index, index + 6)
            return {"input_ids": words, "labels": words}

    def run(steps: int, **given: Any) -> Any:
        model = wrapped(Llama(LlamaConfig(**CONFIG)))
        initialize(model, LORA, seed=0, only=ADAPTERS)
        settings: Any = {"report_to": [], "logging_strategy": "no", "use_cpu": True, "disable_tqdm": True}
        arguments = TrainingArguments(str(tmp_path), max_steps=steps, save_steps=2, learning_rate=0.1, **settings)
        callback = StartCallback(compare=True)
        trainer = Trainer(model, arguments, train_dataset=Words(), callbacks=[callback])
        trainer.train(**given)
        return callback.start, model

    alone = wrapped(Llama(LlamaConfig(**CONFIG)))
    initialize(alone, LORA, seed=0, only=ADAPTERS)
    start, trained = run(2)
    assert start["fingerprint"]["total"] == fingerprint(alone).total
    assert of_base(trained) == of_base(alone)
    changed = {change.name for change in fingerprint(alone).diff(fingerprint(trained))}
    assert changed
    assert all("lora_" in name for name in changed)
    resumed, more = run(4, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))  # compares with what was saved
    assert resumed == start
    assert of_base(more) == of_base(alone)
    loaded = PeftModel.from_pretrained(Llama(LlamaConfig(**CONFIG)), str(tmp_path / "checkpoint-2"))
    assert of_base(loaded) == of_base(alone)
    assert fingerprint(loaded).sites == fingerprint(trained).sites
