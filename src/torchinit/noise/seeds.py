"""Seeds: the noise that the ``seed`` of a verb stands for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from torchinit.model.valueless import refuse_fakes
from torchinit.noise.base import Noise
from torchinit.noise.keyed import Keyed
from torchinit.noise.settings import plain_thread
from torchinit.noise.torch_generator import Global, drawing_from


@contextmanager
def noise_of(seed: int | torch.Generator | None, devices: Iterable[torch.device]) -> Iterator[Noise]:
    """The noise that a ``seed`` stands for, while it is drawn from on the devices; of an int without users' modes.

    Raises RunError where tensors have no values.
    """
    refuse_fakes()
    if isinstance(seed, torch.Generator):
        with drawing_from(seed, devices) as noise:
            yield noise
    elif seed is None:
        yield Global()
    else:
        with plain_thread():
            yield Keyed(seed)
