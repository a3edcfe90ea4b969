"""Reader of checkpoints that the published Hystar code wrote: ``torch.save`` of the state of the whole model.

Layout, with ``B`` for ``clip.visual.transformer.resblocks.<zero-based block>``:

- ``B.mlp.{c_fc,c_proj}.{delta_s,gate}``: static offsets; the layer adds ``delta_s * sigmoid(gate)``;
- ``B.attn.delta_s_qkv.mlp.{0,2}.{weight,bias}``: the hypernetwork of a modulated block;
- ``{U,V}`` beside a ``delta_s``, ``{U,V}_qkv`` beside a hypernetwork: the factors of the offsets;
- ``B.mlp.{c_fc,c_proj}.weight``, ``B.attn.in_proj_weight``: the frozen weights of the backbone.

The stored factors and ours come from different SVDs. Their signs differ, and so do their bases where singular values
are nearly equal. An offset is therefore projected onto our basis, ``delta_k = Σ_j (u_k · U_j) (V_j · v_k) delta_j``.
This is linear, so for a hypernetwork it is folded into the last layer. It is exact unless nearly equal singular values
have different offsets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hystar_fast.models.adapter_format import not_finite
from hystar_fast.models.torch_files import read_torch

_HYPERNETWORK = re.compile(r"clip\.visual\.transformer\.resblocks\.(\d+)\.attn\.delta_s_qkv\.mlp\.0\.weight")
_TOLERANCE = 1e-3  # relative; weights that were stored in half precision are the same weights


@dataclass(frozen=True)
class AuthorsCheckpoint:
    """Contents of a checkpoint of the published code.

    Args:
        path: the file, for messages.
        tensors: its tensors by name.
        blocks: the modulated blocks, 1-based.
        rank: number of modulated singular directions; None means all.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    blocks: tuple[int, ...]
    rank: int | None

    @classmethod
    def read(cls, path: str | Path) -> AuthorsCheckpoint:
        """Read the file; raise a ValueError where it has another layout."""
        path = Path(path)
        try:
            tensors = read_torch(path)
        except Exception as error:  # a damaged or missing file can raise anything
            raise ValueError(f"{path} could not be read: {error}") from error
        found = [match for name in tensors if (match := _HYPERNETWORK.fullmatch(str(name)))]
        if not found:
            raise ValueError(
                f"path must be a checkpoint of the published code, got {path}, which has no "
                "clip.visual.transformer.resblocks.<n>.attn.delta_s_qkv.mlp.0.weight"
            )
        broken = not_finite((name, tensor) for name, tensor in tensors.items() if isinstance(tensor, Tensor))
        if broken:
            raise ValueError(f"path must hold finite tensors, got NaN or inf in {broken} of {path}")
        factor = tensors[found[0].string.replace("delta_s_qkv.mlp.0.weight", "V_qkv")]
        rank, width = factor.shape
        blocks = tuple(sorted(int(match[1]) + 1 for match in found))
        return cls(path, tensors, blocks, None if rank == width else int(rank))

    @torch.no_grad()
    def fill_static(self, name: str, layer: Any) -> None:
        """Set the static offset of the FastSVDLinear `layer`, whose name in the checkpoint is `name`."""
        self._check_weight(f"{name}.weight", layer)
        projection = self._projection(layer, f"{name}.U", f"{name}.V")
        offset = self._get(f"{name}.delta_s").double() * self._get(f"{name}.gate").double().sigmoid()
        layer.delta_s_static.copy_(projection @ offset)

    @torch.no_grad()
    def fill_dynamic(self, name: str, layer: Any, network: Any) -> None:
        """Set the parameters of `network`, the Hypernetwork of attention `name` with the packed projection `layer`."""
        self._check_weight(f"{name}.in_proj_weight", layer)
        projection = self._projection(layer, f"{name}.U_qkv", f"{name}.V_qkv")
        for position, linear in enumerate(network.layers):
            is_last = position == len(network.layers) - 1
            for kind in ("weight", "bias"):
                key = f"{name}.delta_s_qkv.mlp.{2 * position}.{kind}"
                stored, own = self._get(key), linear.get_parameter(kind)
                if stored.shape != own.shape:
                    raise ValueError(
                        f"{key} in {self.path} must have shape {list(own.shape)}, got {list(stored.shape)}: "
                        "it was trained with another style or with a hypernetwork of another width"
                    )
                own.copy_(projection @ stored.double() if is_last else stored)

    def _get(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"{self.path} has no {name}")
        return self.tensors[name]

    def _check_weight(self, name: str, layer: Any) -> None:
        stored, own = self._get(name).double(), layer.weight.cpu().double()
        if stored.shape != own.shape or not (stored - own).norm() <= _TOLERANCE * own.norm():
            raise ValueError(
                f"{name} in {self.path} must be the weight of config.backbone and config.pretrained, got another: "
                "the checkpoint was trained on other weights"
            )

    def _projection(self, layer: Any, left: str, right: str) -> Tensor:
        """Return the map [rank, rank], in float64, from offsets in the stored basis to offsets in that of `layer`."""
        u, vh = (factor.cpu().double() for factor in (layer.u, layer.vh))
        stored_u, stored_v = self._get(left).double(), self._get(right).double()
        if stored_u.shape != u.shape or stored_v.shape != vh.shape:
            raise ValueError(
                f"{left} and {right} in {self.path} must have shapes {list(u.shape)} and {list(vh.shape)}, "
                f"got {list(stored_u.shape)} and {list(stored_v.shape)}"
            )
        return (u.T @ stored_u) * (vh @ stored_v.T)
