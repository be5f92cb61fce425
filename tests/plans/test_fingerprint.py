"""Fingerprints: the same for the same bits, whatever the model is wrapped in, and another one for any other."""

from __future__ import annotations

from hashlib import blake2b
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from tests.strategies import LAYERS
from torchinit import RunError, fingerprint, sites
from torchinit.model import Shard
from torchinit.plans import Change, Fingerprint
from torchinit.plans.digest import digest


class Tied(nn.Module):
    """A table and a head that are one, and a mask that no state dict holds."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool), persistent=False)


def test_a_site_is_hashed_with_shape_and_dtype() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    first, second = digest(Shard.whole("weight", weight))
    text = f"torchinit-fingerprint-1\0torch.float32 (2, 3) {first:016x} {second:016x}"
    assert fingerprint({"weight": weight}).sites == {"weight": blake2b(text.encode(), digest_size=16).hexdigest()}
    zeros = [torch.zeros(6), torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(0), torch.zeros(0, 3)]
    zeros += [torch.zeros(6, dtype=torch.int32), torch.zeros(6, dtype=torch.float64)]
    assert len({fingerprint({"w": each}).total for each in zeros}) == len(zeros)


def test_the_version_keeps_its_values() -> None:
    values = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}
    assert fingerprint(values).total == "8671ebe201b41ced35013aa93b6a9681"


@pytest.mark.parametrize("kind", sorted(LAYERS))
@given(data=st.data())
def test_any_flipped_bit_names_its_site(kind: str, data: st.DataObject) -> None:
    """Every parameter and buffer of many layers, the bits of any element."""
    model = LAYERS[kind]()
    before = fingerprint(model)
    assert set(before.sites) == {site.name for site in sites(model)}
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    name = data.draw(st.sampled_from([name for name, tensor in tensors.items() if tensor.numel()]))
    raw = tensors[name].detach().view(-1).view(torch.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    after = fingerprint(model)
    assert [(change.name, change.verb) for change in before.diff(after)] == [(name, "changed")]
    assert before.total != after.total


def test_wrappers_and_the_order_of_layers_do_not_show() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    turned = nn.Sequential()
    turned.add_module("1", model[1])
    turned.add_module("0", model[0])
    wrapped = cast("nn.Module", torch.compile(nn.DataParallel(model), backend="eager"))
    prints = [fingerprint(each) for each in (model, turned, wrapped, model.state_dict(), wrapped.state_dict())]
    assert {each.total for each in prints} == {prints[0].total}
    assert all(prints[0].diff(each) == () for each in prints)


def test_strides_do_not_show() -> None:
    model = nn.Conv2d(4, 8, 3)
    before = fingerprint(model)
    model.weight.data = model.weight.data.contiguous(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    assert fingerprint(model) == before


def test_a_tied_tensor_counts_once() -> None:
    model = Tied()
    found = fingerprint(model)
    assert set(found.sites) == {"embed.weight", "mask"}
    assert found.aliases == {"head.weight": "embed.weight"}
    assert found.of("head.weight") == found.of("embed.weight")
    assert found.of("tail.weight") is None


def test_a_tie_that_is_broken_is_a_difference_only_when_the_bits_are() -> None:
    model, loose = Tied(), Tied(tied=False)
    loose.load_state_dict(model.state_dict())
    one, other = fingerprint(model), fingerprint(loose)
    assert one.diff(other) == other.diff(one) == ()
    with torch.no_grad():
        loose.head.weight[0, 0] += 1
    (change,) = one.diff(fingerprint(loose))
    assert change.name == "head.weight"


def test_buffers_that_are_in_no_file() -> None:
    model = Tied()
    found, saved = fingerprint(model), fingerprint(model.state_dict())
    assert found.transient == ("mask",)
    assert found.diff(saved) == (Change("mask", "removed", before=found.sites["mask"]),)
    assert saved.diff(found) == (Change("mask", "added", after=found.sites["mask"]),)
    assert found.persistent.diff(saved.persistent) == ()
    assert found.persistent.aliases == found.aliases


def test_parametrized_tensors_stand_for_what_they_are_computed_from() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)))
    found = fingerprint(model)
    assert set(found.sites) == {"0.weight", "0.bias"}
    assert found == fingerprint(model.state_dict())
    with torch.no_grad():
        model.get_parameter("0.parametrizations.weight.original0").mul_(2)
    assert [change.name for change in found.diff(fingerprint(model))] == ["0.weight"]


def test_what_is_no_tensor_in_a_state_dict_is_no_site() -> None:
    assert set(fingerprint({"weight": torch.ones(2), "_extra_state": {"step": 3}}).sites) == {"weight"}  # type: ignore[dict-item]


def test_json_goes_there_and_back() -> None:
    found = fingerprint(Tied())
    assert Fingerprint.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", r"this is not a fingerprint: it must be a table, but is \[\]"),
        ('{"sites": []}', r"3 mistakes in the fingerprint\n  sites: must be a table, but got \[\]"),
        (
            '{"sites": {}, "fingerprint": "torchinit-fingerprint-9"}',
            "fingerprint: must be 'torchinit-fingerprint-1', but got 'torchinit-fingerprint-9'",
        ),
        ('{"sites": {}, "fingerprint": "torchinit-fingerprint-1", "total": "00"}', "the fingerprint was changed"),
        ("{", "this is not a fingerprint: Expecting property name"),
    ],
)
def test_json_that_is_no_fingerprint(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Fingerprint.from_json(text)


def test_tensors_without_elements_are_all_named() -> None:
    model = nn.Module()
    model.lazy = nn.LazyLinear(2)
    model.meta = nn.Linear(2, 2, bias=False, device="meta")
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("fine", torch.eye(3))
    with pytest.raises(RunError, match="4 sites without elements to look at") as caught:
        fingerprint(model)
    assert caught.value.problems == (
        "lazy.weight: has no shape yet: run the model once on an example",
        "lazy.bias: has no shape yet: run the model once on an example",
        "meta.weight: is on the meta device",
        "sparse: is a sparse or a quantized tensor",
    )


def test_a_fingerprint_leaves_the_model_alone() -> None:
    model = nn.Linear(2, 3)
    version = model.weight._version
    fingerprint(model)
    assert model.weight._version == version
    assert model.weight.grad is None
