"""Vectors of words from text and .npz files, of words and of whole texts."""

from __future__ import annotations

import numpy as np
import pytest

from hystar_fast.data.word_vectors import load_word_vectors, split_words, text_key, write_word_vectors

TABLE = np.array([[1.0, 2.0], [3.0, -4.0], [0.5, 0.25]], np.float32)
WORDS = ["a", "dog's", "bowl"]
LINES = "a 1 2\ndog's 3.0 -4\nbowl 5e-1 .25\n"


@pytest.fixture
def written(tmp_path):
    write_word_vectors(tmp_path / "v.npz", WORDS, TABLE)
    (tmp_path / "headed.txt").write_text("3 2\n" + LINES)
    (tmp_path / "plain.vec").write_text(LINES.replace("\n", " \n"))
    return tmp_path


@pytest.mark.parametrize("name", ["v.npz", "headed.txt", "plain.vec"])
def test_every_form_gives_the_same_vectors_and_fingerprint(written, name):
    vectors = load_word_vectors(written / name)
    assert (vectors.width, dict(vectors.places)) == (2, {"a": 0, "dog's": 1, "bowl": 2})
    assert vectors.table.tolist() == TABLE.tolist() and vectors.table.dtype == np.float32
    assert vectors.fingerprint == load_word_vectors(written / "v.npz").fingerprint
    assert vectors.source_of_texts == "mean of the word vectors"


def test_a_text_is_its_mean_and_its_known_words_in_order(written):
    found = load_word_vectors(written / "v.npz").of("The BOWL, a dog’s bowl: a dog's")
    assert found.rows[1:].tolist() == TABLE[[2, 0, 2, 0, 1]].tolist()
    np.testing.assert_allclose(found.rows[0], TABLE[[2, 0, 2, 0, 1]].mean(0))
    assert (found.known_words, found.unknown_words) == (5, 2)  # "the", and a word with another apostrophe


def test_a_text_without_a_known_word_is_one_vector_of_zeros(written):
    vectors = load_word_vectors(written / "v.npz")
    for text, unknown in (("cats!", 1), ("", 0), (" .,- ", 0)):
        found = vectors.of(text)
        assert found.rows.tolist() == [[0, 0]] and (found.known_words, found.unknown_words) == (0, unknown)


def test_vectors_of_texts_are_those_of_the_file(tmp_path):
    write_word_vectors(tmp_path / "v.npz", WORDS, TABLE, {"A bowl.": np.array([7, 8]), "nothing known": np.ones(2)})
    vectors = load_word_vectors(tmp_path / "v.npz")
    assert vectors.of("a  BOWL").rows.tolist() == [[7, 8], [1, 2], [0.5, 0.25]]
    assert vectors.of("nothing known").rows.tolist() == [[1, 1]]
    assert vectors.source_of_texts == "document vectors of the file"
    with pytest.raises(ValueError, match="text must be one of the 2 of the file of vectors, got 'a dog'"):
        vectors.of("a dog")


def test_the_fingerprint_is_of_words_and_of_every_value(tmp_path):
    prints = set()
    changed = TABLE.copy()
    changed[2, 1] += 1e-6
    for number, (words, table, texts) in enumerate(
        [
            (WORDS, TABLE, None),
            (WORDS, changed, None),
            (["b", *WORDS[1:]], TABLE, None),
            (WORDS, TABLE, {"x": TABLE[0]}),
        ]
    ):
        write_word_vectors(tmp_path / f"{number}.npz", words, table, texts)
        prints.add(load_word_vectors(tmp_path / f"{number}.npz").fingerprint)
    assert len(prints) == 4


def test_of_a_word_that_stands_twice_the_first_vector_is_used_and_words_may_hold_spaces(tmp_path):
    (tmp_path / "v.txt").write_text("a 1 2\na 3 4\nnew york 5 6\n")
    vectors = load_word_vectors(tmp_path / "v.txt")
    assert vectors.of("a").rows[1:].tolist() == [[1, 2]] and vectors.places["new york"] == 2


def test_words_and_keys():
    assert split_words("It's 3 o'clock — l'été_2!") == ["it's", "3", "o'clock", "l'été", "2"]
    assert text_key("A dog. ") == text_key("a  dog") != text_key("dog a")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a 1 2\nb 1\n", "line 2: 'b 1"),
        ("a 1 2\nb 1 x\n", "line 2: 'b 1 x"),
        ("hello\n", "line 1: 'hello"),
        ("3 2\n", "no vectors"),
        ("a 1 nan\n", "vectors that are not finite"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, text, found):
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"v\.txt must be a file of word vectors .*got {found}"):
        load_word_vectors(tmp_path / "v.txt")


def test_a_malformed_array_file_is_named(tmp_path):
    file = tmp_path / "v.npz"
    for arrays, found in (
        ({"words": WORDS}, "'vectors is not a file in the archive'"),
        ({"words": WORDS, "vectors": TABLE[:2]}, r"3 words with vectors \[2, 2\]"),
        ({"words": WORDS, "vectors": TABLE, "keys": ["x"], "documents": TABLE}, r"1 keys with documents \[3, 2\]"),
        ({"words": np.array(WORDS, object), "vectors": TABLE}, "Object arrays cannot be loaded"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=rf"v\.npz must be a file of word vectors .*got .*{found}"):
            load_word_vectors(file)
    file.write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"v\.npz must be a file of word vectors"):
        load_word_vectors(file)
    with pytest.raises(ValueError, match=r"path must end with \.npz and table be \[3, d\], got v\.txt and \[3, 2\]"):
        write_word_vectors(tmp_path / "v.txt", WORDS, TABLE)
