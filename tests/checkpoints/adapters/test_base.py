"""Adapter: plain data, exact reprs, near names; several one after the other in a chain."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F

from torchinit import ConfigError
from torchinit.checkpoints import adapters
from torchinit.checkpoints.adapters import (
    ADAPTERS,
    Adapter,
    BatchNormAffine,
    Chain,
    Dequantize,
    Drop,
    FoldBatchNorm,
    Fuse,
    HyperClone,
    Inflate,
    InputChannels,
    Labels,
    LoRA,
    MergeExperts,
    Net2Wider,
    PoolHeads,
    Rearrange,
    Repeat,
    ResizePatches,
    ResizePositions,
    ResizeRelativeBias,
    ResizeVocabulary,
    RopeOrder,
    Rows,
    Split,
    Stack,
    Transpose,
    Unstack,
    Upcycle,
    UpcycleRouter,
    WeightNorm,
    WeightSelection,
)
from torchinit.checkpoints.key_mapping import numbered, replace_parts
from torchinit.rules.rule import SCHEMA

EVERY: tuple[Adapter, ...] = (
    BatchNormAffine(1e-3),
    Chain((Transpose(), Split("c_attn", ("q", "k", "v")))),
    Dequantize("scale_*", block=64),
    Drop(),
    FoldBatchNorm("conv1", "bn1", bias=True),
    Fuse("qkv", ("q", "k", "v"), groups=12),
    HyperClone((1,), (4, 1, 1), snr=10.0),
    Inflate("centre"),
    InputChannels(),
    InputChannels("repeat", 0),
    Labels(("cat", "dog"), ("dog", "cow"), "mean"),
    LoRA("pissa", 16, scaling=2.0, iterations=4),
    LoRA("default", 8, a="lora_a", b="lora_b", base=""),
    MergeExperts("w1", "experts.*.w1", count=8),
    Net2Wider(seed=3, noise=0.01),
    RopeOrder({"q": 32, "k": 8}),
    PoolHeads(32),
    PoolHeads(32, choose=(0, 16)),
    Rearrange((8, 3, -1), (1, 0, 2)),
    Repeat(),
    ResizePatches(antialias=False),
    ResizePositions(file=(14, 14)),
    ResizeRelativeBias(3, site=(12, 12)),
    ResizeVocabulary(spread=1e-9, seed=7),
    ResizeVocabulary(trained=50257, like={50257: 11, 50258: (25, 13)}),
    RopeOrder(32, "interleaved", 64),
    Rows(),
    Rows((3, 1)),
    Split("qkv", ("q", "k", "v"), (4, 1, 1)),
    Stack("w1", "*.w1", 8),
    Transpose(),
    Transpose((0, 2, 1)),
    Unstack("w1", "*.w1"),
    Upcycle("experts.w1", "w1", hidden=0, granularity=2, scale=2.0, noise=0.01, drop=0.5, seed=3),
    UpcycleRouter("gate", "w1", std=0.01, granularity=2),
    WeightNorm(parametrized=True),
    WeightSelection(),
)


def test_every_registered_adapter_is_here() -> None:
    public = set(adapters.__all__) - {"ADAPTERS", "Adapter", "ReadPlan"}
    assert {type(adapter).__name__ for adapter in EVERY} == set(ADAPTERS) == public


@pytest.mark.parametrize("adapter", EVERY, ids=repr)
def test_there_and_back(adapter: Adapter) -> None:
    data = json.loads(json.dumps(SCHEMA.encode(adapter, Adapter, defaults=False)))
    assert SCHEMA.decode(data, Adapter, "it") == adapter
    assert eval(repr(adapter), vars(adapters)) == adapter
    assert eval(str(adapter), vars(adapters)) == adapter
    assert hash(adapter) == hash(eval(repr(adapter), vars(adapters)))


def test_numbers_as_keys_are_read_from_a_config_and_from_json() -> None:
    """A config in Python has numbers, TOML and JSON have text."""
    expected = ResizeVocabulary(like={10: 3, 11: (1, 2)})
    for like in ({10: 3, 11: [1, 2]}, {"10": 3, "11": [1, 2]}):
        assert SCHEMA.decode({"type": "ResizeVocabulary", "like": like}, Adapter, "it") == expected
    with pytest.raises(ConfigError, match=r"like: has the key 1\.5, which must be text"):
        SCHEMA.decode({"type": "ResizeVocabulary", "like": {1.5: 3}}, Adapter, "it")


@pytest.mark.parametrize(
    ("lists", "adapter"),
    [
        (lambda: Fuse("qkv", ["q", "k"]), Fuse("qkv", ("q", "k"))),  # type: ignore[arg-type]  # as users type them
        (lambda: Split("qkv", ["q", "k"], [2, 1]), Split("qkv", ("q", "k"), (2, 1))),  # type: ignore[arg-type]
        (lambda: Rows([3, 1]), Rows((3, 1))),  # type: ignore[arg-type]
        (lambda: Labels(["a", "b"], ["b"]), Labels(("a", "b"), ("b",))),  # type: ignore[arg-type]
        (lambda: Transpose([0, 2, 1]), Transpose((0, 2, 1))),  # type: ignore[arg-type]
        (lambda: Chain([Transpose(), Rows()]), Chain((Transpose(), Rows()))),  # type: ignore[arg-type]
        (lambda: ResizePositions(site=[4, 6]), ResizePositions(site=(4, 6))),  # type: ignore[arg-type]
    ],
)
def test_lists_are_tuples(lists: Callable[[], Adapter], adapter: Adapter) -> None:
    assert lists() == adapter
    assert hash(lists()) == hash(adapter)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Fuse("qkv", "qkv"), r"^parts must be a list of names, but got 'qkv'$"),  # type: ignore[arg-type]
        (lambda: Split("a", ("b", "c"), 2), r"^sizes must be a list of whole numbers, but got 2$"),  # type: ignore[arg-type]
        (lambda: Labels("cat", "dog"), r"^file must be a list of names, but got 'cat'$"),  # type: ignore[arg-type]
        (lambda: Rows((1.0,)), r"^indices must be a list of whole numbers, but got \(1\.0,\)$"),  # type: ignore[arg-type]
        (lambda: Chain(Rows()), r"^steps must be a list of adapters, but got Rows\("),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_list(make: Callable[[], Adapter], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        make()


def test_every_mistake_in_a_table_of_adapters() -> None:
    data = {"a.*": {"type": "InputChanels"}, "b": {"type": "InputChannels", "how": "summ", "axes": 1}, "c": "Drop"}
    with pytest.raises(ConfigError) as caught:
        SCHEMA.decode(data, Mapping[str, Adapter], "adapt")
    assert caught.value.problems == (
        "['a.*'].type: unknown adapter 'InputChanels'; did you mean 'InputChannels'?",
        "['b'].how: must be one of 'sum', 'repeat', but got 'summ'; did you mean 'sum'?",
        "['b'].axes: InputChannels has no argument 'axes'; did you mean 'axis'?",
        "['c']: must be an adapter, but got 'Drop'",
    )


@pytest.mark.parametrize(
    ("key", "old", "new", "made"),
    [
        ("a.b.c", "b", "x", "a.x.c"),
        ("a.b.c", "b.c", "x", "a.x"),
        ("a.b.c", "a", "x.y", "x.y.b.c"),
        ("a.b.a", "a", "x", "a.b.x"),
        ("ab.b", "b", "x", "ab.x"),
        ("a", "a", "x", "x"),
    ],
)
def test_swapped(key: str, old: str, new: str, made: str) -> None:
    assert replace_parts(key, old, new) == made


@pytest.mark.parametrize(("key", "old"), [("a.b", "c"), ("abcd", "a"), ("a.b", "a.b.c"), ("b.a", "a.b")])
def test_parts_that_are_not_there(key: str, old: str) -> None:
    with pytest.raises(ValueError, match=rf"^'{key}' has no part '{old}'$"):
        replace_parts(key, old, "x")


def test_numbered() -> None:
    assert numbered("h.1.e.3.w", "e.*.w") == (3, "e.3.w")
    assert numbered("h.1.2", "*") == (2, "2")
    with pytest.raises(ValueError, match=r"^'h.e.w' has no part 'e.\*'$"):
        numbered("h.e.w", "e.*")


# --- chains ----------------------------------------------------------------------------------------------------------


def test_one_of_three_from_gpt2() -> None:
    """c_attn keeps (inputs, 3 x outputs); here its key projection is a Linear of its own."""
    fused, tokens = torch.randn(4, 12), torch.randn(5, 4)
    chain = Chain((Transpose(), Split("c_attn", ("q", "k", "v"))))
    assert chain.wants("h.0.attn.k.weight") == ("h.0.attn.c_attn.weight",)
    chain.check([(4, 12)], (4, 4), "h.0.attn.k.weight")
    made = chain.adapt([fused], (4, 4), "h.0.attn.k.weight")
    torch.testing.assert_close(tokens @ made.T, (tokens @ fused)[:, 4:8])


def test_experts_that_are_fused_and_stacked() -> None:
    gates, ups = ([torch.randn(6, 4) for _ in range(3)] for _ in "gu")
    chain = Chain((Fuse("gate_up", ("gate", "up")), Stack("gate_up", "*.gate_up.weight", 3)))
    assert chain.wants("experts.gate_up")[2:4] == ("experts.1.gate.weight", "experts.1.up.weight")
    tensors = [tensor for pair in zip(gates, ups, strict=True) for tensor in pair]
    chain.check([(6, 4)] * 6, (3, 12, 4), "experts.gate_up")
    made = chain.adapt(tensors, (3, 12, 4), "experts.gate_up")
    tokens = torch.randn(5, 4)
    for expert, gate, up in zip(made, gates, ups, strict=True):
        left, right = F.linear(tokens, expert).chunk(2, -1)
        torch.testing.assert_close(left * right, (tokens @ gate.T) * (tokens @ up.T))


def test_the_last_step_gives_what_the_site_asks_for() -> None:
    chain = Chain((Transpose(), Rows()))
    assert chain.makes([(4, 6)], "w") is None
    chain.check([(4, 6)], (2, 4), "w")
    weight = torch.randn(4, 6)
    assert torch.equal(chain.adapt([weight], (2, 4), "w"), weight.T[:2])
    with pytest.raises(ValueError, match=r"^Rows\(\) needs at least 7 rows for a site of \[7, 4\], but got \[6, 4\]$"):
        chain.check([(4, 6)], (7, 4), "w")


def test_drop_in_a_chain_declines() -> None:
    assert Chain((Drop(), Transpose())).wants("w") == ()


def test_a_step_without_a_shape_of_its_own_comes_last() -> None:
    text = r"^InputChannels\(\) makes whatever shape is asked for, so it must be the last of Chain\(\(Input"
    with pytest.raises(ValueError, match=text):
        Chain((InputChannels(), Transpose())).check([(4, 3)], (1, 4), "w")


@pytest.mark.parametrize(
    ("steps", "text"),
    [((), "^a chain needs at least one step$"), ((Chain((Transpose(),)),), "^a chain holds no other chain; write its")],
)
def test_arguments(steps: tuple[Adapter, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Chain(steps)
