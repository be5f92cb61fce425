"""Settings of the peers' tests: they run in the environment that `./dev peers` makes, and nowhere else."""

from __future__ import annotations

import importlib.util

import pytest

PEERS = ("jax", "mmcv", "mmdet", "mmengine", "mmpretrain", "mup", "timm", "transformers")


def pytest_configure(config: pytest.Config) -> None:
    # A run that was asked for by name must not end green because its subjects are missing.
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing:
        message = f"tests/peers needs {', '.join(missing)}: run it as `./dev peers`"
        raise pytest.UsageError(message)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Other people's deprecated calls are no failure of ours; torchinit's own warnings still are.
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error:::torchinit"), append=False)
        item.add_marker(pytest.mark.filterwarnings("default"), append=False)
