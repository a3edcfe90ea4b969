"""The perturbed top-K on the CPU: the extension chooses and counts, torch computes the gradient from the positions."""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.ops.native import extension
from hystar_fast.ops.perturbed_topk import torch as plain

ISA = ""
"""The instruction set to use: empty for the widest of this CPU, or a member of ``_C.cpu_instruction_sets()``."""


def forward(
    scores: Tensor, noise: Tensor, forbidden: Tensor, k: int, sigma: float, keep: bool
) -> tuple[Tensor, Tensor]:
    native = extension()
    if native is None or noise.numel() == 0:
        return plain.forward(scores, noise, forbidden, k, sigma, keep)
    scores, noise, forbidden = scores.contiguous(), noise.contiguous(), forbidden.contiguous()
    b, samples, n = noise.shape
    soft = scores.new_empty(b, k, n)
    chosen = torch.empty((b, samples, min(k, n)) if keep else 0, dtype=torch.int32)
    single = scores.dtype == torch.float32
    call = native.perturbed_topk_cpu_forward_f32 if single else native.perturbed_topk_cpu_forward_f64
    call(
        scores.data_ptr(),
        noise.data_ptr(),
        forbidden.data_ptr(),
        b,
        samples,
        n,
        k,
        sigma,
        soft.data_ptr(),
        chosen.data_ptr(),
        torch.get_num_threads(),
        ISA,
    )
    return soft, chosen


backward = plain.backward
