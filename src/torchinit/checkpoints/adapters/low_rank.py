"""Low rank: starts of LoRA's two factors beside the weight that they are added to, and what is left of that."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import ClassVar, Final, Literal, TypeAlias

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.base import Adapter, Promise, ReadPlan, register
from torchinit.checkpoints.adapters.surroundings import Surroundings
from torchinit.checkpoints.adapters.tensors import Size, normal, upcast
from torchinit.checkpoints.key_mapping import find_parts, replace_parts
from torchinit.model.shards import Box, Shard
from torchinit.model.sites import Site
from torchinit.noise import Keyed
from torchinit.noise.settings import one_thread

LoRAMethod: TypeAlias = Literal["default", "gaussian", "orthogonal", "pissa", "olora"]

_DIVIDING: Final = ("pissa", "olora")
_LAST: Final[dict[bytes, tuple[Tensor, Tensor, set[str]]]] = {}
"""The factors made last, with what was made of them: the three sites of a layer, one after the other in a plan, are
made of the same ones, which are kept until the third.
"""


@register
class LoRA(Adapter):
    r"""The factors of LoRA and the weight that they are added to, such that the model begins as that of the file.

    A layer computes with ``W + scaling · B A``, where ``A`` is ``[rank, inputs]`` and ``B`` ``[outputs, rank]``. The
    methods are those of peft: ``default`` draws A from U(±1/√inputs), ``gaussian`` from N(0, 1/rank²), and B is zero.
    ``orthogonal`` multiplies normal draws by the odd and the even rows of one orthogonal matrix, divided by 10, so that
    B A is zero and neither factor is; the rank must be even. ``pissa`` takes the largest singular values of W, and
    leaves the others (https://arxiv.org/abs/2404.02948):

    .. math:: W = U S V^T, \quad B = U_r \sqrt{S_r / \text{scaling}}, \quad A = \sqrt{S_r / \text{scaling}} V_r^T

    ``olora`` takes the first columns of its QR factors (https://arxiv.org/abs/2406.01775):

    .. math:: W = Q R, \quad B = Q_r, \quad A = R_r

    Both leave ``W - scaling · B A`` to the base, which must be adapted with the factors, up to the rounding of its
    dtype, and compute on W whole, in single precision, on each rank that holds a part. ``iterations`` makes ``pissa``
    by so many rounds of subspace iteration (peft's ``pissa_niter_16``), much faster than by all singular values.

    ``a``, ``b`` and ``base`` are what the parts of a layer are called, by default as in peft; no ``base`` for a weight
    of the layer itself. What else the layer has stays as it is. Draws are those of ``seed`` and the names of sites.

    >>> pissa = LoRA("pissa", rank=1)
    >>> pissa.wants("q_proj.lora_A.default.weight"), pissa.wants("q_proj.base_layer.weight")
    (('q_proj.base_layer.weight',), ('q_proj.base_layer.weight',))
    >>> pissa.adapt([torch.diag(torch.tensor([1.0, 9.0]))], (1, 2), "q_proj.lora_A.default.weight")
    tensor([[0., 3.]])
    """

    promise: ClassVar[Promise] = "function"
    copies: ClassVar[int] = 7  # by all singular values 6.4 of 3000 x 3000, as measured, and 2.4 otherwise
    method: LoRAMethod
    rank: int
    scaling: float = 1.0
    iterations: int | None = None
    seed: int = 0
    a: str = "lora_A.default"
    b: str = "lora_B.default"
    base: str = "base_layer"

    def __post_init__(self) -> None:
        if not self.scaling > 0:
            raise ValueError(f"scaling must be above 0, but got {self.scaling!r}")
        if self.iterations is not None and self.method != "pissa":
            raise ValueError(f"iterations are those of pissa, but method is {self.method!r}")
        if self.method == "orthogonal" and self.rank % 2:
            raise ValueError(f"an orthogonal start needs an even rank, but got {self.rank}")

    def _factor(self, key: str) -> str:
        """What the key calls a factor; empty for whatever the base has."""
        return next((name for name in (self.a, self.b) if find_parts(key, name)), "")

    def wants(self, key: str) -> tuple[str, ...]:
        if not (factor := self._factor(key)):
            return (key,)
        if self.base:
            return (replace_parts(key, factor, self.base),)
        found = find_parts(key, factor)
        return (f"{found[1]}{found[3].removeprefix('.')}" if found else key,)

    def together(self, key: str) -> tuple[str, ...]:
        return self.wants(key) if self._factor(key) and self.method in _DIVIDING else ()

    def _divides(self, stored: Size) -> bool:
        """Whether what the base has loses what goes into the factors; a bias does not."""
        return self.method in _DIVIDING and len(stored) > 1

    def placed(self, site: Site, around: Surroundings, shapes: Sequence[Size]) -> Adapter:
        if not self._factor(site.name) and self._divides(site.shape) and site.layout and site.layout.in_axes == (0,):
            ways = "Chain((Transpose(), LoRA(...), Transpose())) for it, Chain((Transpose(), LoRA(...)))"
            why = f"{site.owner.name} has inputs first: give {ways} for its factors"
            raise ValueError(f"{self} needs outputs first, but {why}")
        return self

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        (stored,), factor = shapes, self._factor(key)
        if factor or self._divides(stored):
            if len(stored) != 2:
                raise ValueError(f"{self} needs a matrix to begin with, but got {list(stored)}")
            if self.method in _DIVIDING and self.rank > min(stored):
                raise ValueError(f"{self} needs at least {self.rank} rows and columns, but got {list(stored)}")
        return {self.a: (self.rank, *stored[1:]), self.b: (*stored[:1], self.rank)}.get(factor, stored)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (weight,), factor = tensors, self._factor(key)
        if not factor and not self._divides(shape):
            return weight
        if self.method not in _DIVIDING:
            return self._drawn(tuple(weight.shape), Box.whole(shape), key)
        wide = upcast(weight)
        a, b = self._factors(wide, self.wants(key)[0], factor)
        if factor:
            return (a if factor == self.a else b).clone()  # the other two sites are made of the same
        return wide - self.scaling * (b @ a)

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        if not self._factor(key) and not self._divides(shape):
            return ReadPlan((box,), lambda tensors: tensors[0])
        if self.method not in _DIVIDING:
            nothing = Box.nothing(len(shapes[0]))
            return ReadPlan((nothing,), lambda tensors: self._drawn(shapes[0], box, key))
        return Adapter.read_plan(self, shapes, shape, box, key)

    def _drawn(self, stored: Size, box: Box, key: str) -> Tensor:
        """A box of a factor that nothing of the weight goes into."""
        is_a = self._factor(key) == self.a
        shape = (self.rank, stored[1]) if is_a else (stored[0], self.rank)
        if self.method == "orthogonal":
            with one_thread():
                return box.of(self._orthogonal(shape, key, is_a=is_a))
        values = torch.zeros(box.shape, dtype=torch.float32, device="cpu")
        if is_a:
            bound, std = stored[1] ** -0.5, 1 / self.rank
            draw = ("normal", (0.0, std)) if self.method == "gaussian" else ("uniform", (-bound, bound))
            Keyed(self.seed).fill(Shard(key, values, shape, box.start), *draw)
        return values

    def _orthogonal(self, shape: Size, key: str, *, is_a: bool) -> Tensor:
        """Draws of the factor's own, times the odd or the even rows of a matrix that belongs to the layer."""
        square = torch.empty(self.rank, self.rank, dtype=torch.float64, device="cpu")
        draws = torch.empty(shape[1 if is_a else 0], self.rank // 2, dtype=torch.float32, device="cpu")
        for name, out in ((self.wants(key)[0], square), (key, draws)):
            Keyed(self.seed).fill(Shard.whole(name, out), "normal", (0.0, 1.0))
        rows = _unique_qr(square)[0][0 if is_a else 1 :: 2]
        made: Tensor = (draws.double() @ rows / 10).float()
        return made.T if is_a else made

    def _factors(self, weight: Tensor, key: str, part: str) -> tuple[Tensor, Tensor]:
        """A and B of a weight, for a part of the layer: one of them, or the base, which has no name."""
        # A, B and the base of a layer ask one after the other, each with a weight that was read anew, and to hash it
        # takes a small part of the time of its decomposition. The key has all that the factors are made of, so that it
        # does not matter who asked before.
        digest = blake2b(f"{self!r} {key} {weight.dtype} {tuple(weight.shape)} {weight.device}".encode())
        digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        if (found := _LAST.get(digest.digest())) is None:
            if self.method == "olora":
                q, r = _unique_qr(weight)
                a, b = r[: self.rank].clone(), q[:, : self.rank].clone()
            else:
                a, b = self._pissa(weight, key)
            _LAST.clear()
            found = _LAST[digest.digest()] = a, b, set[str]()
        a, b, made = found
        made.add(part)
        if made == {self.a, self.b, ""}:
            _LAST.clear()
        return a, b

    def _pissa(self, weight: Tensor, key: str) -> tuple[Tensor, Tensor]:
        if self.iterations is None:
            u, values, v = torch.linalg.svd(weight, full_matrices=False)
        else:  # Halko et al. (2009), https://arxiv.org/abs/0909.4061, algorithm 4.4
            size = (weight.shape[1], min(self.rank, *weight.shape))
            basis = torch.linalg.qr(weight @ normal(self.seed, key, Box.whole(size), size, weight)).Q
            for _ in range(self.iterations):
                basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.mT @ basis).Q).Q
            u, values, v = torch.linalg.svd(basis.mT @ weight, full_matrices=False)
            u = basis @ u
        u, values, v = u[:, : self.rank], (values[: self.rank] / self.scaling).sqrt(), v[: self.rank]
        # LAPACK leaves the signs of singular vectors open, and the sites of one layer may be made on several machines:
        # so the largest entry of each column of u is made positive. It can fail where two entries are the largest but
        # for rounding, and where two singular values are alike, since their vectors can be mixed: factors of two
        # machines do not go together then.
        largest = u.gather(0, u.abs().argmax(0, keepdim=True))[0]
        roots = values * torch.where(largest < 0, -1.0, 1.0).to(values)  # signs that do not depend on the machine
        return roots[:, None] * v, u * roots


def _unique_qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The QR factors with no number below 0 on R's diagonal: sites that share them may be made on several machines."""
    q, r = torch.linalg.qr(matrix)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(r.dtype)
    return q * signs, r * signs[:, None]
