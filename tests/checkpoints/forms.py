"""Forms: files of quantized weights as libraries write them, small.

The names are those that the libraries write: bitsandbytes 0.50, torchao 0.18, optimum-quanto 0.2.7, hqq 0.2.8,
compressed-tensors 0.20, transformers 5, torch.ao 2.13; of GPTQ, AWQ, EXL2, MLX, ComfyUI, gpt-oss and ModelOpt those of
published files.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from torchinit import BaseModule, Name, Normal, Pretrained, Rule

E4M3, E5M2, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu
SIZE = 16


class Net(BaseModule):
    """A layer that is quantized, and a norm that never is."""

    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.fc = nn.Linear(SIZE, SIZE)
        self.norm = nn.LayerNorm(SIZE)


def whole(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, 0.01).to(dtype)


def float8(dtype: torch.dtype = E4M3) -> Tensor:
    return torch.linspace(-400, 400, SIZE * SIZE).view(SIZE, SIZE).to(dtype)


INT8, UINT8, INT32 = torch.int8, torch.uint8, torch.int32
BITS = {"weight": whole(UINT8, SIZE * SIZE // 2, 1)}
GPTQ = {"qweight": whole(INT32, 2, SIZE), "qzeros": whole(INT32, 1, 2), "scales": floats(1, SIZE)}

FORMS: dict[str, tuple[dict[str, Tensor], str]] = {
    # what is below "fc.", and what the way out says
    "a scale": ({"weight": float8(), "weight_scale": floats()}, "multiply each tensor by its scale"),
    "a scale a row": ({"weight": float8(), "weight_scale": floats(SIZE, 1)}, "multiply each"),
    "blocks, called inverse": ({"weight": float8(), "weight_scale_inv": floats(2, 2)}, "or each block by its own"),
    "blocks, scaled by powers of two": ({"weight": float8(), "weight_scale_inv": whole(E8M0, 2, 2)}, "multiply"),
    "mxfp8": ({"weight": float8(), "weight_scale": whole(UINT8, SIZE, 1)}, "multiply each"),
    "e5m2": ({"weight": float8(E5M2), "weight_scale": floats()}, "multiply each"),
    "fnuz": ({"weight": float8(torch.float8_e4m3fnuz), "weight_scale": floats()}, "multiply each"),
    "with activations": ({"weight": float8(), "weight_scale": floats(), "input_scale": floats()}, "multiply each"),
    "of activations alone": ({"weight": float8(), "input_scale": floats()}, "multiply each"),
    "comfy": ({"weight": float8(), "scale_weight": floats(), "scale_input": floats()}, "multiply each"),
    "comfy, newer": ({"weight": float8(), "weight_scale": floats(), "comfy_quant": whole(UINT8, 40)}, "multiply each"),
    "called as the module": ({"weight": float8(), "_scale": floats()}, "multiply each"),
    "modelopt": ({"weight": float8(), "weight_quantizer._scale": floats()}, "with NVIDIA's modelopt"),
    "another word": ({"weight": float8(), "weight_multiplier": floats(SIZE)}, "multiply each"),
    "nvfp4": ({"weight": whole(UINT8, SIZE, 8), "weight_scale": whole(E4M3, SIZE, 1), "weight_scale_2": floats()}, ""),
    "int8": ({"weight": whole(INT8, SIZE, SIZE), "weight_scale": floats(SIZE, 1)}, "multiply each tensor"),
    "bnb nf4": (
        {**BITS, "weight.absmax": floats(4), "weight.quant_map": floats(16),
         "weight.quant_state.bitsandbytes__nf4": whole(UINT8, 79)}, "transformers and bitsandbytes"),
    "bnb nested": (
        {**BITS, "weight.absmax": whole(UINT8, 4), "weight.nested_absmax": floats(1), "weight.quant_map": floats(16)},
        "bitsandbytes"),
    "bnb int8": (
        {"weight": whole(INT8, SIZE, SIZE), "SCB": floats(SIZE), "weight_format": whole(UINT8)}, "bitsandbytes"),
    "gptq": ({**GPTQ, "g_idx": whole(INT32, SIZE)}, "GPTQ or AWQ: load the model with GPTQModel"),
    "awq": (GPTQ, "GPTQ or AWQ"),
    "exl2": ({"q_weight": whole(INT32, 4, SIZE), "q_scale": whole(INT32, 1, 2), "q_perm": whole(INT32, SIZE)}, "ExLl"),
    "hqq": ({"W_q": whole(UINT8, SIZE, 8), "scale": floats(4, 1), "zero": floats(4, 1)}, "with hqq"),
    "compressed-tensors": (
        {"weight_packed": whole(INT32, SIZE, 2), "weight_scale": floats(SIZE, 1),
         "weight_shape": torch.tensor([SIZE, SIZE])}, "transformers and compressed-tensors"),
    "torchao": ({"_weight_qdata": whole(INT8, SIZE, SIZE), "_weight_scale": floats(SIZE, 1)}, "with torchao"),
    "quanto": ({"weight._data": whole(INT8, SIZE, SIZE), "weight._scale": floats(SIZE, 1)}, "with optimum-quanto"),
    "quanto int4": ({"weight._data._data": whole(UINT8, 8, SIZE), "weight._scale": floats(SIZE, 1)}, "optimum-quanto"),
    "mxfp4": ({"weight_blocks": whole(UINT8, SIZE, 1, 8), "weight_scales": whole(UINT8, SIZE, 1)}, "Mxfp4Config"),
    "packed, in other words": ({"weight_code8": whole(INT8, SIZE, SIZE), "weight_scales": floats(SIZE)}, "that wrote"),
    "mlx": ({"weight": whole(torch.uint32, SIZE, 2), "scales": floats(SIZE, 1), "biases": floats(SIZE, 1)}, "with mlx"),
    "torch.ao": ({"scale": floats(), "zero_point": torch.tensor(3)}, "the library that wrote the file"),
}  # fmt: skip


def file_of(form: str, *, prefix: str = "") -> dict[str, Tensor]:
    """A file of this form: the bias and the norm as they are."""
    rest = {"fc.bias": floats(SIZE), "norm.weight": floats(SIZE), "norm.bias": floats(SIZE)}
    made = {re.sub(r"[.]_scale$", "_scale", f"fc.{key}") if key == "_scale" else f"fc.{key}": value
            for key, value in FORMS[form][0].items()}  # fmt: skip
    return {prefix + key: value for key, value in (made | rest).items()}


def companions(form: str) -> list[str]:
    return [key for key in file_of(form) if key not in ("fc.weight", "fc.bias", "norm.weight", "norm.bias")]


def rules(source: Any, **options: Any) -> list[Rule]:
    return [Rule(Name("**"), Normal()), Rule(Name("**"), Pretrained(source, **options))]
