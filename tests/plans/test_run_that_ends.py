"""Runs that an error or Ctrl-C ends in the middle: what was written by then is told, and what perhaps was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchinit import Constant, Normal, Rule, sites
from torchinit.noise import Global, Keyed, Noise
from torchinit.plans import Step, local_shards, make_plan, run


def _stop(*_: object) -> Tensor:
    raise KeyboardInterrupt


OLD = "each of the others holds its old values, new ones or both"
ENDS: dict[str, tuple[list[Rule], Noise, list[str]]] = {
    "draws, then code": (
        [Rule("**", Normal()), Rule("1.bias", _stop)],
        Keyed(0),
        [f"3 of 4 sites had been written by then (0.weight, 0.bias, 1.weight); {OLD}: 1.bias"],
    ),
    "what is written over is not done": (
        [Rule("**", Normal()), Rule("0.bias", _stop)],
        Global(),
        [f"3 of 4 sites had been written by then (0.weight, 1.weight, 1.bias); {OLD}: 0.bias"],
    ),
    "nothing yet": ([Rule("0.weight", _stop)], Keyed(0), [f"0 of 1 site had been written by then; {OLD}: 0.weight"]),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_ends_a_run_tells_how_far_it_was(case: str) -> None:
    rules, noise, notes = ENDS[case]
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plan = make_plan(sites(model), rules)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt) as caught:
        run(plan, local_shards(model), noise)
    assert caught.value.__notes__ == notes
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
    assert set(notes[0].partition("(")[2].partition(")")[0].split(", ")).isdisjoint(same)


def test_an_interruption_behind_the_last_write() -> None:
    model = nn.Linear(2, 2)
    plan = make_plan(sites(model), [Rule("**", Normal())])

    def progress(step: Step) -> None:
        if step.site.name == "bias":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(plan, local_shards(model), Keyed(0), progress=progress)
    assert caught.value.__notes__ == ["2 of 2 sites had been written by then (weight, bias)"]


def test_a_parametrization_that_takes_no_values() -> None:
    """What it computes is written last, when its record is made."""
    layer: Any = nn.utils.parametrizations.orthogonal(nn.Linear(2, 2))
    model = nn.Sequential(nn.Linear(2, 2), layer)
    plan = make_plan(sites(model), [Rule("**", Constant(1.0)), Rule("1.weight", Normal())])
    layer.parametrizations.weight[0].right_inverse = _stop
    with pytest.raises(KeyboardInterrupt) as caught:
        run(plan, local_shards(model), Keyed(0))
    assert caught.value.__notes__[-1].endswith(f"(0.weight, 0.bias, 1.bias); {OLD}: 1.weight")
