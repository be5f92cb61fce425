"""Checkpoints: weights from files, read without running any code in them."""

from __future__ import annotations

from torchinit.checkpoints.loading import load_pretrained, load_state_dict, read_checkpoint

__all__ = ["load_pretrained", "load_state_dict", "read_checkpoint"]
