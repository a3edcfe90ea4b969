"""A batch of 16 requests with 1, 4 and 16 experts over a random Llama: reading the prompts, and a decoding step.

The model has 4 layers of width 1024, and offsets of rank 128, with the remainder, in every layer of every block. Beside
it: the plain model; the smallest LoRA there is, of rank 1, in the same layers, by peft's mixed batch; the published way
of singular values for each task, which builds the weights of a task and runs its requests, task after task; and one
expert merged. Prefill computes the logits of the last token alone, as generate does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from harness import DEVICE, OURS, PLAN, Run, forward
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import hystar_fast as hf
from hystar_fast.nn.inject import merge_, unmerge_

DTYPE = torch.bfloat16 if PLAN == "cuda" else torch.float32
BATCH, RANK = 16, 128
EXPERTS = (1, 4, 16)
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PLAIN, LORA, EACH, MERGED = "plain model", "peft, mixed batch", "weights of each expert", "merged expert"
PROVIDERS = (PLAIN, OURS, LORA, EACH, MERGED)
MODES = ("prefill", "decode")


def case_of(experts: int, mode: str) -> str:
    return f"Llama 4x1024 B{BATCH} T128 r{RANK}, {experts} experts, {mode}"


@cache
def plain_model(quick: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    width, inner, words = (64, 96, 100) if quick else (1024, 2816, 32000)
    heads = width // 64
    sizes = {"hidden_size": width, "intermediate_size": inner, "vocab_size": words, "num_hidden_layers": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=heads)).eval().to(DEVICE, DTYPE)


@cache
def model_with_experts(quick: bool) -> tuple[LlamaForCausalLM, hf.ExpertBank]:
    model = copy.deepcopy(plain_model(quick)).requires_grad_(False)
    hf.inject(model, LAYERS, min(RANK, 16) if quick else RANK)
    bank = hf.ExpertBank(model, [str(row) for row in range(max(EXPERTS))])
    generator = torch.Generator().manual_seed(1)
    for parameter in bank.parameters():
        parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model, bank


@cache
def model_with_loras(quick: bool) -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=1, target_modules=LAYERS)
    model = peft.get_peft_model(copy.deepcopy(plain_model(quick)), config, "0", autocast_adapter_dtype=False).eval()
    for row in range(1, max(EXPERTS)):
        model.add_adapter(str(row), config)
    return model.to(DEVICE, DTYPE)


class Step:
    """Reads prompts, or decodes one token after them, for chosen requests of the batch."""

    def __init__(self, quick: bool, mode: str) -> None:
        tokens = 8 if quick else 128
        words = plain_model(quick).config.vocab_size
        self.prompts = torch.randint(words, (BATCH, tokens), generator=torch.Generator().manual_seed(2)).to(DEVICE)
        self.decodes = mode == "decode"
        self.caches: dict[int, DynamicCache] = {}
        self.quick = quick

    def __call__(self, model: Any, requests: slice = slice(None), **arguments: Any) -> Tensor:
        prompts = self.prompts[requests]
        if not self.decodes:
            logits: Tensor = model(input_ids=prompts, logits_to_keep=1, use_cache=True, **arguments).logits
            return logits
        cached = self._cache(len(prompts))
        logits = model(input_ids=prompts[:, :1], past_key_values=cached, use_cache=True, **arguments).logits
        cached.crop(-1)
        return logits

    def _cache(self, count: int) -> DynamicCache:
        """Return keys and values of the plain model: every provider attends to the same."""
        if count not in self.caches:
            self.caches[count] = DynamicCache()
            plain_model(self.quick)(input_ids=self.prompts[:count], past_key_values=self.caches[count], use_cache=True)
        return self.caches[count]


def grouped(experts: int) -> Iterator[tuple[int, slice]]:
    """Yield each expert with its requests, which lie one after the other."""
    each = BATCH // experts
    yield from ((expert, slice(expert * each, (expert + 1) * each)) for expert in range(experts))


@contextmanager
def merged(model: LlamaForCausalLM, bank: hf.ExpertBank, expert: int) -> Iterator[None]:
    layers = bank.merge_(str(expert))
    try:
        yield
    finally:
        unmerge_(model, layers)


def weights_of_each(step: Step, experts: int, quick: bool) -> Tensor:
    """Build the weights of an expert and run its requests. Decoding uses weights that are there already."""
    model, bank = model_with_experts(quick)
    if step.decodes:
        return torch.cat([step(plain_model(quick), requests) for _, requests in grouped(experts)])
    found = []
    for expert, requests in grouped(experts):
        with merged(model, bank, expert):
            found.append(step(model, requests))
    return torch.cat(found)


@cache
def merged_model(quick: bool) -> LlamaForCausalLM:
    model = copy.deepcopy(model_with_experts(quick)[0])
    merge_(model, hf.ExpertBank.of(model)["0"])
    return model


def prepare(provider: str, step: Step, experts: int, quick: bool) -> Callable[[], Tensor]:
    """Return the call to measure."""
    rows = [expert for expert, requests in grouped(experts) for _ in range(BATCH)[requests]]
    if provider == PLAIN:
        return lambda: step(plain_model(quick))
    if provider == MERGED:
        return lambda: step(merged_model(quick))
    if provider == LORA:
        return lambda: step(model_with_loras(quick), adapter_names=[str(row) for row in rows])
    if provider == EACH:
        return lambda: weights_of_each(step, experts, quick)
    model = model_with_experts(quick)[0]

    def ours() -> Tensor:
        with hf.experts(model, rows):
            return step(model)

    return ours


@torch.no_grad()
def truth_of(step: Step, experts: int, quick: bool) -> Tensor:
    """Return what each request gets from the model with its expert merged."""
    model, bank = model_with_experts(quick)
    found = []
    for expert, requests in grouped(experts):
        with merged(model, bank, expert):
            found.append(step(model)[requests])
    return torch.cat(found)


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("mode", MODES)
def bench_experts(record_in_turns: Callable[..., None], quick: bool, mode: str, experts: int) -> None:
    with torch.no_grad():
        step = Step(quick, mode)
        names = [name for name in PROVIDERS if name != MERGED or experts == 1]  # one expert alone can be merged
        runs: dict[str, Run] = {name: forward(prepare(name, step, experts, quick)) for name in names}
        truths = {OURS: [truth_of(step, experts, quick)]}
        record_in_turns("experts", case_of(experts, mode), "forward", DTYPE, runs, truths)
