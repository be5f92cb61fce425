"""Names: what wrappers put into a name comes out again, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import names
from torchinit.model.names import WRAPPERS, normalize


@pytest.mark.parametrize(
    ("raw", "bare"),
    [
        ("weight", "weight"),
        ("module.weight", "weight"),
        ("module.module._orig_mod.0.weight", "0.weight"),
        ("layers.3._fsdp_wrapped_module._checkpoint_wrapped_module.attn.weight", "layers.3.attn.weight"),
        ("conv.parametrizations.weight.original", "conv.weight"),
        ("conv.parametrizations.weight.original0", "conv.weight"),
        ("parametrizations.weight.original1", "weight"),
        ("conv.parametrizations.weight.0._u", "conv.parametrizations.weight.0._u"),
        ("submodule.weight", "submodule.weight"),
        ("my_module.weight", "my_module.weight"),
        ("layer.module", "layer.module"),
    ],
)
def test_normalize(raw: str, bare: str) -> None:
    assert normalize(raw) == bare


@given(names(), st.lists(st.tuples(st.integers(0, 5), st.sampled_from(sorted(WRAPPERS))), max_size=4))
def test_wrappers_at_any_depth_leave_no_trace(name: str, wrappers: list[tuple[int, str]]) -> None:
    parts = name.split(".")
    for at, wrapper in wrappers:
        parts.insert(min(at, len(parts) - 1), wrapper)
    assert normalize(".".join(parts)) == name
    assert normalize(name) == name
