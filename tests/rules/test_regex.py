"""Regular expressions: they match what `re` matches, and those that take forever end."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import warnings
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import torchinit._limits as limits
from torchinit import Regex
from torchinit.errors import ConfigError
from torchinit.model.names import check_glob
from torchinit.rules import regex
from torchinit.rules.regex import check_pattern, matches_whole, substitute

EVIL = [
    r"(a+)+b", r"(a*)*b", r"(a|aa)+b", r"(\w+[.]?)+x", r"(.*)*x", r"(ab|a|b)*c", r"(?:a?){30}a{30}",
    "a?" * 30 + "a" * 30,
    r".*.*.*.*.*x", r".*aa.*aa.*aa.*aa.*aa.*b",
    r"(?=(a+)+b)c", r"((a{1,10}){1,10}){1,10}b", r"(x+x+)+y", r"^(([a-z])+.)+[A-Z]([a-z])+$",
    r"([^.]|\w)+x", r"(?>(a|ab|b)*c)", r"(\d+|\w+)*!", r"(?:é|.)*x", r"(?:(?:a+)b?)*c", r"(x)?(?(1)(a+)+|b)c",
    r"(?i:(A|ab|b))*c", r"(?:|a|){30}b", r"(?=.*(a|aa)+b)a", r"((a|a)*)*\1b",
    "(" * 50 + "a" + ")*" * 50 + "b",
    r"(?:[^éx]|ü)*=", r"(?:\d|[^0-9x])*=", r"(?:\s|[^\x00-\x7f])*=",
    "(?:[\u0100-\u017f]|[\u0180-\u024f]|.)*=", "(?:[\u0100-\u017f]|[^\u00e9x])*=",
    r".*.*.*=", r"[^.]*[^.]*[^.]*=",
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
    r"(?:.*\.)?" * 5 + "weight",
]  # fmt: skip
NAMES = ["", "module.weight", "backbone.layer1.0.conv2.weight", "encoder.layers.11.attn.q_proj.bias", "x.y", "aaabb"]


@pytest.mark.parametrize("pattern", EVIL)
def test_what_takes_forever_ends(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATTERN_SECONDS", 0.02)
    for text in ("a" * 60, "a" * 990, "ü" * 60, "\u0663" * 60, "\u00a0" * 60, "\u0101" * 60):
        for match in (partial(matches_whole, pattern), partial(substitute, pattern, "q")):
            with contextlib.suppress(ConfigError):  # whose text the next test looks at
                match(text)


def test_the_error_names_the_pattern_the_text_and_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATTERN_SECONDS", 0.02)
    text = (
        r"^'\(a\|aa\)\+b' takes more than 0\.02 s to match 'a{40}'\.\.\.; say what ends a part, as in \[\^\.\]\+\[\.\]"
    )
    with pytest.raises(ConfigError, match=text):
        matches_whole("(a|aa)+b", "a" * 990)
    with pytest.raises(ConfigError, match=r"to match 'a{60}'; say"):
        substitute("(a|aa)+b", "", "a" * 60)


def test_the_limit_holds_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATTERN_SECONDS", 0.02)
    told: list[str] = []

    def work() -> None:
        with pytest.raises(ConfigError, match="takes more than") as caught:
            matches_whole("(a|aa)+b", "a" * 99)
        told.append(str(caught.value))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert len(told) == 1


@pytest.mark.parametrize("pattern", GOOD)
def test_what_people_write_is_taken(pattern: str) -> None:
    assert [matches_whole(pattern, name) for name in NAMES] == [
        re.fullmatch(pattern, name) is not None for name in NAMES
    ]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(", r"missing \), unterminated subpattern at position 0"),
        ("a**", "multiple repeat at position 2"),
        (r"\p{L}", r"bad escape \\p at position 0"),
        ("(?<n>a)", r"unknown extension \?<n at position 1"),
        ("(" * 5000 + ")" * 5000, "it has 10,000 characters, more than 1,000"),
        ("a{99999999999999999999}", "more than Python can take: the repetition number is too large"),
        ("a{4294967294}", "what has to occur in it is repeated more than 2,000 times"),
        ("(?:(?:a{100}){100}){100}", "repeated more than 2,000 times"),
        ("(" * 20 + "a" + ")+" * 20, "repeated more than 2,000 times"),
    ],
)
def test_what_is_no_expression(pattern: str, text: str) -> None:
    with pytest.raises(re.error, match=text):
        check_pattern(pattern)
    with pytest.raises(ValueError, match=rf"is not a regular expression: .*{text}"):
        Regex(pattern)


@pytest.mark.parametrize("pattern", ["a{1000}", "(?:[a-z]{1,64}[.]){1,64}", r"\d{4}" * 40, "x" * 1000, "(a+)+"])
def test_what_is_long_is_taken(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"block{i}\.w", "block{i}.w"),  # nearly `block.w` to regex
        ("a{e<=2}", "a{e<=2}"),
        ("a{}b{,}", "a{}bb"),
        ("[[:alpha:]]", "p]"),  # a class to regex
        (r"[a&&b]+[!--1]", "&-"),
        (r"[]\]a[]+", "][a"),
        (r"(?x) a [#] {e} # not a [set\n b {1} (?#or)", "a#{e}b"),
        (r"a(?#\)[{e})bc", "abc"),
        (r"\B", ""),
        ("(?i:k)", "\u212a"),
        ("a\\\nb", "a\nb"),
    ],
)
@pytest.mark.filterwarnings("ignore:Possible (nested set|set difference|set intersection):FutureWarning")
def test_what_means_something_else_to_others(pattern: str, text: str) -> None:
    for each in (text, "abc", "blockx.w", "a"):
        assert matches_whole(pattern, each) is (re.fullmatch(pattern, each) is not None)


LEAVES = [
    "a", "b", "ab", "_", "1", ".", "[ab]", "[^a]", "[a-c1]", r"[\w.]", "[[:a]", "[a&&b]", "[]a]", "[^]a]", r"[a\]b]",
    r"\w", r"\W", r"\d", r"\s", r"\.", r"\-", r"\n", r"\x61", r"\141", r"\0", r"\\", r"[\b]", "{", "}", "{e}", "]", "-",
    "$", "^", r"\b", r"\B", r"\A", r"\Z", "", "(?#x)", r"\1", r"\2", "(?P=n)", "(?(1)a|b)",
]  # fmt: skip
REPEATS = ["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{1,}", "{0}", "{2}?", "*+", "++", "?+", "{1,2}+"]
AROUND = ["(%s)", "(?P<n>%s)", "(?:%s)", "(?=%s)", "(?!%s)", "(?<=%s)", "(?<!%s)", "(?>%s)", "(?i:%s)", "(?s:%s)"]
PATTERNS = st.tuples(
    st.sampled_from(["", "", "(?i)", "(?s)", "(?m)", "(?x)", "(?a)"]),
    st.recursive(
        st.sampled_from(LEAVES),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(REPEATS)).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
            st.tuples(st.sampled_from(LEAVES), st.sampled_from(REPEATS)).map("".join),
            st.lists(inner, min_size=2, max_size=3).map("".join),
            st.lists(inner, min_size=2, max_size=3).map("|".join),
            st.tuples(st.sampled_from(AROUND), inner).map(lambda pair: pair[0] % pair[1]),
        ),
        max_leaves=6,
    ),
).map("".join)
TEMPLATES = [
    "", "x", "é", "\ue000", r"\1", r"\2", r"\g<0>", r"\g<1>", r"\g<n>", r"\\", r"\n", r"\12", r"\01", r"\q", "\\",
]  # fmt: skip
REPLACEMENTS = st.lists(st.sampled_from(TEMPLATES), max_size=4).map("".join)


@settings(max_examples=600)
@given(PATTERNS, REPLACEMENTS, st.text("ab._1- A\nB", max_size=8))
@example(r"^module\.", "", "module.fc.weight")
@example(r"(?P<n>a)|(b)", r"\g<n>-\2", "ab")
@example("x*", "-", "axb")
def test_a_pattern_gives_what_re_gives(pattern: str, new: str, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            changed, whole = re.sub(pattern, new, text), re.fullmatch(pattern, text) is not None
        except SystemError:  # "please report a bug for the re module"
            return
        except (re.error, IndexError) as error:
            with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
                check_pattern(pattern, new)
            return
        check_pattern(pattern, new)
        if "(?(1)" not in pattern:  # a condition on a group within that group may be told otherwise
            assert substitute(pattern, new, text) == changed
            assert matches_whole(pattern, text) is whole


def test_regex_is_imported_where_a_pattern_is_compiled() -> None:
    code = "import sys, torchinit\nassert 'regex' not in sys.modules\nsys.modules['regex'] = None\ntorchinit.Regex('a')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    error = "torchinit.errors.ConfigError: 'a' needs the package regex: pip install regex"
    assert process.stderr.splitlines()[-1] == error


def test_many_names_have_a_limit_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regex, "_FREE", 0.0)
    monkeypatch.setattr(limits, "PATTERNS_SECONDS", 1e-6)
    with pytest.raises(ConfigError, match=r"'a\+' takes more than 1e-06 s with all names up to 'aaa'; say what ends"):
        [matches_whole("a+", "aaa") for _ in range(1000)]
    with pytest.raises(ConfigError, match=r"regular expressions take more than 1e-06 s with all up to '\(b\|c\)\*'"):
        [check_pattern("(b|c)*" + "d" * number) for number in range(900)]  # type: ignore[func-returns-value]


def test_globs_of_many_wildcards() -> None:
    check_glob("**.block*.**.attn*.**.*_proj.**")
    for glob in (".".join(["**"] * 51), "*a" * 51, "?" * 51, "a" * 1001):
        with pytest.raises(ValueError, match=r"a name has at most 1000 characters and 50 wildcards, but got '"):
            check_glob(glob)
