"""Golden cases: 200 draws whose digests are kept in tests/golden, so that no value ever changes unnoticed.

``python -m tests.noise.golden`` writes the file of a stream version that has none yet. It never overwrites one: other
values are another stream, with another version.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path

import torch

from torchinit.model.shards import Shard
from torchinit.noise import STREAM, Distribution, Keyed

FOLDER = Path(__file__).parent.parent / "golden"
FILE = FOLDER / f"{STREAM.removeprefix('torchinit-')}.json"
COUNT = 200

_SEEDS = [0, 1, 42, 2**32, 2**64 - 1]
_NAMES = ["weight", "layers.0.attn.qkv.weight", "层.权重", ""]
_SHAPES: list[list[int]] = [[], [1], [33], [64, 64], [7, 5, 3, 3], [1000], [0, 4], [3, 2049], [40_000]]
_DTYPES = ["float32", "bfloat16", "float16", "float64", "complex64"]
_DRAWS: list[tuple[Distribution, list[float]]] = [
    ("normal", [0.0, 0.02]),
    ("uniform", [-0.05, 0.05]),
    ("truncated", [0.0, 1.0, -2.0, 2.0]),
    ("normal", [1.5, 3.0]),
    ("truncated", [0.0, 0.02, -2.0, 2.0]),
    ("truncated", [0.5, 1.0, -1.0, 4.0]),
    ("truncated", [0.0, 1.0, 6.0, math.inf]),
    ("truncated", [0.0, 1.0, -0.001, 0.002]),
    ("truncated", [0.0, 2.0, -80.0, -70.0]),
    ("uniform", [0.0, 1.0]),
    ("bernoulli", [0.3]),
    ("integer", [-5.0, 17.0]),
    ("sign", []),
]


@dataclass(frozen=True)
class Case:
    """What is drawn; infinite parameters are strings, since JSON has no number for them."""

    seed: int
    name: str
    index: int
    shape: list[int]
    distribution: Distribution
    params: list[float | str]
    dtype: str

    def digest(self) -> str:
        """BLAKE2b-128 of the little-endian bytes that the draw leaves."""
        out = torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        shard = Shard.whole(self.name, out)
        numbers = tuple(float(value) for value in self.params)
        Keyed(self.seed).fill(shard, self.distribution, numbers, self.index)
        return hashlib.blake2b(bytes(out.view(-1).view(torch.uint8).tolist()), digest_size=16).hexdigest()


def cases() -> Iterator[Case]:
    """The golden cases: every dtype with every draw, the other choices taken in turn."""
    for at, ((distribution, params), dtype, turn) in enumerate(product(_DRAWS, _DTYPES, range(4))):
        if dtype == "complex64" and distribution != "normal":
            continue
        yield Case(
            seed=_SEEDS[at % len(_SEEDS)],
            name=_NAMES[(at // 3 + turn) % len(_NAMES)],
            index=at % 2,
            shape=_SHAPES[at % len(_SHAPES)],
            distribution=distribution,
            params=[value if math.isfinite(value) else str(value) for value in params],
            dtype=dtype,
        )


def main() -> None:
    """Writes the file of this stream version, if there is none."""
    if FILE.exists():
        sys.exit(f"{FILE.name} exists: values of a published stream never change; start a new version")
    rows = [{**asdict(case), "digest": case.digest()} for case in islice(cases(), COUNT)]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    FILE.write_text(f'{{"stream": "{STREAM}", "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
