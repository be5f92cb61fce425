"""Parameter order: the names of tensors that a file keeps as a list, in the order of a model's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torchinit._text import count
from torchinit.checkpoints.formats import Checkpoint
from torchinit.checkpoints.key_mapping import NamedKeys
from torchinit.errors import CheckpointError
from torchinit.model.sites import Site


def is_numbered(checkpoint: Checkpoint) -> bool:
    """Whether the tensors of a checkpoint have no names but their places in a list."""
    return [*checkpoint] == [str(at) for at in range(len(checkpoint))]


def in_order(checkpoint: Checkpoint, known: Sequence[Site]) -> NamedKeys:
    """The names of a list of tensors in a model with these sites, by number and shape of each.

    Raises CheckpointError where the list is neither all parameters, nor those that learn, nor the whole state.
    """
    # No name is there to be checked, so every shape must agree: one layer more or less moves all behind it, and two
    # layers of one shape in another order pass for each other. That their order is the model's is the user's word.
    if not is_numbered(checkpoint):
        raise CheckpointError(f"{checkpoint.name}: its tensors have names, so order='parameters' is not for them")
    shapes = [checkpoint.info(key).shape for key in checkpoint]
    views = _by_registration([view for site in known for view in site.views if view.persistent])
    place = {view.name: at for at, view in enumerate(views)}  # a tied tensor counts where it comes first
    first = {min((view.name for view in site.views), key=lambda name: place.get(name, len(place))) for site in known}
    parameters = [view for view in views if view.kind == "parameter" and view.name in first]
    learning = [site for site in parameters if not site.frozen]
    for sites in (parameters, learning, views):
        if [site.shape for site in sites] == shapes:
            key_of = {site.name: key for site, key in zip(sites, checkpoint, strict=True)}
            return NamedKeys(key_of, {key: name for name, key in key_of.items()}, {})
    lists = f"{count(len(parameters), 'parameter')}, {len(learning)} that learn, and {len(views)} in its state"
    why = f"its {count(len(shapes), 'tensor')} without names are not the model's: it has {lists}"
    sites = next((sites for sites in (parameters, learning, views) if len(sites) == len(shapes)), [])
    if sites:
        at = next(at for at, site in enumerate(sites) if site.shape != shapes[at])
        why += f"; number {at} has shape {list(shapes[at])}, and {sites[at].name} {list(sites[at].shape)}"
    raise CheckpointError(f"{checkpoint.name}: {why}")


def _by_registration(views: Sequence[Site]) -> list[Site]:
    """The names of tensors in the order of ``model.parameters()``: a module before its children."""
    # They have turns in the order of Module.apply, children first; in both orders siblings come one after the other.
    turns: dict[str, int] = {}
    for view in sorted(views, key=lambda view: view.position):
        for part in accumulate(view.name.split("."), "{}.{}".format):
            turns.setdefault(part, len(turns))

    def turn(view: Site) -> list[tuple[bool, int]]:
        return [(part != view.name, turns[part]) for part in accumulate(view.name.split("."), "{}.{}".format)]

    return sorted(views, key=turn)
