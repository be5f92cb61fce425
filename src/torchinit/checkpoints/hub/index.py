"""Index: the sources of the files that an index names, which lie beside it and nowhere else."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from torchinit.errors import FetchError

_URL: Final = re.compile(r"[A-Za-z][\w+.-]*://")
_OUTSIDE: Final = re.compile(r"[\\:?#%]|^/|(^|/)\.{1,2}(/|$)|//|/$")


def member_of(source: str | os.PathLike[str], name: str) -> str:
    """The source of a file that an index names, in the folder of the index or below it.

    Raises FetchError for a name that leads anywhere else: absolute, with ``..``, a backslash, a drive, a URL.
    The revision of an ``hf://`` source, and the query of a URL, stay.

    >>> member_of("https://example.org/m/model.safetensors.index.json?download=1", "model-00001.safetensors")
    'https://example.org/m/model-00001.safetensors?download=1'
    >>> member_of("hf://org/repo/model.safetensors.index.json@v1", "part-1.safetensors")
    'hf://org/repo/part-1.safetensors@v1'
    >>> member_of("https://example.org/m/index.json", "../secret")
    Traceback (most recent call last):
    torchinit.errors.FetchError: https://example.org/m/index.json names '../secret', which is not in its folder
    """
    index = os.fspath(source)
    odd = any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    if not name or odd or _OUTSIDE.search(name):
        raise FetchError(f"{index} names {name!r}, which is not in its folder")
    if not _URL.match(index):
        return str(Path(index).parent / name)
    if index.startswith(("http://", "https://")):
        parts = urlsplit(index)
        return parts._replace(path=f"{parts.path.rpartition('/')[0]}/{quote(name)}", fragment="").geturl()
    folder, _, last = index.rpartition("/")
    revision = "".join(last.partition("@")[1:]) if index.startswith("hf://") else ""
    return f"{folder}/{name}{revision}"
