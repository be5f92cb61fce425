"""Patterns: those that take forever are refused, and those that people write are not."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchinit import Regex
from torchinit.core.globs import check_glob
from torchinit.core.patterns import slow

EVIL = [
    r"(a+)+b", r"(a*)*b", r"(a|aa)+b", r"(\w+[.]?)+x", r"(.*)*x", r"(ab|a|b)*c", r"(?:a?){30}a{30}",
    "a?" * 30 + "a" * 30,
    r".*.*.*.*.*x", r".*aa.*aa.*aa.*aa.*aa.*b",
    r"(?=(a+)+b)c", r"((a{1,10}){1,10}){1,10}b", r"(x+x+)+y", r"^(([a-z])+.)+[A-Z]([a-z])+$",
    r"([^.]|\w)+x", r"(?>(a|ab|b)*c)", r"(\d+|\w+)*!", r"(?:é|.)*x", r"(?:(?:a+)b?)*c", r"(x)?(?(1)(a+)+|b)c",
    r"(?i:(A|ab|b))*c",
    "(" * 50 + "a" + ")*" * 50 + "b",
]  # fmt: skip
GOOD = [
    "", "^", r"^module[.]", r"gamma$", r"^(.*)\.(.*)$", r"(?:[^.]+[.])*weight", r"^(module\.)+",
    r"layers[.](\d+)[.](.*)",
    r"(module\.|model\.)+", r"(encoder|decoder)[.](\d+)[.](weight|bias)", r".*\.(.*)\.weight", r"(?:[^.]++[.]?)*weight",
    r"layers[.](0|1)[.].*", r"(a|b)+", r"[a-z]+[0-9]+x*", r"(?P<n>\d+)\.(?P=n)", r"(?<=x)\.y", r"(?<![.])x",
    r"(x)?(?(1)y|z)",
    r"\bfoo\b", r"(.*)(.*)(.*)", r"([a-z]+_)*norm", r"(\w+\.)*attn",
    r"^backbone\.(layer\d+\.\d+)\.(conv|bn)(\d)\.(.+)$",
    r".*layers\..*\.attn\..*\.weight", r".*(q|k|v)_proj.*weight.*bias.*",
    r".*encoder.*layer.*attention.*self.*query.*",
    r"(?>module\.)*x", r"a{3}b{2,5}?", r"[^\d\s]+x",
]  # fmt: skip


@pytest.mark.parametrize("pattern", EVIL)
def test_what_takes_forever_is_refused(pattern: str) -> None:
    re.compile(pattern)
    with pytest.raises(ValueError, match=r"may take forever to match: what repeats in it can be cut in too many ways"):
        Regex(pattern)


@pytest.mark.parametrize("pattern", GOOD)
def test_what_people_write_is_taken(pattern: str) -> None:
    assert slow(pattern) == ""


def test_what_python_cannot_take() -> None:
    assert "more than Python can take" in slow("(" * 5000 + ")" * 5000)
    assert "more than Python can take" in slow("a{99999999999999999999}")
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        Regex("(")


PIECES = st.recursive(
    st.sampled_from(["a", "b", "[ab]", "[^a]", ".", r"\w", "ab"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{1,3}", "*?", "++"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
    ),
    max_leaves=6,
)


def test_what_is_taken_ends() -> None:
    """Everything that is not refused is matched, in a process that would be ended if it took long."""
    held: list[str] = []

    @settings(max_examples=300, database=None)
    @given(PIECES)
    def collect(pattern: str) -> None:
        if not slow(pattern):
            held.append(pattern)

    collect()
    assert len(held) > 50
    code = "import re, sys\nfor p in sys.stdin.read().split('\\n'):\n"
    code += "  for t in ('a' * 28, 'ab' * 14, 'a' * 27 + 'b'):\n    re.fullmatch(p + '!', t)"
    subprocess.run([sys.executable, "-c", code], input="\n".join(held), text=True, timeout=60, check=True)


def test_globs_of_many_wildcards() -> None:
    check_glob("**.block*.**.attn*.**.*_proj.**")
    for glob in (".".join(["**"] * 7), "*a" * 7):
        with pytest.raises(ValueError, match=r"a name has at most 6 wildcards"):
            check_glob(glob)
