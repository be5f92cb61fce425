"""Knowledge: what is known of layers: at which values they do nothing, and what follows them."""

from __future__ import annotations

from torchinit.knowledge.gains import gain

__all__ = ["gain"]
