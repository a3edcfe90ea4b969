"""The reference: every op in plain torch, on any device, exact in float64. It imports nothing else of this library."""

from hystar_fast.ref.perturbed_topk import perturbed_topk
from hystar_fast.ref.sinkhorn import sinkhorn
from hystar_fast.ref.style_nce import style_nce
from hystar_fast.ref.svd_linear import svd_linear

__all__ = ["perturbed_topk", "sinkhorn", "style_nce", "svd_linear"]
