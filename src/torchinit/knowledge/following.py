"""Following: the nonlinearity that follows each layer of a model, where its structure shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, TypeAlias

from torch import nn

from torchinit._frozen import changed
from torchinit.knowledge.gains import FREE, activation_of, is_stock
from torchinit.model.names import WRAPPERS, is_bare, normalize
from torchinit.model.sites import Site, layer_class

Follower: TypeAlias = str | None
"""The nonlinearity behind a layer, as :attr:`torchinit.model.Site.activation` has it."""
Children: TypeAlias = Mapping[str, nn.Module]

_LINEAR: Final = "linear"
_LAYERS: Final = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
_LAYERS_BY_NAME: Final = frozenset({"transformers.pytorch_utils.Conv1D"})
_NORMS: Final = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)

_TRANSPARENT: Final = (
    nn.modules.dropout._DropoutNd, nn.Identity, nn.Flatten, nn.Unflatten, nn.Fold, nn.Unfold,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._LPPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._CircularPadNd, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
)  # fmt: skip
_TRANSPARENT_BY_NAME: Final = frozenset((
    "einops.layers.torch.Rearrange", "timm.layers.drop.DropBlock2d", "timm.layers.drop.DropPath",
    "torchvision.ops.misc.Permute", "torchvision.ops.stochastic_depth.StochasticDepth",
))  # fmt: skip

_ACTIVATED: Final = "the activation that the block holds"
_LAST: Final = "whatever the output of the block is for"

# Which layer of a block has what part, by the names of all its layers: a module with others besides them does something
# else. Those of transformers are the sets that three of its families or more have beside an activation.
_PAIRS: Final = (
    "Wi Wo", "c_fc c_proj", "conv_reduce conv_expand", "dense1 dense2", "dense_h_to_4h dense_4h_to_h", "fc1 fc2",
    "fc_in fc_out", "gate_up_proj down_proj", "intermediate_dense output_dense", "lin1 lin2", "linear1 linear2",
    "linear_1 linear_2", "linear_fc1 linear_fc2", "up_proj down_proj", "w1 w2", "wi wo",
)  # fmt: skip
_GATED: Final = ("fc1_g fc1_x fc2", "gate_proj up_proj down_proj", "w1 w3 w2", "wi_0 wi_1 wo")
_BLOCKS: Final[tuple[Mapping[str, str], ...]] = (
    *(dict(zip(names.split(), (_ACTIVATED, _LAST), strict=True)) for names in _PAIRS),
    *(dict(zip(names.split(), (_ACTIVATED, _LINEAR, _LAST), strict=True)) for names in _GATED),
    {"dwconv": FREE, "pwconv1": _ACTIVATED, "pwconv2": _LAST},
    {"dense": _ACTIVATED},
)
_BLOCK_BY_LAYERS: Final = {frozenset(block): block for block in _BLOCKS}

# Queries, keys and values are multiplied, and the output is added to what passes by.
_ATTENTIONS: Final = frozenset(
    frozenset(names.split())
    for names in (
        "Wqkv Wo", "c_attn c_proj", "k o q v", "k_lin out_lin q_lin v_lin", "k_proj o_proj q_proj v_proj",
        "k_proj out_proj q_proj v_proj", "key query value", "kv_a_proj_with_mqa kv_b_proj o_proj q_a_proj q_b_proj",
        "proj qkv", "query_key_value dense", "to_k to_q to_v", "wk wo wq wv",
    )
)  # fmt: skip

_HOLDERS: Final = ("act_fn", "activation_fn", "activation", "act", "act1")
"""The names by which blocks call the activation inside them where they hold another one as well: a gate's, say."""


def with_activations(model: nn.Module, sites: Iterable[Site]) -> tuple[Site, ...]:
    """The sites of a model, its layers' weights with what follows each: ``Site.activation``.

    It is read off the structure, as docs/reference/recipes.md tells of ``nonlinearity = "auto"``; the model is not run.
    Everything else is unknown. A tensor that several layers share is given one gain, so they have to agree on it.
    """
    followers = followers_in(model)
    return tuple([_with_activation(site, followers) for site in sites])


