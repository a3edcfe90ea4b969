"""The op style_nce: api.py checks the arguments and chooses between stream.py, cpu.py, cuda.py and torch.py."""

from hystar_fast.ops.style_nce import flops as _flops  # noqa: F401  it registers what FlopCounterMode counts
from hystar_fast.ops.style_nce.api import status, style_nce
from hystar_fast.ops.style_nce.checks import check_options

__all__ = ["check_options", "status", "style_nce"]
