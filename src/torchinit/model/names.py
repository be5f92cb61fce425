"""Names: the qualified name of a parameter without what wrappers put into it, and the globs that match names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

WRAPPERS: Final = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""The names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing give to what they wrap."""

_PARAMETRIZED: Final = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original\d*$")
_MOST_WILDCARDS: Final = 6


def normalize(name: str) -> str:
    """The name that a parameter has in the bare model, however the model is wrapped now.

    Parts that only a wrapper puts in are dropped wherever they stand, the last part excepted, and a
    parametrized tensor gets back the name it had before.

    >>> normalize("module._orig_mod.layers.0._fsdp_wrapped_module.weight")
    'layers.0.weight'
    >>> normalize("conv.parametrizations.weight.original1")
    'conv.weight'
    """
    if "module." not in name and "_orig_mod." not in name and "parametrizations." not in name:
        return name
    return without_wrappers(_PARAMETRIZED.sub(r"\1\2", name))


def without_wrappers(name: str) -> str:
    """The name of a parameter without the parts that only a wrapper puts in.

    >>> without_wrappers("_orig_mod.conv.parametrizations.weight.original1")
    'conv.parametrizations.weight.original1'
    """
    *path, leaf = name.split(".")
    return ".".join([*(part for part in path if part not in WRAPPERS), leaf])


def check_glob(glob: object) -> None:
    """Raise TypeError for a glob that is not a ``str``, ValueError for an empty part or too many wildcards."""
    if not isinstance(glob, str):
        raise TypeError(f"a name is text, but got {glob!r}")
    parts = glob.split(".")
    if "" in parts:
        raise ValueError(f"a name is dotted text such as 'layers.*.weight', but got {glob!r}")
    if max(parts.count("**"), *(part.count("*") for part in parts)) > _MOST_WILDCARDS:
        raise ValueError(
            f"a name has at most {_MOST_WILDCARDS} wildcards, which can be matched in too many ways, but got {glob!r}"
        )


def check_globs(argument: str, globs: object) -> None:
    """Raise TypeError or ValueError for what is not a list of globs; the text begins with the argument's name."""
    if not isinstance(globs, (list, tuple, Mapping)):
        raise TypeError(f"{argument} must be text or a list, but got {globs!r}")
    for glob in globs:
        try:
            check_glob(glob)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{argument}: {error}") from None


def glob_matches(glob: str, name: str) -> bool:
    """Whether a dotted name fits a glob.

    >>> glob_matches("a.**.b", "a.b"), glob_matches("a.**.b", "a.x.y.b"), glob_matches("conv*", "conv1")
    (True, True, True)
    """
    return _pattern(glob).fullmatch(name + ".") is not None


@lru_cache(maxsize=4096)
def _pattern(glob: str) -> re.Pattern[str]:
    # Each part is read with the dot behind it, so that "**" is any number of such units; at the end of a
    # glob it is at least one, since 'head.**' is what lies below 'head'.
    *parts, last = glob.split(".")
    patterns = [r"(?:[^.]+\.)*" if part == "**" else _part_pattern(part) for part in parts]
    return re.compile("".join([*patterns, r"(?:[^.]+\.)+" if last == "**" else _part_pattern(last)]))


def _part_pattern(part: str) -> str:
    wild = {"*": "[^.]*", "?": "[^.]"}
    return "".join(wild.get(char) or re.escape(char) for char in part) + r"\."
