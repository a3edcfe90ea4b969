"""Small calls of every kernel, for compute-sanitizer: python bench/sanitize.py [device, cuda unless given]."""

from __future__ import annotations

import sys

import torch

import hystar_fast as hf

DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cuda"

for n, m in ((1, 1), (5, 7), (48, 48), (97, 128), (65, 130), (200, 200), (300, 257)):
    cost = torch.rand(3, n, m, device=DEVICE, requires_grad=True)
    for grad in ("unroll", "implicit"):
        hf.sinkhorn(cost, 0.1, 3, grad=grad).sum().backward()
for n, reduction in ((1, "mean"), (17, "none"), (70, "mean"), (200, "none")):
    query = torch.randn(n, 24, device=DEVICE, requires_grad=True)
    mask = torch.rand(n, n, device=DEVICE) < 0.1
    for weights in ("paper", "uniform"):
        hf.style_nce(query, query.flip(0), n_iter=3, weights=weights, mask=mask, reduction=reduction).sum().backward()
for tokens, rank, dtype in (
    (3, 16, torch.float32),
    (130, 33, torch.float32),
    (130, 64, torch.bfloat16),
    (130, 160, torch.bfloat16),
):
    x = torch.randn(3, tokens, 64, device=DEVICE, dtype=dtype, requires_grad=True)
    scale = torch.randn(3, rank, device=DEVICE, requires_grad=True)
    u, vh = torch.randn(80, rank, device=DEVICE, dtype=dtype), torch.randn(rank, 64, device=DEVICE, dtype=dtype)
    hf.svd_linear(x, u, scale, vh).sum().backward()
    if dtype == torch.bfloat16 and (DEVICE == "cpu" or torch.cuda.get_device_capability() >= (8, 9)):
        hf.svd_linear(x, u, scale, vh, precision="fp8").sum().backward()
if DEVICE == "cuda":
    torch.cuda.synchronize()
print("ran")
