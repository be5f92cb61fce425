"""Nets that exist at any width and depth, with their batches, for the measurements of transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchinit.transfer import Transfer
from torchinit.transfer.table import ParameterRole

TOKENS = 64


@dataclass(frozen=True)
class Sized:
    """A factory of a width and a depth, its batch and its loss, and what its transfer has to be told.

    ``queries`` ends the names of the weights whose first rows are the queries: for a check they start at zero.
    """

    name: str
    make: Callable[..., nn.Module]
    batch: Callable[[], Any]
    loss: Callable[[Any, Any], Tensor] | None = None
    queries: tuple[str, ...] = ()
    transposed: bool = False
    kinds: Mapping[str, ParameterRole] = field(default_factory=dict)

    def transfer(self, model: nn.Module, base: nn.Module, **options: Any) -> Transfer:
        """Return the transfer of a model from its base."""
        return Transfer(model, base, kinds=self.kinds, **options)

    def silence_queries(self, model: nn.Module, width: int) -> None:
        """Let the queries start at zero, so that attention logits do, which fall with the width by design."""
        with torch.no_grad():
            for name, each in model.named_parameters():
                if name.endswith(self.queries):
                    (each[:, :width] if self.transposed else each[:width]).zero_()


class Mlp(nn.Sequential):
    """Three hidden layers with ReLU."""

    def __init__(self, width: int, depth: int = 3, inputs: int = 64) -> None:
        sizes = [(inputs, width), *[(width, width)] * (depth - 1)]
        super().__init__(*[each for a, b in sizes for each in (nn.Linear(a, b), nn.ReLU())], nn.Linear(width, 10))


class Encoder(nn.Module):
    """A causal pre-norm transformer of torch's own layers, whose heads grow with the width."""

    def __init__(self, width: int, depth: int = 2, tokens: int = TOKENS, length: int = 64) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(tokens, width), nn.Parameter(torch.empty(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        nn.init.normal_(self.table.weight, std=0.5)
        nn.init.normal_(self.positions, std=0.1)
        for name, each in self.blocks.named_parameters():
            if each.dim() > 1:
                nn.init.normal_(each, std=each.shape[1] ** -0.5)
            elif "bias" in name:
                nn.init.zeros_(each)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits."""
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        out = self.blocks(self.table(ids) + self.positions[: ids.shape[1]], mask=mask, is_causal=True)
        logits: Tensor = self.head(self.norm(out))
        return logits


def gpt2(width: int, depth: int = 2) -> nn.Module:
    """Return a tiny GPT-2 of transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=TOKENS, n_positions=32, n_embd=width, n_layer=depth, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def llama(width: int, depth: int = 2) -> nn.Module:
    """Return a tiny Llama of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=TOKENS, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config)
    return model


def ids() -> Tensor:
    """Return four sequences of 16 random tokens."""
    return torch.randint(TOKENS, (4, 16), generator=torch.Generator().manual_seed(0))


def labelled() -> dict[str, Tensor]:
    """Return the batch of a model that makes its loss."""
    return {"input_ids": ids(), "labels": ids()}


def vectors() -> tuple[Tensor, Tensor]:
    """Return 64 random vectors with random classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 64, generator=generator), torch.randint(10, (64,), generator=generator)


def next_token(out: Tensor, batch: Any) -> Tensor:
    """Return the loss of the next token."""
    tokens = batch[0] if isinstance(batch, (tuple, list)) else batch
    return nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


NETS = {
    each.name: each
    for each in (
        Sized("MLP", Mlp, vectors, kinds={"6.*": "output"}),
        Sized("torch", Encoder, lambda: (ids(),), next_token, ("in_proj_weight",), kinds={"positions": "input"}),
        Sized("GPT-2", gpt2, labelled, None, ("c_attn.weight",), transposed=True),
        Sized("Llama", llama, labelled, None, ("q_proj.weight",)),
    )
}
