"""Checkpoints of the published Hystar code: ``torch.save`` of the whole model's state, read into our adapter.

Layout, with ``B`` for ``clip.visual.transformer.resblocks.<zero-based block>``:

- ``B.mlp.{c_fc,c_proj}.{delta_s,gate}``: static offsets; what is applied is ``delta_s * sigmoid(gate)``;
- ``B.attn.delta_s_qkv.mlp.{0,2}.{weight,bias}``: the hypernetwork of a modulated block;
- ``{U,V}`` beside a ``delta_s``, ``{U,V}_qkv`` beside a hypernetwork: the factors that the offsets belong to;
- ``B.mlp.{c_fc,c_proj}.weight``, ``B.attn.in_proj_weight``: the frozen weights, which are the backbone's.

The stored factors come from another SVD than ours: signs, and the basis within nearly equal singular values, differ. So
an offset is carried over by its projection, ``delta_k = Σ_j (u_k · U_j) (V_j · v_k) delta_j``: linear, so it folds into
the last layer of a hypernetwork. What it loses is the part between nearly equal directions whose offsets differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_HYPERNETWORK = re.compile(r"clip\.visual\.transformer\.resblocks\.(\d+)\.attn\.delta_s_qkv\.mlp\.0\.weight")
_SAME_WEIGHT = 1e-3  # relative: weights kept in half precision are the same weights


@dataclass(frozen=True)
class AuthorsCheckpoint:
    """What a checkpoint of the published code holds.

    Args:
        path: where it was read from, for messages.
        tensors: its tensors by name.
        blocks: the modulated blocks, 1-based.
        rank: how many singular directions are modulated; None for all.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    blocks: tuple[int, ...]
    rank: int | None

    @classmethod
    def read(cls, path: str | Path) -> AuthorsCheckpoint:
        """Read the file; ValueError when it is none of this layout."""
        path = Path(path)
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # readers of damaged or missing files raise anything
            raise ValueError(f"{path} could not be read: {error}") from error
        found = [match for name in tensors if (match := _HYPERNETWORK.fullmatch(str(name)))]
        if not found:
            raise ValueError(
                f"{path} is no checkpoint of the published code: it has no "
                "clip.visual.transformer.resblocks.<n>.attn.delta_s_qkv.mlp.0.weight"
            )
        factor = tensors[found[0].string.replace("delta_s_qkv.mlp.0.weight", "V_qkv")]
        rank, width = factor.shape
        blocks = tuple(sorted(int(match[1]) + 1 for match in found))
        return cls(path, tensors, blocks, None if rank == width else int(rank))

    @torch.no_grad()
    def fill_static(self, name: str, layer: Any) -> None:
        """Set the static offset of the FastSVDLinear `layer`, which the checkpoint calls `name`."""
        self._check_weight(f"{name}.weight", layer)
        carried = self._projection(layer, f"{name}.U", f"{name}.V")
        applied = self._get(f"{name}.delta_s").double() * self._get(f"{name}.gate").double().sigmoid()
        layer.delta_s_static.copy_(carried @ applied)

    @torch.no_grad()
    def fill_dynamic(self, name: str, layer: Any, network: Any) -> None:
        """Set the Hypernetwork `network` to the one of attention `name`, whose packed projection is `layer`."""
        self._check_weight(f"{name}.in_proj_weight", layer)
        carried = self._projection(layer, f"{name}.U_qkv", f"{name}.V_qkv")
        for position, linear in enumerate(network.layers):
            last = position == len(network.layers) - 1
            for kind in ("weight", "bias"):
                key = f"{name}.delta_s_qkv.mlp.{2 * position}.{kind}"
                stored, own = self._get(key), linear.get_parameter(kind)
                if stored.shape != own.shape:
                    raise ValueError(
                        f"{key} in {self.path} has shape {list(stored.shape)}, this model needs {list(own.shape)}: "
                        "its style or its hypernetwork is of another width"
                    )
                own.copy_(carried @ stored.double() if last else stored)

    def _get(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"{self.path} has no {name}")
        return self.tensors[name]

    def _check_weight(self, name: str, layer: Any) -> None:
        stored, own = self._get(name).double(), layer.weight.cpu().double()
        if stored.shape != own.shape or not (stored - own).norm() <= _SAME_WEIGHT * own.norm():
            raise ValueError(
                f"{name} in {self.path} is another weight than the backbone's: it was trained on other weights "
                "than config.backbone and config.pretrained name"
            )

    def _projection(self, layer: Any, left: str, right: str) -> Tensor:
        """[rank, rank] in float64: from offsets in the stored basis to offsets in that of `layer`."""
        u, vh = (factor.cpu().double() for factor in (layer.u, layer.vh))
        stored_u, stored_v = self._get(left).double(), self._get(right).double()
        if stored_u.shape != u.shape or stored_v.shape != vh.shape:
            raise ValueError(
                f"{left} and {right} in {self.path} have shapes {list(stored_u.shape)} and {list(stored_v.shape)}, "
                f"this model needs {list(u.shape)} and {list(vh.shape)}"
            )
        return (u.T @ stored_u) * (vh @ stored_v.T)
