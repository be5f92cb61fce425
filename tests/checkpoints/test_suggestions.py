"""Suggestions: what is offered for a file that does not fit does what it says, and is sure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.strategies import names
from torchinit import CheckpointError, Name, Normal, Pretrained, Rule, initialize, plan
from torchinit.api import draft
from torchinit.checkpoints import adapters
from torchinit.checkpoints.guesses import Shapes, guess
from torchinit.checkpoints.key_mapping import KeyMap
from torchinit.checkpoints.suggestions import by_case, suggest_for_missing, suggest_for_shape
from torchinit.mmengine import load_checkpoint

Size = tuple[int, ...]
QKV = ("q_proj", "k_proj", "v_proj")
FUSED: dict[str, Size] = {
    "h.0.qkv.weight": (8, 4),
    "h.0.qkv.bias": (8,),
    "h.1.qkv.weight": (8, 4),
    "h.1.qkv.bias": (8,),
}
APART: dict[str, Size] = {
    f"h.{block}.{part}.{leaf}": (rows, 4)[: 2 if leaf == "weight" else 1]
    for block in range(2)
    for part, rows in zip(QKV, (4, 2, 2), strict=True)
    for leaf in ("weight", "bias")
}
EXPERTS: dict[str, Size] = {f"experts.{n}.{part}.weight": (6, 4) for n in range(3) for part in ("w1", "w3")}
EXPERTS |= {f"experts.{n}.w2.weight": (4, 6) for n in range(3)}
STACKS: dict[str, Size] = {"experts.gate_up": (3, 12, 4), "experts.down": (3, 4, 6)}
HEAD: dict[str, Size] = {"attn.in_proj_weight": (12, 4), "attn.in_proj_bias": (12,)}
HEADS: dict[str, Size] = {f"attn.{part}.weight": (4, 4) for part in "qkv"} | {
    f"attn.{part}.bias": (4,) for part in "qkv"
}


class Net(nn.Module):
    """Parameters of these names and shapes, and one that every file has."""

    def __init__(self, shapes: Mapping[str, Size]) -> None:
        super().__init__()
        for name, shape in {**shapes, "norm": (2,)}.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(leaf, nn.Parameter(torch.randn(shape)))


@pytest.mark.parametrize(
    ("model", "file", "number"),
    [
        (FUSED, APART, 2),
        (APART, FUSED, 6),
        (STACKS, EXPERTS, 2),
        ({f"experts.{n}.w2.weight": (4, 6) for n in range(3)}, {"experts.down": (3, 4, 6)}, 1),
        (HEAD, HEADS, 2),
    ],
)
def test_an_offer_that_is_taken_loads_everything(
    model: Mapping[str, Size], file: Mapping[str, Size], number: int
) -> None:
    net, state = Net(model), Net(file).state_dict()
    with pytest.raises(CheckpointError, match="not in the file"):
        plan(net, Rule(Name("**"), Pretrained(state)))
    made = plan(net, [Rule(Name("**"), Normal(std=1.0)), Rule(Name("**"), Pretrained(state))])
    hints = made.loads[0].hints
    assert len(hints) == number
    adapt: dict[str, adapters.Adapter] = {}
    for hint in hints:
        given, _, told = hint.removeprefix("with adapt=").rpartition("} ")
        offered = eval(given + "}", vars(adapters))
        assert told.endswith(" more would be found")
        adapt |= offered
    account = initialize(net, Rule(Name("**"), Pretrained(state, adapt=adapt))).loads[0]
    assert account.complete
    assert sum(int(hint.rpartition("} ")[2].split()[0]) for hint in hints) == len(account.adapted) == len(model)


@pytest.mark.parametrize(
    ("missing", "spare"),
    [
        (FUSED, {}),
        ({"h.0.qkv.weight": (9, 4)}, APART),
        ({"h.0.qkv.weight": (8, 4)}, {"h.1.q.weight": (4, 4), "h.0.k.weight": (2, 4), "h.0.v.weight": (2, 4)}),
        # Two stacks of one shape: which is meant, nobody can tell.
        ({"experts.up": (3, 6, 4)}, EXPERTS),
        # A table is no stack of these: there are fewer of them than rows.
        ({f"h.{n}.scale": (4,) for n in range(2)}, {"h.table": (9, 4)}),
        # Two of the three are there already.
        ({"h.0.q_proj.weight": (4, 4)}, {"h.0.qkv.weight": (8, 4)}),
        ({"weight": (3,), "": (1,)}, {"0": (3,), "a": ()}),
    ],
)
def test_what_is_not_sure_is_not_offered(missing: Mapping[str, Size], spare: Mapping[str, Size]) -> None:
    assert suggest_for_missing(missing, spare) == []


def test_names_in_their_thousands_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = adapters.Unstack, list[adapters.Adapter]()

    def unstack(whole: str, parts: str) -> adapters.Adapter:
        made.append(real(whole, parts))
        return made[-1]

    monkeypatch.setattr(adapters, "Unstack", unstack)
    missing = {f"h.{n}.experts.{m}.w": (4,) for n in range(20) for m in range(20)}
    assert suggest_for_missing(missing, {f"h.{n}.mlp.{m}.w": (20, 4) for n in range(20) for m in range(20)}) == []
    assert len(made) == 2 * len(missing)  # and not one for each pair of names


@pytest.mark.parametrize(
    ("seen", "shape", "names"),
    [
        ((64, 3, 7, 7), (64, 4, 7, 7), "InputChannels"),
        ((64, 3, 7, 7), (64, 3, 5, 7, 7), "Inflate"),
        ((768, 3, 16, 16), (768, 3, 8, 8), "ResizePatches"),
        ((768, 2304), (2304, 768), "Transpose"),
        ((3, 3, 16, 32), (32, 16, 3, 3), "Transpose(axes=(3, 2, 0, 1))"),
        ((8, 64, 96), (8, 96, 64), "Transpose(axes=(0, 2, 1))"),
        ((1, 197, 768), (1, 577, 768), "ResizePositions"),
        ((1, 196, 768), (1, 576, 768), "ResizePositions(prefix=0)"),
        ((1, 201, 768), (1, 581, 768), "ResizePositions(prefix=5)"),
        ((169, 4), (529, 4), "ResizeRelativeBias, ResizeVocabulary, Labels or Drop"),
        ((732, 12), (2212, 12), "ResizeRelativeBias(extra=3), ResizeVocabulary, Labels or Drop"),
        ((1000,), (10,), "ResizeVocabulary, Rows, Labels or Drop"),
        ((10,), (1000,), "ResizeVocabulary, Labels or Drop"),
        ((512, 512), (128, 512), "ResizeVocabulary, Rows, Labels or Drop"),
    ],
)
def test_what_would_do(seen: tuple[int, ...], shape: tuple[int, ...], names: str) -> None:
    assert suggest_for_shape(seen, shape) == f"; {names} can adapt it"


@pytest.mark.parametrize(
    ("seen", "shape", "name", "told"),
    [
        ((50, 768), (197, 768), "embeddings.position_embedding.weight", "ResizePositions"),
        ((512, 512), (128, 512), "model.layers.0.self_attn.k_proj.weight", "PoolHeads"),
        ((512,), (128,), "h.0.value.bias", "PoolHeads"),
        ((512, 512), (128, 512), "layers.0.attention.wv.weight", "PoolHeads"),
        ((512, 512), (384, 512), "k_proj.weight", "ResizeVocabulary, Rows, Labels or Drop"),
        ((512, 512), (128, 512), "q_proj.weight", "ResizeVocabulary, Rows, Labels or Drop"),
    ],
)
def test_what_would_do_by_the_name(seen: tuple[int, ...], shape: tuple[int, ...], name: str, told: str) -> None:
    assert suggest_for_shape(seen, shape, name) == f"; {told} can adapt it"


@pytest.mark.parametrize(
    ("seen", "shape"), [((), (3,)), ((3,), ()), ((4, 5), (6, 7)), ((2, 3, 4), (5, 3)), ((4, 5), (4, 7))]
)
def test_where_nothing_would(seen: tuple[int, ...], shape: tuple[int, ...]) -> None:
    for name in ("", "k_proj.weight", "pos_embed"):
        assert suggest_for_shape(seen, shape, name) == ""


MODEL = {"stem.weight": (4, 3), "stem.bias": (4,), "head.weight": (2, 4)}


def moved(old: str, new: str) -> dict[str, tuple[int, ...]]:
    return {new + key.removeprefix(old): shape for key, shape in MODEL.items() if key.startswith(old)}


GUESSES = [
    (moved("", "backbone."), "with prefix='backbone.' 3 of 3 match"),
    (moved("", "model.net."), "with prefix='model.net.' 3 of 3 match"),
    (moved("stem.", ""), "with rename=[['^', 'stem.']] 2 of 3 match"),
    (moved("stem.", "trunk."), "with rename=[['^trunk[.]', 'stem.']] 2 of 3 match"),
    ({**moved("stem.", "Stem."), **moved("head.", "head.")}, "with rename=[['^Stem[.]', 'stem.']] 3 of 3 match"),
    ({**moved("stem.", "a.stem."), **moved("head.", "head.")}, "with rename=[['^a[.]', '']] 3 of 3 match"),
    ({**moved("", "a."), **moved("stem.", "b.stem.")}, "with prefix='a.' 3 of 3 match"),
    (moved("", "module.net._orig_mod."), "with prefix='net.' 3 of 3 match"),
    (moved("", "a-b(c."), "with prefix='a-b(c.' 3 of 3 match"),
]


@pytest.mark.parametrize(("keys", "text"), GUESSES)
def test_guesses_come_with_their_proof(keys: dict[str, tuple[int, ...]], text: str) -> None:
    assert str(guess(MODEL, keys, 0)) == text


def test_a_guess_must_gain_something_and_fit_in_shape() -> None:
    assert guess(MODEL, MODEL, 3) is None
    assert guess(MODEL, {"net.stem.weight": (9, 9)}, 0) is None
    assert guess(MODEL, {}, 0) is None


def test_old_names_of_layer_norms() -> None:
    model = {"norm.weight": (2,), "norm.bias": (2,), "fc.bias": (3,)}
    found = guess(model, {"norm.gamma": (2,), "norm.beta": (2,), "fc.bias": (3,)}, 1)
    assert str(found) == "with rename=[['[.]gamma$', '.weight'], ['[.]beta$', '.bias']] 3 of 3 match"
    found = guess(model, {"bert.norm.gamma": (2,), "bert.norm.beta": (2,), "bert.fc.bias": (3,)}, 0)
    assert str(found) == "with prefix='bert.', rename=[['[.]gamma$', '.weight'], ['[.]beta$', '.bias']] 3 of 3 match"


def test_next_to_nothing_is_no_guess() -> None:
    model = {f"block{n}.weight": (n, 1) for n in range(50)}
    other = {f"layer{n}.kernel": (n, 2) for n in range(50)} | {"fc.weight": (7, 1)}
    assert guess(model, other, 0) is None


shapes = st.dictionaries(names(), st.sampled_from([(1,), (2,), (2, 3)]), min_size=1, max_size=8)


@given(shapes, shapes, st.sampled_from(["", "net.", "module.net.", "a.b."]), st.sampled_from(["", "trunk.", "b."]))
def test_a_guess_keeps_its_promise(model: Shapes, other: Shapes, old: str, new: str) -> None:
    keys = {**other, **{f"{old}{name.removeprefix(new)}": shape for name, shape in model.items()}}
    found = guess(model, keys, 0)
    if found is not None:
        held = KeyMap(found.prefix, found.rename).apply(keys)
        fitting = [
            name for name, key in held.key_of.items() if model.get(name) == keys[key] and name not in held.clashes
        ]
        assert len(fitting) == found.matching > 0
        assert found.wanted == len(model)


def test_a_guess_for_thousands_of_experts_asks_a_sample() -> None:
    tails = [
        f"layers.{layer}.experts.{expert}.w{n}.weight" for layer in range(8) for expert in range(64) for n in "123"
    ]
    model = dict.fromkeys(tails, (4, 4))
    found = guess(model, {f"model.{name}": (4, 4) for name in tails}, 0)
    assert str(found) == "with prefix='model.' 1536 of 1536 match"


@given(st.sets(names(), min_size=1, max_size=8), names())
def test_a_prefix_that_all_keys_have_is_found(model: set[str], prefix: str) -> None:
    wanted = {name: (number,) for number, name in enumerate(sorted(model))}
    keys = {f"{prefix}.{name}": shape for name, shape in wanted.items()}
    if prefix.count(".") < 3:
        found = guess(wanted, keys, 0)
        assert found is not None
        assert found.matching == len(wanted)


def test_by_case() -> None:
    assert by_case({"a.Weight": (1,)}, {"a.weight": (1,)}) == ("a.Weight", "a.weight")
    assert by_case({"a.weight": (1,)}, {"a.weight": (1,)}) is None


class Vision(nn.Module):
    """A table of positions and layers whose weights are like it in shape."""

    def __init__(self, tokens: int, channels: int, width: int = 8) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, 8))
        self.conv1d = nn.Conv1d(channels, 4, 3)
        self.up = nn.ConvTranspose2d(channels, 4, 3)
        self.norm = nn.LayerNorm(width)
        self.mask = nn.Parameter(torch.randn(1, channels, 8))
        self.bilinear = nn.Bilinear(channels, 4, 3)


def test_offers_come_from_names_and_structure() -> None:
    account = draft(Vision(201, 5, 9), Rule(Name("**"), Pretrained(Vision(197, 3)))).loads[0]
    offers = {site.site: site.why.partition("; ")[2] for site in account.mismatched}
    assert offers == {
        "pos_embed": "ResizePositions(prefix=1, site_prefix=5) can adapt it",
        "conv1d.weight": "InputChannels can adapt it",
        "up.weight": "InputChannels(axis=0) can adapt it",
        "norm.weight": "",
        "norm.bias": "",
        "mask": "",
        "bilinear.weight": "",
    }


@pytest.mark.parametrize(
    ("stored", "shape", "offer"),
    [
        (197, 201, "ResizePositions(prefix=1, site_prefix=5)"),
        (198, 197, "ResizePositions(prefix=2, site_prefix=1)"),
        (197, 196, "ResizePositions(prefix=1, site_prefix=0)"),
        (196, 200, "ResizePositions(prefix=0, site_prefix=4)"),
        (197, 577, "ResizePositions"),
        (197, 581, "ResizePositions(prefix=1, site_prefix=5)"),
    ],
)
def test_special_tokens_that_would_leave_squares(stored: int, shape: int, offer: str) -> None:
    for name in ("pos_embed", "embeddings.position_embeddings", "vit.positional_embedding"):
        assert suggest_for_shape((1, stored, 8), (1, shape, 8), name) == f"; {offer} can adapt it"
    table = {"pos_embed": torch.randn(1, stored, 8)}
    net = nn.ParameterDict({"pos_embed": nn.Parameter(torch.zeros(1, shape, 8))})
    adapter = eval(offer + ("" if ")" in offer else "()"), vars(adapters))
    assert initialize(net, Rule(Name("**"), Pretrained(table, adapt={"pos_embed": adapter}))).loads[0].complete


@pytest.mark.parametrize("name", ["decompose.weight", "post_norm.weight", "position_ids", "compose"])
def test_what_only_sounds_like_positions(name: str) -> None:
    assert "ResizePositions" not in suggest_for_shape((1, 197), (1, 201), name)


def sequence(kind: str) -> dict[str, Size]:
    """Names of blocks, with or without parts in the middle."""
    names: dict[str, Size] = {}
    for block in range(4):
        for part, shape in (("q", (4, 3)), ("k", (4, 2)), ("out", (3, 4))):
            middle = {"plain": part, "inserted": f"{part}.base_layer", "deep": f"a.b.c.{part}", "other": f"x.{part}"}
            names |= {
                f"model.layers.{block}.attn.{middle[kind]}.{leaf}": shape[: 3 - len(leaf) // 3]
                for leaf in ("weight", "b")
            }
    return names | {"model.norm.weight": (9,)}


@pytest.mark.parametrize(
    ("model", "file"),
    [(a, b) for a in ("plain", "inserted", "deep", "other") for b in ("plain", "inserted", "deep", "other") if a != b],
)
def test_parts_in_the_middle_are_found_and_proven(model: str, file: str) -> None:
    wanted, keys = sequence(model), sequence(file)
    found = guess(wanted, keys, 1)
    assert found is not None
    assert found.matching == len(wanted) == found.wanted
    assert not found.prefix
    names = KeyMap(found.prefix, found.rename).apply(keys)
    assert {name: keys[key] for name, key in names.key_of.items()} == wanted


MIDDLES = [
    ({f"{n}.conv.weight": (n, 1) for n in range(6)}, {f"{n}.weight": (n, 1) for n in range(6)}),
    ({f"net.{n}.weight": (n, 1) for n in range(6)}, {f"net.{n}.0.1.weight": (n, 1) for n in range(6)}),
    ({f"a.{n}.scale": (n, 1) for n in range(6)}, {f"a.{n}.gain": (n, 1) for n in range(6)}),
    (
        {f"a.{n}.{part}.w": (n, 4) for n in range(3) for part in ("query", "key", "value")},
        {f"a.{n}.{part}.w": (n, 4) for n in range(3) for part in "qkv"},
    ),
    # Bundles of peft: everything lies deeper, and some layers are wrapped.
    (
        {f"h.{n}.{part}.w": (n, 4) for n in range(3) for part in "ab"},
        {f"base.model.h.{n}.{part}.w": (n, 4) for n in range(3) for part in ("a.base_layer", "b")},
    ),
    # ... and back: what stays as it is must not be renamed.
    (
        {f"base.model.h.{n}.{part}.w": (n, 4) for n in range(3) for part in ("a.base_layer", "b")},
        {f"h.{n}.{part}.w": (n, 4) for n in range(3) for part in "ab"},
    ),
]


@pytest.mark.parametrize(("model", "file"), MIDDLES)
def test_middles_of_several_kinds(model: dict[str, Size], file: dict[str, Size]) -> None:
    found = guess(model, file, 0)
    assert found is not None
    assert found.matching == len(model)
    assert not found.rivals
    names = KeyMap(found.prefix, found.rename).apply(file)
    assert {name: file[key] for name, key in names.key_of.items()} == model
    # What is offered can be pasted: Python and TOML read it alike.
    arguments = dict(item.split("=", 1) for item in re.split(r", (?=rename)", found.arguments))
    for read in (eval, lambda text: tomllib.loads(f"x = {text}")["x"]):
        assert [tuple(pair) for pair in read(arguments["rename"])] == [*found.rename]


@pytest.mark.parametrize(
    ("model", "file"),
    [
        # Which of x and y is a, no shape and no name tells.
        (
            {f"h.{n}.{part}.w": (n, 4) for n in range(5) for part in "xy"},
            {f"h.{n}.{part}.w": (n, 4) for n in range(5) for part in "ab"},
        ),
        # Two of twelve are less than half.
        ({f"h.a.{n}.w": (n, 1) for n in range(12)}, {f"h.b.{n}.w": (n, 1 + (n > 1)) for n in range(12)}),
        # A direction is not the weight that it makes, nor a mean a bias.
        ({f"h.{n}.weight": (3, 3) for n in range(3)}, {f"h.{n}.weight_v": (3, 3) for n in range(3)}),
        ({f"h.{n}.bias": (3,) for n in range(3)}, {f"h.{n}.running_mean": (3,) for n in range(3)}),
    ],
)
def test_middles_that_are_not_sure(model: dict[str, Size], file: dict[str, Size]) -> None:
    assert guess(model, file, 0) is None


def test_one_layer_is_not_offered_for_another() -> None:
    body = {f"h.{n}.w": (n + 1, 4) for n in range(9)}
    found = guess(
        {f"net.{name}": shape for name, shape in body.items()} | {"head.fc.w": (3, 3)}, body | {"pool.fc.w": (3, 3)}, 0
    )
    assert str(found) == "with rename=[['^', 'net.']] 9 of 10 match"


@pytest.mark.parametrize(
    "parts",
    [
        ("encoder_q", "encoder_k"),
        ("netG", "netD"),
        ("model", "ema"),
        ("actor", "critic"),
        ("encoder", "target_encoder"),
        ("b", "a", "c"),
    ],
)
@pytest.mark.parametrize("where", ["{}.{}", "net.{}.{}", "a.b.c.d.e.{}.x.{}"])
def test_all_that_do_as_well_are_named(parts: tuple[str, ...], where: str) -> None:
    model = {
        where.format("part", name).replace("part.", "" if where == "{}.{}" else "part."): shape
        for name, shape in MODEL.items()
    }
    file = {where.format(part, name): shape for part in parts for name, shape in MODEL.items()}
    found = guess(model, file, 0)
    assert found is not None
    first, *rest = parts
    assert first in found.arguments
    assert len(found.rivals) == len(rest)
    assert all(part in rival for part, rival in zip(rest, found.rivals, strict=True))
    assert str(found).endswith(f" 3 of 3 match, as many with {', '.join(found.rivals)}")


def test_equal_guesses_for_revise_keys_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layer = nn.Linear(2, 2)
    file = {f"{part}.{key}": value for part in ("encoder_q", "encoder_k") for key, value in layer.state_dict().items()}
    torch.save(file, path := tmp_path / "a.pth")
    load_checkpoint(nn.Linear(2, 2), str(path))
    assert (
        "With revise_keys=[['^encoder_q[.]', '']] 2 of 2 match, as many with revise_keys=[['^encoder_k[.]', '']]."
        in caplog.text
    )
