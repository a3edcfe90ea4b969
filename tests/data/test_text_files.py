"""Text files and tables of other programs: byte order marks, encodings, spellings of paths, reserved names."""

from __future__ import annotations

import pytest

from hystar_fast.data.hold_out import hash_fraction
from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.data.open import open_images
from hystar_fast.data.text_files import read_lines, split_lines
from hystar_fast.retrieval.results_json import read_json, write_json
from tests.support import picture_trees as trees


def test_every_text_file_may_have_a_byte_order_mark(tmp_path):
    made = {
        "dsr": (trees.dsr(tmp_path / "dsr"), ["test.json", "text/n00/0.txt"]),
        "domainnet": (trees.domainnet(tmp_path / "domainnet"), ["real_test.txt"]),
    }
    for kind, (root, names) in made.items():
        expected = open_images(f"{kind}:{root}").records
        for name in names:
            (root / name).write_bytes("\ufeff".encode() + (root / name).read_bytes())
        assert open_images(f"{kind}:{root}").records == expected


def test_a_line_ends_at_no_other_character(tmp_path):
    text = "caf\u00e9\u2028one\x85two\x0b\r\nthree\rfour\n\nfive"
    assert split_lines(text) == ["caf\u00e9\u2028one\x85two\x0b", "three", "four", "", "five"]
    assert split_lines("") == [] and split_lines("\n") == [""] and split_lines("a\n") == ["a"]
    (tmp_path / "about.jsonl").write_bytes('{"path": "a", "caption": "one\u2028two"}\n\n{"path": "b"}\n'.encode())
    assert [number for number, _ in read_lines(tmp_path / "about.jsonl")] == [1, 3]


def test_text_that_is_not_utf8_is_reported_with_its_line(tmp_path):
    root = trees.domainnet(tmp_path)
    lines = (root / "real_test.txt").read_bytes().splitlines(keepends=True)
    (root / "real_test.txt").write_bytes(lines[0] + "caf\u00e9 1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"real_test.txt must be UTF-8, got byte 0xe9 in line 2"):
        open_images(f"domainnet:{root}")


def test_two_spellings_of_a_path_are_one_picture(tmp_path):
    for name in ("p/a", "p/b", "s/a", "s/b"):
        trees.picture(tmp_path / f"{name}.png")
    (tmp_path / "pairs.csv").write_text(
        f"query,target\ns/a.png,p/a.png\n./s/b.png,./p/b.png\ns/b.png,{tmp_path}/p/b.png\ns//a.png, p/../p/a.png\n"
    )
    images = open_images(f"pairs:{tmp_path}/pairs.csv")
    assert [record.path for record in images.gallery] == ["p/a.png", "p/b.png"]
    queries = images.of_style("query")
    assert [(query.path, query.instance) for query in queries] == [
        ("s/a.png", "p/a.png"),
        ("s/b.png", "p/b.png"),
        ("s/b.png", "p/b.png"),
        ("s/a.png", "p/a.png"),
    ]


@pytest.mark.parametrize("style", ["text", "joint"])
def test_reserved_names_of_styles_are_rejected(tmp_path, style):
    table = tmp_path / "pairs.csv"
    table.write_text(f"query,target,style\na.png,b.png,photo\na.png,b.png,{style}\n")
    with pytest.raises(ValueError, match=f"queries of style '{style}' in line 3"):
        open_images(f"pairs:{table}")
    with pytest.raises(ValueError, match="a style must not be named 'text' or 'joint'"):
        ImageSet("mine", "photo", (Record("a.png", style),), lambda record: None)


def test_names_that_are_not_utf8_survive_a_file_of_results(tmp_path):
    content = {"names": ["caf\udce9.png", "日本"], "n": 2}
    write_json(tmp_path / "r.json", content)
    assert read_json(tmp_path / "r.json") == content
    write_json(tmp_path / "r.json", {"name": "日本"})
    assert "日本" in (tmp_path / "r.json").read_text(encoding="utf-8"), "text is escaped without need"


def test_a_split_by_hash_takes_any_name():
    assert 0 <= hash_fraction("caf\udce9.png") < 1
    assert hash_fraction("a") != hash_fraction("b")
