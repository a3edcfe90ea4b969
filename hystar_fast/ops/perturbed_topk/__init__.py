"""The op perturbed_topk: api.py checks the arguments; cpu.py and torch.py choose positions and compute gradients."""

from hystar_fast.ops.perturbed_topk.api import perturbed_topk, status

__all__ = ["perturbed_topk", "status"]
