"""Hystar without hypernetworks: the "CLIP + Static" row of Table 4."""

from __future__ import annotations

from dataclasses import replace

from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar


class StaticOnly(HystarMethod):
    """Static offsets of every MLP's singular values, the same for all styles; the attention weights are unchanged.

    Args:
        config: the Hystar it is compared with; its `blocks` are ignored.
    """

    name = "static"

    def __init__(self, config: HystarConfig) -> None:
        super().__init__(Hystar(replace(config, blocks=(), static=True)))
