"""Experts: a stack computes what its experts do one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchinit.checkpoints.adapters import Stack, Unstack


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stack_and_its_experts(axis: int) -> None:
    experts, tokens = [nn.Linear(4, 6, bias=False) for _ in range(3)], torch.randn(3, 5, 4)
    stack = Stack("w1", "*.w1.weight", 3, axis)
    weights = [expert.weight.detach() for expert in experts]
    shape = stack.makes([(6, 4)] * 3, "moe.w1")
    made = stack.adapt(weights, shape, "moe.w1")
    assert tuple(made.shape) == shape
    together = torch.einsum("eti,eoi->eto", tokens, made.movedim(axis, 0))
    torch.testing.assert_close(together, torch.stack([f(x) for f, x in zip(experts, tokens, strict=True)]))
    one = Unstack("w1", "*.w1.weight", axis)
    for number, weight in enumerate(weights):
        key = f"moe.{number}.w1.weight"
        assert one.wants(key) == ("moe.w1",)
        one.check([shape], (6, 4), key)
        assert torch.equal(one.adapt([made], (6, 4), key), weight)


def test_keys() -> None:
    assert Stack("experts.up", "experts.*.up.weight", 11).wants("h.7.experts.up")[10] == "h.7.experts.10.up.weight"
    assert Unstack("experts.up", "experts.*.up.weight").wants("h.7.experts.10.up.weight") == ("h.7.experts.up",)
    with pytest.raises(ValueError, match=r"^'h.7.up' has no part 'experts.\*.up'$"):
        Unstack("experts.up", "experts.*.up").wants("h.7.up")
    with pytest.raises(ValueError, match=r"^'h.7.experts.one.up' has no part 'experts.\*.up'$"):
        Unstack("experts.up", "experts.*.up").wants("h.7.experts.one.up")


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"needs tensors of one shape, to be stacked at 0, but got \[6, 4\] and \[6, 5\]$"
    ):
        Stack("w", "*.w", 2).check([(6, 4), (6, 5)], (2, 6, 4), "w")
    with pytest.raises(ValueError, match=r"needs tensors of one shape, to be stacked at 2, but got \[6\]$"):
        Stack("w", "*.w", 2, axis=2).check([(6,), (6,)], (2, 6), "w")
    with pytest.raises(ValueError, match=r"makes \[2, 6\] of \[6\], \[6\], but the site has \[3, 6\]$"):
        Stack("w", "*.w", 2).check([(6,), (6,)], (3, 6), "w")
    with pytest.raises(ValueError, match=r"needs more than 5 along dimension 0, but got \[5, 6\]$"):
        Unstack("w", "*.w").check([(5, 6)], (6,), "5.w")


def test_arguments() -> None:
    with pytest.raises(ValueError, match=r"^parts must have one part '\*', the number of each, but got 'experts.w'$"):
        Stack("w", "experts.w", 2)
    with pytest.raises(
        ValueError, match=r"^count must be a whole number from 1 and axis one from 0, but got 0 and -1$"
    ):
        Stack("w", "*.w", 0, -1)
    with pytest.raises(ValueError, match=r"^axis must be a whole number from 0, but got -1$"):
        Unstack("w", "*.w", -1)
