"""Checkpoints from a host, from end to end: fetched, checked, planned and loaded, by one process and by several."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from tests.processes import on_ranks
from tests.servers import Host, in_turn, status, whole
from torchinit import CheckpointError, Name, Pretrained, Rule, initialize
from torchinit.checkpoints import open_checkpoint
from torchinit.checkpoints.hub.cache import Pin, read_pins
from torchinit.checkpoints.open import forget
from torchinit.mmengine.checkpoints import load_checkpoint


def weights(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((3, 2), value), "bias": torch.full((3,), value)}


def load(source: str, **options: Any) -> nn.Module:
    """A layer with what the source holds."""
    model = nn.Linear(2, 3)
    forget()
    initialize(model, [Rule(Name("**"), Pretrained(source, **options))], seed=0)
    return model


def test_a_rule_with_a_hash_and_a_lock(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINIT_LOCK", str(tmp_path / "init.lock"))
    body = save(weights(3.0))
    sha256 = hashlib.sha256(body).hexdigest()
    url = host.serve("/a.safetensors", in_turn(whole(body), whole(save(weights(4.0)))))
    model = load(url, sha256=sha256)
    assert all(torch.equal(value, weights(3.0)[name]) for name, value in model.state_dict().items())
    assert read_pins(tmp_path / "init.lock") == {url: Pin(sha256, len(body))}
    monkeypatch.setenv("TORCHINIT_CACHE", str(tmp_path / "other"))  # another machine, after the file has changed
    with pytest.raises(
        CheckpointError, match=rf"(?s)is not the file that was asked for.*wanted sha256 {sha256}.*init\.lock"
    ):
        load(url)
    assert host.hits("/a.safetensors") == 2


def test_an_index_and_its_parts(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINIT_LOCK", str(tmp_path / "init.lock"))
    index = {"weight_map": {"weight": "part-1.safetensors", "bias": "more/part-2.safetensors"}}
    url = host.serve("/m/model.safetensors.index.json", whole(json.dumps(index).encode()))
    for key, name in index["weight_map"].items():
        host.serve(f"/m/{name}", whole(save({key: weights(5.0)[key]})))
    model = load(url)
    assert all(torch.equal(value, weights(5.0)[name]) for name, value in model.state_dict().items())
    assert set(read_pins(tmp_path / "init.lock")) == {
        url,
        *(f"{host.url}/m/{name}" for name in index["weight_map"].values()),
    }


@pytest.mark.parametrize("name", ["../secret.safetensors", "https://evil.org/a", "/etc/passwd", "file:///etc/passwd"])
def test_an_index_that_points_outside(name: str, host: Host) -> None:
    index = {"weight_map": {"weight": name}}
    url = host.serve("/m/model.safetensors.index.json", whole(json.dumps(index).encode()))
    with pytest.raises(CheckpointError, match=r"index\.json names '.*', which is not in its folder"):
        open_checkpoint(url)
    assert len(host.seen) == 1


def test_what_cannot_be_had_is_a_finding_of_the_plan(host: Host) -> None:
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    url = host.serve("/a.pth", status(404))
    with pytest.raises(CheckpointError, match=r"a\.pth: the server says 404: there is no such file"):
        initialize(model, [Rule(Name("**"), Pretrained(url))], seed=0)
    assert torch.equal(model.weight, before)


def loaded_on_rank(
    rank: int, good: str, bad: str, environment: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[str]]:
    """What a rank loads of a file, and what it says of one that is not there, natively and by MMEngine's function."""
    os.environ.update(environment)
    torch.distributed.barrier()
    state = load(good).state_dict()
    told = []
    for way in (load, lambda source: load_checkpoint(nn.Linear(2, 3), source)):
        try:
            way(bad)
        except CheckpointError as error:
            told.append(str(error))
    torch.distributed.barrier()  # which every rank reaches
    return state, told


def test_four_ranks_load_one_download_and_end_with_one_error(
    host: Host, certificate: Path, cache: Path, tmp_path: Path
) -> None:
    good = host.serve("/a.safetensors", whole(save(weights(6.0))))
    bad = host.serve("/b.safetensors", status(404))
    environment = {"TORCHINIT_CACHE": str(cache), "SSL_CERT_FILE": str(certificate), "NO_PROXY": "*"}
    environment["TORCHINIT_PRIVATE_HOSTS"] = "localhost"
    found = on_ranks(4, loaded_on_rank, tmp_path, good, bad, environment)
    assert [type(answer) for answer in found] == [tuple] * 4, found
    for state, (native, face) in found:
        assert all(torch.equal(state[name], value) for name, value in weights(6.0).items())
        assert f"{bad}: the server says 404: there is no such file" in native
        assert face == f"{bad}: the server says 404: there is no such file"
    assert host.hits("/a.safetensors") == 1
