"""Lines: whose code is running: the line of the user's, and the module that it works on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import torch

_TORCH = str(Path(torch.__file__).parent) + os.sep
_OURS = str(Path(__file__).parents[1]) + os.sep
_CONTEXTS = os.sep + "contextlib.py"

_STANDING_FOR_TORCH = {
    f"transformers{os.sep}initialization.py": "transformers.initialization.",
    f"timm{os.sep}layers{os.sep}weight_init.py": "timm.layers.",
}
"""Files of others that stand for ``torch.nn.init``, so that a line in them says nothing."""

_MACHINERY = tuple(_TORCH + name for name in ("utils" + os.sep, "overrides.py", "_", "autograd"))


_BELOW = (_OURS, *_MACHINERY)


class Caller(NamedTuple):
    """Who made a write: the line, the function of torch's that it called, the module whose code ran."""

    line: str
    call: str
    module: str | None


class _Code(NamedTuple):
    """What is known of all frames of one piece of code."""

    theirs: bool
    call: str
    arguments: tuple[str, ...]


_KNOWN: dict[int, tuple[CodeType, _Code]] = {}
"""By the id of the code, which is kept so that its id is not given to another: to hash code takes longer."""


def _look(code: CodeType) -> _Code:
    known = _KNOWN.get(id(code))
    if known is None:
        if len(_KNOWN) >= _MOST:
            _KNOWN.clear()
        known = _KNOWN[id(code)] = code, _described(code)
    return known[1]


_MOST = 8192


def _described(code: CodeType) -> _Code:
    file = code.co_filename
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if file.startswith(_OURS):
        return _Code(False, "", ())
    if file.startswith(_TORCH):
        init = file == torch.nn.init.__file__
        call = (
            ""
            if file.startswith(_MACHINERY) or code.co_name.endswith("call_impl")
            else ("nn.init." if init else "") + code.co_qualname
        )
        return _Code(False, call, () if init else arguments)  # which never gets a module
    for others, package in _STANDING_FOR_TORCH.items():
        if file.endswith(os.sep + others):
            return _Code(False, package + code.co_qualname, arguments)
    return _Code(not file.endswith(_CONTEXTS), "", arguments)


def caller(modules: Mapping[int, str], depth: int, until: int = 0) -> Caller:
    """Who runs, seen from ``depth`` frames above: by the line, and by the modules (ids and names) it was given.

    The search for a module ends at the frame whose id is ``until``.
    """
    frame: FrameType | None = sys._getframe(depth)
    line, call, module = "", "", None
    searching = True
    while frame is not None and (searching or not line):
        code = _look(frame.f_code)
        if not line:
            call = code.call or call
            line = _line(frame) if code.theirs else ""
        if searching and code.arguments:
            module = _deepest(frame, code.arguments, modules)
            searching = module is None
        searching = searching and id(frame) != until
        frame = frame.f_back
    return Caller(line, call, module)


def _deepest(frame: FrameType, names: tuple[str, ...], modules: Mapping[int, str]) -> str | None:
    """The deepest of the modules that a function was given: of a model and its part, the part is worked on."""
    held = frame.f_locals
    found = [modules[id(value)] for name in names if id(value := held.get(name)) in modules]
    return max(found, key=depth_of) if found else None


def subject(modules: Mapping[int, str], site_of: Callable[[object], str | None], depth: int, until: int = 0) -> str:
    """What code is initializing: the site, else the deepest module, that the nearest function has in its hands.

    Its local variables count, so that a loop over the modules of a model works on each in turn. Where no
    function up to the frame whose id is ``until`` has any, it is the whole model: the empty name.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_OURS):
            values = list(frame.f_locals.values())
            sites = [site for value in values if (site := site_of(value)) is not None]
            found = sites or [modules[id(value)] for value in values if id(value) in modules]
            if found:
                return max(found, key=depth_of)
        frame = None if id(frame) == until else frame.f_back
    return ""


def frame_of_caller(depth: int) -> FrameType | None:
    """The function that called torch's operation, be it torch's own or anybody's."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and frame.f_code.co_filename.startswith(_BELOW):
        frame = frame.f_back
    return frame


def depth_of(name: str) -> int:
    """How many modules lead to the one of this name.

    >>> depth_of(""), depth_of("layers.0")
    (0, 2)
    """
    return name.count(".") + 1 if name else 0


def frame_of_user(depth: int = 1) -> FrameType | None:
    """The first frame of code that is neither torch's nor torchinit's."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and not _look(frame.f_code).theirs:
        frame = frame.f_back
    return frame


def line_of_user(depth: int = 1) -> str:
    """The line of the user's that runs, as :attr:`Write.line` has it."""
    frame = frame_of_user(depth + 1)
    return "" if frame is None else _line(frame)


def is_within(code: CodeType, depth: int) -> bool:
    """Whether a function of this code runs between here and the user's own code."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and frame.f_code is not code and not _look(frame.f_code).theirs:
        frame = frame.f_back
    return frame is not None and frame.f_code is code


def _line(frame: FrameType) -> str:
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


@lru_cache(maxsize=1024)
def _short(file: str) -> str:
    """The file as a reader would call it: from where they stand, else from where Python found it."""
    roots = [os.getcwd(), *(path for path in sys.path if path)]  # noqa: PTH109 # text, as sys.path has it
    inside = [root for root in roots if file.startswith(root.rstrip(os.sep) + os.sep)]
    return os.path.relpath(file, inside[0] if roots[0] in inside else max(inside, key=len)) if inside else file
