"""The interface of every index engine: pictures with their vectors, kept durably, searched by cosine similarity.

An engine holds items and, in each generation, one vector an item and view. A view is a name such as "adapted" or
"frozen"; a generation is all views under one set of stamps, which say what made the vectors. One generation is live.

Every engine may be used from several threads. A write is durable and visible when its call returns.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from hystar_fast.index.stamp import Stamp
from hystar_fast.index.where import Where
from hystar_fast.methods.similarity import COSINE, Similarity

LARGEST_BATCH = 1000
"""Items of one `upsert`."""
ADAPTED, FROZEN = "adapted", "frozen"
"""Names of views."""


class EngineUnavailable(OSError):
    """The engine cannot be reached or written now; trying again later helps."""


class EngineFull(OSError):
    """The engine has no space left; what it holds is unchanged."""


class IndexDamaged(ValueError):
    """Stored content does not have its checksum, or parts of it do not belong together; the message names it."""


def encode_name(text: str) -> bytes:
    """Return the bytes of a name: those of the file system for an id or a path, UTF-8 for everything else.

    Raises:
        ValueError: the text holds half of a surrogate pair that stands for no byte.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"a name must be text that can be encoded, got {text!r}") from error


def decode_name(content: bytes) -> str:
    """Return the text of `encode_name`; bytes that are not UTF-8 become lone surrogates, as in `os.fsdecode`."""
    return content.decode("utf-8", "surrogateescape")


def key_of(item_id: str) -> str:
    """Return the key of an id: the first 16 hexadecimal digits of the SHA-256 of its bytes."""
    return hashlib.sha256(encode_name(item_id)).hexdigest()[:16]


