"""Traces beside what was really written: every way to write is seen, on the right site, at the right line."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from torchinit import Constant, Leaf, Name, Normal, Orthogonal, Rule, initialize, trace
from torchinit.model import Box
from torchinit.tracing import Trace, Write
from torchinit.tracing.regions import region_of

HERE = __file__.rpartition("/")[2]


def line_of(way: Callable[..., Any]) -> str:
    """The line on which a lambda stands."""
    code = way.__code__
    return f"tests/tracing/{HERE}:{code.co_firstlineno + (way is swap)}"


def swap(tensor: Tensor, other: Tensor) -> None:
    tensor.data = other


KERNEL = (4, 4, 3)
MATRIX = (4, 4)

# torch draws a truncated normal by rejection from 2.12 on; before, it made quantiles of uniform numbers.
TRUNCATED = "uniform_" if "erfinv_" in nn.init._no_grad_trunc_normal_.__code__.co_names else "normal_"

# Each writes its first argument and nothing else; one line each, which the trace must name.
WAYS: dict[str, tuple[tuple[int, ...], Callable[[Any], object], str]] = {
    "uniform_": (MATRIX, lambda p: [nn.init.uniform_(p)], "uniform_"),
    "normal_": (MATRIX, lambda p: [nn.init.normal_(p)], "normal_"),
    "trunc_normal_": (MATRIX, lambda p: [nn.init.trunc_normal_(p)], TRUNCATED),
    "trunc_normal_ in a tail": (MATRIX, lambda p: nn.init.trunc_normal_(p, a=1.5, b=2.0), "uniform_"),
    "constant_": (MATRIX, lambda p: nn.init.constant_(p, 3.0), "fill_"),
    "ones_": (MATRIX, lambda p: [nn.init.ones_(p)], "fill_"),
    "zeros_": (MATRIX, lambda p: [nn.init.zeros_(p)], "zero_"),
    "eye_": (MATRIX, lambda p: [nn.init.eye_(p)], "eye"),
    "dirac_": (KERNEL, lambda p: [nn.init.dirac_(p)], "zero_"),
    "xavier_uniform_": (MATRIX, lambda p: [nn.init.xavier_uniform_(p)], "uniform_"),
    "xavier_normal_": (MATRIX, lambda p: [nn.init.xavier_normal_(p)], "normal_"),
    "kaiming_uniform_": (MATRIX, lambda p: [nn.init.kaiming_uniform_(p)], "uniform_"),
    "kaiming_normal_": (MATRIX, lambda p: [nn.init.kaiming_normal_(p)], "normal_"),
    "orthogonal_": (MATRIX, lambda p: [nn.init.orthogonal_(p)], "copy_"),
    "sparse_": (MATRIX, lambda p: nn.init.sparse_(p, 0.5), "normal_"),
    "data.fill_": (MATRIX, lambda p: p.data.fill_(2.0), "fill_"),
    "a slice": (MATRIX, lambda p: p.data.__setitem__(slice(1, 3), 2.0), "fill_"),
    "a column": (MATRIX, lambda p: p.detach().__setitem__((slice(None), 0), 0), "fill_"),
    "a mask": (MATRIX, lambda p: p.detach().masked_fill_(torch.eye(4) > 0, 9.0), "masked_fill_"),
    "copy_": (MATRIX, lambda p: p.data.copy_(torch.ones(4, 4)), "copy_"),
    "foreach": (MATRIX, lambda p: torch._foreach_add_([p.data], 1.0), "_foreach_add_"),
    "out=": (MATRIX, lambda p: torch.add(torch.ones(4, 4), 1, out=p.data), "add"),
    "data =": (MATRIX, lambda p: swap(p, torch.ones(4, 4)), "data ="),
    "set_": (MATRIX, lambda p: cast("Any", p.detach()).set_(torch.ones(4, 4)), "set_"),
}

NN_INIT = {name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")}


def test_all_of_torchs_initializers_are_among_the_ways() -> None:
    assert WAYS.keys() >= NN_INIT


NOT_ON_META = {"data =", "set_", "out="}
UNDONE_ON_META = {"dirac_", "trunc_normal_", "trunc_normal_ in a tail", "orthogonal_", "sparse_"}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", WAYS)
def test_a_write_is_recorded_with_site_and_line(name: str, device: str) -> None:
    shape, way, operation = WAYS[name]
    if device == "meta" and name in NOT_ON_META:
        device = "cpu"  # torch refuses to mix the devices of these
    model = nn.ParameterDict({"written": torch.zeros(shape), "other": torch.zeros(shape)}).to(device)
    with torch.no_grad(), trace(model) as seen:
        way(model["written"])
        way(nn.Parameter(torch.zeros(shape, device=device)))
    assert {write.site for write in seen.writes} == {"written"}
    assert {write.line for write in seen.writes} == {line_of(swap if name == "data =" else way)}
    assert seen.unwritten == ("other",)
    if name in NN_INIT:
        assert {write.call for write in seen.writes} == {f"nn.init.{name}"}
    expected = name.split(maxsplit=1)[0] if device == "meta" and name in UNDONE_ON_META else operation
    assert seen.writes[0].operation == expected


def test_the_region_of_a_write() -> None:
    model: Any = nn.Sequential(nn.Linear(6, 4))
    with torch.no_grad(), trace(model) as seen:
        model[0].weight[1:3] = 1
        model[0].weight[:, 2:4].normal_()
        model[0].weight.t().zero_()
        model[0].weight[::2].zero_()
        model[0].weight.view(-1)[6:18].zero_()
    regions = [write.region for write in seen.writes]
    assert regions == [Box((1, 0), (2, 6)), Box((0, 2), (4, 2)), None, "part", Box((1, 0), (2, 6))]


@given(st.data())
def test_a_box_is_found_again(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    order = data.draw(st.permutations(range(len(shape))))
    base = torch.zeros([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(len(shape))])
    spans = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    view = base[tuple(slice(low, high) for low, high in spans)]
    if not view.numel():
        return
    view.fill_(1)
    region = region_of(view, base)
    found = torch.zeros_like(base)
    assert region != "part"
    box = region or Box((0,) * base.dim(), tuple(base.shape))
    found[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True))] = 1
    assert torch.equal(found, base)


def test_a_loop_is_one_record() -> None:
    model = nn.Linear(8, 8)
    with torch.no_grad(), trace(model) as seen:
        for row in range(4):
            model.weight[row].fill_(row)
    (write,) = seen.writes
    assert (write.count, write.region, write.arguments) == (4, Box((0, 0), (4, 8)), "various")
    assert (write.order, write.last) == (0, 3)


def test_many_writes_stay_readable() -> None:
    model = nn.Linear(4, 4)
    with torch.no_grad(), trace(model) as seen:
        for _ in range(2000):
            model.weight.mul_(1.0)
            model.weight[0].add_(0.0)
    assert [(write.operation, write.count) for write in seen.writes] == [("mul_", 2000), ("add_", 2000)]
    assert seen.writes[0].last == 3998


def test_the_module_whose_code_ran() -> None:
    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.zeros(2))

        def reset(self) -> None:
            self.inner.weight.data.zero_()

        def init(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                nn.init.ones_(module.weight)

    def nobody(tensor: Tensor) -> None:
        tensor.data.zero_()

    model = Top()
    with trace(model) as seen:
        model.reset()
        model.apply(model.init)
        model.inner.reset_parameters()
        nobody(model.scale)
    modules = [(write.operation, write.module) for write in seen.writes]
    assert modules == [("zero_", ""), ("fill_", "inner"), ("uniform_", "inner"), ("uniform_", "inner"), ("zero_", None)]


def test_to_empty_and_what_comes_after_it() -> None:
    with torch.device("meta"):
        model: Any = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with trace(model) as seen:
        model.to_empty(device="cpu")
        model[0].reset_parameters()
    emptied = [write for write in seen.writes if write.operation == "empty_like"]
    assert {write.site for write in emptied} == {*seen.parameters, *seen.buffers}
    assert {write.call for write in emptied} == {"Module.to_empty"}
    assert len({write.line for write in emptied}) == 1
    assert [write.operation for write in seen.of("0.weight")] == ["empty_like", "uniform_"]


@pytest.mark.parametrize("move", ["to_empty", "double"])
def test_a_move_on_one_device_is_one_record_a_site(move: str) -> None:
    model = nn.Linear(2, 3)
    with trace(model) as seen:
        model.to_empty(device="cpu") if move == "to_empty" else model.double()
    assert [write.site for write in seen.writes] == ["weight", "bias"]
    assert {write.call for write in seen.writes} == {f"Module.{move}"}


# --- the second net ----------------------------------------------------------------------------------------


def test_a_numpy_view_is_found_without_a_line() -> None:
    model = nn.Linear(2, 2)
    with trace(model) as seen:
        model.weight.detach().numpy()[0, 0] = 5.0
    assert seen.writes == (Write("weight", "unseen"),)


def test_another_thread_is_found_without_a_line() -> None:
    model = nn.Linear(2, 2)
    with trace(model) as seen:
        thread = threading.Thread(target=lambda: nn.init.ones_(model.weight))
        thread.start()
        thread.join()
    assert seen.writes == (Write("weight", "unseen"),)


def test_each_thread_sees_its_own_writes() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    found: list[Trace] = []

    def run() -> None:
        with trace(other) as seen:
            nn.init.ones_(other.bias)
        found.append(seen)

    with trace(one) as seen:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        nn.init.ones_(one.weight)
    assert [write.site for write in seen.writes] == ["weight"]
    assert [write.site for write in found[0].writes] == ["bias"]


@pytest.mark.parametrize("exact", [False, True])
def test_an_unseen_write_beside_seen_ones_needs_exact(exact: bool) -> None:
    model = nn.Linear(2, 2)
    with trace(model, exact=exact) as seen:
        nn.init.ones_(model.weight)
        model.weight.detach().numpy()[0, 0] = 5.0
        nn.init.zeros_(model.weight)
        model.weight.detach().numpy()[0, 0] = 5.0
    expected = ["fill_", "unseen", "zero_"] if exact else ["fill_", "zero_"]
    assert [write.operation for write in seen.writes] == expected


def test_exact_looks_at_every_element() -> None:
    for exact in (False, True):
        model = nn.Linear(64, 64, bias=False)
        with trace(model, exact=exact) as seen:
            model.weight.detach().numpy()[1, 1] += 1.0  # not among the sampled elements
        assert [write.operation for write in seen.writes] == ["unseen"] * exact


def test_swapped_tensors_are_found() -> None:
    model = nn.Linear(2, 2)
    with trace(model) as seen:
        torch.utils.swap_tensors(model.weight, nn.Parameter(torch.ones(2, 2)))
    assert [(write.site, write.line) for write in seen.writes] == [("weight", "")]


# --- a model that changes ----------------------------------------------------------------------------------


def test_a_replaced_parameter_is_followed() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2))
    with trace(model) as seen:
        old = model[0].weight
        model[0].weight = nn.Parameter(torch.zeros(3, 3))
        nn.init.ones_(model[0].weight)
        nn.init.ones_(old)
    assert [(write.operation, write.line != "") for write in seen.of("0.weight")] == [
        ("assigned", True),
        ("fill_", True),
    ]
    assert seen.added == ()


def test_a_parameter_put_in_behind_the_module_is_found_at_the_end() -> None:
    model = nn.Linear(2, 2)
    with trace(model) as seen:
        model._parameters["weight"] = nn.Parameter(torch.zeros(2, 2))
        model._parameters["new"] = nn.Parameter(torch.zeros(2, 2))
    assert seen.writes == (Write("weight", "assigned"), Write("new", "assigned", order=1, last=1))


def test_added_and_removed_sites() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with trace(model) as seen:
        model.append(nn.Linear(2, 2))
        nn.init.ones_(model[2].bias)
        model[0].register_buffer("scale", torch.ones(1))
        del model[1]
    assert (seen.added, seen.removed) == (("2.weight", "2.bias", "0.scale"), ("2.weight", "2.bias"))
    assert seen.buffers == ("0.scale",)


def test_a_lazy_parameter_gets_its_shape_during_the_trace() -> None:
    model: Any = nn.Sequential(nn.LazyLinear(3))
    with trace(model) as seen:
        model(torch.ones(2, 4))
    assert [write.operation for write in seen.of("0.weight")] == ["data =", "uniform_"]
    assert seen.of("0.weight")[1].call == "Sequential.forward"


def test_tied_weights_are_one_site() -> None:
    model: Any = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    with trace(model) as seen:
        model[1].weight = model[0].weight
        nn.init.ones_(model[1].weight)
    assert (seen.writes[0].site, seen.writes[0].what) == ("1.weight", "assigned(0.weight)")
    assert [write.operation for write in seen.of("1.weight")] == ["fill_"]


def test_names_are_those_of_the_bare_model() -> None:
    compiled: Any = torch.nn.Module()
    compiled._orig_mod = nn.Sequential(nn.Linear(2, 2))
    parametrized: Any = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with trace(compiled) as seen, trace(parametrized) as other:
        compiled._orig_mod[0].reset_parameters()
        parametrized.parametrizations.weight.original0.data.zero_()
    assert [(write.site, write.module) for write in seen.writes] == [("0.weight", "0"), ("0.bias", "0")]
    assert [write.site for write in other.writes] == ["weight"]


# --- bad weather -------------------------------------------------------------------------------------------


def test_an_error_leaves_the_record_so_far() -> None:
    model = nn.Linear(2, 2)

    def run() -> None:
        nn.init.ones_(model.weight)
        _ = 1 / 0

    with pytest.raises(ZeroDivisionError), trace(model) as seen:
        run()
    nn.init.ones_(model.bias)
    assert [write.site for write in seen.writes] == ["weight"]
    assert seen.error == "ZeroDivisionError: division by zero"
    assert "ended early: ZeroDivisionError" in str(seen)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_nested_traces_see_alike() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2))
    with trace(model) as outer, trace(model[0]) as inner:
        nn.init.ones_(model[0].weight)
    (one,), (two,) = outer.writes, inner.writes
    assert (one.site, two.site) == ("0.weight", "weight")
    assert (one.line, one.operation) == (two.line, two.operation)


def test_a_trace_shows_what_is_written_so_far() -> None:
    model = nn.Linear(2, 2)
    with trace(model) as seen:
        before = seen.unwritten
        nn.init.ones_(model.weight)
        after = seen.unwritten
    assert (before, after) == (("weight", "bias"), ("bias",))


def test_a_trace_prints_and_survives_json() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad(), trace(model) as seen:
        nn.init.kaiming_normal_(model[0].weight)
        model[0].weight[0, 0] = 0
        model[0].weight[0, 1] = 1
    text = str(seen)
    assert "normal_(mean=0, std=1)" in text
    assert "nn.init.kaiming_normal_" in text
    assert "4 parameters" not in text
    assert "3 parameters not written: 0-1.bias ×2, 1.weight" in text
    assert Trace.from_json(seen.to_json()) == seen
    with pytest.raises(ValueError, match="this is not a trace"):
        Trace.from_json("{}")


def test_a_name_that_no_site_has() -> None:
    with trace(nn.Linear(2, 2)) as seen:
        pass
    with pytest.raises(KeyError, match="no site is called 'wieght'; did you mean 'weight'"):
        seen.of("wieght")


# --- runs of torchinit's own ---------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("exact", [False, True])
def test_a_run_is_told_step_by_step(seed: int | None, exact: bool) -> None:
    model, bare = two_layers(), two_layers()
    rules = [
        Rule(Leaf("weight"), Normal(std=0.02)),
        Rule(Leaf("bias"), Constant(1.0)),
        Rule(Name("1.weight"), Orthogonal(gain=2.0)),
    ]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with trace(model, exact=exact) as seen:
            initialize(model, rules, seed=seed)
        torch.manual_seed(1)
        initialize(bare, rules, seed=seed)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), bare.parameters(), strict=True))
    told = {site: [(write.operation, write.arguments) for write in seen.of(site)] for site in seen.parameters}
    beaten = [("Normal", "std=0.02")] if seed is None else []
    assert told == {
        "0.weight": [("Normal", "std=0.02")],
        "0.bias": [("Constant", "1")],
        "1.weight": [*beaten, ("Orthogonal", "gain=2")],
        "1.bias": [("Constant", "1")],
    }
    assert {write.line.partition(":")[0] for write in seen.writes} == {"tests/tracing/test_trace.py"}
    assert not seen.unwritten


def test_a_run_under_two_traces_is_told_in_both() -> None:
    model = two_layers()
    with trace(model) as outer, trace(model) as inner:
        initialize(model, Rule(Leaf("weight"), Normal()), seed=0)
    assert [write.operation for write in inner.writes] == ["Normal", "Normal"]
    assert [write.operation for write in outer.writes] == ["Normal", "Normal"]


def test_a_run_outside_of_the_trace_is_not_told() -> None:
    model, other = two_layers(), two_layers()
    with trace(model) as seen:
        initialize(other, Rule(Leaf("weight"), Normal()), seed=0)
    initialize(model, Rule(Leaf("weight"), Normal()), seed=0)
    assert seen.writes == ()


def test_values_for_a_parametrization_are_seen_as_it_takes_them() -> None:
    model = parametrizations.weight_norm(nn.Linear(4, 3))
    with trace(model) as seen:
        initialize(model, Rule(Leaf("weight"), Normal()), seed=0)
    assert seen.of("weight")
    assert "unseen" not in {write.operation for write in seen.writes}
