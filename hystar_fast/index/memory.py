"""An exact cosine index in memory: normalised embeddings with ids, saved as safetensors and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.text_files import parse_json, to_json
from hystar_fast.data.whole_files import write_whole

_TENSORS, _META, _FORMAT = "index.safetensors", "index.json", 1


class MemoryIndex:
    """Exact nearest neighbours by cosine similarity.

    Args:
        embeddings: [M, D] floating point; they are normalised and stored in float32.
        ids: one string for each embedding.
        about: JSON values that describe the embeddings (model, gallery), saved with them.

    Raises:
        ValueError: `embeddings` is not [M, D] and finite, or `ids` has another length.

    Example:
        >>> index = MemoryIndex(torch.eye(3), ["a", "b", "c"])
        >>> scores, positions = index.search(torch.tensor([[0.9, 0.1, 0.0]]), k=2)
        >>> [index.ids[i] for i in positions[0]]
        ['a', 'b']
    """

    def __init__(self, embeddings: Tensor, ids: Sequence[str], about: dict[str, Any] | None = None) -> None:
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            raise ValueError(
                f"embeddings must be floating point [M, D], got {embeddings.dtype} {tuple(embeddings.shape)}"
            )
        if len(ids) != len(embeddings):
            raise ValueError(f"ids must have one entry an embedding ({len(embeddings)}), got {len(ids)}")
        if not bool(embeddings.isfinite().all()):
            raise ValueError("embeddings must be finite, got NaN or inf")
        self.embeddings = F.normalize(embeddings.detach().float().cpu(), dim=-1)
        self.ids = list(ids)
        self.about = dict(about or {})

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: Tensor, k: int = 5, *, block: int = 65536) -> tuple[Tensor, Tensor]:
        """Find the k most similar items of each query, best first; equal scores keep the order of the index.

        Args:
            queries: [N, D] floating point, of any scale.
            k: items a query; at most the size of the index.
            block: items scored at a time, which limits the memory.

        Returns:
            Cosine similarities [N, k] and positions [N, k] (int64).

        Raises:
            ValueError: `queries` has another width or is not finite, or k is not positive.
        """
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise ValueError(f"queries must be [N, {self.embeddings.shape[1]}], got {tuple(queries.shape)}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries = F.normalize(queries.detach().float().cpu(), dim=-1)
        if not bool(queries.isfinite().all()):
            raise ValueError("queries must be finite, got NaN or inf")
        scores = queries.new_empty(len(queries), 0)
        positions = torch.empty(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self), block):
            found = queries @ self.embeddings[start : start + block].mT
            where = torch.arange(start, start + found.shape[1]).expand(len(queries), -1)
            scores, positions = torch.cat([scores, found], 1), torch.cat([positions, where], 1)
            order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
            scores, positions = scores.gather(1, order), positions.gather(1, order)
        return scores, positions

    def save(self, directory: str | Path) -> None:
        """Write ``index.safetensors`` and ``index.json`` into `directory`, which is created if needed."""
        directory = Path(directory)
        write_whole(directory / _TENSORS, save({"embeddings": self.embeddings.contiguous()}))
        meta = {"format": _FORMAT, "ids": self.ids, "about": self.about}
        write_whole(directory / _META, to_json(meta).encode())

    @classmethod
    def load(cls, directory: str | Path) -> MemoryIndex:
        """Read an index written by `save`.

        Raises:
            ValueError: a file is missing, damaged or of another format; the message names it.
        """
        directory = Path(directory)
        for name in (_TENSORS, _META):
            if not (directory / name).is_file():
                raise ValueError(f"directory must hold an index, got {directory}, which has no {name}")
        try:
            meta = parse_json((directory / _META).read_text(encoding="utf-8"))
            tensors = load_file(directory / _TENSORS)
            if meta["format"] != _FORMAT:
                raise ValueError(f"format must be {_FORMAT}, got {meta['format']}")
            return cls(tensors["embeddings"], meta["ids"], meta["about"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory} holds a damaged index: {error}") from error
