"""The sandbox: what is run there touches nothing, waits for nobody and comes to an end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.knowledge.norms import WIDTH, Activated, Annotated, Gemma, OnePlus, Scale, facts, rms
from tests.knowledge.not_norms import Draws, Endless, Exits, Returns, Twisted
from tests.processes import on_ranks
from tests.ranks import fake_rank
from torchinit import materialize, plan, sites
from torchinit.knowledge.neutral import with_neutral
from torchinit.model import sandbox
from torchinit.model.sandbox import Poison, Refused, Sandbox, answer, poisoned_memory
from torchinit.model.sites import sites as bare_sites


class Counting(Scale):
    """Writes wherever it can."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.seen: list[int] = []
        self.cache: dict[str, Tensor] = {}
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        print("hello")
        self.calls += 1
        self.seen.append(x.dim())
        self.cache["x"] = x
        self.mean.add_(1)  # type: ignore[operator]
        self.weight.data.mul_(1)
        return rms(x) * (1 + self.weight)


def test_nothing_of_the_model_is_touched(capsys: pytest.CaptureFixture[str]) -> None:
    norm = Counting()
    called: list[object] = []
    norm.register_forward_hook(lambda *_: called.append("hook"))
    norm.register_forward_pre_hook(lambda *_: called.append("pre-hook"))
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: called.append("everywhere"))
    versions = [tensor._version for tensor in (*norm.parameters(), *norm.buffers())]
    attributes, state = dict(vars(norm)), torch.get_rng_state()
    try:
        assert facts(norm) == {"weight": 0}
    finally:
        everywhere.remove()
    assert vars(norm) == attributes
    assert (norm.calls, norm.seen, norm.cache, norm.training) == (0, [], {}, True)
    assert [tensor._version for tensor in (*norm.parameters(), *norm.buffers())] == versions
    assert torch.equal(torch.get_rng_state(), state)
    assert called == []
    assert capsys.readouterr() == ("", "")


def test_settings_of_the_caller_do_not_matter() -> None:
    before = torch.get_default_dtype()
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            model = nn.ModuleDict({"a": Gemma(), "b": Annotated(), "c": Activated()})
        ready = [replace(site, state="ready") for site in bare_sites(model)]
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch._subclasses.FakeTensorMode():
            assert [site.neutral for site in with_neutral(model, ready) if site.kind == "parameter"] == [
                0, 1, 0, 1, 0,
            ]  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(before)


def test_one_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)

    class Hangs(Scale):
        def forward(self, x: Tensor) -> Tensor:
            while True:
                pass

    assert facts(Hangs()) == {"weight": None}


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm = Gemma()
        self.other = OnePlus(WIDTH)
        self.last = nn.LayerNorm(WIDTH)


class Talks(Scale):
    """Tensor parallel: its statistics are those of all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.pow(2).mean(-1, keepdim=True)
        torch.distributed.all_reduce(total)
        return x * torch.rsqrt(total) * self.weight


def sharded(rank: int) -> tuple[str, dict[str, float | None], str]:
    mesh = init_device_mesh("cpu", (2,))
    with torch.device("meta"):
        model = Deep()
    for part in (model.norm, model.other, model.last, model):
        fully_shard(part, mesh=mesh)
    made = plan(model, "general", complete=True)
    report = materialize(model, "general", seed=0)
    report.assert_ok(complete=True)
    talk = {}
    if rank == 0:  # it would wait for the others for ever
        talk = facts(Talks())
    torch.distributed.barrier()
    return made.to_json(), talk, str([step.fill for step in made])


def test_sharded_on_two_ranks_and_alone_it_is_one_plan(tmp_path: Path) -> None:
    (first, talk, fills), (second, _, _) = on_ranks(2, sharded, tmp_path)
    alone = plan(Deep(), "general")
    assert first == second
    assert fills == str([step.fill for step in alone])
    assert [site.neutral for site in sites(Deep())] == [None, 0, 0, 0, 1, 0]
    assert talk == {"weight": None}


# --- what is refused -------------------------------------------------------------------------------------------------


def _run(layer: nn.Module, size: int = WIDTH) -> tuple[Tensor, ...]:
    return Sandbox(layer, {"weight": (size,)})({"weight": 1.0}, torch.ones(2, size))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Endless, "it does not come to an end"),
        (Draws, "it draws random numbers"),
        (Twisted, "it holds on to the model's own tensors"),
        (Returns, "it returns dict"),
    ],
)
def test_what_a_copy_must_not_do_is_refused(layer: type[nn.Module], text: str) -> None:
    with pytest.raises(Refused, match=text):
        _run(layer())


def test_what_is_too_large_is_not_copied() -> None:
    with torch.device("meta"):
        layer = Gemma((1 << 20) + 1)
    with pytest.raises(Refused, match="too large to be copied"):
        _run(layer)


def test_talk_with_other_ranks_is_refused() -> None:
    with fake_rank(0, 2), pytest.raises(Refused, match="it talks with other ranks"):
        _run(Talks())


def test_what_exits_answers_nothing() -> None:
    assert answer(lambda: _run(Exits())) is None


def test_questions_from_several_threads_leave_standard_output_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[dict[str, float | None]] = []
    threads = [threading.Thread(target=lambda: found.append(facts(Counting()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"weight": 0.0}] * 8
    print("still here")
    assert capsys.readouterr().out == "still here\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.complex64])
def test_memory_without_values_is_not_a_number(dtype: torch.dtype) -> None:
    with poisoned_memory():
        made = [
            torch.empty(3, dtype=dtype),
            torch.empty_strided((2, 2), (1, 2), dtype=dtype),
            torch.empty_permuted((2, 2), (1, 0), dtype=dtype),
            torch.empty_like(torch.zeros(2, dtype=dtype)),
            torch.zeros(2, dtype=dtype).new_empty(2),
        ]
        kept = torch.zeros(2, dtype=dtype)
    assert all(torch.view_as_real(one).isnan().any() if one.is_complex() else one.isnan().all() for one in made)
    assert not torch.view_as_real(kept).isnan().any() if kept.is_complex() else not kept.isnan().any()


def test_memory_of_whole_numbers_and_of_a_tensor_that_grows() -> None:
    with poisoned_memory():
        assert torch.empty(2, dtype=torch.int16).tolist() == [32767, 32767]
        assert torch.empty(2, dtype=torch.bool).tolist() == [True, True]
        assert torch.Tensor(2).isnan().all()
        assert torch.ones(2).resize_(4)[:2].tolist() == [1.0, 1.0]
        assert torch.ones(2).resize_(4)[2:].isnan().all()
        assert torch.ones(4).resize_(2).tolist() == [1.0, 1.0]
        assert torch.empty(2, device="meta").is_meta
    with poisoned_memory(Poison(1.5, 0)):
        assert torch.empty(1).tolist() == [1.5]
        assert torch.empty(1, dtype=torch.int64).tolist() == [0]


def test_only_this_threads_code_gets_poison() -> None:
    with poisoned_memory(), ThreadPoolExecutor(1) as pool:
        memory = pool.submit(lambda: torch.empty(1 << 20)).result()
    assert not memory.isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
