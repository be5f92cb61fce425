"""`transformers:config.json` on the command line: built from the file, offline, by transformers' own classes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from transformers import BertConfig, BertModel, GPT2LMHeadModel

from torchinit import Plan
from torchinit.cli import main
from torchinit.cli.frame import ModelError
from torchinit.cli.models import build

ROOT = Path(__file__).parents[2]
TINY = {"model_type": "gpt2", "vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save_config(**settings: Any) -> str:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(settings))
        return f"transformers:{path}"

    return save_config


def test_class_comes_from_architectures_else_from_the_type(save: Save, tmp_path: Path) -> None:
    model = build(save(**TINY, architectures=["GPT2LMHeadModel"]), {}, "meta")
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert all(parameter.is_meta for parameter in model.parameters())
    assert type(build(save(**TINY), {}, "meta")).__name__ == "GPT2Model"
    assert type(build(f"transformers:{tmp_path}", {}, "meta")).__name__ == "GPT2Model"


def test_arguments_replace_settings(save: Save) -> None:
    model = build(save(**TINY), {"n_layer": 3, "hidden_size": 16}, "meta")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["wte.weight"] == (64, 16)
    assert "h.2.ln_1.weight" in shapes
    with pytest.raises(ModelError, match=r"GPT2Config has no setting 'n_layers'; did you mean 'n_layer'\?"):
        build(save(**TINY), {"n_layers": 3}, "meta")


def test_shipped_config_is_gpt2_small() -> None:
    model = build(f"transformers:{ROOT}/examples/gpt2/config.json", {}, "meta")
    assert isinstance(model, GPT2LMHeadModel)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "has no 'model_type'"),
        ({"model_type": "gtp2"}, r"this transformers has no model_type 'gtp2'; did you mean 'gpt2'\?"),
        ({**TINY, "architectures": ["GPT2LMHedModel"]}, r"no model 'GPT2LMHedModel'; did you mean 'GPT2LMHeadModel'\?"),
        ({**TINY, "architectures": ["pipeline"]}, "no model 'pipeline'"),
        ({**TINY, "architectures": ["GPT2Config"]}, "no model 'GPT2Config'"),
        ({**TINY, "architectures": [["os"]]}, "'architectures' is a list of names, but got"),
        ({**TINY, "architectures": "GPT2LMHeadModel"}, "'architectures' is a list of names, but got 'GPT2"),
        ({**TINY, "n_embd": "wide"}, "raised"),
        ({**TINY, "n_head": 5}, "raised ValueError"),
    ],
)
def test_configs_that_build_nothing(save: Save, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        build(save(**settings), {}, "meta")


def test_foreign_code_named_by_a_config_is_not_run(save: Save, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('evil ran')\n")
    settings = {**TINY, "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    assert type(build(save(**settings), {}, "meta")).__name__ == "GPT2Model"
    with pytest.raises(ModelError, match="no model_type 'evil'"):
        build(save(**{**settings, "model_type": "evil"}), {}, "meta")


def test_network_is_off_while_the_model_is_built(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    seen = []

    class Watching(BertModel):
        def __init__(self, config: BertConfig) -> None:
            seen.append((constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"]))
            super().__init__(config)

    monkeypatch.setattr("transformers.BertModel", Watching)
    settings = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    build(save(**settings, architectures=["BertModel"]), {}, "meta")
    assert seen == [(True, "1")]
    assert (constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"]) == (False, "0")


def test_plan_and_apply(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(**TINY, architectures=["GPT2LMHeadModel"])
    assert main(["plan", model, "gpt2", "--complete", "--json"]) == 0
    assert Plan.from_json(capsys.readouterr().out)["lm_head.weight"].site.name == "transformer.wte.weight"
    paths = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for path in paths:
        assert main(["apply", model, "gpt2", "--complete", "--dtype", "bf16", "-o", str(path)]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with safe_open(paths[0], "pt") as file:
        assert json.loads(file.metadata()["torchinit.tied"]) == {"lm_head.weight": "transformer.wte.weight"}


def test_transformers_loads_what_was_written(save: Save, tmp_path: Path) -> None:
    model = save(**TINY, architectures=["GPT2LMHeadModel"])
    assert main(["apply", model, "gpt2", "-o", str(tmp_path / "model.safetensors")]) == 0
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path, local_files_only=True)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        for name, tensor in loaded.state_dict().items():
            kept = "transformer.wte.weight" if name == "lm_head.weight" else name
            assert torch.equal(tensor, file.get_tensor(kept)), name