@dataclass(frozen=True)
class Item:
    """One picture of an index, without its vectors.

    Attributes:
        id: its name for the life of the index, by default its path relative to the source, any bytes that a file
            system allows (`os.fsdecode`).
        source: the name of the source it came from, a key of ``settings()["sources"]``.
        path: of its file, relative to the folder of its source.
        caption: words about it, by default its path.
        attributes: a small JSON object for filters: name -> string, number or boolean.
        size: of its file in bytes.
        mtime_ns: when its file was changed, in nanoseconds.
        sha256: of the content of its file, 64 hexadecimal digits; "" if it has no file.
    """

    id: str
    source: str = ""
    path: str = ""
    caption: str = ""
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    size: int = 0
    mtime_ns: int = 0
    sha256: str = ""

    @property
    def key(self) -> str:
        """Its primary key in every engine and its address in HTTP, see `key_of`."""
        return key_of(self.id)

    @property
    def attributes_json(self) -> str:
        """The attributes as JSON in ASCII."""
        return json.dumps(dict(self.attributes), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Known:
    """The signs of whether the file of an item has changed."""

    key: str
    source: str
    path: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Generation:
    """All vectors under one set of stamps.

    Attributes:
        number: from 1; never used again.
        stamps: view -> what made its vectors; the first view is the default of a search.
        notes: values beside the stamps that are not compared, such as where the adapter lies.
        live: whether searches use it.
        count: items that have their vectors in it.
    """

    number: int
    stamps: Mapping[str, Stamp]
    notes: Mapping[str, Any]
    live: bool
    count: int

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(self.stamps)


class Engine(ABC):
    """An open index.

    Methods raise EngineUnavailable if the engine cannot be reached, EngineFull if it has no space, IndexDamaged (a
    ValueError) for damaged content, and ValueError for wrong arguments. `generation=None` is the live one.

    Attributes:
        uri: what the user calls it by; without a password.
        folder: where files beside it lie (adapters, ``skipped.jsonl``); None if it has no folder. Its adapters are then
            in the engine (`put_file`), and there is no list of skipped files.
    """

    uri: str
    folder: Path | None

    # content

    @abstractmethod
    def upsert(
        self, items: Sequence[Item], vectors: Mapping[str, Tensor] | None = None, generation: int | None = None
    ) -> None:
        """Write items with their vectors in one transaction; a second call with the same changes nothing.

        Vectors that other generations hold for an item whose sha256 has changed are removed from them.

        Args:
            items: at most `LARGEST_BATCH`, with different ids.
            vectors: view -> unit rows [n, D] of every view of the generation; None changes the items alone, which must
                then be in the index.
            generation: where the vectors go. Another than the live one takes vectors of items that are in the index
                with the same sha256, and does not change the items.

        Raises:
            ValueError: another item of the same key has another id, a view is missing, or a vector is not finite, not
                of unit length, or of another dimension.
        """

    @abstractmethod
    def remove(self, keys: Iterable[str]) -> int:
        """Remove items from all generations; return how many there were."""

    @abstractmethod
    def fetch(self, keys: Sequence[str]) -> dict[str, Item]:
        """Return the items of keys, in their order; those that are not in the index are left out."""

    @abstractmethod
    def vectors(self, keys: Sequence[str], view: str, generation: int | None = None) -> Tensor:
        """Return float32 [n, D], a row for each key in its order.

        Raises:
            ValueError: the view does not exist, or a key has no vector in the generation.
        """

    @abstractmethod
    def known(self) -> dict[str, Known]:
        """Return id -> what tells whether its file has changed, for every item."""

    @abstractmethod
    def scan(self, generation: int | None = None) -> Iterator[tuple[list[Item], dict[str, Tensor]]]:
        """Yield all items with their vectors [n, D] of each view, in batches of at most `LARGEST_BATCH`."""

    @abstractmethod
    def missing(self, generation: int) -> list[str]:
        """Return the keys of the items that have no vector in a generation."""

    @abstractmethod
    def count(self, where: Where | None = None) -> int:
        """Return the number of items, or of those that a filter keeps."""

    @abstractmethod
    def keys(self, where: Where | None = None) -> list[str]:
        """Return the keys of all items, or of those that a filter keeps."""

    # search

    @abstractmethod
    def search(
        self,
        view: str,
        queries: Tensor,
        k: int,
        where: Where | None = None,
        generation: int | None = None,
        *,
        similarity: Similarity = COSINE,
    ) -> tuple[Tensor, list[list[str]]]:
        """Find the k most similar items of each query.

        Args:
            view: whose vectors are searched.
            queries: [N, D] floating point, of any scale.
            k: items a query. Where fewer match, there are fewer columns.
            where: keeps only the items that match it.
            generation: to search in.
            similarity: of the method that made the vectors.

        Returns:
            Cosine similarities float32 [N, k] in [-1, 1], or scores of another similarity, best first, and the keys of
            each query; equal scores are in the order of their keys.

        Raises:
            ValueError: the view does not exist, `queries` has another width or is not finite, k is not positive, the
                index was made with another similarity, or `where` names a field that no item has.
        """

    def log_sum(
        self, view: str, queries: Tensor, scale: float, where: Where | None = None, generation: int | None = None
    ) -> Tensor:
        """Return log(sum_j exp(scale <q_i, g_j>)) over all items g_j, [N, 1].

        Raises:
            ValueError: the engine cannot compute it.
        """
        raise ValueError(f"combine must be 'similarity', as {self.uri} cannot sum over all pictures, got 'softmax'")

    # generations

    @abstractmethod
    def generations(self) -> list[Generation]:
        """Return all generations, in the order of their numbers."""

    def generation(self, number: int | None = None) -> Generation:
        """Return one generation; by default the live one.

        Raises:
            ValueError: there is none of this number.
        """
        found = self.generations()
        for entry in found:
            if entry.live if number is None else entry.number == number:
                return entry
        numbers = ", ".join(str(entry.number) for entry in found)
        raise ValueError(f"generation must be one of {numbers}, got {number}")

    def stamps(self, generation: int | None = None) -> Mapping[str, Stamp]:
        """Return view -> stamp of a generation."""
        return self.generation(generation).stamps

    @abstractmethod
    def create_generation(self, stamps: Mapping[str, Stamp], notes: Mapping[str, Any]) -> int:
        """Make an empty generation and return its number; the first is live at once."""

    @abstractmethod
    def switch(self, generation: int) -> None:
        """Make a generation live; searches use it from then on.

        Raises:
            ValueError: it does not exist, or an item has no vector in it.
        """

    @abstractmethod
    def drop(self, generation: int) -> None:
        """Remove a generation with its vectors.

        Raises:
            ValueError: it does not exist, or is live.
        """

    # small things

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings of the index, a JSON object.

        "ids" is "path" or "content"; "sources" maps the name of a source to its "folder" and whether all pictures in
        it belong to the index ("whole").
        """

    @abstractmethod
    def put_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace the settings."""

    def update_settings(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Replace the settings by what a function makes of them.

        An engine with transactions reads and writes them in one, so that of two writers none undoes what the other did.
        """
        self.put_settings(change(self.settings()))

    @abstractmethod
    def put_style(self, name: str, vector: Tensor) -> None:
        """Keep a style vector [d] under a name, in place of an earlier one."""

    @abstractmethod
    def styles(self) -> dict[str, Tensor]:
        """Return name -> style vector [d]."""

    @abstractmethod
    def delete_style(self, name: str) -> bool:
        """Remove a style; return whether there was one."""

    def put_file(self, name: str, content: bytes) -> None:
        """Keep a file of an adapter, in place of an earlier one; of engines without a folder.

        Args:
            name: such as "adapter/config.json".
            content: up to some hundred megabytes.

        Raises:
            ValueError: the engine keeps no files.
        """
        raise ValueError(f"index must have a place for the adapter, got {self.uri}")

    def file(self, name: str) -> bytes | None:
        """Return a file that `put_file` kept; None if there is none."""
        return None

    def delete_file(self, name: str) -> None:
        """Remove a file that `put_file` kept, if it is there."""
        return

    @abstractmethod
    def version(self) -> int:
        """Return a number that grows with every write, so that readers know when to look again."""

    @abstractmethod
    def health(self) -> None:
        """Return if the engine answers; raise EngineUnavailable or IndexDamaged if it does not."""

    @abstractmethod
    def verify(self, *, repair: bool = False) -> list[str]:
        """Read everything and return a line for each damage; with `repair`, remove what is damaged."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; a second call does nothing."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
