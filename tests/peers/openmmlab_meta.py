"""Meta: models of OpenMMLab on torchinit's BaseModule, started through the meta device, beside `init_weights(seed=0)`.

As a program, FOLDER RANK WORLD NAMES...: a line of JSON for each model (without names, for all) in FOLDER/RANK.jsonl.
With several ranks, each a process of its own, FSDP2 spreads the models over them.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# A package of the environment is called tests, too.
sys.modules["tests"] = ModuleType("tests")
sys.modules["tests"].__path__ = [str(Path(__file__).parents[1])]

import torch  # noqa: E402 - see above
from torch import distributed as dist  # noqa: E402

from tests.peers.openmmlab import _with_checkpoint, build  # noqa: E402
from tests.peers.openmmlab_models import MODELS  # noqa: E402
from tests.peers.openmmlab_sides import prepare  # noqa: E402


def started(case: Any, folder: Path) -> dict[str, Any]:
    """What of a model's tensors, of those that init_weights writes, differs between the two ways."""
    import torchinit
    from torchinit.distributed.own_code import light_parameters

    config = _one_after_the_other(lambda: _with_checkpoint(case, folder))
    one = build(case.package, config)
    with torchinit.trace(one) as seen:
        one.init_weights(seed=0)
    with light_parameters():  # many constructors ask tensors for values, which a model on torch.device("meta") has not
        model = build(case.package, config)
    if dist.is_initialized():
        _spread(model)
    report = torchinit.materialize(model, seed=0)
    mine, theirs = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (model, one))
    written = {write.site for write in seen.writes}
    return {
        "tensors": len(theirs),
        "records": len(report),
        "written": len(written),
        "differing": [name for name in sorted(written) if not torch.equal(_whole(mine[name]), theirs[name])],
    }


def _one_after_the_other(work: Callable[[], Any]) -> Any:
    """The first rank makes the checkpoint, which the others then find."""
    if not dist.is_initialized():
        return work()
    found = [work()] if dist.get_rank() == 0 else []
    dist.barrier()
    return found[0] if found else work()


def _spread(model: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in list(model.modules()):
        if next(module.parameters(recurse=False), None) is not None:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main(folder: Path, rank: int, world: int, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    prepare("torchinit")
    if world > 1:
        dist.init_process_group("gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=world)
    from mmengine.logging import MMLogger

    MMLogger.get_instance("peers").handlers[:] = [logging.NullHandler()]
    with (folder / f"{rank}.jsonl").open("w") as file:
        for case in MODELS:
            if case.name in names or not names:
                try:
                    found = started(case, folder)
                except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to see it
                    found = {"error": f"{type(error).__name__}: {error}"}
                print(json.dumps({"name": case.name, **found}), file=file, flush=True)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
