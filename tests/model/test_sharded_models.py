"""Models of distributed tensors: their sites, and a plan carried out on what is here of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.nn.utils.parametrizations import weight_norm

from tests.ranks import each_rank, fake_rank
from torchinit import (
    Constant,
    Kaiming,
    Layer,
    Leaf,
    Name,
    Normal,
    Orthogonal,
    PlanError,
    Rule,
    RunError,
    Uniform,
    initialize,
    sites,
)
from torchinit.initializers import Blocks, Fill, Identity, Sparse
from torchinit.model.dtensor import shards_of
from torchinit.model.shards import Shard as Part
from torchinit.model.storage import entangled, identity, overlaps
from torchinit.noise import Noise
from torchinit.plans import local_shards

STRIDED = _StridedShard(0, split_factor=3)
WAYS: list[list[Placement]] = [[Shard(0)], [Shard(1)], [Replicate()], [STRIDED]]
RULES = [
    Rule(Leaf("weight"), Kaiming()),
    Rule(Leaf("bias"), Uniform(-1, 1)),
    Rule(Name("square.weight"), Orthogonal()),
    Rule(Name("fused.weight"), Blocks(Orthogonal(), parts=2)),
    Rule(Name("eye.weight"), Identity()),
    Rule(Name("few.weight"), Sparse(sparsity=0.5)),
]


class Model(nn.Module):
    """Awkward sizes, a padding row, a tied weight, matrices that are computed whole."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=4)
        self.square = nn.Linear(6, 7)
        self.fused = nn.Linear(5, 10)
        self.eye = nn.Linear(7, 5, bias=False)
        self.few = nn.Linear(3, 9, bias=False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("mask", torch.zeros(3, 3))


def spread_out(model: nn.Module, mesh: DeviceMesh, placements: list[Placement]) -> nn.Module:
    """Every tensor of the model distributed alike, as far as its dimensions go; ties kept."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    fit = [Shard(0) if getattr(each, "dim", 0) >= parameter.dim() else each for each in placements]
                    spread = distribute_tensor(parameter.detach(), mesh, fit, src_data_rank=None)
                    made[id(parameter)] = nn.Parameter(spread)
                module._parameters[name] = made[id(parameter)]
    return model


def box(part: Part) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for at, size in zip(part.start, part.local.shape, strict=True))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("placements", WAYS, ids=str)
def test_each_rank_writes_its_part_of_one_answer(placements: list[Placement], world: int) -> None:
    whole = Model()
    initialize(whole, RULES, seed=3).assert_ok(complete=True)
    expected = dict(whole.named_parameters())
    for mesh in each_rank(world):
        model = spread_out(Model(), mesh, placements)
        before = torch.get_rng_state()
        report = initialize(model, RULES, seed=3).assert_ok(complete=True)
        assert torch.equal(torch.get_rng_state(), before)
        for name, parameter in model.named_parameters():
            for part in shards_of(name, parameter):
                assert torch.equal(part.local, expected[name][box(part)]), name
            assert isinstance(parameter, DTensor)
            assert report[name].bytes == parameter.to_local().numel() * 4
            assert report[name].shape == tuple(expected[name].shape)


def test_a_matrix_is_computed_once_for_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = Orthogonal.compute

    def counted(fill: Orthogonal, part: Part, noise: Noise) -> Tensor:
        calls.append(part)
        return compute(fill, part, noise)

    monkeypatch.setattr(Orthogonal, "compute", counted)
    with fake_rank(0, 2):
        model = spread_out(nn.Sequential(nn.Linear(12, 12, bias=False)), DeviceMesh("cpu", [0, 1]), [STRIDED])
        assert len(local_shards(model)["0.weight"]) == 3
        initialize(model, Rule(Leaf("weight"), Orthogonal()), seed=0)
    assert len(calls) == 1


def test_the_sites_are_those_of_the_whole_model() -> None:
    whole = sites(Model())
    for mesh in each_rank(4):
        assert sites(spread_out(Model(), mesh, [Shard(0)])) == whole


@pytest.mark.parametrize("placement", [Shard(0), Replicate()])
@pytest.mark.parametrize("init", [Constant(1.0), Normal()], ids=str)
def test_without_a_seed_nothing_is_written(placement: Placement, init: Fill) -> None:
    with fake_rank(1, 2):
        model = spread_out(nn.Sequential(nn.Linear(4, 4)), DeviceMesh("cpu", [0, 1]), [placement])
        before = [local.to_local().clone() for local in model.parameters() if isinstance(local, DTensor)]
        with pytest.raises(RunError, match=r"0\.weight: (only part|other ranks hold copies).*needs a seed: give one"):
            initialize(model, Rule(Name("**"), init))
        after = [local.to_local() for local in model.parameters() if isinstance(local, DTensor)]
        assert all(map(torch.equal, before, after))


def test_a_rank_outside_of_the_mesh_writes_nothing() -> None:
    with fake_rank(3, 4):
        mesh = DeviceMesh("cpu", [0, 1], _init_backend=False)
        layer = nn.Linear(2, 4, bias=False)
        spread = DTensor.from_local(
            torch.zeros(2, 2), mesh, [Shard(0)], run_check=False, shape=torch.Size([4, 2]), stride=(2, 1)
        )
        layer.weight = nn.Parameter(spread)
        report = initialize(layer, Rule(Leaf("weight"), Orthogonal()), seed=0)
        assert report["weight"].measured is None
        assert spread.to_local().count_nonzero() == 0


def test_a_parametrized_weight_takes_its_values_distributed() -> None:
    with fake_rank(0, 1):
        layer = spread_out(nn.Sequential(nn.Linear(3, 4)), DeviceMesh("cpu", [0]), [Shard(0)])
        weight_norm(layer[0])  # type: ignore[index]
        if torch.__version__ < "2.12" and not hasattr(layer[0].parametrizations.weight, "original0"):  # type: ignore[index]
            pytest.skip("this torch has no norm_except_dim of a DTensor, and leaves weight_norm half done")
        report = initialize(layer, Rule(Layer(nn.Linear) & Leaf("weight"), Normal()), seed=0).assert_ok()
        plain = nn.Sequential(nn.Linear(3, 4))
        initialize(plain, Rule(Leaf("weight"), Normal()), seed=0)
        made: Tensor = layer[0].weight.to_local()  # type: ignore[index]
        torch.testing.assert_close(made, plain[0].weight)
        assert report["0.weight"].notes == ()


@pytest.mark.parametrize("names", [True, False])
def test_what_fsdp1_has_flattened_is_refused(names: bool) -> None:
    with fake_rank(1, 2):
        model = FullyShardedDataParallel(
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), use_orig_params=names, device_id=torch.device("cpu")
        )
        assert {site.state for site in sites(model)} == {"flat"}
        before = [each.detach().clone() for each in model.parameters()]
        with pytest.raises(PlanError, match=r"is a piece of what FSDP1 has flattened: give values before it wraps"):
            initialize(model, Rule(Name("**"), Normal()), seed=0)
        assert all(map(torch.equal, before, model.parameters()))


# -- memory ---------------------------------------------------------------------------------------


def test_two_wrappers_of_one_local_part_are_one_tensor() -> None:
    with fake_rank(0, 2):
        spread = distribute_tensor(torch.zeros(4, 2), DeviceMesh("cpu", [0, 1]), [Shard(0)], src_data_rank=None)
        assert identity(nn.Parameter(spread)) == identity(nn.Parameter(spread)) == identity(spread)
        assert identity(spread) != identity(spread.clone())
        assert identity(spread) != identity(spread.to_local())


def test_parts_that_lie_in_each_other() -> None:
    with fake_rank(0, 2):
        mesh, memory = DeviceMesh("cpu", [0, 1]), torch.zeros(4, 2)
        tensors: dict[str, Tensor] = {
            name: DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
            for name, local in {"a": memory[:3], "b": memory[2:], "c": torch.zeros(2, 2)}.items()
        }
        assert entangled(tensors) == {"a": ("b",), "b": ("a",)}
        expanded = DTensor.from_local(torch.zeros(1, 2).expand(3, 2), mesh, [Shard(0)], run_check=False)
        assert overlaps(expanded) and not overlaps(tensors["a"])
