"""Small calls of every CUDA kernel, for compute-sanitizer: python bench/sanitize.py."""

from __future__ import annotations

import torch

import hystar_fast as hf

for n, m in ((1, 1), (5, 7), (48, 48), (65, 130), (200, 200), (300, 257)):
    cost = torch.rand(3, n, m, device="cuda", requires_grad=True)
    for grad in ("unroll", "implicit"):
        hf.sinkhorn(cost, 0.1, 3, grad=grad).sum().backward()
query = torch.randn(17, 24, device="cuda", requires_grad=True)
hf.style_nce(query, query.detach().flip(0), n_iter=3).backward()
for tokens, rank in ((3, 16), (130, 33)):
    x = torch.randn(3, tokens, 40, device="cuda", requires_grad=True)
    scale = torch.randn(3, rank, device="cuda", requires_grad=True)
    hf.svd_linear(x, torch.randn(50, rank, device="cuda"), scale, torch.randn(rank, 40, device="cuda")).sum().backward()
torch.cuda.synchronize()
print("ran")
