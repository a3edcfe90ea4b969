"""Exact cosine search over vectors in memory: the k best of each block, and the best of these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.methods.similarity import COSINE, Similarity

BLOCK = 16384
"""Vectors a block. A block is never copied, so the index needs its own size and one block more."""


@dataclass
class Matrix:
    """Unit vectors in blocks of one size, each with a number that only grows and a key.

    Attributes:
        dimension: D.
        block: vectors a block.
        blocks: float32 [block, D] each; the last is filled up to `size`.
        numbers, keys: int64 [capacity] of the vectors.
        size: vectors, with those that `mask` has taken out.
        masked: bool [size] of the vectors taken out; None if there is none.
    """

    dimension: int
    block: int = BLOCK
    blocks: list[Tensor] = field(default_factory=list)
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    size: int = 0
    masked: Tensor | None = None

    @property
    def count(self) -> int:
        """Vectors that a search can find."""
        return self.size - (0 if self.masked is None else int(self.masked.sum()))

    @property
    def has_many_masked(self) -> bool:
        """Return whether more than half of the memory is of vectors that were taken out."""
        return self.size > self.block and self.count < self.size // 2

    def append(self, numbers: np.ndarray, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Append unit vectors [n, D] whose numbers are greater than all before, in their order."""
        end = self.size + len(numbers)
        while len(self.blocks) * self.block < end:
            self.blocks.append(torch.empty(self.block, self.dimension))
            self.numbers = np.concatenate([self.numbers, np.empty(self.block, np.int64)])
            self.keys = np.concatenate([self.keys, np.empty(self.block, np.int64)])
        self.numbers[self.size : end], self.keys[self.size : end] = numbers, keys
        done = 0
        while done < len(numbers):
            block, start = divmod(self.size + done, self.block)
            count = min(self.block - start, len(numbers) - done)
            self.blocks[block].numpy()[start : start + count] = vectors[done : done + count]
            done += count
        if self.masked is not None:
            self.masked = torch.cat([self.masked, self.masked.new_zeros(len(numbers))])
        self.size = end

    def mask(self, numbers: np.ndarray) -> None:
        """Take vectors out of every search; numbers that are not here are passed over."""
        masked = torch.zeros(self.size, dtype=torch.bool) if self.masked is None else self.masked.clone()
        masked[torch.from_numpy(self.places(numbers))] = True
        self.masked = masked

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Return the places of the vectors with these numbers, without those that are not here."""
        mine = self.numbers[: self.size]
        found = np.searchsorted(mine, numbers)
        inside = found[found < self.size]
        return inside[mine[inside] == numbers[found < self.size]]

    def frozen(self) -> Matrix:
        """Return the matrix as it is now: later calls of `append` and `mask` do not change it."""
        return Matrix(self.dimension, self.block, [*self.blocks], self.numbers, self.keys, self.size, self.masked)

    def keep_only(self, numbers: np.ndarray) -> Matrix:
        """Return the matrix with all other vectors taken out; the vectors are shared."""
        masked = torch.ones(self.size, dtype=torch.bool)
        masked[torch.from_numpy(self.places(numbers))] = False
        kept = self.frozen()
        kept.masked = masked if self.masked is None else masked | self.masked
        return kept

    def unmasked(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the numbers [n] and vectors [n, D] of each block that a search can find."""
        for start, block in self._filled():
            kept = np.ones(len(block), bool)
            if self.masked is not None:
                kept = ~self.masked[start : start + len(block)].numpy()
            if kept.any():
                yield self.numbers[start : start + len(block)][kept], block.numpy()[kept]

    def scored(self, query: Tensor, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the similarities [n] of a unit query [D] to those of some vectors that a search can find, and keys.

        Args:
            query: float32.
            numbers: of vectors; those that are not here are passed over.
        """
        places = self.places(numbers)
        if self.masked is not None:
            places = places[~self.masked.numpy()[places]]
        scores = torch.empty(len(places))
        for block in np.unique(places // self.block):
            mine = np.flatnonzero(places // self.block == block)
            # not a product with a matrix, which rounds equal rows differently
            scores[mine] = (self.blocks[block][places[mine] % self.block] * query).sum(1)
        return scores, torch.from_numpy(self.keys[places])

    def search(
        self, queries: Tensor, k: int, *, first: int = 0, similarity: Similarity = COSINE
    ) -> tuple[Tensor, Tensor]:
        """Find the k most similar vectors of each query, best first; equal scores are in the order of their keys.

        Args:
            queries: [N, D], of any scale where the similarity is cosine.
            k: vectors a query; at most as many as there are.
            first: the place of the first vector that is looked at. Where fewer than k are left, scores are -inf.
            similarity: of the vectors; another than cosine prepares each block for each search.

        Returns:
            Cosine similarities float32 [N, k] in [-1, 1], or scores of another similarity, and keys int64 [N, k].

        Raises:
            ValueError: see `unit_queries`; or k is not positive.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        is_cosine = similarity.is_cosine
        queries = unit_queries(queries, self.dimension) if is_cosine else finite_queries(queries, self.dimension)
        scores, keys = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        k = min(k, self.count)
        if k == 0:
            return scores, keys
        for start, found in self._scores(similarity.prepare(queries), first, similarity):
            own = torch.from_numpy(self.keys[start : start + found.shape[1]])
            best, places = _first(found, own, k)
            scores, keys = torch.cat([scores, best], 1), torch.cat([keys, own[places]], 1)
        scores, order = _sorted(scores, keys, k)
        if not is_cosine:
            return scores, keys.gather(1, order)
        lost = scores == -torch.inf
        return scores.clamp_(-1, 1).masked_fill_(lost, -torch.inf), keys.gather(1, order)

    def log_sum(self, queries: Tensor, scale: float) -> Tensor:
        """Return log(sum_j exp(scale <q_i, g_j>)) over the vectors, [N, 1]."""
        queries = unit_queries(queries, self.dimension)
        total = queries.new_full((len(queries), 1), -torch.inf)
        for _, found in self._scores(queries):
            total = torch.logaddexp(total, (scale * found).logsumexp(1, keepdim=True))
        return total

    def _scores(self, queries: Tensor, first: int = 0, similarity: Similarity = COSINE) -> Iterator[tuple[int, Tensor]]:
        """Yield the start of each block and the similarities [N, n] to its vectors, -inf for those taken out.

        Vectors before the place `first` are left out.
        """
        for begin, block in self._filled():
            start = max(begin, first)
            if start >= begin + len(block):
                continue
            found = similarity.scores(queries, similarity.prepare(block[start - begin :]))
            if self.masked is not None:
                found.masked_fill_(self.masked[start : begin + len(block)], -torch.inf)
            yield start, found

    def _filled(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the start of each block and its vectors."""
        for number, block in enumerate(self.blocks):
            count = min(self.block, self.size - number * self.block)
            if count <= 0:
                return
            yield number * self.block, block[:count]


def unit_queries(queries: Tensor, dimension: int) -> Tensor:
    """Return queries [N, D] as float32 unit vectors on the CPU.

    Raises:
        ValueError: they have another shape or type, or one is not finite or zero.
    """
    queries = finite_queries(queries, dimension)
    if not bool(queries.any(dim=1).all()):
        raise ValueError("queries must have a direction, got a vector of zeros")
    return F.normalize(queries, dim=-1)


def finite_queries(queries: Tensor, dimension: int) -> Tensor:
    """Return queries [N, D] as float32 on the CPU.

    Raises:
        ValueError: they have another shape or type, or one is not finite.
    """
    if queries.ndim != 2 or queries.shape[1] != dimension or not queries.is_floating_point():
        raise ValueError(f"queries must be floating point [N, {dimension}], got {queries.dtype} {tuple(queries.shape)}")
    queries = queries.detach().float().cpu()
    if not bool(queries.isfinite().all()):
        raise ValueError("queries must be finite, got NaN or inf")
    return queries


def _first(scores: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best scores of each row and their places; of equal scores at the end those of the smallest keys."""
    count = scores.shape[1]
    best, places = scores.topk(min(k + 1, count), dim=1)
    if count <= k:
        return best, places
    tied = (best[:, k - 1] == best[:, k]) & best[:, k].isfinite()
    best, places = best[:, :k].contiguous(), places[:, :k].contiguous()
    for row in tied.nonzero().flatten().tolist():
        least = best[row, -1]
        above = (scores[row] > least).nonzero().flatten()
        equal = (scores[row] == least).nonzero().flatten()
        equal = equal[keys[equal].argsort()[: k - len(above)]]
        places[row] = torch.cat([above, equal])
        best[row] = scores[row, places[row]]
    return best, places


def _sorted(scores: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sort by falling score, then by rising key, and return the first k scores and their places."""
    by_key = keys.argsort(dim=1, stable=True)
    ordered = scores.gather(1, by_key).sort(dim=1, descending=True, stable=True)
    return ordered.values[:, :k].contiguous(), by_key.gather(1, ordered.indices)[:, :k]
