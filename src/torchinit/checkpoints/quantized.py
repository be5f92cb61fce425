"""Quantized: tensors of a checkpoint that mean something only together with others that lie beside them.

Quantization divides a weight by a scale, rounds it to few bits, and keeps the scale under a name of its own. torch
takes such a tensor for numbers like any other, so it loads, and is wrong by that factor. What is found here is refused.

Nobody has a list of all such names. So a companion is told by three things together: the model has no site for it; it
is called as the weight is, or lies in its module; and the rest of its name is made of the words of quantization. Only
a weight in fewer bits than its site needs one: a scale beside a weight in bfloat16 is a doubt, and so is a float of
eight bits with no scale beside it, which is a plain cast, or has its scale elsewhere.

How it can fail: a word that is not in the tables below lets a scale pass for an unexpected tensor, and a
plain cast to integers beside a tensor called ``scale`` that the model lacks is refused. A list of whole names would
miss each format that comes after it; new formats make their names of the same few words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

import torchinit._limits as limits
from torchinit._text import abbreviate, dtype_name
from torchinit.checkpoints.adapters import Dequantize
from torchinit.checkpoints.adapters.factors import NOT_FACTORS, is_dequantizable, is_float8
from torchinit.checkpoints.formats import Info
from torchinit.errors import CheckpointError
from torchinit.model.names import normalize

_SCALE: Final = re.compile(r".*scales?|.*quant.*|absmax|amax|centroids|codebooks?|scaled|scaling|scb|q?zeros?|zp")
"""The words for scales, zero points and tables of values."""
_PACKED: Final = re.compile(".*packed.*|qdata|qidxs|qweight|trellis")
"""The words for values of few bits, where no other tensor is called so."""
_BITS: Final = re.compile(f"{_PACKED.pattern}|blocks|codes|data|indices|u?int[48]|point|q")
"""More words for them, where they are not called as the weight is."""
_MORE: Final = re.compile(  # more words that the names of companions are made of
    "act|activation|axis|biases|bitsandbytes|block|channel|comfy|double|format|fp4|fp8|g|global|groups?|idx|input|inv|"
    "invperm|map|max|meta|nested|nf4|output|perm|points|pre|shape|shift|state|suh?|svh?|w"
)
_WORDS: Final = re.compile("|".join(words.pattern for words in (_SCALE, _BITS, _MORE)))
_ELSEWHERE: Final = frozenset({"act", "activation", "amax", "input", "output", "quantizer"})
"""The words of scales for what comes into a layer or out of it, or of a rounding that is still to come."""

_WRITERS: Final = (  # words that tell a format, what it is called, and the library that dequantizes it
    ("absmax|bitsandbytes|scb", "bitsandbytes", "transformers and bitsandbytes"),
    ("w q", "HQQ", "hqq"),
    ("q perm|q groups|trellis", "EXL2 or EXL3", "ExLlama"),
    ("qdata", "torchao", "torchao"),
    ("data", "quanto", "optimum-quanto"),
    ("packed", "compressed-tensors", "transformers and compressed-tensors"),
    ("blocks", "MXFP4", "transformers and Mxfp4Config(dequantize=True)"),
    ("qweight", "GPTQ or AWQ", "GPTQModel"),
    ("quantizer", "ModelOpt", "NVIDIA's modelopt"),
    ("biases", "MLX", "mlx"),
)

UNSCALED: Final = "float8 in the file and no scale beside it: right for a plain cast, wrong if a scale was divided out"
UNREAD: Final = "a scale of that name is in the file, and nothing reads it: wrong if it was divided out"


@dataclass(frozen=True, slots=True)
class Quantized:
    """The reason why a site cannot be loaded, the keys that its values need, the way out, and the adapter for it."""

    why: str
    companions: tuple[str, ...]
    remedy: str
    adapter: Dequantize | None = None


@dataclass(frozen=True, slots=True)
class _Companion:
    """A key near another: whether it is ``named`` after that or lies in its module, and the rest of its name."""

    key: str
    named: bool = True
    words: frozenset[str] = frozenset()

    @property
    def is_scale(self) -> bool:
        return any(map(_SCALE.fullmatch, self.words))

    @property
    def is_factor(self) -> bool:
        """Whether it is a scale or zero point of the values themselves, by its name."""
        return self.named and self.is_scale and not self.words & _ELSEWHERE


class Companions:
    """The tensors of a checkpoint that belong to no site of a model, and so may be needed to read another.

    ``names`` are pairs of a key and its name in the model, ``known`` is what the model has.
    """

    def __init__(self, names: Iterable[tuple[str, str]], known: Container[str], info: Callable[[str], Info]) -> None:
        # By key and by name, since a rename may be meant for the weights alone.
        self._names = dict(names)
        loose = [pair for pair in self._names.items() if pair[1] not in known]
        self._keys = {alias: key for key, name in loose for alias in (key, name)}
        self._markers = {key for key in self._keys.values() if key.rpartition(".")[2] == "scaled_fp8"}
        self.info = info
        self._by_base: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
        self._by_start: dict[str, set[str]] = defaultdict(set)
        short = [pair for pair in self._keys.items() if len(pair[0]) <= limits.NAME_LENGTH]  # all beginnings are kept
        for alias, key in short:
            for separator in [*re.finditer("[._:]", alias)][-limits.LEVELS :]:
                self._by_start[alias[: separator.start()]].add(key)
            for base, words in _bases(alias):
                self._by_base[base][key] = words

    @classmethod
    def among(cls, tensors: Mapping[str, Any], known: Container[str]) -> Companions:
        """Those of tensors by name, whatever wrappers have put into the names."""

        def info(key: str) -> Info:
            if not isinstance(tensors[key], Tensor):
                raise CheckpointError(f"{key} is not a tensor")
            return Info(tuple(tensors[key].shape), tensors[key].dtype)

        return cls(((key, normalize(key)) for key in tensors if isinstance(key, str)), known, info)

    def of(self, key: str, info: Info, dtype: torch.dtype, used: Collection[str] = ()) -> Quantized | None:
        """The reason why the tensor ``key`` is not the values of a site of ``dtype``; None where there is none.

        ``used`` are all keys of which the site is made: an adapter may know what to do with a scale.
        """
        if not self._keys or not _is_narrow(info.dtype, dtype):
            return None
        near = self._near(key)
        if is_float8(info.dtype):
            markers = (marker for marker in self._markers if key.startswith(marker.removesuffix("scaled_fp8")))
            # Floats of eight bits are seldom stored without a scale. So any tensor that the model lacks is taken for
            # one if its name begins with theirs, whatever follows, and it has fewer numbers. Such companions have no
            # words, and `_belongs` takes that for a yes. A marker speaks for all that lies in its module.
            scales = (other for other, stored in self._extensions(key) if stored.numel < info.numel)
            near += map(_Companion, (*scales, *markers))
        # An adapter that takes one of them knows what they are for. What it leaves, a second scale or a zero point,
        # would be lost without a word.
        if any(other.key in used and (other.is_scale or not other.words) for other in near):
            unread = self._unread(near, used)
            return _refused("needs more than one scale:", unread) if unread else None
        if not any(self._belongs(other, info, dtype) for other in near):
            return None
        why = f"is {dtype_name(info.dtype)} in the file, and its values are meaningless without"
        return _refused(why, near, info.dtype, self._dequantize(key, info, near) if dtype.itemsize > 1 else None)

    def dtype_of(self, name: str) -> torch.dtype | None:
        """The dtype of a tensor that belongs to no site, by its key or what that is called in the model."""
        stored = self.look(self._keys[name]) if name in self._keys else None
        return stored.dtype if stored else None

    def _dequantize(self, key: str, info: Info, near: Sequence[_Companion]) -> Dequantize | None:
        """The adapter that makes values of a tensor, if one does; with the name of its scale, if that is not usual."""
        if not is_dequantizable(info.dtype):
            return None
        name = self._names[key]
        owner, dot, leaf = name.rpartition(".")
        factors = [self._names[other.key] for other in near if other.is_factor]
        adapters = [Dequantize()]
        if len(factors) == 1 and factors[0].startswith(owner + dot):
            scale = factors[0].removeprefix(owner + dot).replace(leaf, "*")
            adapters += [] if NOT_FACTORS.search(scale) else [Dequantize(scale)]
        for adapter in adapters:
            with suppress(ValueError):
                bound = adapter.bound(name, lambda _: info.dtype, self.dtype_of)
                key = self._keys[bound.wants(name)[1]] if bound else ""
                if bound and not self._unread(near, [key]):
                    bound.makes([info.shape, self.info(key).shape], name)
                    return adapter
        return None

    def instead(self, name: str) -> Quantized | None:
        """The reason why a site that the file lacks is in it all the same, in quantized form; None where it is not."""
        near = [other for other in self._near(name) if other.named or name.endswith("weight")]
        if not any(other.is_scale or any(map(_PACKED.fullmatch, other.words)) for other in near):
            return None
        bits = [key for key, stored in self._extensions(name) if _is_narrow(stored.dtype, torch.float32)]
        if not bits and not any(map(self._has_bits, near)):
            return None
        return _refused("is in the file in quantized form only:", [*near, *map(_Companion, bits)])

    def doubts(self, keys: Sequence[str], infos: Sequence[Info], dtype: torch.dtype) -> Iterator[str]:
        """Doubts about values of ``dtype`` that are taken from these keys, which may be right all the same."""
        near = (other for key in keys for other in self._near(key)) if self._by_base else ()
        scales = {other.key for other in near if other.is_factor}
        if not scales and dtype.itemsize > 1 and any(is_float8(info.dtype) for info in infos):
            yield UNSCALED
        elif scales and scales.isdisjoint(keys):  # an adapter that takes a scale knows what it is
            yield UNREAD

    def _unread(self, near: Sequence[_Companion], used: Collection[str]) -> list[_Companion]:
        """The scales and zero points of a tensor that are not used; a description in bytes is neither."""

        def is_number(key: str) -> bool:
            stored = self.look(key)
            return stored is None or stored.dtype.is_floating_point or "zero" in key.lower() or "zp" in key.lower()

        return [other for other in near if other.is_factor and other.key not in used and is_number(other.key)]

    def _near(self, key: str) -> list[_Companion]:
        """The loose keys that are called as a key is but for words of quantization, and those of its module alone."""
        if not self._by_base:
            return []
        of_key, of_module = (self._by_base.get(base, {}) for base in (_bare(key), key.rpartition(".")[0]))
        near = [_Companion(other, words=words) for other, words in of_key.items()]
        return near + [_Companion(other, False, words) for other, words in of_module.items() if other not in of_key]

    def _extensions(self, key: str) -> Iterator[tuple[str, Info]]:
        """The loose tensors whose names go on where that of a key ends, in whatever words; scales are never float8."""
        for other in sorted(self._by_start.get(key, ())):
            if (stored := self.look(other)) and not is_float8(stored.dtype):
                yield other, stored

    def _belongs(self, other: _Companion, info: Info, dtype: torch.dtype) -> bool:
        """Whether a tensor of few bits means nothing without that one."""
        if other.named:
            return other.is_scale or not other.words
        stored = self.look(other.key)  # of a plain cast of the whole file what the model lacks is float8, too
        cast = stored is not None and is_float8(stored.dtype) and is_float8(info.dtype)
        return dtype.is_floating_point and other.is_scale and not cast

    def _has_bits(self, other: _Companion) -> bool:
        stored = self.look(other.key)
        return any(map(_BITS.fullmatch, other.words)) and (stored is None or _is_narrow(stored.dtype, torch.float32))

    def look(self, key: str) -> Info | None:
        """Shape and dtype of a tensor; None where torch has none for it."""
        try:
            return self.info(key)
        except CheckpointError:  # of a dtype that torch lacks, of four bits for example
            return None


def quantized(tensors: Mapping[str, Any], sites: Mapping[str, torch.dtype]) -> dict[str, Quantized]:
    """The sites, given by name and dtype, that these tensors hold in quantized form."""
    companions = Companions.among(tensors, sites)
    keys = {normalize(key): key for key, value in tensors.items() if isinstance(value, Tensor)}

    def refusal(name: str, dtype: torch.dtype) -> Quantized | None:
        key = keys.get(name)
        return companions.of(key, companions.info(key), dtype) if key is not None else companions.instead(name)

    return {name: reason for name, dtype in sites.items() if (reason := refusal(name, dtype)) is not None}


def _is_narrow(stored: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether a tensor may stand for values of ``dtype`` in fewer bits."""
    whole = not (stored.is_floating_point or stored.is_complex or stored == torch.bool)
    return (whole and dtype.is_floating_point) or (stored.itemsize == 1 and stored != torch.bool)