def followers_in(model: nn.Module) -> dict[str, Follower]:
    """The nonlinearity behind each layer of a model, by the layer's name, as :func:`with_activations` finds it."""
    path, followers = [], dict[str, Follower]()
    while len(model._modules) == 1 and not WRAPPERS.isdisjoint(model._modules) and not model._parameters:
        ((key, inner),) = model._modules.items()  # wrappers around it, also those of unknown classes
        if inner is None:
            break
        path.append(key)
        model = inner
    _visit(model, ".".join(path), _LINEAR, followers)
    if not is_bare(".\n".join((*followers, ""))):
        bare = {normalize(f"{name}.weight").rpartition(".")[0]: follower for name, follower in followers.items()}
        followers = {**bare, **followers}
    return followers


_MANY: Final = 8
_SIDE_BY_SIDE: Final = re.compile(r"expert|head|branch|adapter|lora|tower|proj|group|scale|level")
"""Names of lists whose layers are not one behind the other."""

LAYER: Final = "layer"
"""The kind of a layer in a chain, where activations have their names."""


def chains(model: nn.Module, likely: bool = False) -> list[list[tuple[str, str]]]:
    """The runs of modules that a signal passes one after the other, as far as the structure shows: names and kinds.

    A kind is :data:`LAYER` or an activation's name; what lets pass is left out, and everything else ends the run: a
    norm, a block with a ``forward`` of its own. Runs are those of an ``nn.Sequential``, nested ones included, and of an
    ``nn.ModuleList`` of layers alone in which each takes what the one before gives, if they are not all of one shape.
    ``likely`` ones are those of long lists of like layers, or runs of layers, that could as well stand side by side.

    >>> chains(nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), nn.Softmax(-1)))
    [[('0', 'layer'), ('2.0', 'relu'), ('2.1', 'layer'), ('3', 'linear')]]
    """
    runs: list[list[tuple[str, str]]] = []
    inside: set[nn.Module] = set()

    def visit(module: nn.Module, name: str) -> None:
        inside.add(module)
        if _is_layer(module) and is_stock(module):
            runs[-1].append((name, LAYER))
        elif activation := activation_of(module):
            runs[-1].append((name, activation))
        elif _is_chain(module, name, likely):
            for key, child in module.named_children():
                visit(child, f"{name}.{key}" if name else key)
        elif not _is_transparent(module):
            runs.append([])

    for name, module in model.named_modules():
        if module not in inside and _is_chain(module, name, likely):
            runs.append([])
            visit(module, name)
    return [run for run in runs if run]


def _is_chain(module: nn.Module, name: str, likely: bool) -> bool:
    """Whether each child takes what the one before gives: of a list with layers of several shapes, or many alike."""
    if not isinstance(module, nn.ModuleList):
        return _runs_in_order(module)
    children = list(module.children())
    are_layers, are_alike = all(map(_is_layer, children)), len({*map(type, children)}) == 1
    are_many = likely and are_alike and len(children) >= _MANY and not _SIDE_BY_SIDE.search(name)
    if not (are_many or are_layers):
        return False
    layers = [[child] if are_layers else [each for each in child.modules() if _is_layer(each)] for child in children]
    fit = all(layers) and all(_width(one[-1], "out") == _width(two[0], "in") for one, two in pairwise(layers))
    return fit and (are_many or len({(_width(child, "in"), _width(child, "out")) for child in children}) > 1)


def _with_activation(site: Site, known: Mapping[str, Follower]) -> Site:
    if not site.aliases and site.parameter_kind != "weight":
        return site if site.activation is None else changed(site, activation=None)
    views = [view for view in (site, *site.aliases) if not (view.layout and view.layout.lookup)]
    opinions = {known.get(view.owner_name) if view.parameter_kind == "weight" else None for view in views}
    activation = opinions.pop() if len(opinions) == 1 else None
    if activation == site.activation:
        return site
    aliases = tuple(changed(alias, activation=activation) for alias in site.aliases)
    return changed(site, activation=activation, aliases=aliases)


