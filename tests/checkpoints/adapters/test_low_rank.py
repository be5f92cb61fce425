"""Low rank: LoRA's five starts keep the function, divide the weight as they say, and are refused where they cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchinit import CheckpointError, Name, Pretrained, Rule, RunError, initialize, plan
from torchinit.checkpoints.adapters import Adapter, Chain, LoRA, Transpose, low_rank
from torchinit.checkpoints.adapters.low_rank import LoRAMethod

IN, OUT, RANK, SCALING = 12, 9, 4, 0.5
METHODS: dict[str, LoRA] = {
    "default": LoRA("default", RANK, SCALING),
    "gaussian": LoRA("gaussian", RANK, SCALING),
    "orthogonal": LoRA("orthogonal", RANK, SCALING),
    "pissa": LoRA("pissa", RANK, SCALING),
    "pissa, iterated": LoRA("pissa", RANK, SCALING, iterations=2),
    "olora": LoRA("olora", RANK, SCALING),
}


class Layer(nn.Module):
    """The names of peft's Linear."""

    def __init__(self, inputs: int = IN, outputs: int = OUT, rank: int = RANK) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outputs, bias=False)})

    def forward(self, tokens: Tensor) -> Tensor:
        low: Tensor = self.lora_B["default"](self.lora_A["default"](tokens))
        out: Tensor = self.base_layer(tokens) + SCALING * low
        return out


