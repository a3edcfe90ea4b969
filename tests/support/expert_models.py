"""Small random models of other libraries with a bank of random experts, and what each request should get."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hystar_fast.nn.expert_bank import ExpertBank
from hystar_fast.nn.inject import inject

NAMES = ("law", "code", "prose")
_SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED = {**_SIZES, **_IDS, "num_key_value_heads": 2}
DENSE = ["self_attn.*", "mlp.*"]
X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@dataclass(frozen=True)
class Kind:
    """How a model is built, which of its layers are injected, and whether it generates."""

    build: Callable[[], nn.Module]
    targets: Any
    generates: bool = True


def _mixture() -> nn.Module:
    config = transformers.Qwen2MoeConfig(
        **_GROUPED,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
    )
    config._experts_implementation = "eager"  # the grouped product has no float64
    return transformers.Qwen2MoeForCausalLM(config)


def _vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, embed_dim=48, num_heads=4, num_classes=5)


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, **_IDS)
    return transformers.GPT2LMHeadModel(config)


KINDS = {
    "llama": Kind(lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GROUPED)), DENSE),
    "qwen2": Kind(lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_GROUPED)), DENSE),
    "mistral": Kind(
        lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**_GROUPED, sliding_window=None)), DENSE
    ),
    "gpt2": Kind(_gpt2, ["c_attn", "c_proj", "c_fc"]),
    "mixture": Kind(_mixture, ["self_attn.*", "shared_expert.*"]),
    "bert": Kind(
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**_SIZES, num_labels=3)),
        ["query", "key", "value", "dense", "classifier"],
        generates=False,
    ),
    "vit": Kind(_vit, ["attn.*", "mlp.fc?", "head"], generates=False),
}


def with_bank(kind: str, rank: int | None = 3, dtype: torch.dtype = torch.float64) -> tuple[Any, ExpertBank]:
    """Return a model in `dtype`, injected in it, and its bank of random experts that change the output."""
    torch.manual_seed(0)
    model = KINDS[kind].build().eval().requires_grad_(False).to(dtype)
    inject(model, KINDS[kind].targets, rank)
    bank = ExpertBank(model, NAMES)
    fill(bank)
    return model, bank


def fill(bank: ExpertBank) -> None:
    """Draw the experts at random."""
    generator = torch.Generator().manual_seed(1)
    for parameter in bank.parameters():
        with torch.no_grad():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def inputs(kind: str, batch: int = 4, tokens: int = 6) -> Tensor:
    """Return token ids or pictures."""
    generator = torch.Generator().manual_seed(2)
    if kind == "vit":
        return torch.randn(batch, 3, 32, 32, generator=generator, dtype=torch.float64)
    return torch.randint(3, 60, (batch, tokens), generator=generator)


def merged(model: nn.Module, expert: str | None) -> Any:
    """Return a copy of the model with one expert in its plain weights, or with none."""
    plain = copy.deepcopy(model)
    bank = ExpertBank.of(plain)
    bank.merge_(dict.fromkeys(bank.names[:1], 0.0) if expert is None else expert)
    return plain


def values(output: Any) -> Tensor:
    """Return the logits of a model of transformers or timm."""
    return output if isinstance(output, Tensor) else output.logits


def expected(model: nn.Module, x: Tensor, rows: Sequence[str | None]) -> Tensor:
    """Return what each request should get: the output of its own merged model."""
    with torch.no_grad():
        return torch.cat([values(merged(model, row)(x[i : i + 1])) for i, row in enumerate(rows)])


class Net(nn.Module):
    """Two layers, each of which can be computed again in the backward."""

    def __init__(self, **checkpointing: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = checkpoint(layer, x.tanh(), **self.checkpointing) if self.checkpointing else layer(x.tanh())
        return x


def net(rank: int | None = 3, **checkpointing: Any) -> tuple[Net, ExpertBank]:
    """Return an injected Net with a bank of random experts a and b."""
    model = Net(**checkpointing).double()
    inject(model, "*", rank)
    bank = ExpertBank(model, ["a", "b"])
    fill(bank)
    return model, bank
