"""Surroundings: what an adapter may ask of the model around a site: its axes, what lies side by side in it, its head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

from torchinit.knowledge.neutral import is_named_norm
from torchinit.knowledge.role_rules import UNSURE, role_of_several
from torchinit.model.sites import Site

_TWO: Final = frozenset({"mlp.gate_up", "attn.kv"})


class Surroundings:
    """The sites of a model, asked about one of them."""

    def __init__(self, known: Sequence[Site]) -> None:
        self.known = known

    def axes(self, site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The axes of a site that its layer sums over, and those that count what it gives.

        Of the last norm before a head that shares the table of an embedding it is the former: a table is looked up, and
        cannot be divided, so the norm is. Raises ValueError where nobody knows.
        """
        if len(site.shape) < 2:
            return ((0,), ()) if self._is_divided(site) else ((), (0,))
        if layout := site.layout:
            every = *layout.in_axes, *layout.out_axes, *layout.batch_axes
            if site.name in self._tables:
                return (), (1,)
            return (layout.in_axes, layout.out_axes) if layout.in_axes or layout.out_axes else ((), every)
        role = site.role or UNSURE
        if role.startswith("embed."):
            return (), (len(site.shape) - 1,)
        if len(site.shape) == 2 and role != UNSURE:  # as a Linear has them, which layers of one's own imitate
            return (1,), (0,)
        raise ValueError(
            f"the layout of {site.owner.name}'s {site.leaf} is not known: say which of its axes are summed over, as in"
            " inputs=[1], or inputs=[] for none"
        )

    def parts(self, site: Site) -> tuple[int, ...]:
        """The proportions of what lies side by side in a weight, or in its bias; ``(1,)`` for one thing alone.

        Raises ValueError where the shape does not tell.
        """
        if site.layout and site.layout.blocks > 1:
            return (1,) * site.layout.blocks
        word = site.owner_name.rpartition(".")[2]
        role = (site.role or "").removesuffix(".bias")
        role = role if role in _TWO or role == "attn.qkv" else role_of_several(word)
        if not role:
            return (1,)
        if role in _TWO:
            return (1, 1)
        weight = self._weights.get(site.owner_name, site)
        ins, outs = self.axes(weight) if len(weight.shape) > 1 else ((0,), (0,))
        if word != "query_key_value" and weight.shape[outs[0]] == 3 * weight.shape[ins[0]]:
            return (1, 1, 1)
        raise ValueError(
            f"{word!r} holds q, k and v, and its shape does not tell how: say sizes=[4, 1, 1] where they follow each"
            " other and four queries share a key, or sizes=[1] where they follow head by head"
        )

    @cached_property
    def _weights(self) -> dict[str, Site]:
        return {view.owner_name: view for site in self.known for view in site.views if view.leaf == "weight"}

    @cached_property
    def _tables(self) -> dict[str, Site]:
        """The tables of embeddings, under all names that they have."""
        return {
            view.name: site
            for site in self.known
            if any(each.layout and each.layout.lookup for each in site.views)
            for view in site.views
        }

    @cached_property
    def _divided(self) -> dict[int, str]:
        """By the widths of the tables that are heads, too, the norm before the head: the last that is in no block."""
        tied = {
            site.shape[1]
            for site in self._tables.values()
            if any(view.layout and not view.layout.lookup for view in site.views)
        }
        norms = [site for site in self.known if site.block is None and site.shape in {(width,) for width in tied}]
        last = sorted(filter(is_named_norm, norms), key=lambda site: site.position)
        found = {site.shape[0]: site.owner_name for site in last}
        if lacking := tied - found.keys():
            raise ValueError(
                f"the head shares the table of an embedding of width {min(lacking)}, and no norm before it can be"
                " divided: untie the two"
            )
        return found

    def _is_divided(self, site: Site) -> bool:
        return bool(site.shape) and self._divided.get(site.shape[0]) == site.owner_name
