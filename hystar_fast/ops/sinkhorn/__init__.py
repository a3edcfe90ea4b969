"""The op sinkhorn: api.py checks the arguments; cpu.py, cuda.py and torch.py compute the plan and its gradients."""

from hystar_fast.ops.sinkhorn.api import sinkhorn, status
from hystar_fast.ref.sinkhorn import SinkhornInfo, SinkhornStatus

__all__ = ["SinkhornInfo", "SinkhornStatus", "sinkhorn", "status"]
