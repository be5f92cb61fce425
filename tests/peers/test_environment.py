"""The peers' environment: the real libraries are there, and what is stubbed says so when called."""

from __future__ import annotations

import importlib

import pytest
import torch


@pytest.mark.parametrize(
    "name",
    [
        "jax",
        "mmcv.ops",
        "mmdet.models.backbones",
        "mmdet.models.dense_heads",
        "mmdet.models.necks",
        "mmengine.runner",
        "mmpretrain.models",
        "mup",
        "timm",
        "transformers",
    ],
)
def test_peer_imports(name: str) -> None:
    assert importlib.import_module(name).__name__ == name


def test_torch_is_the_pinned_build() -> None:
    assert torch.__version__.split("+")[0] == "2.13.0"


def test_stub_is_a_class_that_refuses_to_be_called() -> None:
    from torchvision.ops.misc import FrozenBatchNorm2d

    assert not isinstance(torch.nn.BatchNorm2d(1), FrozenBatchNorm2d)
    with pytest.raises(NotImplementedError, match=r"torchvision\.ops\.misc\.FrozenBatchNorm2d is a stub"):
        FrozenBatchNorm2d(3)
