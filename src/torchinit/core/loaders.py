"""Loaders: initializers that take their values from somewhere, and so look at all their sites at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchinit.core.accounts import LoadReport
from torchinit.core.fills import Fill
from torchinit.core.sites import Site
from torchinit.core.spelling import Spelled
from torchinit.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a loader found: a fill for each view of a site that it has values for, by name, and the account."""

    fills: Mapping[str, Fill]
    account: LoadReport


class Loader(Spelled, ABC):
    """An initializer that copies what is there, and so takes sites as they are.

    A rule with a loader matches buffers as well as parameters, biases as well as weights, whole numbers as
    well as floats, and leaves padding rows as they come. Buffers that are no part of a ``state_dict`` are not
    its business.
    """

    __slots__ = ()

    @abstractmethod
    def look_up(self, matched: Sequence[tuple[Site, Site]], known: Sequence[Site]) -> Lookup:
        """The fills for pairs of (view, site) that a rule matches in a model whose sites are ``known``.

        Raises nothing: what is wrong is in the account.
        """

    def resolve(self, site: Site) -> Fill | None:
        """The fill for one site alone; None where there is nothing for it, CheckpointError where it does not fit."""
        found = self.look_up([(site, site)], [site])
        account = found.account
        if account.failure or account.mismatched:
            raise CheckpointError(*account.problems[:1])
        return found.fills.get(site.name)
