"""The transformers Trainer on two gloo ranks: one start, kept beside the checkpoints, trained alike, and resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from tests.peers.partly_loaded import Config, alone, sites, without
from tests.peers.test_trainer_transformers import WithHead, Words, start_of
from tests.processes import on_ranks, results
from torchinit import verify_replicas
from torchinit.integrations.transformers import StartCallback


def trained(
    folder: Path, model: nn.Module, callback: StartCallback, steps: int, resume: str | None = None
) -> nn.Module:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=2, per_device_train_batch_size=2, report_to=[],
        logging_strategy="no", use_cpu=True, disable_tqdm=True, ddp_backend="gloo",
    )  # fmt: skip
    job = Trainer(args=arguments, train_dataset=Words(), callbacks=[callback], model=model)
    assert job.args.world_size == 2
    job.train(resume_from_checkpoint=resume)
    wrapped: nn.Module = job.model_wrapped
    assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
    verify_replicas(wrapped)
    return wrapped


def on_rank(rank: int, folder: Path, saved: Path) -> dict[str, Any]:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", ACCELERATE_USE_CPU="true")
    torch.manual_seed(rank)  # as users forget to
    model = WithHead(Config())
    found: dict[str, Any] = {"built": sites(model)}
    end = sites(trained(folder, model, StartCallback(), 2))
    found["trained"] = end != found["built"]
    torch.distributed.barrier()
    checkpoint = str(folder / "checkpoint-2")
    again = trained(folder, WithHead(Config()), StartCallback(compare=True), 4, checkpoint)
    found["resumed"] = sites(again) != end
    part = WithHead.from_pretrained(saved)
    found["part"] = sites(part)
    trained(folder / "part", part, StartCallback(), 2)
    return found


def test_two_ranks(tmp_path: Path) -> None:
    whole = WithHead(Config())
    nn.init.constant_(whole.get_parameter("layers.0.0.weight"), 0.5)
    whole.save_pretrained(tmp_path / "whole")
    saved = without(tmp_path / "whole", "head.weight", "layers.1.0.bias")
    (store := tmp_path / "store").mkdir()
    for found in results(on_ranks(2, on_rank, store, tmp_path / "run", saved, timeout=120)):
        assert found["built"] == alone(WithHead)
        assert found["trained"] and found["resumed"]
        assert found["part"] == alone(WithHead) | {"layers.0.0.weight": sites(whole)["layers.0.0.weight"]}
    start = start_of(tmp_path / "run")["start"]
    assert start["fingerprint"]["sites"] == alone(WithHead)
    assert start_of(tmp_path / "run/checkpoint-4")["start"] == start
    assert start_of(tmp_path / "run/part")["start"]["fingerprint"]["sites"] == found["part"]
