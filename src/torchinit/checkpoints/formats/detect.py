"""Detection of the format of a file, by what it holds and not by what it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, TypeAlias

from torchinit._files import expanded
from torchinit._text import abbreviate
from torchinit.checkpoints.formats.zip_audit import zip_entries
from torchinit.errors import CheckpointError

Format: TypeAlias = Literal["safetensors", "index", "zip", "npz", "npy", "pickle"]

_HEAD: Final = 1024
_OTHERS: Final = {  # the first bytes of files that are sent instead of weights, and what to do with each
    b"\x1f\x8b": "is compressed with gzip: unpack it first",
    b"BZh": "is compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "is compressed with xz: unpack it first",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: unpack it first",
    b"\x89HDF": "is an HDF5 file (Keras?): convert it first",
    b"GGUF": (
        "is a GGUF file, whose weights are quantized: load it with transformers, GgufConfig(dequantize=True) and"
        " from_pretrained(folder, gguf_file=...), and save its state_dict"
    ),
    b"\x08\x00\x00\x00": "looks like an ONNX or TensorFlow file: convert it first",
}


def detect_format(path: Path) -> Format:
    """The format of a file; JSON counts as an index. Raises CheckpointError that tells anything else."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder{_why_closed(path)}")
    if not path.is_file():
        why = "is a device or a pipe, not a file" if path.exists() else "can not be found."
        raise CheckpointError(f"{path} {why}")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"PK\x03\x04"):
        names = [entry.filename for entry in zip_entries(path)]
        has_arrays = any(name.endswith(".npy") for name in names)
        return "npz" if has_arrays and not any(name.endswith("data.pkl") for name in names) else "zip"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":  # behind the length of the header, as eight bytes
        return "safetensors"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"{"):
        return "index"
    if head.startswith(b"\x80"):
        return "pickle"
    raise CheckpointError(f"{path}: {_describe(head, text[:256].lower())}")


def _describe(head: bytes, text: bytes) -> str:
    if not head:
        return "is empty: it was not written, or not fetched, to its end; save or fetch it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not weights: the address gave a page (a login? an error?) instead of the file"
    if text.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself: run git lfs pull"
    for magic, description in _OTHERS.items():
        if head.startswith(magic):
            return description
    if b"ustar" in head:
        return "is a tar archive, perhaps of a very old torch.save: unpack or save it again with a newer torch"
    if not any(head):
        return "begins with zeros: it was made but never filled (a download that broke off?)"
    if head[8:9] == b"{":
        return "looks like safetensors, but its header would be larger than any"
    return f"is of no known format: it begins with {head[:8]!r}"


_SAVED_AS: Final = tuple(  # what libraries call the weights in a folder, by which they are found again
    f"{stem}.{ending}{index}"
    for stem in ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model")
    for ending in ("safetensors", "bin")
    for index in (".index.json", "")
)
_KINDS: Final = ("*.index.json", "*.safetensors", "*.pth", "*.pt", "*.bin", "*.npz")


def weights_in(source: str) -> tuple[str, tuple[str, ...]]:
    """The file of weights in a folder, and a note on others that might have been meant; any other source as it is.

    That is the index or file that ``save_pretrained`` writes, or else the only file of the first kind that is there.
    """
    # An index comes before the files that it names: one of those alone is a part of the model. Where no name is known
    # and several files are of one kind, none is taken: they may be shards, or the model beside its optimizer.
    folder = expanded(source)
    if not folder.is_dir() or (folder / ".metadata").is_file():
        return source, ()
    saved = [name for name in _SAVED_AS if (folder / name).is_file()]
    kinds = (_names(folder, kind) for kind in _KINDS)
    found = saved or next(filter(None, kinds), [])
    if not saved and len(found) != 1:
        return source, ()
    notes = (f"taken from {found[0]!r}; the folder also has {abbreviate(found[1:])}",) if found[1:] else ()
    return str(folder / found[0]), notes


def _names(folder: Path, kind: str) -> list[str]:
    return sorted(file.name for file in folder.glob(kind))


def _why_closed(path: Path) -> str:
    """The reason why a folder is not read as a checkpoint, and what in it may have been meant."""
    if (path / ".metadata").is_file():
        return " of torch.distributed.checkpoint, which pickles: open_checkpoint(path, trust=True) reads it"
    names = [name for kind in _KINDS for name in _names(path, kind)]
    several = f" without an index, and with several files of weights ({abbreviate(names)}): name one, or the index"
    return several if names else ", and there are no weights in it"
