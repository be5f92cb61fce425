"""Functions of a tensor as initializers: the twins of torch.nn.init's, and code of anybody's own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import each_rank, local_of
from torchinit import (
    ConfigError,
    Constant,
    Kaiming,
    Leaf,
    Name,
    Normal,
    Ones,
    Orthogonal,
    Plan,
    Rule,
    RunError,
    TruncNormal,
    Uniform,
    Xavier,
    Zeros,
    initialize,
    plan,
    sites,
)
from torchinit.initializers import Blocks, DepthScaled, Dirac, Identity, Padded, Scaled, Sparse, Stacked
from torchinit.initializers.functions import Code, as_initializer
from torchinit.noise import Keyed
from torchinit.plans import local_shards, make_plan, run
from torchinit.recipes import recipe_to_data

init: Any = nn.init
FUNCTIONS: dict[str, tuple[Callable[[Tensor], object], Any]] = {
    "normal_": (init.normal_, Normal()),
    "normal_ with arguments": (partial(init.normal_, mean=1.0, std=0.5), Normal(1.0, 0.5)),
    "uniform_": (init.uniform_, Uniform()),
    "uniform_ with arguments": (partial(init.uniform_, a=-0.5), Uniform(-0.5, 1.0)),
    "trunc_normal_": (init.trunc_normal_, TruncNormal()),
    "trunc_normal_ with arguments": (
        partial(init.trunc_normal_, std=0.5, a=-0.7, b=0.2),
        TruncNormal(0, 0.5, -0.7, 0.2),
    ),
    "constant_": (partial(init.constant_, val=0.25), Constant(0.25)),
    "zeros_": (init.zeros_, Zeros()),
    "ones_": (init.ones_, Ones()),
    "eye_": (init.eye_, Identity()),
    "orthogonal_": (init.orthogonal_, Orthogonal()),
    "orthogonal_ with arguments": (partial(init.orthogonal_, gain=2.0), Orthogonal(gain=2.0)),
    "sparse_": (partial(init.sparse_, sparsity=0.25), Sparse(0.25)),
    "sparse_ with arguments": (partial(init.sparse_, sparsity=0.5, std=2.0), Sparse(0.5, 2.0)),
    "xavier_uniform_": (init.xavier_uniform_, Xavier(distribution="uniform")),
    "xavier_normal_": (partial(init.xavier_normal_, gain=3.0), Xavier(gain=3.0)),
    "kaiming_uniform_": (
        init.kaiming_uniform_,
        Kaiming(mode="fan_in", nonlinearity="leaky_relu", distribution="uniform"),
    ),
    "kaiming_uniform_ as nn.Linear has it": (
        partial(init.kaiming_uniform_, a=5**0.5),
        Kaiming(a=5**0.5, mode="fan_in", nonlinearity="leaky_relu", distribution="uniform"),
    ),
    "kaiming_normal_": (init.kaiming_normal_, Kaiming(mode="fan_in", nonlinearity="leaky_relu")),
    "kaiming_normal_ with arguments": (
        partial(init.kaiming_normal_, mode="fan_out", nonlinearity="tanh"),
        Kaiming(mode="fan_out", nonlinearity="tanh"),
    ),
    "a partial of a partial": (partial(partial(init.normal_, std=0.5), mean=2.0), Normal(2.0, 0.5)),
    "no generator": (partial(init.normal_, generator=None), Normal()),
}


@pytest.mark.parametrize(("function", "twin"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_torch_become_their_twins_with_the_same_bits(
    function: Callable[[Tensor], object], twin: Any
) -> None:
    assert Rule("weight", function).init == twin
    ours, theirs = nn.Linear(12, 20), nn.Linear(12, 20)
    torch.manual_seed(5)
    initialize(ours, Rule("weight", function))
    after = torch.get_rng_state()
    torch.manual_seed(5)
    function(theirs.weight)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(after, torch.get_rng_state())


def test_dirac() -> None:
    ours, theirs = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3)
    assert Rule("weight", partial(init.dirac_, groups=2)).init == Dirac(2)
    initialize(ours, Rule("weight", partial(init.dirac_, groups=2)))
    init.dirac_(theirs.weight, groups=2)
    assert torch.equal(ours.weight, theirs.weight)


def test_every_function_of_torch_that_fills_a_tensor_has_a_twin() -> None:
    """Those that torch has deprecated too, which are not called, and so do not warn."""
    given = {"constant": {"val": 1.0}, "sparse": {"sparsity": 0.5}}
    names = [name for name in vars(init) if not name.startswith("_") and hasattr(init, f"{name.rstrip('_')}_")]
    assert {"normal", "normal_", "kaiming_uniform", "dirac_", "zeros_"} <= set(names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in names:
            twin = as_initializer(partial(getattr(init, name), **given.get(name.rstrip("_"), {})))
            assert not isinstance(twin, Code), name
            assert twin == as_initializer(
                partial(getattr(init, name.rstrip("_") + "_"), **given.get(name.rstrip("_"), {}))
            )


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (partial(init.normal_, sdt=1), TypeError, "got an unexpected keyword argument 'sdt'"),
        (
            init.constant_,
            TypeError,
            "'val'; arguments are given by functools.partial(torch.nn.init.constant_, ...)",
        ),
        (init.sparse_, TypeError, "missing a required argument: 'sparsity'"),
        (partial(init.normal_, generator=torch.Generator()), TypeError, "leave out generator, and give it as the seed"),
        (partial(init.normal_, tensor=torch.ones(1)), TypeError, "multiple values for argument 'tensor'"),
        (partial(init.uniform_, a=2.0), ValueError, "Uniform needs a <= b"),
        (partial(init.kaiming_normal_, nonlinearity="nope"), ValueError, "nope"),
        (Kaiming, TypeError, "Kaiming is a class; write Kaiming()"),
        (
            nn.Linear(1, 1),
            TypeError,
            "a Linear is not an initializer; write Pretrained(module) to load its values",
        ),
        (0, TypeError, "0 is not an initializer; write Constant(0), or {'type': 'Constant', 'val': 0} as data"),
        (0.5, TypeError, "0.5 is not an initializer; write Constant(0.5)"),
        (True, TypeError, "True is not an initializer; write one such as Normal(std=0.02), or a function of a tensor"),
        (None, TypeError, "None is not an initializer"),
        ("Kaiming", TypeError, "'Kaiming' is not an initializer; write Kaiming(), or {'type': 'Kaiming'} as data"),
        ("0.02 * 3", TypeError, "'0.02 * 3' is not an initializer; write Kaiming()"),
        (b"Kaiming", TypeError, "b'Kaiming' is not an initializer"),
        (torch.ones(2), TypeError, "a tensor is not an initializer; write a function that copies it: lambda weight"),
        ({"type": "Normal"}, TypeError, "{'type': 'Normal'} is not an initializer; write one such as"),
        (lambda: None, TypeError, r"cannot be called with one tensor: too many positional arguments"),
        (lambda tensor, std: None, TypeError, "cannot be called with one tensor: missing a required argument: 'std'"),
        (partial(cast("Any", lambda tensor: None), std=1), TypeError, "its function has no such argument"),
    ],
)
def test_what_is_no_initializer_says_what_to_write(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Rule("weight", value)
    assert text in str(caught.value)


def test_a_path_is_no_initializer(tmp_path: Any) -> None:
    with pytest.raises(TypeError, match=r"a\.pth' is not an initializer; write Pretrained\('.*a\.pth'\)"):
        Rule("weight", tmp_path / "a.pth")


def test_initializers_made_of_others_take_functions() -> None:
    assert Scaled(init.xavier_normal_, 0.5).init == Xavier()
    assert DepthScaled(init.normal_).init == Normal()
    assert Stacked(init.orthogonal_).init == Orthogonal()
    assert Blocks((init.zeros_, init.ones_), 2).init == (Zeros(), Ones())
    with pytest.raises(TypeError, match=r"Xavier is a class; write Xavier\(\)"):
        Blocks(Xavier, 3)  # type: ignore[arg-type]


# --- code of one's own -------------------------------------------------------------------------------------


def triangular(tensor: Tensor, std: float = 1.0) -> None:
    """Draws, and looks at the whole: no part of it can be made alone."""
    tensor.normal_(0, std).tril_().div_(tensor.norm())


class Ramp:
    """An object that can be called."""

    def __call__(self, tensor: Tensor) -> Tensor:
        return torch.linspace(0, 1, tensor.numel()).view(tensor.shape)


CODE: dict[str, tuple[Any, str]] = {
    "a function": (triangular, "code: tests.initializers.test_functions.triangular"),
    "a partial": (partial(triangular, std=0.5), "code: partial(tests.initializers.test_functions.triangular, std=0.5)"),
    "a lambda": (lambda tensor: tensor.normal_(0, 0.1), "code: lambda at test_functions.py:"),
    "a method": (torch.Tensor.normal_, "code: TensorBase.normal_"),
    "an object": (Ramp(), "code: tests.initializers.test_functions.Ramp"),
    "what returns another tensor": (lambda tensor: torch.randn(tensor.shape) * 3, "code: lambda at test_functions.py:"),
    "what returns integers": (lambda tensor: torch.arange(tensor.numel()).view(tensor.shape), "code: lambda at"),
}


@pytest.mark.parametrize(("function", "text"), CODE.values(), ids=CODE)
def test_how_code_stands_in_the_plan(function: Any, text: str) -> None:
    made = plan(nn.Linear(3, 4), Rule("weight", function))
    assert isinstance(made["weight"].fill, Code)
    assert text in made.table()
    assert str(made["weight"].fill).startswith(text)
    assert repr(made["weight"].fill) == str(made["weight"].fill)
    assert " at 0x" not in made.table()


@pytest.mark.parametrize("function", [each for each, _ in CODE.values()], ids=CODE)
def test_without_a_seed_code_draws_as_it_would_by_hand(function: Any) -> None:
    ours, theirs = nn.Linear(12, 20), nn.Linear(12, 20)
    torch.manual_seed(5)
    initialize(ours, [Rule("weight", function), Rule("bias", torch.Tensor.normal_)])
    torch.manual_seed(5)
    with torch.no_grad():
        returned = function(theirs.weight)
        if returned is not None:
            theirs.weight.copy_(returned)
        theirs.bias.normal_()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_without_a_seed_strides_are_those_of_the_parameter(memory_format: Any) -> None:
    ours, theirs = (cast("Any", nn.Conv2d(3, 4, 3)).to(memory_format=memory_format) for _ in range(2))
    torch.manual_seed(5)
    initialize(ours, Rule("weight", torch.Tensor.normal_))
    torch.manual_seed(5)
    theirs.weight.data.normal_()
    assert torch.equal(ours.weight, theirs.weight)


def test_with_a_seed_values_belong_to_names() -> None:
    rules = [Rule("**.weight", triangular), Rule("**.bias", torch.Tensor.normal_)]

    def made(order: str, seed: int = 3) -> Any:
        model = nn.ModuleDict({name: nn.Linear(5, 7) for name in order})
        initialize(model, rules, seed=seed)
        return model

    model = nn.ModuleDict({"a": nn.Linear(5, 7)})
    before = torch.get_rng_state()
    initialize(model, rules, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    one, other = made("abc"), made("cab")
    for name in "abc":
        assert torch.equal(one[name].weight, other[name].weight)
        assert torch.equal(one[name].bias, other[name].bias)
    assert not torch.equal(one["a"].weight, one["b"].weight)
    assert not torch.equal(one["a"].weight, made("a", seed=4)["a"].weight)


def test_its_values_are_those_of_torchs_generator_for_the_name() -> None:
    """An oracle that is written from the page on the stream: the first 8 bytes of the key of draw 4."""
    import hashlib
    import struct

    model = nn.Linear(5, 7)
    initialize(model, Rule("weight", triangular), seed=11)
    message = b"torchinit-stream-1\0fill\0" + struct.pack("<QQ", 11, 4) + b"weight"
    state = int.from_bytes(hashlib.blake2b(message, digest_size=16).digest()[:8], "little")
    expected = torch.empty(7, 5)
    with torch.random.fork_rng():
        torch.manual_seed(state)
        triangular(expected)
    assert torch.equal(model.weight, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64])
def test_with_a_seed_narrow_sites_are_wide_ones_rounded(dtype: torch.dtype) -> None:
    def made(dtype: torch.dtype) -> Tensor:
        model = nn.Linear(6, 5, dtype=dtype)
        initialize(model, Rule("weight", torch.Tensor.normal_), seed=1)
        return model.weight.detach()

    wide = torch.float32 if dtype.itemsize < 4 else dtype
    assert torch.equal(made(dtype), made(wide).to(dtype))


@pytest.mark.parametrize("dim", [0, 1])
def test_each_rank_keeps_its_part_of_the_whole(dim: int) -> None:
    from torch.distributed.tensor import DTensor, Shard

    whole = nn.Linear(5, 7)
    rule = Rule("weight", triangular)
    initialize(whole, rule, seed=2)
    for rank, mesh in enumerate(each_rank(3)):
        parts = whole.weight.detach().chunk(3, dim)
        model = nn.Linear(5, 7)
        local = torch.zeros_like(parts[rank]) if rank < len(parts) else torch.zeros(0, 5)
        model.weight = nn.Parameter(local_of(local, mesh, Shard(dim), 7, 5))
        run(make_plan(sites(model), [rule]), local_shards(model), Keyed(2))
        assert isinstance(model.weight, DTensor)
        assert torch.equal(model.weight.to_local(), parts[rank])


def test_the_blocks_of_a_fused_weight_are_drawn_apart() -> None:
    model = nn.Linear(4, 12)
    initialize(model, Rule("weight", Blocks(triangular, 3)), seed=0)  # type: ignore[arg-type]
    blocks = model.weight.detach().chunk(3)
    assert all(torch.equal(block, block.tril()) for block in blocks)
    assert not torch.equal(blocks[0], blocks[1]) and not torch.equal(blocks[1], blocks[2])
    alone = nn.Linear(4, 4)
    initialize(alone, Rule("weight", triangular), seed=0)
    assert torch.equal(blocks[0], alone.weight)


def test_a_padding_row_stays_zero() -> None:
    model = nn.Embedding(5, 3, padding_idx=1)
    report = initialize(model, Rule("weight", Ramp()), seed=0)
    assert report["weight"].fill == "code: tests.initializers.test_functions.Ramp, row 1 zero"
    assert model.weight[1].tolist() == [0, 0, 0] and model.weight[2].all()
    assert isinstance(plan(model, Rule("weight", Ramp()))["weight"].fill, Padded)


def test_tied_weights_get_one_value() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    model["head"].weight = model["table"].weight
    assert len(initialize(model, Rule("**.weight", Ramp()), seed=0)) == 1


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.fill_(2.0)


def test_an_object_that_has_no_hash() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    model["head"].weight = model["table"].weight
    initialize(model, Rule("**", Unhashable()), seed=0).assert_ok()


def returns(value: object) -> Callable[[Tensor], object]:
    return lambda _: value


def in_part(tensor: Tensor) -> None:
    tensor[0].zero_()


def narrow(tensor: Tensor) -> None:
    tensor.zero_()
    tensor.resize_(2, 3)


def refuses(tensor: Tensor) -> None:
    tensor.zero_()
    raise KeyError("no such luck")


WRONG: list[tuple[Any, str]] = [
    (in_part, "code: tests.initializers.test_functions.in_part left 8 of 12 elements as they were, or made them NaN"),
    (lambda tensor: tensor.mul_(0.5), "left 12 of 12 elements as they were, or made them NaN"),
    (lambda tensor: None, "left 12 of 12 elements as they were, or made them NaN"),
    (lambda tensor: tensor.fill_(torch.nan), "left 12 of 12 elements as they were, or made them NaN"),
    (returns(0.5), "returned 0.5, where it should fill the tensor or return one"),
    (returns("text"), "returned 'text', where it should fill the tensor or return one"),
    (returns(torch.ones(4, 3)), r"made a tensor of shape (4, 3) on cpu, not one of (3, 4) with values"),
    (returns(torch.ones(())), r"made a tensor of shape () on cpu, not one of (3, 4)"),
    (narrow, r"made a tensor of shape (2, 3) on cpu, not one of (3, 4)"),
    (returns(torch.ones(3, 4, device="meta")), r"made a tensor of shape (3, 4) on meta, not one of (3, 4) with values"),
    (returns(torch.ones(3, 4, dtype=torch.complex64)), "made complex numbers, and the site holds real ones"),
    (refuses, "raised KeyError: 'no such luck'"),
]


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("function", "text"), WRONG)
def test_what_code_may_do_wrong(function: Any, text: str, seed: int | None) -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    with pytest.raises(RunError) as caught:
        initialize(model, Rule("weight", function), seed=seed)
    assert text in str(caught.value)
    assert str(caught.value).startswith("weight: code: ")
    assert str(caught.value).endswith("; nothing of it was written")
    assert torch.equal(model.weight, before)


def test_numbers_that_the_site_cannot_hold() -> None:
    model = nn.Linear(4, 3, dtype=torch.float16)
    with pytest.raises(RunError, match=r"made numbers up to 70000, beyond the largest of torch\.float16"):
        initialize(model, Rule("weight", lambda tensor: tensor.fill_(7e4)), seed=0)
    initialize(model, Rule("weight", lambda tensor: tensor.fill_(-torch.inf)), seed=0)  # meant, as a mask
    assert model.weight.isneginf().all()


def test_code_is_not_data() -> None:
    made = plan(nn.Linear(3, 4), Rule("weight", triangular))
    with pytest.raises(ConfigError, match=r"code: tests\.\S+\.triangular cannot be written as data"):
        made.to_json()
    with pytest.raises(ConfigError, match=r"code: lambda at test_functions\.py:\d+ cannot be written as data"):
        recipe_to_data((Rule("weight", lambda tensor: tensor.zero_()),))
    twin = plan(nn.Linear(3, 4), Rule("weight", init.xavier_normal_))
    assert Plan.from_json(twin.to_json()) == twin
    assert json.loads(twin.to_json())["steps"][0]["rule"]["init"]["type"] == "Xavier"


def test_two_functions_of_one_place_are_not_one() -> None:
    first, second = (Code(returns(torch.ones(1) * number)) for number in (1, 2))
    assert hash(first) == hash(second) and first != second
    assert not plan(nn.Linear(2, 2), Rule("weight", Ramp())).diff(plan(nn.Linear(2, 2), Rule(Leaf("weight"), Ramp())))
    assert Rule(["a.weight", "b.weight"], Ones()).where == Name("a.weight", "b.weight")
