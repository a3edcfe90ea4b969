"""The op svd_linear: api.py checks the arguments; cpu.py, cuda.py, fp8.py and torch.py compute y and the gradients."""

from hystar_fast.ops.svd_linear import flops as _flops  # noqa: F401  it registers what FlopCounterMode counts
from hystar_fast.ops.svd_linear.api import status, svd_linear
from hystar_fast.ops.svd_linear.fp8 import Fp8Factors, quantise_factors

__all__ = ["Fp8Factors", "quantise_factors", "status", "svd_linear"]
