"""Results files: one that other results would replace is kept under another name."""

from __future__ import annotations

import pytest

from hystar_fast.retrieval.results_json import read_json, set_aside, write_json


def test_results_of_the_same_settings_are_replaced_and_others_kept_under_free_names(tmp_path):
    path = tmp_path / "results.json"
    assert set_aside(path, {"data": "a"}, ("data",)) is None, "there is none yet"
    for data, kept in (("a", None), ("a", None), ("b", 1), ("c", 2)):
        found = set_aside(path, {"data": data}, ("data",))
        assert found == (None if kept is None else tmp_path / f"results-{kept}.json")
        write_json(path, {"data": data, "seconds": 1})
    assert [read_json(tmp_path / f"results-{n}.json")["data"] for n in (1, 2)] == ["a", "b"]


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "\xff", '{"data": "b", "checksum": "0"}'])
def test_a_file_that_cannot_be_read_is_kept(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content, encoding="latin-1")
    assert set_aside(path, {"data": "b"}, ("data",)) == tmp_path / "results-1.json"
    assert (tmp_path / "results-1.json").read_text(encoding="latin-1") == content
