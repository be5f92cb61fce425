"""LSUV: the output of each layer, measured by hooks of the test's own, and values by seed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks import probe_nets as nets
from tests.probing.nets import Checkpointed, Everything, Wired, mlp
from torchinit import ProbeError, initialize, lsuv, probe
from torchinit.probing import Lsuv


def stds(model: nn.Module, batch: Tensor, *kinds: type[nn.Module]) -> dict[str, float]:
    """The standard deviation of what comes out of the layers of these kinds."""
    found: dict[str, float] = {}
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(
                lambda module, args, output, name=name: found.__setitem__(
                    name, float((output[0] if isinstance(output, tuple) else output).std())
                )
            )
    model.eval()
    with torch.no_grad():
        model(batch)
    return found


LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: mlp(depth=20), (64, 64)), (nets.vgg, (16, 3, 32, 32)), (nets.autoencoder, (8, 3, 32, 32)),
     (lambda: nets.mlp(10, nn.Tanh), (64, 64))],
)  # fmt: skip
def test_every_layer_has_the_std(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, batch = make(), torch.randn(*shape)
    result = lsuv(model, batch, std=2.0)
    assert result.notes == ()
    found = stds(model, batch, *LAYERS)
    assert len(found) == len(result.layers)
    for name, std in found.items():
        assert std == pytest.approx(2.0, rel=0.03), name
    assert not probe(model, batch).findings.errors


def test_branches_share_what_the_stream_may_grow() -> None:
    torch.manual_seed(0)
    model, batch = nets.Residual(depth=16), torch.randn(64, 32)
    result = lsuv(model, batch)
    found = stds(model, batch, nn.Linear)
    for at in range(16):
        assert found[f"blocks.{at}.fc1"] == pytest.approx(1, rel=0.03)
        assert found[f"blocks.{at}.fc2"] == pytest.approx(1 / 4, rel=0.03)
    assert {each.target for each in result.layers} == {1.0, 0.25}
    stream = probe(model, batch).measurement.chains[0].outputs
    assert stream[-1].forward.rms < 2


def test_attention_is_one_unit() -> None:
    torch.manual_seed(0)
    model, ids = nets.Decoder(depth=3), torch.randint(500, (8, 24))
    result = lsuv(model, ids)
    found = stds(model, ids, nn.MultiheadAttention)
    assert list(found.values()) == pytest.approx([6**-0.5] * 3, rel=0.03)
    names = {each.name: each for each in result.layers}
    assert math.isnan(names["blocks.0.self_attn.in_proj_weight"].std)
    assert names["blocks.0.self_attn.out_proj.weight"].target == pytest.approx(6**-0.5)


def test_a_table_that_a_head_shares_is_the_heads() -> None:
    torch.manual_seed(0)
    model, ids = nets.Decoder(depth=2, tied=True), torch.randint(500, (8, 24))
    result = lsuv(model, ids)
    assert stds(model, ids, nn.Linear)["head"] == pytest.approx(1, rel=0.03)
    assert result.notes == ()


def test_the_recipe_gives_the_same_values_without_the_batch() -> None:
    torch.manual_seed(0)
    model, batch = nets.vgg(), torch.randn(8, 3, 32, 32)
    twin, third, other = (copy.deepcopy(model) for _ in range(3))
    result = lsuv(model, batch, seed=3)
    initialize(twin, result.recipe, seed=3)
    lsuv(third, batch, seed=3)
    lsuv(other, batch, seed=4)
    for one, two, three, four in zip(*(each.parameters() for each in (model, twin, third, other)), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
        assert one.dim() == 1 or not torch.equal(one, four)
    result.report.assert_ok()
    assert str(result).startswith("14 layers scaled in 2 passes\nweight ")


def test_what_is_left_alone() -> None:
    torch.manual_seed(0)
    model = Everything()
    model.stem.requires_grad_(requires_grad=False)
    model.extra = nn.Linear(4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = torch.randn(4, 3, 8, 8)
    state = torch.random.get_rng_state()

    def changed() -> set[str]:
        return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

    model.fails = ValueError
    with pytest.raises(ProbeError, match=r"(?s)the forward of Everything raised.*on purpose"):
        lsuv(model, batch)
    model.fails = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        lsuv(model, batch)
    assert changed() == set()
    model.fails = None
    result = lsuv(model, batch)
    assert changed() == {"extra.weight", "extra.bias"}
    assert result.notes == ("drawn, not scaled: extra",)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_no_scale_reaches_is_told() -> None:
    model = Wired(lambda self, x: self.end(self.dead(x) * 0), dead=nn.Linear(8, 8), end=nn.Linear(8, 8))
    result = lsuv(model, torch.randn(16, 8))
    assert result.notes == ("not within the tolerance: end (0)",)
    rnn = lsuv(nets.Recurrent(nn.LSTM))
    assert rnn.notes == ()
    assert [each.name for each in rnn.layers if math.isnan(each.std)] == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    assert len(lsuv(Checkpointed(reentrant=False)).layers) == 6


BAD: list[tuple[Callable[[], Lsuv], type[Exception], str]] = [
    (lambda: lsuv(nn.Linear(4, 4, device="meta")), ProbeError, "Linear is on the meta device; materialize it before"),
    (lambda: lsuv(nn.LayerNorm(4)), ProbeError, "LayerNorm has no trained matrix, so lsuv has nothing to scale"),
    (lambda: lsuv(nn.Linear(4, 4), std=0.0), ValueError, "std, tolerance and steps are above 0, but got 0.0"),
    (lambda: lsuv(nn.Linear(4, 4), steps=0), ValueError, "but got 1.0, 0.02 and 0"),
    (lambda: lsuv(nn.Linear(4, 4), torch.randn(3, 5)), ProbeError, "(?s)the forward of Linear raised.*mat1 and mat2"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call: Callable[[], Lsuv], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
