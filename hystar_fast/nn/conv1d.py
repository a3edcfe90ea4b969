"""FastSVDLinear in place of the Conv1D of transformers (GPT-2), whose weight is stored as [in, out]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hystar_fast.nn.fast_svd_linear import FastSVDLinear


def is_conv1d(module: nn.Module) -> bool:
    """Return True for the Conv1D of transformers, without importing transformers where nothing else has."""
    library: Any = sys.modules.get("transformers.pytorch_utils")
    return library is not None and getattr(type(module), "forward", None) is library.Conv1D.forward


class FastSVDConv1D(FastSVDLinear):
    """FastSVDLinear for a Conv1D of transformers: ``weight``, checkpoints and :meth:`merge` keep its [in, out] form."""

    _conv1d: Any  # the class of the layer that it was built from

    @classmethod
    def from_conv1d(
        cls, conv: Any, rank: int | None, keep_remainder: bool = True, *, cache_dir: str | Path | None = None
    ) -> FastSVDConv1D:
        """Build the layer that equals ``conv`` at zero offset; ``conv`` does not change."""
        plain: Any = nn.Linear(1, 1, device="meta").train(conv.training)
        plain.in_features, plain.out_features = conv.weight.shape
        plain.weight, plain.bias = nn.Parameter(conv.weight.detach().mT, requires_grad=False), conv.bias
        layer = cls.from_linear(plain, rank, keep_remainder, cache_dir=cache_dir)
        assert isinstance(layer, cls)
        layer._conv1d = type(conv)
        return layer

    @property
    def weight(self) -> Tensor:
        """Weight [in, out] with the static offset folded in, as that of FastSVDLinear."""
        return super().weight.mT

    def merge(self, delta_s: Tensor | None = None) -> Any:
        """Return a frozen Conv1D with the static offset, and ``delta_s``, folded in; this layer does not change."""
        plain, conv = super().merge(delta_s), self._conv1d(1, 1)
        conv.nf, conv.nx = self.out_features, self.in_features
        conv.weight = nn.Parameter(plain.weight.mT.contiguous(), requires_grad=False)
        conv.bias = plain.bias
        return conv.train(self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "weight" in state_dict and prefix + "u" not in state_dict:
            state_dict[prefix + "weight"] = state_dict[prefix + "weight"].mT
        super()._load_from_state_dict(state_dict, prefix, *args)
