"""Low rank: starts of LoRA's two factors that are taken from the weight beside them, and what is left of that."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.base import (
    Adapter,
    Promise,
    ReadPlan,
    Size,
    check_whole,
    find_parts,
    register,
    replace_parts,
    upcast,
)
from torchinit.model.shards import Box, Shard
from torchinit.noise import Keyed
from torchinit.serialization.validation import check_choice, check_number

LoRAMethod: TypeAlias = Literal["pissa", "olora", "orthogonal"]

_LAST: Final[dict[bytes, tuple[Tensor, Tensor]]] = {}
"""The factors made last: the three sites of a layer, one after the other in a plan, are made of the same ones."""


@register
class LoRA(Adapter):
    r"""The factors of LoRA and the weight that they are added to, so that the model begins as that of the file.

    A layer computes with ``W + scaling · B A``; ``A`` is ``[rank, inputs]``, ``B`` ``[outputs, rank]``. Of the file's W:

    ``pissa`` takes the largest singular values, and leaves the others (https://arxiv.org/abs/2404.02948):

    .. math:: W = U S V^T, \quad B = U_r \sqrt{S_r / \text{scaling}}, \quad A = \sqrt{S_r / \text{scaling}}\, V_r^T

    ``olora`` takes the first columns of the QR factors (https://arxiv.org/abs/2406.01775):

    .. math:: W = Q R, \quad B = Q_r, \quad A = R_r

    and both leave ``W - scaling · B A`` to the base, which must be adapted with them, and is rounded once to its dtype.
    ``orthogonal`` takes nothing of W: the factors are products of normal draws with the odd and the even rows of one
    orthogonal matrix, divided by 10, so that B A is zero; the rank must be even. These are peft's three. LoRA's own
    start, A as of a Linear or normal and B zero, is the scheme ``lora``.

    ``iterations`` makes ``pissa`` by so many rounds of subspace iteration from draws of ``seed`` (peft's
    ``pissa_niter_16``), which is much faster than all singular values, and the function is kept all the same. ``a``,
    ``b`` and ``base`` are what the parts of a layer are called: those of peft by default. Other weights of the layer
    stay as they are. W is computed on whole, in single precision, on each rank that holds a part.

    >>> pissa = LoRA("pissa", rank=1)
    >>> pissa.wants("q_proj.lora_A.default.weight"), pissa.wants("q_proj.base_layer.weight")
    (('q_proj.base_layer.weight',), ('q_proj.base_layer.weight',))
    >>> pissa.adapt([torch.diag(torch.tensor([1.0, 9.0]))], (1, 2), "q_proj.lora_A.default.weight")
    tensor([[0., 3.]])
    """

    method: LoRAMethod
    rank: int
    scaling: float = 1.0
    iterations: int | None = None
    seed: int = 0
    a: str = "lora_A.default"
    b: str = "lora_B.default"
    base: str = "base_layer"

    def __post_init__(self) -> None:
        check_choice("method", self.method, LoRAMethod)
        check_whole(self, "rank", least=1)
        if not check_number("scaling", self.scaling) > 0:
            raise ValueError(f"scaling must be above 0, but got {self.scaling!r}")
        if self.iterations is not None:
            check_whole(self, "iterations")
            if self.method != "pissa":
                raise ValueError(f"iterations are those of pissa, but method is {self.method!r}")
        if self.method == "orthogonal" and self.rank % 2:
            raise ValueError(f"an orthogonal start needs an even rank, but got {self.rank}")
        Keyed(self.seed)

    @property
    def promise(self) -> Promise:
        return "function"

    @property
    def copies(self) -> int:
        return 7 if self.method == "pissa" and self.iterations is None else 3  # as measured on 3000 x 3000

    def _factor(self, key: str) -> str:
        """What the key calls a factor; empty for a weight of the base."""
        return next((name for name in (self.a, self.b) if find_parts(key, name)), "")

    def wants(self, key: str) -> tuple[str, ...]:
        factor = self._factor(key)
        return (replace_parts(key, factor, self.base) if factor else key,)

    def together(self, key: str) -> tuple[str, ...]:
        if self.method == "orthogonal" or not self._factor(key):
            return ()
        return self.wants(key)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (stored,), factor = shapes, self._factor(key)
        wanted = stored
        if factor or self._is_divided(stored, key):
            if len(stored) != 2:
                raise ValueError(f"{self} needs a matrix to begin with, but got {list(stored)}")
            if self.method != "orthogonal" and self.rank > min(stored):
                raise ValueError(f"{self} cannot take {self.rank} ranks of {list(stored)}")
            wanted = {self.a: (self.rank, stored[1]), self.b: (stored[0], self.rank)}.get(factor, stored)
        if shape != wanted:
            raise ValueError(f"{self} makes {list(wanted)} of {list(stored)}, but the site has {list(shape)}")

    def _is_divided(self, stored: Size, key: str) -> bool:
        """Whether a weight of the base loses what goes into the factors; a bias does not."""
        return self.method != "orthogonal" and len(stored) > 1

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (weight,), factor = tensors, self._factor(key)
        if not factor and not self._is_divided(tuple(weight.shape), key):
            return weight
        if self.method == "orthogonal":
            return self._orthogonal(tuple(weight.shape), key)
        wide = upcast(weight)
        a, b = self._factors(wide, self.wants(key)[0])
        if factor:
            return a if factor == self.a else b
        return wide - self.scaling * (b @ a)

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        if not self._factor(key) and not self._is_divided(shapes[0], key):
            return ReadPlan((box,), lambda tensors: tensors[0])
        if self.method == "orthogonal":
            return ReadPlan((Box((0, 0), (0, 0)),), lambda tensors: box.of(self._orthogonal(shapes[0], key)))
        return Adapter.read_plan(self, shapes, shape, box, key)

    def _factors(self, weight: Tensor, key: str) -> tuple[Tensor, Tensor]:
        """A and B of a weight."""
        digest = blake2b(f"{self!r} {key} {weight.dtype} {tuple(weight.shape)} {weight.device}".encode())
        digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        if (found := _LAST.get(digest.digest())) is None:
            found = self._olora(weight) if self.method == "olora" else self._pissa(weight, key)
            _LAST.clear()
            _LAST[digest.digest()] = found
        return found

    def _olora(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        q, r = torch.linalg.qr(weight)
        # LAPACK leaves the signs open. Both factors must have the same, on whatever machine they are made.
        signs = r.diagonal()[: self.rank].sign() + (r.diagonal()[: self.rank] == 0)
        return r[: self.rank] * signs[:, None], q[:, : self.rank] * signs

    def _pissa(self, weight: Tensor, key: str) -> tuple[Tensor, Tensor]:
        if self.iterations is None:
            u, values, v = torch.linalg.svd(weight, full_matrices=False)
        else:  # Halko et al. (2009), https://arxiv.org/abs/0909.4061, algorithm 4.4
            draws = torch.empty(weight.shape[1], min(self.rank, *weight.shape), dtype=weight.dtype, device="cpu")
            Keyed(self.seed).fill(Shard.whole(key, draws), "normal", (0.0, 1.0))
            basis = torch.linalg.qr(weight @ draws.to(weight.device)).Q
            for _ in range(self.iterations):
                basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.mT @ basis).Q).Q
            u, values, v = torch.linalg.svd(basis.mT @ weight, full_matrices=False)
            u = basis @ u
        u, values, v = u[:, : self.rank], (values[: self.rank] / self.scaling).sqrt(), v[: self.rank]
        largest = u.gather(0, u.abs().argmax(0, keepdim=True))[0]
        roots = values * torch.where(largest < 0, -1.0, 1.0)  # signs that do not depend on the machine
        return roots[:, None] * v, u * roots

    def _orthogonal(self, stored: Size, key: str) -> Tensor:
        """A or B: draws of its own, times the odd or the even rows of a matrix that belongs to the layer."""
        is_a, half = self._factor(key) == self.a, self.rank // 2
        square = torch.empty(self.rank, self.rank, dtype=torch.float64, device="cpu")
        draws = torch.empty(stored[1 if is_a else 0], half, dtype=torch.float64, device="cpu")
        for name, out in ((self.wants(key)[0], square), (key, draws)):
            Keyed(self.seed).fill(Shard.whole(name, out), "normal", (0.0, 1.0))
        rows = torch.linalg.qr(square).Q[0 if is_a else 1 :: 2]
        made = (draws @ rows / 10).float()
        return made.T if is_a else made
