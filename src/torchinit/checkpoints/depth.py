"""Depth: which block of a checkpoint each block of a model is loaded from, and which are new and start as identity."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import torch

from torchinit._text import abbreviate, count, did_you_mean
from torchinit.checkpoints.key_mapping import NamedKeys
from torchinit.errors import CheckpointError
from torchinit.initializers.load_report import Promise, weakest
from torchinit.knowledge.exits import is_exit
from torchinit.knowledge.role_rules import UNSURE
from torchinit.model.names import check_globs, glob_matches
from torchinit.model.sites import Site
from torchinit.serialization.json import FrozenDict
from torchinit.serialization.schema import is_integer

Method: TypeAlias = Literal["first", "even", "stack", "interleave", "identity"]
NEW: Final = "new"
if TYPE_CHECKING:
    LayerChoice: TypeAlias = Method | Sequence[int | Literal["new"]]
else:
    LayerChoice = Method | tuple[int | Literal["new"], ...]  # what a sequence becomes
Layers: TypeAlias = LayerChoice | Mapping[str, LayerChoice] | None

_NUMBERED: Final = re.compile(r"(.*?)([0-9]+)")


def layers_by_glob(given: object) -> FrozenDict[LayerChoice]:
    """The choices by globs of lists of blocks; ``**`` stands for all. Raises TypeError or ValueError otherwise."""
    choices = given if isinstance(given, Mapping) else {} if given is None else {"**": given}
    check_globs("layers", choices)
    return FrozenDict({glob: _choice(choice) for glob, choice in choices.items()})


def _choice(given: object) -> LayerChoice:
    methods = get_args(Method)
    wrong = f"layers is a list of numbers, or one of {', '.join(methods)}, but got {given!r}"
    if isinstance(given, str):
        if given not in methods:
            raise ValueError(f"{wrong}{did_you_mean(given, methods)}")
        return given  # type: ignore[return-value]  # one of them
    if not isinstance(given, (list, tuple, range)):
        raise TypeError(wrong)
    if odd := [each for each in given if not (is_integer(each, 0) or each == NEW)]:
        raise ValueError(f"layers are numbers from 0, or {NEW!r} for a block of other rules, but got {odd[0]!r}")
    return tuple(given)


@dataclass(frozen=True, slots=True)
class BlockList:
    """A list of like blocks: its name, how those of its blocks go on, and their numbers in order."""

    path: str
    stem: str
    numbers: tuple[int, ...]

    @property
    def start(self) -> str:
        return f"{self.path}.{self.stem}" if self.path else self.stem

    def split(self, name: str) -> tuple[int, str] | None:
        """The number of the block that a name is in, and the rest of the name; None where it is in none."""
        found = re.match(r"([0-9]+)(\..*)", name[len(self.start) :], re.DOTALL) if name.startswith(self.start) else None
        return (int(found[1]), found[2]) if found else None


def stacks_of(known: Iterable[Site]) -> tuple[BlockList, ...]:
    """The lists of blocks that a model is a stack of, by the names of its sites."""
    # Which part of a name is the number of its block does not show in one name: there may be experts in a block, and
    # blocks in a stage. It is the first part that tells the places among the blocks, each by another number.
    blocks = {view.name: view.block for site in known for view in site.views if view.block}
    places: dict[tuple[str, str], dict[int, set[tuple[int, int]]]] = defaultdict(lambda: defaultdict(set))
    for name, block in blocks.items():
        for path, stem, number in _numbered(name):
            places[path, stem][number].add(block)
    stacks: dict[tuple[str, str], BlockList] = {}
    for name, (_, total) in blocks.items():
        for path, stem, _ in _numbered(name):
            found = places[path, stem]
            numbered = sorted((index, number) for number, held in found.items() for index, _ in held)
            if len(found) == total and [index for index, _ in numbered] == [*range(total)]:
                stacks.setdefault((path, stem), BlockList(path, stem, tuple(number for _, number in numbered)))
                break
    return tuple(stacks.values())


def _numbered(name: str) -> Iterable[tuple[str, str, int]]:
    """The path before each numbered part of a name, the beginning of the part, and its number."""
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if found := _NUMBERED.fullmatch(part):
            yield ".".join(parts[:at]), found[1], int(found[2])


@dataclass(frozen=True, slots=True)
class Deepened:
    """The keys of a file under the names of a model of another depth.

    ``left`` are the keys of blocks that are not taken. Names that begin as ``new`` belong to blocks of other rules, as
    ``identity`` to blocks that shall pass on what comes, for which the sites ``zero`` are zero. ``notes`` tell which
    block comes from where.
    """

    names: NamedKeys
    left: frozenset[str] = frozenset()
    new: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    promise: Promise | None = None
    zero: frozenset[str] = frozenset()

    @classmethod
    def of(cls, names: NamedKeys, known: Sequence[Site], choices: Mapping[str, LayerChoice]) -> Deepened:
        """The names once the blocks are chosen; raises CheckpointError where a choice cannot be carried out."""
        if not choices:
            return cls(names)
        result, stacks = cls(names), stacks_of(known)
        idle = [glob for glob in choices if not any(glob_matches(glob, stack.path or stack.stem) for stack in stacks)]
        if idle:
            paths = [stack.path or stack.stem for stack in stacks]
            near = did_you_mean(idle[0], paths) or f"; it has {abbreviate(paths) or 'none'}"
            raise CheckpointError(f"layers: {idle[0]!r} is no list of like blocks of the model{near}")
        for stack in stacks:
            globs = [glob for glob in choices if glob_matches(glob, stack.path or stack.stem)]
            if globs:
                result = result._with(stack, choices[globs[-1]])
        # Some look at sites alone, without a model of which a block could be run: then the roles have the last word.
        tried = any(site.exit is not None for site in known)
        ways = {site.name: site.exit or "" for site in known if (site.exit is not None if tried else is_exit(site))}
        for start in result.identity:
            reasons = [why for name, why in ways.items() if name.startswith(start)]
            if why := next(filter(None, reasons), "" if reasons else "no role says what leads out of it"):
                inside = [site for site in known if site.name.startswith(start) and len(site.shape) > 1]
                unsure = [site.name for site in inside if site.role == UNSURE]
                if unsure:
                    why += f", or as the roles of {abbreviate(unsure)} are not known: give layers= as a list, "
                    why += "lock=False, and after it a rule Zeros() for what leads out of new blocks"
                raise CheckpointError(f"layers='identity': {start}* cannot pass on what comes: {why}")
        return replace(result, zero=frozenset(name for name in ways if name.startswith(result.identity)))

    def _with(self, stack: BlockList, choice: LayerChoice) -> Deepened:
        ours = {name: found for name in self.names.name_of.values() if (found := stack.split(name))}
        there = sorted({number for number, _ in ours.values()})
        if not there:  # the file has nothing of it, which is told as missing
            return self
        sources, copies = _chosen(choice, len(there), len(stack.numbers), stack.start)
        blocks = [f"{stack.start}{number}" for number in stack.numbers]
        targets: dict[int, list[str]] = defaultdict(list)
        for block, source in zip(blocks, sources, strict=True):
            if source is not None:
                targets[there[source]].append(block)

        def renamed(name: str) -> list[str]:
            number, rest = ours.get(name, (None, ""))
            return [name] if number is None else [block + rest for block in targets[number]]

        key_of = {new: key for name, key in self.names.key_of.items() for new in renamed(name)}
        clashes = {new: keys for name, keys in self.names.clashes.items() for new in renamed(name)}
        name_of = {key: next(iter(renamed(name)), name) for key, name in self.names.name_of.items()}
        left = frozenset(key for key, name in self.names.name_of.items() if not renamed(name))
        note = f"{count(len(blocks), 'block')} of {stack.start}* from {_told(sources)} of {len(there)}"
        note += f", new ones pass on what comes: {_told(copies)}" if copies else ""
        # The function stays if all blocks of the file are there in their order, and others do nothing.
        stays = [source for at, source in enumerate(sources) if at not in copies] == [*range(len(there))]
        return Deepened(
            NamedKeys(key_of, name_of, clashes),
            self.left | left,
            (*self.new, *(f"{block}." for block, source in zip(blocks, sources, strict=True) if source is None)),
            (*self.identity, *(f"{blocks[at]}." for at in copies)),
            (*self.notes, note),
            weakest((self.promise, "function" if stays else "none")),
        )


def _chosen(choice: LayerChoice, have: int, want: int, start: str) -> tuple[list[int | None], list[int]]:
    """For each block of a model that of the file, None for one of other rules; and those that start as identity."""
    if not isinstance(choice, str):
        sources = [None if each == NEW else int(each) for each in choice]
        if len(sources) != want:
            blocks = count(want, "block")
            raise CheckpointError(f"layers: {len(sources)} for the {blocks} of {start}*, one for each is needed")
        if most := max((each for each in sources if each is not None and each >= have), default=None):
            blocks = count(have, "block")
            raise CheckpointError(f"layers: the file has {blocks} of {start}*, so there is no block {most}")
        return sources, []
    if choice in ("first", "even"):
        if want > have:
            sizes = f"which has {have} of {start}*, but the model {want}"
            remedy = "'stack', 'interleave' and 'identity' make more"
            raise CheckpointError(f"layers={choice!r} takes some of the blocks of the file, {sizes}; {remedy}")
        even = torch.linspace(0, have - 1, want, dtype=torch.float32, device="cpu").round().long().tolist()
        return (even if choice == "even" else [*range(want)]), []
    if want < have or (choice != "identity" and want % have):
        whole = "" if choice == "identity" else " in a whole multiple"
        sizes = f"of {start}* the file has {have} and the model {want}; a list of numbers says which is which"
        raise CheckpointError(f"layers={choice!r} makes more blocks{whole}, but {sizes}")
    if choice == "stack":
        return [at % have for at in range(want)], []
    if choice == "interleave":
        return [at * have // want for at in range(want)], []
    # New blocks stand evenly among the others, each behind the one of which it is a copy but for its ways out.
    times = [1] * have
    for number in range(want - have):
        times[((number + 1) * have + want - have - 1) // (want - have) - 1] += 1
    copied = [source for source, copies in enumerate(times) for _ in range(copies)]
    return [*copied], [at for at in range(1, want) if copied[at] == copied[at - 1]]


def _told(numbers: Sequence[int | None]) -> str:
    """Numbers as a sentence has them."""
    return abbreviate([NEW if each is None else str(each) for each in numbers], 24)
