"""Attention: the size of the heads of each attention, by the attributes of modules that tell it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from torch import nn

from torchinit._frozen import changed
from torchinit.model.names import module_name
from torchinit.model.sites import Site

HEAD_SIZES: Final = (
    *("qk_head_dim", "head_dim", "d_head", "dim_head", "head_size", "attention_head_size", "d_kv", "d_k", "hd", "dh"),
)
HEAD_COUNTS: Final = ("num_heads", "n_head", "n_heads", "num_attention_heads", "heads", "nhead", "nh", "h")
WIDTHS: Final = ("embed_dim", "hidden_size", "n_embd", "d_model", "dim", "all_head_size")


def count_in(module: object, names: Sequence[str]) -> int:
    """The first whole number among the attributes of these names; 0 where there is none.

    >>> count_in(nn.MultiheadAttention(8, 2), HEAD_COUNTS)
    2
    """
    return next((held for name in names if isinstance(held := getattr(module, name, None), int)), 0)


def head_sizes(model: nn.Module) -> dict[str, int]:
    """The size of a head of each module that has such, by its name without those of wrappers.

    >>> head_sizes(nn.TransformerEncoderLayer(8, 2))
    {'self_attn': 4}
    """
    found = {}
    for path, module in model.named_modules():
        size, heads = count_in(module, HEAD_SIZES), count_in(module, HEAD_COUNTS)
        if not size and heads:
            fan_in = next((each.shape[1] for each in module.parameters() if each.dim() == 2), 0)  # of its projections
            size = (count_in(module, WIDTHS) or fan_in) // heads
        if size:
            found[module_name(path)] = size
    return found


def around(name: str, found: Mapping[str, Any]) -> str | None:
    """The nearest of the modules that were found: one that is called so, or is around what is; None for none.

    >>> around("h.0.attn.q.weight", {"h.0": 1, "h.0.attn": 2})
    'h.0.attn'
    """
    parts = name.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
    return next((name for name in names if name in found), None)


def with_attention(model: nn.Module, sites: Iterable[Site]) -> tuple[Site, ...]:
    """The sites of a model whose roles are known, those of attentions with the class around and the size of heads."""
    sizes = head_sizes(model)
    classes = {module_name(path): type(module).__name__ for path, module in model.named_modules()}

    def told(view: Site) -> Site:
        path = around(view.owner_name, sizes) if (view.role or "").startswith("attn.") else None
        return view if path is None else changed(view, attention=(classes[path], sizes[path]))

    return tuple(changed(told(site), aliases=tuple(map(told, site.aliases))) for site in sites)
