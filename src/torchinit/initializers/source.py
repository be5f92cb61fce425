"""Sites resolved together, by any initializer, and by those that take values from a source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import ClassVar

from torchinit._text import ShortStr
from torchinit.errors import CheckpointError
from torchinit.initializers.base import Fill, Initializer, fill_of
from torchinit.initializers.load_report import LoadReport
from torchinit.model.sites import Site


@dataclass(frozen=True, slots=True)
class Resolution:
    """The fills that an initializer gives the views of sites that a rule matches, by their names.

    ``fills`` leaves out the views that it declines and those of ``errors``, for which it has no answer; ``account``
    tells what became of a source, ``used`` the elements of each of its tensors that are taken, by source and key.
    """

    fills: Mapping[str, Fill]
    errors: Mapping[str, ValueError] = field(default_factory=dict)
    account: LoadReport | None = None
    used: Mapping[Hashable, Mapping[str, int]] = field(default_factory=dict)


def resolve_all(init: Initializer, pairs: Sequence[tuple[Site, Site]], known: Sequence[Site]) -> Resolution:
    """Resolve pairs of (view, site) in a model whose sites are ``known``.

    An initializer is asked for all of them at once if it has a method of this name, else view by view; those that come
    with torchinit say in ``looks_at`` which attributes of a site their answer depends on.
    """
    if own := getattr(init, "resolve_all", None):
        resolution: Resolution = own(pairs, known)
        return resolution
    # One that says what it looks at is asked once for all views that are alike in that. Where it fails, the text may
    # hold their names, so each is asked.
    looked = looks_at(init)
    # Layouts by their identity: like layers share one, and to hash it takes longer than all the rest.
    alike = None if looked is None else attrgetter("shape", "dtype", *(name for name in looked if name != "layout"))
    by_layout = looked is not None and "layout" in looked
    known_fills: dict[object, Fill | None] = {}
    fills, errors = dict[str, Fill](), dict[str, ValueError]()
    for view, _ in pairs:
        key = id(view) if alike is None else (alike(view), by_layout and id(view.layout))
        try:
            if key not in known_fills:
                fill = fill_of(init, view)
                if fill is not None:
                    fill.check(view.shape, view.dtype)
                known_fills[key] = fill
            if (fill := known_fills[key]) is not None:
                fills[view.name] = fill
        except ValueError as error:
            # Without the frames in which it arose, and those of what it came from: a recipe in error has thousands.
            error.__context__ = error.__cause__ = None
            errors[view.name] = error.with_traceback(None)
    return Resolution(fills, errors)


def looks_at(init: Initializer) -> tuple[str, ...] | None:
    """All that the answers of an initializer depend on, besides shape and dtype, if its own class declares it."""
    declared: tuple[str, ...] | None = vars(type(init)).get("looks_at")
    return None if hasattr(init, "resolve_all") else declared


def is_verbatim(init: object) -> bool:
    """Whether an initializer copies what is there: see :class:`SourceInitializer`."""
    return bool(getattr(init, "verbatim", False))


class SourceInitializer(ShortStr, ABC):
    """An initializer that copies what is there, and so takes sites as they are: it is ``verbatim``.

    A rule with one matches all of a ``state_dict``: buffers as well as parameters, biases as well as weights, whole
    numbers as well as floats; and leaves padding rows as they come.
    """

    __slots__ = ()

    verbatim: ClassVar[bool] = True

    @abstractmethod
    def resolve_all(self, pairs: Sequence[tuple[Site, Site]], known: Sequence[Site]) -> Resolution:
        """The fills for what a rule matches. Raises nothing: what is wrong is in the account, which there always is."""

    def resolve(self, site: Site) -> Fill | None:
        """The fill for one site alone; None where there is nothing for it, CheckpointError where it does not fit."""
        resolution = self.resolve_all([(site, site)], [site])
        if (account := resolution.account) and (account.failure or account.mismatched):
            raise CheckpointError(*account.problems[:1])
        return resolution.fills.get(site.name)
