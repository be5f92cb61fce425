"""Matching: all that a rule matches among many sites, without asking of every one; and why it matches none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from operator import attrgetter
from typing import Final

from torchinit._text import abbreviate, count, did_you_mean
from torchinit.knowledge.role_rules import BIAS
from torchinit.model.names import glob_matches
from torchinit.model.sites import Site
from torchinit.rules.rule import Rule
from torchinit.rules.selectors import (
    All,
    AnyOf,
    Block,
    Dtype,
    Is,
    Kinds,
    Layer,
    Leaf,
    Name,
    Not,
    Roles,
    Selector,
    Shape,
    Within,
)

_BY_KIND: Final = frozenset((Layer, Leaf, Kinds, Is, Shape, Roles, Dtype))
"""The selectors that select all sites of a kind, or none."""

FACTS: Final = (
    "shape", "dtype", "parameter_kind", "kind", "frozen", "persistent", "role", "neutral", "activation", "zero_row",
    "state", "partition_dim",
)  # fmt: skip
"""The attributes that all sites of a kind have in common, beside leaf, owner and layout."""

_facts: Final = attrgetter(*FACTS)


class Matcher:
    """Many sites, sorted into kinds of like ones, and by what else selectors look at when the first one asks.

    ``kinds`` has the number of each site's kind, which somebody may have found already, ``members`` the numbers of the
    sites of each kind.

    >>> from torch import nn
    >>> from torchinit.initializers import Normal
    >>> from torchinit.model.sites import sites
    >>> matcher = Matcher(sites(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))))
    >>> matcher.matched(Rule(Leaf("weight") & ~Name("1.*"), Normal()))
    [0]
    """

    # A model of a thousand sites has some ten kinds, which differ in more than names and places: each selector is asked
    # once a kind, and All, AnyOf and Not work on sets of numbers. A glob is tried on the names that begin or end as it
    # does. So fifty rules cost little more than three. What is not known here, a user's own selector or a
    # regular expression (which may take too long for a name, and has to say so), is asked of site after site, and so is
    # whatever it is a part of: how often it is asked, and in which order, stays what it would be without all this.

    def __init__(self, sites: Sequence[Site], kinds: Sequence[int] = ()) -> None:
        self.sites = sites
        self._every = range(len(sites))
        self._by: dict[str, dict[object, list[int]]] = {}
        self.kinds: Sequence[int] = kinds or _kinds_of(sites)
        found: dict[int, list[int]] = defaultdict(list)
        for number, kind in enumerate(self.kinds):
            found[kind].append(number)
        self.members: dict[int, list[int]] = dict(found)

    def matched(self, rule: Rule) -> list[int]:
        """The numbers of the sites that a rule is for."""
        if not _is_known(rule.where):
            return [number for number, site in enumerate(self.sites) if rule.matches(site)]
        if rule.fitting:  # which looks at names, too: see Rule.admits
            return [number for number in sorted(self._set(rule.where)) if rule.admits(self.sites[number])]
        if _is_by_kind(rule.where):
            return sorted(self._of_kinds(rule.matches))
        return sorted(self._set(rule.where) & self._of_kinds(rule.admits))

    def is_selected(self, where: Selector) -> bool:
        """Whether a selector selects any of the sites."""
        return bool(self._set(where)) if _is_known(where) else any(map(where.matches, self.sites))

    def _set(self, where: Selector) -> set[int]:
        match where:
            case All(of):
                return set.intersection(*map(self._set, of)) if of else set(self._every)
            case AnyOf(of):
                return set().union(*map(self._set, of))
            case Not(inner):
                return set(self._every) - self._set(inner)
            case Name(globs):
                return {number for glob in globs for number in self._named(glob)}
            case Within(module):
                return set(self._named(f"{module}.**" if module else "**"))
        if isinstance(where, Block):
            of_block = self._sorted("block").values()
            return set[int]().union(*(numbers for numbers in of_block if where.matches(self.sites[numbers[0]])))
        return self._of_kinds(where.matches)

    def _of_kinds(self, is_wanted: Callable[[Site], bool]) -> set[int]:
        """The numbers of the sites of the kinds that are wanted."""
        return set[int]().union(*(numbers for numbers in self.members.values() if is_wanted(self.sites[numbers[0]])))

    def _named(self, glob: str) -> Iterator[int]:
        """The numbers of the sites whose names fit a glob."""
        if glob == "**":
            return iter(self._every)
        parts = glob.split(".")
        head = ".".join(takewhile(_is_literal, parts))
        if head:
            near: Iterable[int] = self._sorted("path").get(head, ())
        else:
            near = self._of_kinds(lambda site: site.leaf == parts[-1]) if _is_literal(parts[-1]) else self._every
        return (number for number in near if glob_matches(glob, self.sites[number].name))

    def _sorted(self, attribute: str) -> Mapping[object, Sequence[int]]:
        """The numbers of the sites by their block, or by each path that their names begin with."""
        if attribute not in self._by:
            found: dict[object, list[int]] = defaultdict(list)
            if attribute == "path":
                for number, site in enumerate(self.sites):
                    for path in _paths(site.name):
                        found[path].append(number)
            else:
                for number, site in enumerate(self.sites):
                    found[site.block].append(number)
            self._by[attribute] = found
        return self._by[attribute]


def _kinds_of(sites: Iterable[Site]) -> list[int]:
    """The number of each site's kind."""
    # Owners and layouts by their identity: like layers share one, and to hash them takes longer than all the rest.
    numbers: dict[object, int] = {}
    facts = ((id(site.owner), id(site.layout), site.name.rpartition(".")[2], _facts(site)) for site in sites)
    return [numbers.setdefault(each, len(numbers)) for each in facts]