def _visit(module: nn.Module, name: str, then: Follower, followers: dict[str, Follower]) -> Follower:
    """Note what follows each layer in a module; return the nonlinearity that a signal into the module meets first.

    ``then`` is what follows the module. The children of a Sequential are visited from the last to the first, and
    each tells the one before it what it meets, so that one pass sees through any nesting of them.
    """
    if not module._modules and _is_layer(module) and is_stock(module):  # as most modules are
        followers[name] = then
        return _LINEAR
    if module._modules or isinstance(module, nn.Sequential):
        children = {key: child for key, child in module._modules.items() if child is not None}
        prefix = f"{name}." if name else ""
        if _is_wrapper(module, children) or _runs_in_order(module):
            for key, child in reversed(children.items()):
                then = _visit(child, prefix + key, then, followers)
            return then
        inside = _inside(module, children, then)
        for key, child in children.items():
            _visit(child, prefix + key, inside.get(key), followers)
    if isinstance(module, nn.MultiheadAttention):
        followers[name] = _LINEAR
    if _is_layer(module) and is_stock(module):  # with a forward of its own it may hold a nonlinearity
        followers[name] = then
        return _LINEAR
    if isinstance(module, nn.RNNBase):
        return _LINEAR
    return activation_of(module) or (FREE if _is_norm(module) else then if _is_transparent(module) else None)


def _is_wrapper(module: nn.Module, children: Children) -> bool:
    """Whether the module does nothing but call another one: torch.compile, FSDP, checkpointing, data parallelism.

    Inside of a model, unlike around it, a ``module`` may as well be the branch of a residual block.
    """
    if len(children) != 1 or WRAPPERS.isdisjoint(children):
        return False
    return "module" not in children or isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))


def _runs_in_order(module: nn.Module) -> bool:
    is_sequential = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return is_sequential and "forward" not in vars(module)


def _is_layer(module: nn.Module) -> bool:
    cls: Any = type(module)
    return _is_class_of_layers(cls)


@lru_cache(maxsize=4096)
def _is_class_of_layers(cls: Any) -> bool:
    return issubclass(cls, _LAYERS) or not _LAYERS_BY_NAME.isdisjoint(layer_class(cls).lineage)


def _is_transparent(module: nn.Module) -> bool:
    cls: Any = type(module)
    is_by_name = not _TRANSPARENT_BY_NAME.isdisjoint(layer_class(cls).lineage)
    return is_by_name or (isinstance(module, _TRANSPARENT) and is_stock(module))


def _is_norm(module: nn.Module) -> bool:
    """Whether the module normalizes: by its class, or by a name that nothing else in it speaks against."""
    if isinstance(module, _NORMS):
        return True
    name = type(module).__name__.lower()
    if "norm" not in name or "frozen" in name or module._modules:
        return False
    return all(parameter is None or parameter.dim() <= 1 for parameter in module._parameters.values())


# --- modules with a forward of their own -----------------------------------------------------------------------------
#
# What such a module calls after what does not show; what it holds, under which names and in which order, does, and that
# is enough for the blocks that everybody writes alike. It was tried on 272 families of transformers and 190 models of
# timm, run on the meta device with an eye on which function gets the output of which layer: 47,000 and 22,000 layers,
# of which 39,000 and 14,000 are known, none of them wrongly. Names alone were wrong there, in ways that the conditions
# below exclude: a convolution between a layer and its activation (SegFormer), adapters whose output is added (Zamba), a
# second activation behind the last layer (timm's VGG), a norm that belongs to the first of three convolutions and is
# registered behind the last (Moonshine). It fails where a module is built like a known one and calls its children
# otherwise: then a layer has the gain of an activation that it does not have.


