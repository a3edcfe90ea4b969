"""The implementation that each op uses on each device, and the reason if it is not the fastest one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module


@dataclass(frozen=True)
class OpStatus:
    """One op on one device: the implementation that runs, and why a faster one does not (empty if there is none)."""

    op: str
    device: str
    implementation: str
    reason: str = ""


def info() -> list[dict[str, str]]:
    """List the implementation in use for every op and device, and why a faster one is not.

    Returns:
        One dictionary for each op and device, with the keys ``op``, ``device``, ``implementation`` and ``reason``
        (empty if the fastest implementation runs).

    Example:
        >>> import hystar_fast as hf
        >>> sorted({row["op"] for row in hf.info()})
        ['perturbed_topk', 'sinkhorn', 'style_nce', 'svd_linear']
    """
    rows: list[OpStatus] = []
    for op in ("svd_linear", "sinkhorn", "style_nce", "perturbed_topk"):
        rows += import_module(f"hystar_fast.ops.{op}").status()
    return [asdict(row) for row in rows]
