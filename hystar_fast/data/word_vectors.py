"""Vectors of words, read from word2vec's text files or from .npz; vectors of whole texts where the file has them.

No library of word vectors is needed. A Doc2Vec model is read from an .npz with its words and with the vectors that it
inferred for the texts of a data set (`write_word_vectors`), as inference is random and would differ between two runs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
LAYOUT = (
    "lines of a word and its numbers, separated by spaces, after a first line with their count and width or without "
    "one; or an .npz with words [V] and vectors [V, d], and, for the vectors of texts, keys [T] and documents [T, d]"
)


class TextVectors(NamedTuple):
    """Vectors of one text.

    Attributes:
        rows: float32 [1 + known words, d]; the first is that of the whole text.
        known_words, unknown_words: how many of its words have a vector.
    """

    rows: np.ndarray
    known_words: int
    unknown_words: int


@dataclass(frozen=True)
class WordVectors:
    """Vectors of words, and of whole texts.

    Attributes:
        places: word -> row of `table`.
        table: float32 [V, d].
        documents: key of a text -> row of `document_table`; empty where the file has none.
        document_table: float32 [T, d].
        fingerprint: hash of the words and all values.
    """

    places: Mapping[str, int]
    table: np.ndarray
    documents: Mapping[str, int] = field(default_factory=dict)
    document_table: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    fingerprint: str = ""

    @property
    def width(self) -> int:
        return int(self.table.shape[1])

    @property
    def source_of_texts(self) -> str:
        """How the vector of a whole text is made, for the record of a run."""
        return "document vectors of the file" if self.documents else "mean of the word vectors"

    def of(self, text: str) -> TextVectors:
        """Return the vectors of a text: of the whole, then of its known words in order.

        The vector of the whole is that of the file, or the mean of the words. A text without any known word, and
        without a vector of its own, is one row of zeros.

        Raises:
            ValueError: the file has vectors of texts and none of this one.
        """
        words = split_words(text)
        places = [self.places[word] for word in words if word in self.places]
        rows = self.table[places]
        if self.documents:
            key = text_key(text)
            if key not in self.documents:
                raise ValueError(f"text must be one of the {len(self.documents)} of the file of vectors, got {text!r}")
            whole = self.document_table[self.documents[key]][None]
        else:
            whole = rows.mean(0, keepdims=True) if places else np.zeros((1, self.width), np.float32)
        return TextVectors(np.concatenate([whole, rows]), len(places), len(words) - len(places))


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits, with apostrophes inside.

    >>> split_words("A dog's bowl, 2 metres-wide")
    ['a', "dog's", 'bowl', '2', 'metres', 'wide']
    """
    return _WORD.findall(text.lower())


def text_key(text: str) -> str:
    """Return the key of a text in a file of vectors: the first 16 hex digits of the SHA-256 of its words."""
    return hashlib.sha256(" ".join(split_words(text)).encode()).hexdigest()[:16]


def load_word_vectors(path: str | Path) -> WordVectors:
    """Read vectors of words from a file, see `LAYOUT`. Of a word that stands twice the first vector is used.

    Raises:
        ValueError: the file has another form, or values that are not finite; the message names the line.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        words, table, keys, documents = _of_arrays(path) if path.suffix == ".npz" else _of_lines(path)
        if not len(words) or table.shape[1] == 0:
            raise ValueError("no vectors")
        if not (np.isfinite(table).all() and np.isfinite(documents).all()):
            raise ValueError("vectors that are not finite")
    except (ValueError, KeyError, BadZipFile) as error:
        raise ValueError(f"{path} must be a file of word vectors ({LAYOUT}), got {error}") from error
    places: dict[str, int] = {}
    for row, word in enumerate(words):
        places.setdefault(word, row)
    rows = {key: row for row, key in enumerate(keys)}
    return WordVectors(places, table, rows, documents, _fingerprint(words, table, keys, documents))


def write_word_vectors(
    path: str | Path, words: Sequence[str], table: np.ndarray, texts: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write an .npz that `load_word_vectors` reads.

    Args:
        path: ends with .npz.
        words: V words.
        table: [V, d].
        texts: text -> its vector [d], such as a Doc2Vec model infers for every text of a data set.

    Raises:
        ValueError: the shapes or the ending do not fit.
    """
    table = np.asarray(table, np.float32)
    if Path(path).suffix != ".npz" or table.ndim != 2 or len(words) != len(table):
        raise ValueError(
            f"path must end with .npz and table be [{len(words)}, d], got {Path(path).name} and {list(table.shape)}"
        )
    arrays = {"words": np.asarray(words, str), "vectors": table}
    if texts:
        arrays["keys"] = np.asarray([text_key(text) for text in texts], str)
        arrays["documents"] = np.stack([np.asarray(vector, np.float32) for vector in texts.values()])
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _of_arrays(path: Path) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        words, table = [str(word) for word in stored["words"]], np.asarray(stored["vectors"], np.float32)
        keys: list[str] = []
        documents = np.zeros((0, table.shape[-1]), np.float32)
        if "documents" in stored:
            keys = [str(key) for key in stored["keys"]]
            documents = np.asarray(stored["documents"], np.float32)
    if table.ndim != 2 or len(words) != len(table):
        raise ValueError(f"{len(words)} words with vectors {list(table.shape)}")
    if documents.shape != (len(keys), table.shape[1]):
        raise ValueError(f"{len(keys)} keys with documents {list(documents.shape)} beside words of {table.shape[1]}")
    return words, table, keys, documents


def _of_lines(path: Path) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    words: list[str] = []
    rows: list[np.ndarray] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            parts = line.rstrip().split(" ")
            if number == 1 and len(parts) == 2 and all(part.isdigit() for part in parts):
                continue  # word2vec's count and width
            if parts == [""]:
                continue
            width = len(rows[0]) if rows else len(parts) - 1
            # some public files have words with spaces in them
            word, numbers = " ".join(parts[:-width]), parts[-width:]
            try:
                row = np.asarray(numbers, np.float32)
            except ValueError as error:
                raise ValueError(f"line {number}: {line[:60]!r}") from error
            if not word or len(row) != width:
                raise ValueError(f"line {number}: {line[:60]!r}, not {width} numbers behind a word")
            words.append(word)
            rows.append(row)
    width = len(rows[0]) if rows else 0
    return words, np.stack(rows) if rows else np.zeros((0, 0), np.float32), [], np.zeros((0, width), np.float32)


def _fingerprint(words: Sequence[str], table: np.ndarray, keys: Sequence[str], documents: np.ndarray) -> str:
    digest = hashlib.sha256()
    for names, values in ((words, table), (keys, documents)):
        digest.update("\0".join(names).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
