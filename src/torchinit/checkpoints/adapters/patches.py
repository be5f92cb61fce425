"""Patches: a patch embedding for patches of another size, and for video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
import torch.nn.functional as F
from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Part, Size, check_same, computed
from torchinit.core.arguments import choice, is_whole
from torchinit.core.shards import Box, replaced, without

How: TypeAlias = Literal["repeat", "centre"]


@final
@dataclass(frozen=True, slots=True)
class ResizePatches(Adapter):
    r"""A patch embedding ``[out, in, h, w]`` for patches of another size (FlexiViT, https://arxiv.org/abs/2212.08013).

    With B the matrix that resizes a patch of the file's size to the site's, bicubically, the new weight is

    .. math:: w' = (B^\top)^+ w

    so that the embedding of an enlarged patch is that of the patch itself; for smaller patches it is as near
    as least squares can make it.

    >>> ResizePatches().check([(768, 3, 16, 16)], (768, 3, 32, 32), "patch_embed.proj.weight")
    """

    antialias: bool = True

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (seen,) = shapes
        if len(shape) < 3:
            raise ValueError(f"{self} needs a site of at least 3 dimensions, but it has {list(shape)}")
        check_same(self, seen, shape, free={len(shape) - 2, len(shape) - 1})

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        return shapes[0] != shape

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (weight,) = tensors
        old, new = tuple(weight.shape[-2:]), shape[-2:]
        if old == new:
            return weight
        unit = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)
        resize = F.interpolate(unit, new, mode="bicubic", antialias=self.antialias).flatten(1)  # B transposed
        inverse = torch.linalg.pinv(resize).to(weight.device)
        made: Tensor = weight.double().flatten(-2) @ inverse.T
        return made.view(shape).to(computed(weight).dtype)


@final
@dataclass(frozen=True, slots=True)
class Inflate(Adapter):
    """A kernel for images made one for video: ``[out, in, h, w]`` becomes ``[out, in, t, h, w]``.

    ``how="repeat"`` gives every frame the kernel divided by t (I3D, https://arxiv.org/abs/1705.07750): a
    video that stands still is seen as its image was. ``how="centre"`` gives it to the middle frame, t // 2,
    and zeros to the others (ViViT, https://arxiv.org/abs/2103.15691). ``axis`` is where time comes in.

    >>> import torch
    >>> Inflate().adapt([torch.ones(1, 1, 1, 1)], (1, 1, 4, 1, 1), "conv1.weight").flatten()
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    how: How = "repeat"
    axis: int = 2

    def __post_init__(self) -> None:
        choice("how", self.how, How)
        if not is_whole(self.axis, 0):
            raise ValueError(f"axis must be a whole number from 0, but got {self.axis!r}")

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (seen,) = shapes
        if len(shape) <= self.axis or seen != without(shape, self.axis):
            raise ValueError(
                f"{self} needs the site's shape without dimension {self.axis}, but got {list(seen)} "
                f"for a site of {list(shape)}"
            )

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (weight,) = tensors
        frames = shape[self.axis]
        if self.how == "repeat":
            return (computed(weight) / frames).unsqueeze(self.axis).expand(shape)
        made = weight.new_zeros(shape)
        made.select(self.axis, frames // 2).copy_(weight)
        return made

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        axis = self.axis
        image = Box(without(box.start, axis), without(box.shape, axis))
        video = replaced(box.shape, axis, shape[axis])
        frames = box.start[axis], box.shape[axis]
        return Part((image,), lambda tensors: self.adapt(tensors, video, key).narrow(axis, *frames))
