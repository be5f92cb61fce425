"""Surroundings: what an adapter may ask of the model around a site: its axes, its parts, the head that it leads to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Final

from torchinit.knowledge.neutral import is_named_norm
from torchinit.knowledge.role_rules import BIAS, UNSURE, role_matches, role_of_several
from torchinit.model.sites import Site

_TWO: Final = frozenset({"mlp.gate_up", "expert.gate_up", "attn.kv"})
"""The roles of what holds two weights, one after the other."""
_IN_PAIRS: Final = "GptOss"  # the beginning of the class whose experts hold rows of gate and up by turns
_JOINED: Final = ("ssm.", "project.downsample")
"""The beginnings of the roles of what gives or takes several things in one: a mixer, the patches that Swin merges."""
_LINEAR: Final = (
    *(f"attn.{part}" for part in ("q", "k", "v", "qkv", "kv", "out", "gate", "q_*", "kv_*")),
    *("mlp.*", "moe.router", "moe.shared_gate", "head.*", "pooler", "project"),
)
"""The roles of matrices that are laid out as a Linear's where a layer of one's own holds them."""


class Surroundings:
    """The sites of a model, asked about one of them."""

    def __init__(self, known: Sequence[Site]) -> None:
        self.known = known

    def axes(self, site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The axes of a site that its layer sums over, and those that count what it gives.

        Of the last norm before a head that shares the table of an embedding it is the former: a table is looked up, and
        cannot be divided, so the norm is. Raises ValueError where nobody knows.
        """
        role = site.role or UNSURE
        if role.startswith(_JOINED):
            fact = f"what lies side by side in {site.owner_name} ({role}) is not known"
            raise ValueError(f"{fact}: say inputs=, and sizes= along axis=")
        if len(site.shape) < 2:
            return ((0,), ()) if self._is_divided(site) else ((), (0,))
        if layout := site.layout:
            every = *layout.in_axes, *layout.out_axes, *layout.batch_axes
            if site.name in self._tables:
                if "Scaled" in site.owner.name:
                    fact = f"{site.owner.name} may multiply by a number that grows with the width"
                    raise ValueError(f"{fact}; say inputs=[] if it does not")
                _ = self._divided  # raises where a head that shares it would give more
                return (), (1,)
            return (layout.in_axes, layout.out_axes) if layout.in_axes or layout.out_axes else ((), every)
        if role.startswith("embed.") or role == "attn.rel" or role.endswith(BIAS):
            return (), (len(site.shape) - 1,)
        if len(site.shape) == 2 and any(role_matches(glob, role) for glob in _LINEAR):
            return (1,), (0,)
        ways = "say which of its axes are summed over, as in inputs=[1], or inputs=[] for none"
        raise ValueError(f"the layout of {site.owner.name}'s {site.leaf} is not known: {ways}")

    def parts(self, site: Site) -> tuple[int, ...]:
        """The proportions of what lies side by side in a weight, or in its bias; ``(1,)`` for one thing alone.

        Raises ValueError where the shape does not tell.
        """
        word = site.owner_name.rpartition(".")[2]
        role = (site.role or "").removesuffix(BIAS).partition("[")[0]
        if role.startswith("expert.") and site.owner.name.startswith(_IN_PAIRS):
            return (1,)
        if site.layout and site.layout.blocks > 1:
            return (1,) * site.layout.blocks
        role = role if role in _TWO or role == "attn.qkv" else role_of_several(word)
        if not role:
            return (1,)
        if role in _TWO:
            return (1, 1)
        out = self._ways_out.get(site.owner_name.rpartition(".")[0])
        rows = max(self._weights.get(site.owner_name, site).shape)
        if out and out.layout and word != "query_key_value":
            queries = out.shape[out.layout.in_axes[0]]
            keys, rest = divmod(rows - queries, 2)
            unit = math.gcd(queries, keys)
            if not rest:
                return queries // unit, keys // unit, keys // unit
        ways = "sizes=[4, 1, 1] where they follow each other and four queries share a key, or sizes=[1] where they"
        raise ValueError(f"{word!r} holds q, k and v, and its shape does not tell how: say {ways} follow head by head")

    @cached_property
    def _weights(self) -> dict[str, Site]:
        return {view.owner_name: view for site in self.known for view in site.views if view.leaf == "weight"}

    @cached_property
    def _ways_out(self) -> dict[str, Site]:
        """The weights that lead out of attentions, by the modules that hold their layers."""
        ways = (site for site in self.known if site.role == "attn.out" and len(site.shape) == 2)
        return {site.owner_name.rpartition(".")[0]: site for site in ways}

    @cached_property
    def _tables(self) -> dict[str, Site]:
        """The tables of embeddings, under all names that they have."""
        tables = (site for site in self.known if any(view.layout and view.layout.lookup for view in site.views))
        return {view.name: site for site in tables for view in site.views}

    @cached_property
    def _divided(self) -> dict[int, str]:
        """By the widths of the tables that are heads, too, the norm before the head: the last that is in no block."""
        every = self._tables.values()
        heads = (site for site in every if any(view.layout and not view.layout.lookup for view in site.views))
        tied = {site.shape[1] for site in heads}
        norms = [site for site in self.known if site.block is None and site.shape in {(width,) for width in tied}]
        last = sorted(filter(is_named_norm, norms), key=lambda site: site.position)
        found = {site.shape[0]: site for site in last if site.leaf != "bias"}
        for width in tied:
            norm = found.get(width)
            # A norm that computes 1 + weight has no weight that is a half of it; T5 divides by the root of the width.
            if norm is None or norm.neutral == 0 or norm.owner.name.startswith("T5"):
                why = "no norm before it can be divided by as much as the width grows: untie the two"
                raise ValueError(f"the head shares the table of an embedding of width {width}, and {why}")
        return {width: site.owner_name for width, site in found.items()}

    def _is_divided(self, site: Site) -> bool:
        outside = site.block is None and bool(site.shape) and is_named_norm(site)
        return outside and self._divided.get(site.shape[0]) == site.owner_name