def _bases(key: str) -> Iterator[tuple[str, frozenset[str]]]:
    """The names of a key without the words of quantization at its end, one, two and so on, or before its leaf."""
    # A companion is called as its weight is, with words behind that: of "q.weight_scale_inv" the ends are taken off,
    # word by word, and what is left each time may be the weight, "q.weight_scale" and "q.weight". A word that the
    # tables lack ends it: in "attn.scale_net.bias" the last one does. A few formats put the word before the leaf. At
    # most eight are taken off, which bounds what a long key costs.
    words = set[str]()
    for word in reversed([*re.finditer(r"([^._:]+)(?:_\d+)?(?=[._:]|$)", key)][-8:]):
        if not _WORDS.fullmatch(word[1].lower()):
            break
        words.add(word[1].lower())
        yield _bare(key[: word.start()]), frozenset(words)
    module, dot, leaf = key.rpartition(".")
    first, _, rest = leaf.lower().partition("_")
    if rest and _WORDS.fullmatch(first) and not words:
        yield module + dot + leaf[len(first) + 1 :], frozenset({first})


def _bare(name: str) -> str:
    """A name without the separators at its end, and the underscores before its leaf."""
    module, dot, leaf = name.rstrip("._:").rpartition(".")
    return module + dot + leaf.lstrip("_")


def _refused(
    why: str, companions: Sequence[_Companion], dtype: torch.dtype | None = None, adapter: Dequantize | None = None
) -> Quantized:
    """The refusal, with advice by the words of the companions, and by the dtype of the values where they are there."""
    keys = tuple(dict.fromkeys(companion.key for companion in companions))
    words = frozenset[str]().union(*(companion.words for companion in companions))
    writers = (row for row in _WRITERS if any({*alternative.split()} <= words for alternative in row[0].split("|")))
    product = "multiply each tensor by its scale, or each block by its own"
    if adapter:
        how = f"quantized: {product}, as a rule with Pretrained(..., adapt={{'**': {adapter}}}) does"
    elif writer := next(writers, None):
        how = f"{writer[1]}: load the model with {writer[2]}, dequantize it there and save its state_dict"
    elif dtype is not None and is_float8(dtype):
        how = f"scaled float8: {product}, and load the products, from a dict or a file of them"
    else:
        how = "quantized: load the model with the library that wrote the file, and save its dequantized state_dict"
    return Quantized(f"{why} {abbreviate(keys)}", keys, f"{how}; or take a file that is not quantized", adapter)
