"""A selector."""

from __future__ import annotations

from dataclasses import dataclass

from torchinit.model import Site
from torchinit.rules import Selector


@dataclass(frozen=True)
class Wide(Selector):
    """Weights whose layer takes at least so many inputs."""

    inputs: int

    def matches(self, site: Site) -> bool:
        return site.layout is not None and site.fans("true")[0] >= self.inputs