def _inside(module: nn.Module, children: Children, then: Follower) -> dict[str, Follower]:
    """The followers of the children of a module of which nothing is known but the children."""
    layers = {key: child for key, child in children.items() if _is_layer(child)}
    if not layers:
        return {}
    followers = _block(module, children, layers, then)
    # Two layers one after the other are registered in the order of their kind, not of their calls.
    for before, key, after in zip(["", *children], children, [*children][1:], strict=False):
        if key in layers and before not in layers and _normalizes(children[after], children[key]):
            followers[key] = FREE
        elif followers.get(key, _LINEAR) != _LINEAR and _is_norm(children[after]):
            del followers[key]  # the norm may be between the layer and its activation
    return followers


def _block(module: nn.Module, children: Children, layers: Children, then: Follower) -> dict[str, Follower]:
    """The layers of a known block, each with its part; nothing if it is not one."""
    if isinstance(module, nn.MultiheadAttention):
        return {"out_proj": _LINEAR}
    names = frozenset(layers)
    if names not in _ATTENTIONS and names not in _BLOCK_BY_LAYERS:
        return {}
    activations = {
        key: known for key, value in (*vars(module).items(), *children.items()) if (known := activation_of(value))
    }
    distinct = set(activations.values())
    if names in _ATTENTIONS and distinct <= {_LINEAR}:  # a softmax, if any
        return dict.fromkeys(layers, _LINEAR)
    block = _BLOCK_BY_LAYERS.get(names)
    named = [activations[key] for key in _HOLDERS if key in activations]
    activation = named[0] if named else distinct.pop() if len(distinct) == 1 else None
    if block is None or activation is None or not _is_whole(block, children, layers):
        return {}
    # A second activation may follow the last layer. So may one that comes after the block, unless the block adds
    # something to the layer's output, which does not show.
    last = activations.get("gate") if len(activations) > 1 else _LINEAR if then in (None, _LINEAR, FREE) else None
    parts = {_ACTIVATED: activation, _LAST: last, _LINEAR: _LINEAR, FREE: FREE}
    return {key: parts[part] for key, part in block.items()}


def _is_whole(block: Mapping[str, str], children: Children, layers: Children) -> bool:
    """Whether the layers of a block fit each other, with nothing that has weights, and may be called, in between."""
    begun = [*children][min(map([*children].index, block)) :]
    others = (children[key] for key in begun if key not in block)
    # The last layer takes what the activated one gives, all of it or a half of a fused pair.
    outputs = [_width(layers[key], "out") for key, part in block.items() if part == _ACTIVATED]
    inputs = [_width(layers[key], "in") for key, part in block.items() if part == _LAST]
    fit = all(output in (size, 2 * size) for output in outputs for size in inputs)
    return fit and not any(parameter.dim() > 1 for other in others for parameter in other.parameters())


def _width(layer: nn.Module, side: str) -> int:
    """The number of features that a layer takes (``in``) or gives (``out``)."""
    names = (f"{side}_features", f"{side}_channels", {"in": "nx", "out": "nf"}[side])  # the last are those of Conv1D
    return next((int(getattr(layer, name)) for name in names if hasattr(layer, name)), 0)


def _normalizes(module: nn.Module, layer: nn.Module) -> bool:
    """Whether a module is a norm of as many channels as a convolution gives, or a batch norm of a linear layer's."""
    after_linear = isinstance(layer, nn.Linear) and isinstance(module, nn.modules.batchnorm._NormBase)
    if not _is_norm(module) or not (isinstance(layer, nn.modules.conv._ConvNd) or after_linear):
        return False
    widths = [getattr(module, name, None) for name in ("num_features", "num_channels", "normalized_shape")]
    widths += [parameter.shape for parameter in module._parameters.values() if parameter is not None]
    width = next((width for width in widths if width is not None), None)
    return (width[0] if isinstance(width, tuple) else width) == _width(layer, "out")
