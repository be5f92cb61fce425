"""Pages: what is so with a start as one HTML file, its figures as SVG, from plain data."""

from __future__ import annotations

from torchinit.pages.figures import Distribution, Figure, Series
from torchinit.pages.page import Page, Panel, Section

__all__ = ["Distribution", "Figure", "Page", "Panel", "Section", "Series"]
