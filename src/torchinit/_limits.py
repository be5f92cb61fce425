"""Limits: how much of each kind a stranger's input may hold; each is checked before memory or time is spent on it.

docs/reference/limits.md is the page of them, with where each is checked and what to do about it. What downloads may
take is :class:`torchinit.checkpoints.hub.Limits`, which users set.
"""

from __future__ import annotations

from typing import Final

# --- recipes, and other data -----------------------------------------------------------------------------------------

RECIPE_BYTES: Final = 1 << 20  # bytes of a recipe in a file
YAML_BYTES: Final = 1 << 18  # characters of a recipe in YAML; it is read about a thousand times as slowly as JSON
RECIPE_VALUES: Final = 40_000  # keys and values of a recipe in a file; what aliases stand for counts each time
LEVELS: Final = 64  # levels of tables and lists in a recipe or other data, and of the parts of a dotted key
TEXT_LENGTH: Final = 10_000  # characters of a text in a recipe
DIGITS: Final = 100  # digits of a whole number in a recipe
MISTAKES: Final = 100  # mistakes that are told at once; reading ends there
HINTS: Final = 20  # rules in vain for which near names are looked up
BLOCKS: Final = 10_000  # blocks of a fused weight
EXPRESSION_LENGTH: Final = 400  # characters of an expression
EXPRESSION_LEVELS: Final = 50  # levels of brackets and operators in an expression
NAME_LENGTH: Final = 1000  # characters of a glob, and of a key that a rename or an expression meets
WILDCARDS: Final = 50  # wildcards of a glob
PATTERN_SECONDS: Final = 1.0  # processor time of a regular expression for one name
PATTERNS_SECONDS: Final = 3.0  # processor time of regular expressions for all names; each use has a millisecond free
PATTERN_COPIES: Final = 2_000  # copies that the counts of a regular expression may ask for

# --- checkpoints, and what belongs to them ---------------------------------------------------------------------------

JSON_BYTES: Final = 1 << 28  # bytes of an index of sharded weights, or of a saved plan or report
JSON_VALUES: Final = 10_000_000  # values of JSON
NOTE_BYTES: Final = 1 << 24  # bytes of a lock file, of the cache's notes, and of tables of sources
HEADER_BYTES: Final = 100_000_000  # bytes of a header of safetensors; the library of that name has the same bound
TENSORS: Final = 250_000  # tensors of a safetensors file
TIED: Final = 10_000  # other names of tied tensors in a safetensors file
FILES: Final = 10_000  # files that an index names
DIMENSIONS: Final = 64  # dimensions of a tensor; torch and NumPy allow no more
PICKLE_BYTES: Final = 1 << 28  # bytes of the pickle in a file of ``torch.save``; tensors are not in it
PICKLE_STACK: Final = 100_000  # values on the stack of a pickle: the items of one tuple
TUPLE_LEVELS: Final = 100  # levels of tuples, lists and tables in a pickle; Python hashes tuples by a recursion
UNPACKED_BYTES: Final = 1 << 25  # bytes that a small packed file may hold once it is unpacked; a large one more
PART_LEVELS: Final = 4  # levels at which weights are looked for in a nested checkpoint
NAMES: Final = 1 << 22  # names in all tables of a nested checkpoint, of which one may lie in others many times
HOPS: Final = 8  # sources that a source may lead to, one after the other
