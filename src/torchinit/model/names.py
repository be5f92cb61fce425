"""Names: the qualified name of a parameter without what wrappers put into it, and the globs that match names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from reprlib import repr as short
from typing import Final

import torchinit._limits as limits

WRAPPERS: Final = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""The names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing give to what they wrap."""

_PARAMETRIZED: Final = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original\d*$")


def normalize(name: str) -> str:
    """The name that a parameter has in the bare model, however the model is wrapped now.

    Parts that only a wrapper puts in are dropped wherever they stand, the last part excepted, and a
    parametrized tensor gets back the name it had before.

    >>> normalize("module._orig_mod.layers.0._fsdp_wrapped_module.weight")
    'layers.0.weight'
    >>> normalize("conv.parametrizations.weight.original1")
    'conv.weight'
    """
    if is_bare(name):
        return name
    return without_wrappers(_PARAMETRIZED.sub(r"\1\2", name))


def is_bare(text: str) -> bool:
    """Whether a name, or a text of many, has no part that a wrapper or a parametrization may have put in."""
    return "module." not in text and "_orig_mod." not in text and "parametrizations." not in text


def without_wrappers(name: str) -> str:
    """The name of a parameter without the parts that only a wrapper puts in.

    >>> without_wrappers("_orig_mod.conv.parametrizations.weight.original1")
    'conv.parametrizations.weight.original1'
    """
    *path, leaf = name.split(".")
    return ".".join([*(part for part in path if part not in WRAPPERS), leaf])


def module_name(path: str) -> str:
    """The name that a module has in the bare model; empty for the model itself, also where a wrapper holds it.

    >>> module_name("module._orig_mod.layers.0._fsdp_wrapped_module"), module_name("_orig_mod")
    ('layers.0', '')
    """
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def check_glob(glob: object) -> None:
    """Raise TypeError for a glob that is not a ``str``, ValueError for an empty part and for one beyond the limits."""
    if not isinstance(glob, str):
        raise TypeError(f"a name is text, but got {glob!r}")
    if len(glob) > limits.NAME_LENGTH or sum(map(glob.count, "*?")) > limits.WILDCARDS:
        most = f"{limits.NAME_LENGTH} characters and {limits.WILDCARDS} wildcards"
        raise ValueError(f"a name has at most {most}, but got {short(glob)}")
    if "" in glob.split("."):
        raise ValueError(f"a name is dotted text such as 'layers.*.weight', but got {glob!r}")


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
    if "*" not in glob and "?" not in glob:
        return glob == name
    return _pattern(glob).fullmatch(name + ".") is not None


@lru_cache(maxsize=limits.RECIPE_VALUES)  # fewer, and a recipe of as many globs would compile each again for every name
def _pattern(glob: str) -> re.Pattern[str]:
    # Each part is read with the dot behind it, so that "**" is any number of such units; at the end of a
    # glob it is at least one, since 'head.**' is what lies below 'head'.
    is_below = f".{glob}".endswith(".**")
    first, *runs = map(_unit, re.split(r"(?<![^.])\*\*(?:\.|$)", glob.removesuffix("**") if is_below else glob))
    return re.compile(first + _spread(runs, r"(?:[^.]++\.)*") + r"(?:[^.]++\.)+" * is_below)


def _unit(run: str) -> str:
    """The pattern of parts, none of them ``**``, each with the dot behind it; nothing for none."""
    return "".join(_part_pattern(part) for part in run.removesuffix(".").split(".")) if run else ""


def _part_pattern(part: str) -> str:
    first, *others = (re.escape(text).replace(r"\?", "[^.]") for text in part.split("*"))
    return first + _spread(others, "[^.]*") + r"\."


def _spread(texts: list[str], between: str) -> str:
    """The texts in this order with anything between them; the last one ends what is matched."""
    # Of each text but the last the first occurrence will do: what fits behind a later one fits behind that as well. So
    # it is found once, and kept (?>...). Otherwise a name of n letters has n**k ways to fit k wildcards.
    *inner, last = texts or [""]
    kept = [f"(?>{between}?{text})" for text in inner]
    return "".join([*kept, between + last]) if texts else ""
