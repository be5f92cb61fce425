"""Limits: how much of each kind a stranger's input may hold; each is checked before memory or time is spent on it.

docs/reference/limits.md is the page of them, with where each is checked and what to do about it. What downloads may
take is :class:`torchinit.checkpoints.hub.Limits`, which users set.
"""

from __future__ import annotations

from typing import Final

# --- recipes, and other data -----------------------------------------------------------------------------------------

RECIPE_BYTES: Final = 1 << 20
"""The bytes of a recipe in a file."""

YAML_BYTES: Final = 1 << 18
"""The characters of a recipe in YAML, which is read about a thousand times as slowly as JSON."""

RECIPE_VALUES: Final = 40_000
"""The keys and values of a recipe in a file; what aliases, merge keys and overrides stand for counts each time."""

LEVELS: Final = 64
"""The levels of tables and lists in a recipe or other data, and of the parts of a dotted key."""

TEXT_LENGTH: Final = 10_000
"""The characters of a text in a recipe."""

DIGITS: Final = 100
"""The digits of a whole number in a recipe."""

MISTAKES: Final = 100
"""The mistakes that are told at once; reading ends there."""

HINTS: Final = 20
"""The rules in vain for which near names are looked up."""

BLOCKS: Final = 10_000
"""The blocks of a fused weight."""

EXPRESSION_LENGTH: Final = 400
"""The characters of an expression."""

EXPRESSION_LEVELS: Final = 50
"""The levels of brackets and operators in an expression."""

NAME_LENGTH: Final = 1000
"""The characters of a glob, and of a key that a rename or an expression meets."""

WILDCARDS: Final = 50
"""The wildcards of a glob."""

PATTERN_SECONDS: Final = 1.0
"""The processor time of a regular expression for one name."""

PATTERNS_SECONDS: Final = 3.0
"""The processor time of regular expressions for all names; each use has a thousandth of a second free."""

PATTERN_COPIES: Final = 2_000
"""The copies that the counts of a regular expression may ask for."""

# --- checkpoints, and what belongs to them ---------------------------------------------------------------------------

JSON_BYTES: Final = 1 << 28
"""The bytes of an index of sharded weights, or of a saved plan or report."""

JSON_VALUES: Final = 10_000_000
"""The values of JSON."""

NOTE_BYTES: Final = 1 << 24
"""The bytes of a lock file, of the cache's notes, and of tables of sources."""

HEADER_BYTES: Final = 100_000_000
"""The bytes of a header of safetensors; the library of that name has the same bound."""

TENSORS: Final = 250_000
"""The tensors of a safetensors file."""

TIED: Final = 10_000
"""The other names of tied tensors in a safetensors file."""

FILES: Final = 10_000
"""The files that an index names."""

DIMENSIONS: Final = 64
"""The dimensions of a tensor; torch and NumPy allow no more."""

PICKLE_BYTES: Final = 1 << 28
"""The bytes of the pickle in a file of ``torch.save``; tensors are not in it."""

PICKLE_STACK: Final = 100_000
"""The values on the stack of a pickle: the items of one tuple."""

TUPLE_LEVELS: Final = 100
"""The levels of tuples, lists and tables in a pickle: Python hashes tuples by a recursion that nothing bounds."""

UNPACKED_BYTES: Final = 1 << 25
"""The bytes that a small packed file may hold once it is unpacked; a large one 32 times its size more."""

PART_LEVELS: Final = 4
"""The levels at which weights are looked for in a nested checkpoint."""

NAMES: Final = 1 << 22
"""The names in all tables of a nested checkpoint, of which one may lie in others many times."""

HOPS: Final = 8
"""The sources that a source may lead to, one after the other."""