def started(source: object, adapter: Adapter, layer: nn.Module | None = None, **arguments: Any) -> dict[str, Tensor]:
    """The values of a layer with factors that starts from another one, named as in this one."""
    layer = layer or Layer()
    rename = [("^", "base_layer.")]
    rule = Rule(Name("**"), Pretrained(source, rename=rename, adapt={"**": adapter}, **arguments))  # type: ignore[arg-type]
    initialize(layer, rule, seed=0).assert_ok()
    return {name.replace(".default", ""): value.detach() for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_the_layer_computes_as_before(name: str) -> None:
    source, layer, tokens = nn.Linear(IN, OUT), Layer(), torch.randn(20, IN)
    values = started(source, METHODS[name], layer)
    before = source(tokens)
    assert (layer(tokens) - before).abs().max() <= 1e-5 * before.square().mean().sqrt()
    assert torch.equal(values["base_layer.bias"], source.bias)
    assert METHODS[name].promise == "function"
    product = values["lora_B.weight"] @ values["lora_A.weight"]
    assert bool(product.abs().max() > 1e-3) is (METHODS[name].method in ("pissa", "olora"))
    assert values["lora_A.weight"].any(1).all()


def test_pissa_takes_the_largest_singular_values() -> None:
    """NumPy's, in double precision: B A has them, what is left has the others, and both factors share them alike."""
    source = nn.Linear(IN, OUT)
    made = {name: value.double().numpy() for name, value in started(source, METHODS["pissa"]).items()}
    a, b = made["lora_A.weight"], made["lora_B.weight"]
    u, values, v = np.linalg.svd(source.weight.detach().double().numpy(), full_matrices=False)
    expected = (u[:, :RANK] * values[:RANK]) @ v[:RANK]
    np.testing.assert_allclose(SCALING * b @ a, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(made["base_layer.weight"])[1][: OUT - RANK], values[RANK:], atol=1e-5)
    for gram in (a @ a.T, b.T @ b):
        np.testing.assert_allclose(gram, np.diag(values[:RANK] / SCALING), atol=1e-5)


def test_iterations_come_near_to_it() -> None:
    """Of values that fall off quickly, some rounds find the largest; the function is kept in any case."""
    u, v = (torch.linalg.qr(torch.randn(size, 9)).Q for size in (30, 40))
    source = {"weight": (u * 0.3 ** torch.arange(9)) @ v.T, "bias": torch.zeros(30)}
    exact, near = (started(source, LoRA("pissa", RANK, iterations=rounds), Layer(40, 30)) for rounds in (None, 8))
    for name in exact:
        torch.testing.assert_close(near[name].abs(), exact[name].abs(), atol=1e-4, rtol=1e-3)


def test_olora_has_orthonormal_columns() -> None:
    source = nn.Linear(IN, OUT)
    made = {name: value.double().numpy() for name, value in started(source, METHODS["olora"]).items()}
    b, a, weight = made["lora_B.weight"], made["lora_A.weight"], source.weight.detach().double().numpy()
    np.testing.assert_allclose(b.T @ b, np.eye(RANK), atol=1e-5)
    np.testing.assert_allclose(b @ b.T @ weight, b @ a, atol=1e-5)
    np.testing.assert_allclose(np.tril(a, -1), 0, atol=1e-5)
    q = np.linalg.qr(weight)[0][:, :RANK]
    np.testing.assert_allclose(q @ q.T, b @ b.T, atol=1e-5)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_factors_are_computed_once_and_kept_no_longer_than_needed(
    method: LoRAMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[Tensor] = []
    name = "svd" if method == "pissa" else "qr"
    factorize = getattr(torch.linalg, name)

    def counted(matrix: Tensor, **options: Any) -> Any:
        computed.append(matrix)
        return factorize(matrix, **options)

    monkeypatch.setattr(torch.linalg, name, counted)
    started(nn.Linear(IN, OUT), LoRA(method, RANK, SCALING))
    assert len(computed) == 1
    assert not low_rank._LAST


def test_what_comes_out_is_one_s_own() -> None:
    """Factors that somebody changes are not those that the base is made of."""
    adapter, weight = LoRA("pissa", RANK), torch.randn(OUT, IN)
    a, b, rest = "lora_A.default.weight", "lora_B.default.weight", "base_layer.weight"
    before = [adapter.adapt([weight], shape, key) for key, shape in ((a, (RANK, IN)), (rest, (OUT, IN)))]
    adapter.adapt([weight], (RANK, IN), a).zero_()
    adapter.adapt([weight], (OUT, RANK), b).zero_()
    after = [adapter.adapt([weight], shape, key) for key, shape in ((a, (RANK, IN)), (rest, (OUT, IN)))]
    assert all(map(torch.equal, before, after))


def test_draws_have_their_distributions() -> None:
    source, rank = {"weight": torch.zeros(300, 400), "bias": torch.zeros(300)}, 40
    made = {
        name: started(source, LoRA(name, rank), Layer(400, 300, rank))["lora_A.weight"].double()
        for name in ("default", "gaussian", "orthogonal")
    }
    count = rank * 400
    bound = 400**-0.5
    assert bound * 0.99 < made["default"].abs().max() <= bound
    for name, std in (("default", bound / 3**0.5), ("gaussian", 1 / rank)):
        assert abs(made[name].mean()) <= 6 * std / count**0.5
        assert abs(made[name].std() - std) <= 6 * std / (2 * count) ** 0.5
    # Of a sum of `half` squares of normal draws, an orthogonal matrix keeps each length: mean half / 100, a column.
    lengths = made["orthogonal"].square().sum(0)
    assert abs(lengths.mean() - 0.2) <= 6 * 0.01 * (2 * 20 / 400) ** 0.5


def test_names_of_other_libraries() -> None:
    """torchtune's, whose weight has no module of its own, and loralib's."""
    torchtune = LoRA("olora", 2, a="lora_a", b="lora_b", base="")
    assert torchtune.wants("layers.0.q_proj.lora_a.weight") == ("layers.0.q_proj.weight",)
    assert torchtune.wants("layers.0.q_proj.weight") == ("layers.0.q_proj.weight",)
    loralib = LoRA("olora", 2, a="lora_A", b="lora_B", base="weight")
    assert loralib.wants("attn.lora_B") == ("attn.weight",)

    class Loralib(nn.Linear):
        def __init__(self) -> None:
            super().__init__(IN, OUT)
            self.lora_A, self.lora_B = nn.Parameter(torch.empty(2, IN)), nn.Parameter(torch.empty(OUT, 2))

        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) + F.linear(F.linear(tokens, self.lora_A), self.lora_B)

    source, layer, tokens = nn.Linear(IN, OUT), Loralib(), torch.randn(3, IN)
    initialize(layer, Rule(Name("**"), Pretrained(source, adapt={"**": loralib})))
    torch.testing.assert_close(layer(tokens), source(tokens), atol=1e-5, rtol=1e-5)


def test_a_weight_that_lies_transposed() -> None:
    """GPT-2's Conv1D: its weight is turned before it is divided, and what is left is turned back."""
    pissa, weight = LoRA("pissa", RANK), torch.randn(IN, OUT)
    turned = Chain((Transpose(), pissa))
    layer = nn.Module()
    layer.base_layer = nn.Module()
    layer.base_layer.register_parameter("weight", nn.Parameter(torch.empty(IN, OUT)))
    layer.lora_A, layer.lora_B = (
        nn.ModuleDict({"default": nn.Linear(*n, bias=False)}) for n in ((IN, RANK), (RANK, OUT))
    )
    adapt = {"base_layer.**": Chain((Transpose(), pissa, Transpose())), "lora_*.**": turned}
    initialize(layer, Rule(Name("**"), Pretrained({"base_layer.weight": weight}, adapt=adapt)))
    values = [value.detach() for value in layer.state_dict().values()]
    torch.testing.assert_close(values[0] + (values[2] @ values[1]).T, weight)
    half = {"base_layer.**": Chain((Transpose(), Transpose())), "lora_*.**": turned}
    with pytest.raises(CheckpointError, match=r"takes a share of base_layer\.weight: adapt that, too"):
        plan(layer, Rule(Name("**"), Pretrained({"base_layer.weight": weight}, adapt=half)))


def test_half_precision_is_rounded_once() -> None:
    """What is left comes from the unrounded factors: the whole is off by no more than the base's own rounding."""
    source = nn.Linear(IN, OUT).bfloat16()
    layer = Layer()
    layer.base_layer.bfloat16()
    made = started(source, METHODS["pissa"], layer)
    assert made["base_layer.weight"].dtype == torch.bfloat16
    whole = made["base_layer.weight"].float() + SCALING * made["lora_B.weight"] @ made["lora_A.weight"]
    error = (whole - source.weight.detach().float()).abs()
    assert (error <= made["base_layer.weight"].float().abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("left", ["base_layer.weight", "base_layer.*"])
def test_a_base_that_keeps_what_the_factors_take(left: str) -> None:
    """It would be there twice: refused before anything is written, in a plan, too."""
    source = {"base_layer.weight": torch.randn(OUT, IN), "base_layer.bias": torch.zeros(OUT)}
    adapt: Mapping[str, Adapter] = {"lora_*.**": METHODS["pissa"]}
    for given in (adapt, {**adapt, left: LoRA("pissa", RANK)}):
        with pytest.raises(
            CheckpointError, match=r"lora_A\.default\.weight is made by LoRA\('pissa', 4, scaling=0\.5\)"
        ):
            plan(Layer(), Rule(Name("**"), Pretrained(source, adapt=given)))
    rest = Rule(Name("lora_*.**"), Pretrained(source, adapt=adapt))
    with pytest.raises(
        CheckpointError, match=r"takes a share of base_layer\.weight: adapt that, too, or it is there twice"
    ):
        plan(Layer(), rest)
    plan(Layer(), Rule(Name("lora_*.**"), Pretrained(source, adapt={"**": METHODS["orthogonal"]})))


def test_a_model_is_not_divided_in_place() -> None:
    """The weight would be gone before the factors are taken from it; starts that leave it alone may look at it."""
    layer = Layer()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(
        RunError, match=r"of the model itself, which is written at the same time; give its file, or copies"
    ):
        initialize(layer, Rule(Name("**"), Pretrained(layer, adapt={"**": METHODS["pissa"]})))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    initialize(layer, Rule(Name("**"), Pretrained(before, adapt={"**": METHODS["pissa"]})))
    initialize(layer, Rule(Name("lora_*.**"), Pretrained(layer, adapt={"**": METHODS["default"]})))
    assert not layer.get_parameter("lora_B.default.weight").any()


def test_the_plan_says_what_memory_it_takes() -> None:
    source = {"base_layer.weight": torch.zeros(500, 600), "base_layer.bias": torch.zeros(500)}
    rule = Rule(Name("**"), Pretrained(source, adapt={"**": LoRA("pissa", RANK)}))
    text = f"base_layer.weight is made of whole tensors, which takes up to {7 * 500 * 600 * 4 / 2**20:.1f} MiB"
    assert text in plan(Layer(600, 500), rule).summary()
    rule = Rule(Name("**"), Pretrained(source, adapt={"**": LoRA("default", RANK)}))
    assert "whole tensors" not in plan(Layer(600, 500), rule).summary()


@pytest.mark.parametrize(
    ("adapter", "weight", "text"),
    [
        (LoRA("pissa", 10), (9, 12), r"needs at least 10 rows and columns, but got \[9, 12\]"),
        (LoRA("pissa", 4), (9, 12, 3), r"needs a matrix to begin with, but got \[9, 12, 3\]"),
        (LoRA("gaussian", 8), (9, 12), r"makes \[8, 12\] of \[9, 12\], but the site has \[4, 12\]"),
        (LoRA("gaussian", 4), (9, 11), r"makes \[4, 11\] of \[9, 11\], but the site has \[4, 12\]"),
    ],
)
def test_weights_that_cannot_be_divided(adapter: LoRA, weight: tuple[int, ...], text: str) -> None:
    source = {"base_layer.weight": torch.ones(weight), "base_layer.bias": torch.ones(OUT)}
    with pytest.raises(CheckpointError, match=text):
        plan(Layer(), Rule(Name("**"), Pretrained(source, adapt={"**": adapter})))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: LoRA("loftq", 4),  # type: ignore[arg-type]  # this is the mistake
            r"^method must be one of default, gaussian, orthogonal, pissa, olora, but got 'loftq'$",
        ),
        (lambda: LoRA("pissa", 0), r"^rank must be a whole number from 1, but got 0$"),
        (lambda: LoRA("pissa", 4, 0.0), r"^scaling must be above 0, but got 0\.0$"),
        (lambda: LoRA("olora", 4, iterations=2), r"^iterations are those of pissa, but method is 'olora'$"),
        (lambda: LoRA("pissa", 4, iterations=-1), r"^iterations must be a whole number from 0, but got -1$"),
        (lambda: LoRA("orthogonal", 3), r"^an orthogonal start needs an even rank, but got 3$"),
    ],
)
def test_arguments(build: Callable[[], LoRA], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()


def test_the_table_is_whole() -> None:
    assert {adapter.method for adapter in METHODS.values()} == {*get_args(LoRAMethod)}
