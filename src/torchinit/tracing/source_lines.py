"""Source lines: whose code is running, by the user's line, and the module that it works on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import torch

_TORCH = str(Path(torch.__file__).parent) + os.sep
_OURS = str(Path(__file__).parents[1]) + os.sep
_CONTEXTS = os.sep + "contextlib.py"

_STANDING_FOR_TORCH = {
    f"{os.sep}transformers{os.sep}initialization.py": "transformers.initialization.",
    f"{os.sep}timm{os.sep}layers{os.sep}weight_init.py": "timm.layers.",
}
"""Files of others that stand for ``torch.nn.init``, so that a line in them says nothing."""

_MACHINERY = tuple(_TORCH + name for name in ("utils" + os.sep, "overrides.py", "_", "autograd"))

_OF_MODES = frozenset({"__torch_function__", "__torch_dispatch__"})
"""Methods of users' modes and tensors, through which torch's own calls go."""


class Caller(NamedTuple):
    """The author of a write: the line, the torch function that it called, the module whose code ran."""

    line: str
    call: str
    module: str | None


class _CodeFacts(NamedTuple):
    """The facts that all frames of one piece of code share."""

    is_users: bool
    call: str = ""
    arguments: tuple[str, ...] = ()


_KNOWN: dict[int, tuple[CodeType, _CodeFacts]] = {}
"""By the id of the code, which is kept so that its id is not given to another: to hash code takes longer."""

_MOST_KNOWN = 8192


def _look_up(code: CodeType) -> _CodeFacts:
    known = _KNOWN.get(id(code))
    if known is None:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        known = _KNOWN[id(code)] = code, _describe(code)
    return known[1]


def _describe(code: CodeType) -> _CodeFacts:
    file = code.co_filename
    if code.co_name in _OF_MODES:
        return _CodeFacts(is_users=False)
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if file.startswith(_OURS):
        return _CodeFacts(is_users=False)
    if file == torch.nn.init.__file__:
        return _CodeFacts(False, "nn.init." + code.co_qualname)  # which is never given a module
    if file.startswith(_TORCH):
        machinery = file.startswith(_MACHINERY) or "call_impl" in code.co_qualname
        return _CodeFacts(False, "" if machinery else code.co_qualname, arguments)
    package = next((package for end, package in _STANDING_FOR_TORCH.items() if file.endswith(end)), None)
    if package is not None:
        return _CodeFacts(False, package + code.co_qualname, arguments)
    return _CodeFacts(not file.endswith(_CONTEXTS), "", arguments)


# A write is made at the bottom of a stack: torch's machinery, perhaps a function of nn.init, a function of the user's
# or of a layer of torch, and above it whatever called that. The line is the first that is the user's. The call is
# the last function of torch before that line, which is what a reader would look for. The module is the one that the
# nearest function was given, by any argument, as `self` of a method or `m` of `_init_weights(self, m)`; functions of
# nn.init are given tensors alone. It may be wrong where a function works on other modules than those that it is given.


def find_caller(modules: Mapping[int, str], until: int = 0) -> Caller:
    """The line that runs, and the module, of these ids and names, that the nearest function was given.

    The search for a module ends at the frame whose id is ``until``.
    """
    line, call, module = "", "", None
    searching = True
    for frame in _frames():
        if line and not searching:
            break
        code = _look_up(frame.f_code)
        if not line:
            call = code.call or call
            line = _line(frame) if code.is_users else ""
        if searching and code.arguments:
            # Of a model and its part, both given to one function, the part is worked on.
            values = frame.f_locals
            given = [modules[id(value)] for name in code.arguments if id(value := values.get(name)) in modules]
            module = max(given, key=depth) if given else None
            searching = module is None
        searching = searching and id(frame) != until
    return Caller(line, call, module)


def find_subject(modules: Mapping[int, str], site_of: Callable[[object], str | None], until: int = 0) -> str:
    """The name of what code is initializing: the site, else the deepest module, that the nearest function works with.

    Its local variables count, so that a loop over the modules of a model works on each in turn. Where no
    function up to the frame whose id is ``until`` has any, it is the whole model: the empty name.
    """
    for frame in _frames():
        if not frame.f_code.co_filename.startswith(_OURS):
            values = list(frame.f_locals.values())
            sites = [site for value in values if (site := site_of(value)) is not None]
            found = sites or [modules[id(value)] for value in values if id(value) in modules]
            if found:
                return max(found, key=depth)
        if id(frame) == until:
            break
    return ""


def depth(name: str) -> int:
    """The number of modules that lead to the one of this name."""
    return name.count(".") + 1 if name else 0


def _frames() -> Iterator[FrameType]:
    """The frames from here outwards."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def frame_of_caller() -> FrameType | None:
    """The function that called torch's operation, whether it is torch's or the user's."""
    below, codes = (_OURS, *_MACHINERY), ((frame, frame.f_code) for frame in _frames())
    return next((f for f, code in codes if not (code.co_name in _OF_MODES or code.co_filename.startswith(below))), None)


def frame_of_user() -> FrameType | None:
    """The first frame of code that is neither torch's nor torchinit's."""
    frame: FrameType | None = sys._getframe(1)  # no generator, since this is asked at each write
    while frame is not None:
        code = frame.f_code
        known = _KNOWN.get(id(code))
        if (known[1] if known else _look_up(code)).is_users:
            return frame
        frame = frame.f_back
    return None


def line_of_user() -> str:
    """The user's line that runs, as :attr:`Write.line` has it."""
    frame = frame_of_user()
    return "" if frame is None else _line(frame)


def is_within(code: CodeType) -> bool:
    """Whether a function of this code runs between here and the user's own code."""
    inner = (frame.f_code for frame in _frames())
    return next((each for each in inner if each is code or _look_up(each).is_users), None) is code


def _line(frame: FrameType) -> str:
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


@lru_cache(maxsize=1024)
def _short(file: str) -> str:
    """The file as a reader would call it: from the working directory, else from where Python found it."""
    roots = [os.getcwd(), *(path for path in sys.path if path)]  # noqa: PTH109 # text, as sys.path has it
    inside = [root for root in roots if file.startswith(root.rstrip(os.sep) + os.sep)]
    return os.path.relpath(file, inside[0] if roots[0] in inside else max(inside, key=len)) if inside else file