def _is_known(where: Selector) -> bool:
    """Whether the selector, with all that it is made of, looks at nothing but what sites are sorted by."""
    match where:  # by the very class: a user's may be one of ours, made anew
        case All(of) | AnyOf(of) if type(where) in (All, AnyOf):
            return all(map(_is_known, of))
        case Not(inner) if type(where) is Not:
            return _is_known(inner)
    return type(where) in _BY_KIND or type(where) in (Name, Within, Block)


def _is_by_kind(where: Selector) -> bool:
    """Whether the selector, with all that it is made of, selects all sites of a kind or none."""
    match where:
        case All(of) | AnyOf(of):
            return all(map(_is_by_kind, of))
        case Not(inner):
            return _is_by_kind(inner)
    return type(where) in _BY_KIND


def asks_for_roles(rules: Iterable[Rule]) -> bool:
    """Whether a rule may look at ``Site.role``: by :class:`Roles`, for a source, or by code of a user's own."""
    return any(
        _looks_at_roles(rule.where) or not is_ours(rule.init) or "role" in getattr(rule.init, "asks_for", ())
        for rule in rules
    )


def asks_for_exits(rules: Iterable[Rule]) -> bool:
    """Whether a rule looks at ``Site.exit``."""
    return _asks_for("exit", rules)


def asks_for_attention(rules: Iterable[Rule]) -> bool:
    """Whether a rule looks at ``Site.attention``."""
    return _asks_for("attention", rules)


def _asks_for(fact: str, rules: Iterable[Rule]) -> bool:
    return any(fact in getattr(rule.init, "asks_for", ()) for rule in rules)


def _looks_at_roles(where: Selector) -> bool:
    match where:
        case All(of) | AnyOf(of):
            return any(map(_looks_at_roles, of))
        case Not(inner):
            return _looks_at_roles(inner)
    return isinstance(where, Roles) or not is_ours(where)


def roles_asked(where: Selector) -> Iterator[str]:
    """The globs of the roles that a selector is for."""
    match where:
        case All(of) | AnyOf(of):
            for inner in of:
                yield from roles_asked(inner)
        case Roles(globs):
            yield from globs


def is_ours(value: object) -> bool:
    """Whether the class is of this library, and no user's own."""
    return type(value).__module__.startswith("torchinit.")


def _is_literal(part: str) -> bool:
    return "*" not in part and "?" not in part


def _paths(name: str) -> Iterator[str]:
    """The name, and the modules above: ``a.b.c``, ``a.b``, ``a``."""
    while name:
        yield name
        name = name.rpartition(".")[0]


# --- why a rule matches none ---------------------------------------------------------------------------------------


def explain_unmatched(rule: Rule, known: Sequence[Site], matcher: Matcher) -> str:
    """Say why a rule matches none of the sites that are known, with the near name; ``matcher`` has all their views."""
    if rule.fitting:
        return f"{rule.init} finds no weight of a layer that mixes its inputs among {count(len(known), 'site')}"
    for part in _parts(rule.where):
        if not matcher.is_selected(part):
            return f"{part} matches none of {_candidates(part, matcher.sites)}"
    if not rule.buffers and matcher.is_selected(rule.where):
        return f"{rule.where} matches only buffers; set buffers = true to write them"
    return f"{rule.where} matches none of {count(len(known), 'site')}, though each part of it matches some"


def _parts(where: Selector) -> tuple[Selector, ...]:
    of = getattr(where, "of", None)
    return tuple(part for inner in of for part in _parts(inner)) if of else (where,)


def _candidates(part: Selector, views: Sequence[Site]) -> str:
    """The number of candidates that the selector was tried on, and the near one."""
    owners = {view.owner_name: view.owner for view in views}
    if isinstance(part, Layer):
        counts = Counter(name for owner in owners.values() for name in {owner.name, *owner.bases})
        near = _near(part.names, counts)
        if near:
            modules = counts[near.split("'")[1]]
            near = f"{near[:-1]} ({count(modules, 'module')})?"
        return count(len(owners), "module") + near
    if isinstance(part, Within):
        return count(len(owners), "module") + did_you_mean(part.module, owners)
    if isinstance(part, Leaf):
        return count(len(views), "name") + _near(part.names, {view.leaf for view in views})
    if isinstance(part, Name):
        return count(len(views), "name") + _near(part.globs, [view.name for view in views])
    if isinstance(part, Roles):
        if roles := sorted({view.role for view in views if view.role}):
            weights = [role for role in roles if role != "buffer" and not role.endswith(BIAS)]
            return f"{count(len(roles), 'role')} of this model: {abbreviate(weights, 12)}"
        return f"{count(len(views), 'site')} whose roles are not known: torchinit.sites(model) knows them"
    return count(len(views), "site")


def _near(names: Sequence[str], known: Iterable[str]) -> str:
    """The name that is near to one of the first of those that were given."""
    return next(filter(None, (did_you_mean(name, known) for name in names[:8])), "")
