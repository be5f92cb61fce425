"""The named schemes on the models that they are named for: all covered, and the numbers those models start with."""

from __future__ import annotations

import math

import pytest
import torch

from tests.peers.foreign import MODELS
from torchinit import initialize, load_recipe, plan

MEANT = {
    "gpt2": ["gpt2"],
    "llama": ["llama", "qwen3", "mixtral"],
    "bert": ["bert"],
    "vit": ["vit", "timm/vit_tiny_patch16_224"],
    "resnet": ["timm/resnet18"],
}
PAIRS = [(scheme, model) for scheme, models in MEANT.items() for model in models]


@pytest.mark.parametrize(("scheme", "model"), PAIRS)
def test_every_parameter_is_covered_and_every_rule_used(scheme: str, model: str) -> None:
    with torch.device("meta"):
        sketch = MODELS[model]()
    made = plan(sketch, scheme, complete=True, strict=True)
    assert made.skipped == ()
    initialize(MODELS[model](), scheme, seed=0).assert_ok()


@pytest.mark.parametrize(("scheme", "model"), [pair for pair in PAIRS if pair[0] in ("gpt2", "llama", "bert")])
def test_the_model_code_itself_starts_so(scheme: str, model: str) -> None:
    torch.manual_seed(0)
    theirs = MODELS[model]()
    tensors = dict(theirs.named_parameters(remove_duplicate=False))
    compared = 0
    for step in plan(theirs, load_recipe(scheme)):
        values, expected = tensors[step.site.name].detach(), step.fill.moments(step.site.shape)
        assert expected is not None
        assert expected.mean is not None
        assert expected.std is not None
        # Six standard errors of the standard deviation of a normal sample.
        slack = 6 * expected.std / math.sqrt(2 * values.numel())
        assert abs(float(values.std(correction=0)) - expected.std) <= slack, step.site.name
        assert abs(float(values.mean()) - expected.mean) <= 6 * expected.std / math.sqrt(values.numel()), step.site.name
        compared += 1
    assert compared > 10
