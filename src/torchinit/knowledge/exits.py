"""Exits: the weights that lead out of a block, and whether it passes on what comes once they are zero."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from torchinit._frozen import changed
from torchinit.knowledge.role_rules import BIAS
from torchinit.model.blocks import find_stacks
from torchinit.model.names import module_name
from torchinit.model.sandbox import answer
from torchinit.model.sites import Site

EXITS: Final = ("attn.out", "mlp.out", "mlp.down", "expert.out", "expert.down", "ssm.out")
"""The roles of the matrices that lead out of a block."""
_OF_HEADS: Final = re.compile(r"(^|\.)(q|k|query|key)_?(layer_?|rms_?)?norm$")
"""The norms of queries and keys, which may be as wide as what passes, and are never met by it."""
_NORMALIZED: Final = "it changes what passes beside its layers, as where a norm comes after the sum (post-norm)"

# Whether x + f(x) or norm(x + f(x)) is computed shows in no name: nn.TransformerEncoderLayer has both under the same
# ones. So a copy of the block is run. Of its layers nothing is needed but that they give zero, so none is run: whatever
# holds matrices and no norm is replaced as a whole, what leads out by zeros, all else by random numbers. So masks,
# rotary angles, routers and sizes do not matter, nor what else a block must be given, and one on the meta device will
# do. Some attentions give a tuple: zeros for two or three samples can be unpacked as one, and are as good for a sum.
# What cannot be run even so, or gives nothing since its layers add what passes themselves (Bloom's), is taken at its
# role's word; preserves() tells.


def is_exit(site: Site) -> bool:
    """Whether the role of a site says that it leads out of a block.

    >>> is_exit(Site("h.0.mlp.down.weight", (2, 2), block=(0, 1), role="mlp.down"))
    True
    """
    return site.block is not None and (site.role or "").removesuffix(BIAS).partition("[")[0] in EXITS


def with_exits(model: nn.Module, sites: Iterable[Site]) -> tuple[Site, ...]:
    """The sites of a model whose roles are known, those that lead out of a block with what zero there does."""
    sites = tuple(sites)
    exits = {view.name: view for site in sites for view in site.views if is_exit(view)}
    if not exits:
        return sites
    names = {id(module): f"{module_name(name)}." for name, module in model.named_modules()}
    found: dict[str, str] = {}
    for stack in find_stacks(model).values():
        answers: dict[object, str] = {}
        for block in stack.blocks:
            start = names[id(block)]
            inside = {name.removeprefix(start): site for name, site in exits.items() if name.startswith(start)}
            alike = type(block), *((name, site.shape) for name, site in inside.items())
            if inside and alike not in answers:  # one that cannot be run is taken at its role's word
                answers[alike] = _NORMALIZED if answer(partial(_passes, block, inside)) is False else ""
            found |= {f"{start}{name}": answers[alike] for name in inside}

    def told(view: Site) -> Site:
        return changed(view, exit=found.get(view.name), aliases=tuple(map(told, view.aliases)))

    return tuple(told(site) if any(view.name in found for view in site.views) else site for site in sites)


def _passes(block: nn.Module, exits: Mapping[str, Site]) -> bool:
    """Whether a block gives what it takes; raises whatever its code does with what stands in for its layers."""
    ways = {name.rpartition(".")[0] for name in exits}
    outputs = (site.shape[site.layout.out_axes[0]] for site in exits.values() if site.layout and site.layout.out_axes)
    width, error = next(outputs, max(map(_norm_width, block.modules()))), Exception()
    signature = inspect.signature(block.forward).parameters.values()
    needed = [each for each in signature if each.kind < each.VAR_POSITIONAL and each.default is each.empty][1:]
    for samples in (2, 3, 1):
        generator = torch.Generator().manual_seed(samples)
        memo: dict[int, Any] = {
            id(tensor): _made_up(tensor, generator) for tensor in (*block.parameters(), *block.buffers())
        }
        model = copy.deepcopy(block, memo).eval()
        coming = torch.randn(samples, 4, width, generator=generator, dtype=torch.float32, device="cpu")
        _replace_layers(model, "", ways, coming)
        try:
            # With gradients, without which torch's own blocks go another way.
            given = model(coming.clone(), *(None for _ in needed))
        except Exception as raised:  # noqa: BLE001  # whatever a stranger's code raises
            error = raised
            continue
        given = given if isinstance(given, Tensor) else given[0]
        if needed and not given.any():
            raise ValueError("what passes went through layers that were replaced")
        return given.shape == coming.shape and torch.allclose(given, coming, atol=1e-5)
    raise error


def _made_up(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A tensor in place of a block's: a vector with numbers, whatever is larger without memory."""
    if tensor.dim() < 2 and tensor.is_floating_point():
        made = torch.rand(tuple(tensor.shape), generator=generator, dtype=torch.float32, device="cpu") + 0.5
    else:
        device = "meta" if tensor.dim() > 1 else "cpu"
        made = torch.zeros(tuple(tensor.shape), dtype=tensor.dtype, device=device)
    return nn.Parameter(made, made.is_floating_point()) if isinstance(tensor, nn.Parameter) else made


def _replace_layers(module: nn.Module, path: str, ways: set[str], like: Tensor) -> None:
    """Let the layers of a block give zeros where they lead out of it, and anything elsewhere."""
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()
    for name, child in module.named_children():
        below = f"{path}.{name}".lstrip(".")
        if not any(parameter.dim() > 1 for parameter in child.parameters()):
            continue
        inside = (each for name, each in child.named_modules() if not _OF_HEADS.search(name))
        if any(_norm_width(each) == like.shape[-1] for each in inside):
            _replace_layers(child, below, ways, like)
            continue
        is_way_out = any(f"{way}.".startswith(f"{below}.") for way in ways)

        def forward(*_: Any, is_way_out: bool = is_way_out, **__: Any) -> Tensor:
            return torch.zeros_like(like) if is_way_out else like.flip(-1) + 1

        child.forward = forward  # of a copy


def _norm_width(module: nn.Module) -> int:
    """The width that a norm of its own takes; 0 of any other module."""
    is_norm = "norm" in type(module).__name__.lower()
    return max((each.numel() for each in module._parameters.values() if each is not None and is_norm), default=0)
