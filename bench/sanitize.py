"""Small calls of every kernel, for compute-sanitizer: python bench/sanitize.py [device, by default cuda]."""

from __future__ import annotations

import sys

import torch

import hystar_fast as hf

DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cuda"

# Problems of one warp, one block, a cluster of every width, and too large for a cluster; square, wide and tall.
SIZES = [(1, 1), (5, 7), (48, 48), (97, 128), (65, 130), (200, 200), (300, 257), (400, 500), (700, 768), (40, 1100)]
for n, m in SIZES if DEVICE == "cuda" else SIZES[:7]:
    for grad in ("unroll", "implicit"):
        cost = torch.rand(3 if n < 300 else 1, n, m, device=DEVICE, requires_grad=True)
        plan = hf.sinkhorn(cost, 0.1, 3, grad=grad)
        plan.backward(torch.randn_like(plan))
masked = torch.rand(2, 700, 700, device=DEVICE).masked_fill_(torch.eye(700, device=DEVICE, dtype=torch.bool), torch.inf)
hf.sinkhorn(masked, 0.1, 2)
for n, reduction in ((1, "mean"), (17, "none"), (70, "mean"), (200, "none")):
    query = torch.randn(n, 24, device=DEVICE, requires_grad=True)
    mask = torch.rand(n, n, device=DEVICE) < 0.1
    for weights in ("paper", "uniform"):
        loss = hf.style_nce(query, query.flip(0), n_iter=3, weights=weights, mask=mask, reduction=reduction)
        loss.backward(torch.randn_like(loss))
# (samples, tokens, rank, …): part of a tile, several samples a tile, the fused kernel, two separate products, and more
# tiles than a GPU has multiprocessors, so that a persistent program takes several.
for batch, tokens, rank, width, dtype in (
    (3, 3, 16, 64, torch.float32),
    (3, 130, 33, 64, torch.float32),
    (3, 130, 64, 64, torch.bfloat16),
    (3, 130, 160, 64, torch.bfloat16),
    (40, 5, 160, 72, torch.bfloat16),
    (24, 257, 256, 512, torch.bfloat16),
):
    for bank in (False, True):
        x = torch.randn(batch, tokens, width, device=DEVICE, dtype=dtype, requires_grad=True)
        scale = torch.randn(5 if bank else batch, rank, device=DEVICE, requires_grad=True)
        index = torch.arange(batch, device=DEVICE) % 5 if bank else None
        u, vh = torch.randn(80, rank, device=DEVICE, dtype=dtype), torch.randn(rank, width, device=DEVICE, dtype=dtype)
        dy = torch.randn(batch, tokens, 80, device=DEVICE, dtype=dtype)  # dense: the gradient of sum() has no strides
        hf.svd_linear(x, u, scale, vh, index=index).backward(dy)
        if dtype == torch.bfloat16 and (DEVICE == "cpu" or torch.cuda.get_device_capability() >= (8, 9)):
            hf.svd_linear(x, u, scale, vh, index=index, precision="fp8").backward(dy)
if DEVICE == "cuda":
    torch.cuda.synchronize()
print("ran")
