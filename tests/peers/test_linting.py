"""Lint on models of other libraries: quiet where nothing is wrong, and right where something is."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn

from tests.peers import planted
from tests.peers.foreign import MODELS as FOREIGN
from tests.peers.foreign import Make
from torchinit import lint
from torchinit.cli import main
from torchinit.linting import ConstructionRecorder, Findings, meta_parity
from torchinit.model.sandbox import poisoned_memory

PAGE = Path(__file__).parents[2] / "docs/guides/lint.md"
TABLE = re.compile(r"<!-- table: models -->\n(.*?)<!-- table ends -->", re.DOTALL)


MODELS: dict[str, Make] = {**FOREIGN, "timm/lcnet_050": partial(timm.create_model, "lcnet_050", pretrained=False)}

MEANT: dict[str, set[str]] = {"wav2vec2": {"TI603"}}
"""Warnings that are true: transformers draws the positional convolution of Wav2Vec2 where weight norm computes it."""


@cache
def findings(name: str) -> Findings:
    """What is found in a model as its own code makes it, traced and in poisoned memory."""
    recorder = ConstructionRecorder()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with poisoned_memory(), recorder:
            model = MODELS[name]()
    return lint(model, trace=recorder.of(model))


@pytest.mark.parametrize("name", MODELS)
def test_no_error_and_no_warning_that_is_not_true_in_a_model_that_is_clean(name: str) -> None:
    assert findings(name).errors == (), findings(name).table()
    assert {one.code for one in findings(name).at_least("warning")} == MEANT.get(name, set()), findings(name).table()


def test_the_page_says_so() -> None:
    rows = []
    for name in MODELS:
        seen = Counter(one.severity for one in findings(name))
        codes = ", ".join(f"`{code}`" for code in findings(name).codes)
        rows.append(f"| {name} | {seen['error']} | {seen['warning']} | {seen['note']} | {codes} |\n")
    table = "".join(["| model | errors | warnings | notes | codes |\n|---|---|---|---|---|\n", *rows])
    found = TABLE.search(PAGE.read_text("utf-8"))
    assert found
    assert found[1] == table, f"the table of {PAGE.name} should be\n{table}"


def test_there_are_enough_of_them() -> None:
    kinds = Counter(name.startswith("timm/") for name in MODELS)
    assert (kinds[True], kinds[False]) >= (10, 15)


def gpt2() -> Any:
    return MODELS["gpt2"]()


def test_a_tie_that_transformers_declares_and_that_is_broken() -> None:
    model = gpt2()
    assert "TI601" not in lint(model).codes
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    (found,) = lint(model, select=["TI6"])
    assert (found.code, found.severity, found.site) == ("TI601", "error", "lm_head.weight")
    model.config.tie_word_embeddings = False
    assert lint(model, select=["TI6"]).codes == ("TI602",)


def test_a_buffer_that_to_empty_left_behind() -> None:
    with torch.device("meta"):
        model = MODELS["llama"]()
    with poisoned_memory():
        model.to_empty(device="cpu")
    model.load_state_dict(MODELS["llama"]().state_dict())
    found = lint(model, select=["TI1"])
    assert {one.code for one in found} == {"TI103"}
    assert {one.site.rpartition(".")[2] for one in found} == {"inv_freq", "original_inv_freq"}


def careless(_: object, module: Any) -> None:
    """Somebody's initialization, which writes through ``.data`` and so past the flags that mark what was loaded."""
    if isinstance(module, transformers.pytorch_utils.Conv1D):
        module.weight.data.normal_(std=0.02)
        module.bias.data.zero_()


def test_a_loaded_value_that_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = gpt2()
    state = {name: value for name, value in model.state_dict().items() if name != "transformer.h.0.mlp.c_fc.bias"}
    model.save_pretrained(tmp_path, state_dict=dict(state))
    monkeypatch.setattr(transformers.GPT2PreTrainedModel, "_init_weights", careless)
    recorder = ConstructionRecorder()
    with recorder:
        loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    found = lint(loaded, loaded=state, trace=recorder.of(loaded), select=["TI203"])
    lost = {one.site for one in found}
    assert "transformer.h.0.mlp.c_fc.weight" in lost  # the neighbour of what was missing
    assert lost == {name for name in state if not torch.equal(loaded.state_dict()[name], state[name])}
    assert {one.severity for one in found} == {"error"}
    assert all("test_linting.py:" in one.line for one in found)


PLANTED = [name for name in vars(planted) if "_ti" in name]
SEVERITIES = {
    "error": ("ti101", "ti302", "ti410", "lost_ti603"),
    "note": ("ti412", "ti505", "shared_ti605"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_command_line_finds_what_was_planted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    severity = next((one for one, ends in SEVERITIES.items() if name.endswith(ends)), "warning")
    code = name[-5:].upper()
    assert main(["check", f"tests/peers/planted.py:{name}", "--json", "--fail-on", severity]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert (code, severity) in {(one["code"], one["severity"]) for one in found}, found


# transformers leaves the temperature of CLIP to the constructor, and draws the positional convolution of Wav2Vec2 where
# weight norm computes it.
UNLIKE = {"clip": ["logit_scale"], "wav2vec2": ["wav2vec2.encoder.pos_conv_embed.conv.weight"]}


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("timm/")])
def test_transformers_models_start_alike_in_memory_and_from_the_meta_device(name: str) -> None:
    found = meta_parity(MODELS[name])
    assert [(one.site, one.code) for one in found] == [(site, "forgotten") for site in UNLIKE.get(name, [])]
