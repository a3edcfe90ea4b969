"""What runs where: the implementation each op uses on each device, and why not a faster one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module


@dataclass(frozen=True)
class OpStatus:
    """One op on one device: the implementation that runs, and why a faster one does not (empty when it does)."""

    op: str
    device: str
    implementation: str
    reason: str = ""


def info() -> list[dict[str, str]]:
    """List, for every op and device, the implementation in use and why a faster one is not.

    Returns:
        One dictionary an op and device with the keys ``op``, ``device``, ``implementation`` and ``reason``
        (empty when the fastest implementation runs).

    Example:
        >>> import hystar_fast as hf
        >>> sorted({row["op"] for row in hf.info()})
        ['sinkhorn', 'style_nce', 'svd_linear']
    """
    rows: list[OpStatus] = []
    for op in ("svd_linear", "sinkhorn", "style_nce"):
        rows += import_module(f"hystar_fast.ops.{op}").status()
    return [asdict(row) for row in rows]
