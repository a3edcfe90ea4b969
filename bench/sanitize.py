"""Small calls of every kernel, for compute-sanitizer: python bench/sanitize.py [device, cuda unless given]."""

from __future__ import annotations

import sys

import torch

import hystar_fast as hf

DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cuda"

for n, m in ((1, 1), (5, 7), (48, 48), (65, 130), (200, 200), (300, 257)):
    cost = torch.rand(3, n, m, device=DEVICE, requires_grad=True)
    for grad in ("unroll", "implicit"):
        hf.sinkhorn(cost, 0.1, 3, grad=grad).sum().backward()
query = torch.randn(17, 24, device=DEVICE, requires_grad=True)
hf.style_nce(query, query.detach().flip(0), n_iter=3).backward()
for tokens, rank in ((3, 16), (130, 33)):
    x = torch.randn(3, tokens, 40, device=DEVICE, requires_grad=True)
    scale = torch.randn(3, rank, device=DEVICE, requires_grad=True)
    hf.svd_linear(x, torch.randn(50, rank, device=DEVICE), scale, torch.randn(rank, 40, device=DEVICE)).sum().backward()
if DEVICE == "cuda":
    torch.cuda.synchronize()
print("ran")
