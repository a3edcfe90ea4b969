"""Approximate search in a local index: a graph (HNSW) finds candidates, and their vectors in memory score them exactly.

A graph is a file beside the index, made on request for one view of one generation. It holds eight bits of each value.
Vectors that came later are searched exactly, those that have gone are passed over, and a filter is searched exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hystar_fast.data.whole_files import write_whole
from hystar_fast.index.engine import IndexDamaged
from hystar_fast.index.memory import Matrix, unit_queries

EXTRA = "pip install 'hystar-fast[ann]'"
_NEIGHBOURS, _BUILD_WIDTH = 32, 100  # of a vector; candidates when one is added
_LEAST_WIDTH = 256  # candidates of a search: recall@10 of 20,000 random vectors is 0.72 with 64, 0.89 with 128, 0.98
_TRAINED_ON = 100_000  # vectors, for the range of the eight bits


class Graph:
    """A graph over vectors.

    Args:
        index: of faiss.
        numbers: int64 [n], rising, of its vectors; see `Matrix`.
    """

    def __init__(self, index: Any, numbers: np.ndarray) -> None:
        self.index, self.numbers = index, numbers

    @classmethod
    def build(cls, matrix: Matrix, progress: Callable[[int, int], object] | None = None) -> Graph:
        """Build the graph of the vectors of a matrix, in all of torch's threads.

        Raises:
            ModuleNotFoundError: faiss is not installed.
            ValueError: the matrix is empty.
        """
        faiss = _faiss()
        if matrix.count == 0:
            raise ValueError("index must hold pictures for a graph of them, got none")
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexHNSWSQ(
            matrix.dimension, faiss.ScalarQuantizer.QT_8bit, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT
        )
        index.hnsw.efConstruction = _BUILD_WIDTH
        numbers, sample, sampled = [], list[np.ndarray](), 0
        for _, vectors in matrix.unmasked():
            sample.append(vectors)
            sampled += len(vectors)
            if sampled >= _TRAINED_ON:
                break
        index.train(np.concatenate(sample))
        for rows, vectors in matrix.unmasked():
            index.add(vectors)
            numbers.append(rows)
            if progress is not None:
                progress(index.ntotal, matrix.count)
        return cls(index, np.concatenate(numbers))

    def search(self, matrix: Matrix, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find k similar vectors of each query; arguments, result and errors as `Matrix.search`.

        Scores are exact, and so is their order; a vector that the graph does not find is missing.
        """
        if k < 1 or matrix.count == 0:
            return matrix.search(queries, k)
        queries, wanted = unit_queries(queries, matrix.dimension), min(k, matrix.count)
        width = max(_LEAST_WIDTH, 4 * k)
        parameters = _faiss().SearchParametersHNSW(efSearch=width)
        _, found = self.index.search(queries.numpy(), min(width, len(self.numbers)), params=parameters)
        first = int(np.searchsorted(matrix.numbers[: matrix.size], self.numbers[-1], side="right"))
        later_scores, later_keys = matrix.search(queries, k, first=first)
        scores, keys = queries.new_empty(len(queries), wanted), torch.empty(len(queries), wanted, dtype=torch.int64)
        for row, candidates in enumerate(found):
            own_scores, own_keys = matrix.scored(queries[row], np.sort(self.numbers[candidates[candidates >= 0]]))
            all_scores, all_keys = torch.cat([own_scores, later_scores[row]]), torch.cat([own_keys, later_keys[row]])
            order = np.lexsort((all_keys.numpy(), -all_scores.numpy()))[:wanted].copy()
            order = order[np.isfinite(all_scores.numpy()[order])]
            if len(order) < wanted:  # too many of its vectors have gone
                best, own = matrix.search(queries[row : row + 1], k)
                scores[row], keys[row] = best[0], own[0]
            else:
                scores[row], keys[row] = all_scores[order], all_keys[order]
        return scores.clamp_(-1, 1), keys


class Graphs:
    """The graphs of an index, which are read when they are first needed and when their files change.

    Args:
        folder: of the index.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, tuple[tuple[int, int, bytes], Graph | None]] = {}

    def get(self, generation: int, view: str, content: bytes) -> Graph | None:
        """Return the graph of a view; None if there is none.

        Args:
            generation, view: of the vectors.
            content: the name of the whole index; the graph of an earlier one is not used.

        Raises:
            IndexDamaged: its file is damaged.
            ModuleNotFoundError: faiss is not installed.
        """
        path = self._path(generation, view)
        try:
            state = path.stat()
        except FileNotFoundError:
            self._held.pop(path.name, None)
            return None
        name = (state.st_mtime_ns, state.st_ino, content)
        if path.name not in self._held or self._held[path.name][0] != name:
            self._held[path.name] = name, _read(path, content)
        return self._held[path.name][1]

    def put(self, generation: int, view: str, content: bytes, graph: Graph) -> None:
        """Write the graph of a view, in the place of an earlier one."""
        flat = torch.from_numpy(_faiss().serialize_index(graph.index))
        tensors = {"graph": flat, "numbers": torch.from_numpy(graph.numbers)}
        metadata = {"content": content.hex(), "sha256": _sha256(tensors)}
        write_whole(self._path(generation, view), save(tensors, metadata))

    def drop(self, generation: int | None = None) -> int:
        """Remove the graphs of a generation, or all; return how many there were."""
        of = "*" if generation is None else str(generation)
        found = [*self._folder.glob(f"graph-{of}-*.safetensors")]
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    def _path(self, generation: int, view: str) -> Path:
        return self._folder / f"graph-{generation}-{view}.safetensors"


def _read(path: Path, content: bytes) -> Graph | None:
    again = f"make it again with `hystar-fast index accelerate {path.parent}`, or remove it with --off"
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        if metadata["content"] != content.hex():
            return None
        tensors = load_file(path)
        if metadata["sha256"] != _sha256(tensors):
            raise ValueError("it does not have its checksum")
        index = _faiss(again).deserialize_index(tensors["graph"].numpy())
        return Graph(index, tensors["numbers"].numpy())
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise IndexDamaged(f"{path} is damaged: {error}; {again}") from error


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def _faiss(otherwise: str = "") -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        rest = f"; or {otherwise.partition(', or ')[2]}" if otherwise else ""
        raise ModuleNotFoundError(f"a graph needs faiss, which is not installed: {EXTRA}{rest}") from error
    return faiss
