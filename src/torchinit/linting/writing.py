"""Writing: checks of who wrote what in which order, as a trace saw it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from torchinit.core.tables import some
from torchinit.errors import count
from torchinit.linting.checks import Evidence, check
from torchinit.linting.subjects import Part, Subject
from torchinit.tracing import Write

ALLOCATES = frozenset({"empty", "empty_like", "empty_strided", "new_empty"})
_CONSTANT = frozenset({"zero_", "fill_"})
_ANEW = _CONSTANT | frozenset({"normal_", "uniform_", "exponential_", "cauchy_", "geometric_", "log_normal_"})
_MOVES = frozenset({"_to_copy", "clone", "assigned", "unseen", "data =", *ALLOCATES})


def is_anew(write: Write) -> bool:
    """Whether the write leaves nothing of what was there: it fills or draws the whole."""
    return write.operation in _ANEW and write.region is None


def is_default(write: Write) -> bool:
    """Whether a layer's own initialization wrote, as it was built or by ``reset_parameters``."""
    return write.call.endswith((".__init__", ".reset_parameters", "._reset_parameters"))


@check("TI107", "unwritten", "warning", "trace", "cover it in the initialization, or leave it to its layer on purpose")
def unwritten(subject: Subject) -> Iterator[Evidence]:
    """A parameter that nothing wrote to while the initialization was traced.

    It keeps what its layer was built with. A warning where the same parameter of other layers of its class was
    written, so that this one was forgotten, and where a parametrization computes it, so that what was written to it
    is lost; else one note for all. Exact, where the trace is: what is built inside the trace, or loaded, is left
    out.
    """
    trace = subject.history
    if not len(trace):
        return
    left = {name for name in trace.unwritten if name not in trace.added}
    parts = [part for part in subject.parts if part.is_parameter and part.name in trace.parameters]
    kinds = {(part.site.owner.name, part.site.leaf) for part in parts if part.name not in left}
    rest = []
    for part in parts:
        if part.name in left and not part.loaded:
            kind = part.site.owner.name, part.site.leaf
            if part.site.parametrized:
                yield Evidence(part.name, "nothing wrote to the tensors that a parametrization computes it from")
            elif kind in kinds:
                yield Evidence(part.name, f"nothing wrote to it, unlike the {kind[1]} of other {kind[0]} layers")
            else:
                rest.append(part.name)
    if rest:
        yield Evidence("", f"nothing wrote to {count(len(rest), 'parameter')}: {some(rest)}", severity="note")


class _Pair(NamedTuple):
    """What one line wrote and another line undid."""

    first: Write
    second: Write


@check("TI204", "undone", "warning", "trace", "let the special case run after the general one")
def undone(subject: Subject) -> Iterator[Evidence]:
    """What one line wrote and another line then filled or drew anew.

    ``self.apply(init_weights)`` at the end of a constructor undoes what its layers did before: the last layer of a
    branch that was zeroed, a bias with its prior, the forget gate of an LSTM. It is a warning where the later line
    writes more sites than the one it undoes and begins when that one is through, since the general case came after the
    special one; else a note, unless the later line writes fewer sites, which is the way it should be. What replaces
    a layer's own initialization, or fills in the same number again, is no finding. Exact, where the trace is; one
    finding for each two lines.
    """
    lines = _lines(subject)
    found: dict[tuple[str, str], list[tuple[Part, _Pair]]] = defaultdict(list)
    for part in subject.parts:
        for pair in _pairs(subject.writes(part)):
            if lines[pair.second.line].sites >= lines[pair.first.line].sites:
                found[pair.first.line, pair.second.line].append((part, pair))
    for (before, after), sites in found.items():
        first, second = sites[0][1]
        names = [part.name for part, _ in sites]
        general = lines[after].sites > lines[before].sites and lines[after].first > lines[before].last
        text = f"{second.what} undoes {first.what} of {before or 'an unknown line'}"
        tail = f", as in {count(len(names) - 1, 'other')}: {some(names[1:])}" if names[1:] else ""
        yield Evidence(names[0], text + tail, severity="warning" if general else "note", line=after)


class _Line(NamedTuple):
    """What a line of code wrote: so many sites, from its first write to its last."""

    sites: int
    first: int
    last: int


def _lines(subject: Subject) -> dict[str, _Line]:
    writes: dict[str, list[Write]] = defaultdict(list)
    for write in subject.history:
        writes[write.line].append(write)
    return {
        line: _Line(len({one.site for one in made}), min(one.order for one in made), max(one.last for one in made))
        for line, made in writes.items()
    }


def _pairs(writes: tuple[Write, ...]) -> Iterator[_Pair]:
    """The last write that left nothing of what was there, with each of those that it undid."""
    last = next((write for write in reversed(writes) if is_anew(write)), None)
    if last is None:
        return
    lines = {last.line}
    for write in writes[: writes.index(last)]:
        again = write.what == last.what and last.operation in _CONSTANT and write.region is None
        if write.line not in lines and write.operation not in _MOVES and not is_default(write) and not again:
            lines.add(write.line)
            yield _Pair(write, last)


@check("TI604", "tie-drawn-twice", "warning", "trace", "initialize it through one of its layers")
def tie_drawn_twice(subject: Subject) -> Iterator[Evidence]:
    """A tied weight that was filled or drawn more than once, through the layers that share it.

    The last one wins, whatever the others meant. A warning where they differ, a note where they are alike. Exact,
    where the trace is; a layer's own initialization does not count.
    """
    for part in subject.parts:
        writes = [one for one in subject.writes(part) if is_anew(one) and not is_default(one)]
        times = sum(write.count for write in writes)
        if part.site.aliases and times > 1:
            said = list(dict.fromkeys(write.what for write in writes))
            names = some([view.name for view in part.site.aliases])
            text = f"is also {names}, and was drawn {times} times: {', '.join(said)}"
            yield Evidence(part.name, text, severity="warning" if len(said) > 1 else "note")
