"""Growth: inputs of up to a megabyte that repeat one piece, or nest it, where a reader may take more than its share."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tests.checkpoints.hostile import safetensors, zipped
from tests.fuzz.mutations import changed, operation, token

LARGEST = 1 << 20
_SIZES = [10, 300, 5_000, 60_000, 1 << 17, 1 << 18, LARGEST]

_PIECES = {
    "toml": [
        "[[rules]]\n", "a.", '"a".', "[a.b]\n", "[", "{a=", "1_", "k{n} = 1\n", "'", '"""', "#\n", "0x", "[[a.b]]\n",
        "\\t", "a = 1\n", ",",
    ],
    "yaml": [
        "- ", "[", "{", "? ", "&a{n} ", "*a ", "<<: *a\n", "- &a 1\n", "k{n}: 1\n", "  ", "!!set {", "#\n", "'",
        "a: |\n b\n",
    ],
    "json": [
        "[", "{", '{"a":', "[[],", "{},", "1,", '"",', '"k{n}":0,', "9", "\\u0041", '{"type":"Not","where":', "1.",
        "-1e9,",
    ],
}  # fmt: skip
_PATTERNS = [
    "(a|aa)", "(?:", "[^.]*", ".*", "a?", "(a+)+", "\\d", "[", "|a", "{3}", "(?=a)", "x{9}", "(?P<n{n}>a)", "\\1",
    "**.", "*", "?", "a.",
]  # fmt: skip
_KEYS = ["a", "ab", "a.", "module.", "0.", "é", "_", "weight.", "=", "blocks.{n}."]
_ENTRIES: list[Any] = [
    {"type": "Zeros", "name": "a{n}"}, {"type": "Normal", "regex": "a{n}.*"}, {"tipe": 1}, {"where": {}},
    {"type": "Normal", "name": "w*", "blocks": 4}, {"type": "Kaiming", "layer": ["Linear", "a{n}"]},
    {"type": "Zeros", "layer": "Linear", "within": ["a", "b"], "override": [{"name": ["c", "d"]}] * 3},
    {"type": "Normal", "name": "**", "std": "1 / sqrt(fan_in)"},
]  # fmt: skip
_FORMATS = {"plan": "torchinit-plan-1", "trace": "torchinit-trace-1"}
_LISTS = {"plan": "steps", "report": "records", "fingerprint": "sites", "trace": "writes", "lockfile": "sources"}


def grown(form: str, dice: Random) -> bytes:
    """An input of the form that repeats something, of a size that is drawn as well."""
    most = dice.choice(_SIZES)
    if form in ("pth", "old"):
        content = b"\x80\x02" + b"".join(operation(dice) for _ in range(dice.randrange(3)))
        return zipped({"data.pkl": content + _repeated(operation(dice) + operation(dice), most) + b"."})
    if form == "safetensors":
        entry = {"dtype": "F32", "shape": [0] * dice.randrange(3), "data_offsets": [0, 0]}
        if dice.random() < 0.5:
            return safetensors({_numbered(dice.choice(_KEYS), n): entry for n in range(most // 70)}, b"")
        return safetensors(
            json.loads(json.dumps({_repeated_text(dice.choice(_KEYS), min(most, 500_000), dice): entry})), b""
        )
    if form == "index":
        names = [dice.choice(["a{n}", "x", "../a", "index.index", "a/{n}"]) for _ in range(3)]
        return json.dumps({"weight_map": {f"w{n}": _numbered(names[n % 3], n) for n in range(most // 20)}}).encode()
    if form in ("renames", "patterns"):
        pattern = _repeated_text(dice.choice(_PATTERNS), min(most, 2000), dice) + dice.choice(["", "=", "x"])
        key = _repeated_text(dice.choice(_KEYS), min(most, dice.choice([50, 900, 20_000])), dice)
        keys = [_numbered(f"{key}{{n}}", n).strip(".") for n in range(max(1, min(most // (len(key) + 9), 3000)))]
        if form == "renames":
            return json.dumps(
                [[[pattern, dice.choice(["", "\\1", "b", "\\g<0>"])]] * dice.choice([1, 3]), keys]
            ).encode()
        entry_: Any = {dice.choice(["name", "regex", "within", "param", "exclude", "layer"]): pattern}
        parts = [f"p{n}.{key.replace('.', '_')[:200]}" for n, key in enumerate(keys)]
        return json.dumps([{"name": "**", **entry_}, parts]).encode()
    if form in _LISTS:
        key = dice.choice([_LISTS[form], "loads", "aliases"])
        start = f'{{"format": "{_FORMATS.get(form, "")}", "version": 1, "{key}": '
        return (start + dice.choice(["[", "{", ""]) + _repeated_text(dice.choice(_PIECES["json"]), most, dice)).encode()
    if form == "json" and dice.random() < 0.5:
        entry_ = dice.choice(_ENTRIES)
        text = json.dumps(entry_)
        return (
            '{"rules": [' + ",".join(_numbered(text, n) for n in range(most // (len(text) + 3) + 1)) + "]}"
        ).encode()
    if form in _PIECES:
        pieces = [dice.choice(_PIECES[form]), dice.choice(_PIECES[form])][: dice.choice([1, 1, 2])]
        start = dice.choice(["", "a: ", "a = ", "rules: &a ", '{"rules": [', "rules = ["])
        return (start + _repeated_text("".join(pieces), most - 40, dice) + token(dice)).encode(errors="replace")
    return changed(form, dice)


def _repeated(piece: bytes, most: int) -> bytes:
    return piece * max(1, (most - 300) // len(piece))


def _repeated_text(piece: str, most: int, dice: Random) -> str:
    count = max(1, most // len(_numbered(piece, 10_000).encode()))
    return "".join(_numbered(piece, n) for n in range(count)) if "{n}" in piece else piece * count


def _numbered(text: str, number: int) -> str:
    return text.replace("{n}", str(number))
