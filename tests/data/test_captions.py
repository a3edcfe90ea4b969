"""Several captions a picture: COCO's JSON, Flickr's lines, tables of pairs and shards, and how they are held out."""

from __future__ import annotations

import json
import tarfile

import pytest

from hystar_fast.data.hold_out import hold_out
from hystar_fast.data.image_set import Record
from hystar_fast.data.open import open_images
from tests.support import picture_trees as trees

CAPTIONS = {"a.png": ("a dog", "a small dog, running"), "b.png": ("a cat",)}
COCO = {
    "info": {},
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
    "annotations": [
        {"id": 0, "image_id": 7, "caption": "a dog"},
        {"id": 1, "image_id": 9, "caption": " a\ncat "},
        {"id": 2, "image_id": 7, "caption": "a small dog, running"},
    ],
}
FILES = {
    "captions_val2017.json": json.dumps(COCO),
    "results.token": "a.png#0\ta dog\na.png#1\ta small dog, running\n\nb.png#0\ta cat\n",
    "captions.txt": 'image,caption\na.png,a dog\na.png,"a small dog, running"\nb.png,a cat\n',
}


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("folder", [".", "val2017", "../val2017"])
@pytest.mark.parametrize("name", FILES)
def test_pictures_have_all_their_captions(tmp_path, name, folder, bom):
    file = tmp_path / "annotations" / name
    for picture in CAPTIONS:
        trees.picture(file.parent / folder / picture)
    file.write_bytes(bom + FILES[name].encode())
    (tmp_path / "empty").mkdir()
    for data in (f"captions:{file}", str(file)):
        images = open_images(data)
        assert images.records == tuple(Record(p, "photo", None, p, texts) for p, texts in CAPTIONS.items())
        assert images.query_styles == () and images.read(images.records[0]).size == (20, 16)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("c.json", '{"images": []', "JSON that cannot be read"),
        ("c.json", "[]", "JSON without lists images and annotations"),
        ("c.json", '{"images": [{"id": 1}], "annotations": []}', r"images\[0\] without id and file_name"),
        (
            "c.json",
            '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}], "annotations": []}',
            r"images\[1\] with the id 1 of a\.png",
        ),
        (
            "c.json",
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            r"annotations\[0\] of image 2, which is not among the images",
        ),
        (
            "c.json",
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": ["x"]}]}',
            r"annotations\[0\] without image_id and caption",
        ),
        ("c.token", "a.png#0\ta dog\na.png a cat\n", "line 2 is 'a.png a cat'"),
        ("c.token", "a.png#0\ta dog\na.png#1\t \n", "line 2 is"),
        ("c.txt", "image,caption\na.png,a dog, running\n", "line 2 is .*; a caption with a comma needs double quotes"),
        ("c.txt", "image,caption\na.png\n", "line 2 is 'a.png'"),
        ("c.txt", "image,caption\nnone.png,a dog\n", r"no picture none\.png in .*, in a folder of it or in one beside"),
        ("c.json", '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}', "1 pictures without captions"),
    ],
)
def test_a_malformed_file_is_rejected_with_the_line_or_entry(tmp_path, name, text, found):
    trees.picture(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} does not have the layout of captions.*Found: .*{found}"):
        open_images(f"captions:{tmp_path / name}")


def test_a_table_of_captions_opened_as_pairs_names_the_right_kind(tmp_path):
    (tmp_path / "c.csv").write_text(FILES["captions.txt"])
    with pytest.raises(ValueError, match="of pictures with captions: open the file as captions:<file>"):
        open_images(f"pairs:{tmp_path / 'c.csv'}")


def test_rows_of_pairs_that_differ_in_their_caption_are_one_query(tmp_path):
    for name in ("s/a", "s/b", "p/a", "p/b"):
        trees.picture(tmp_path / f"{name}.png")
    rows = ["s/a.png,p/a.png,one", "./s/a.png,p/a.png,two", "s/b.png,p/a.png,one", *["s/b.png,p/b.png,"] * 2]
    (tmp_path / "pairs.csv").write_text("\n".join(["query,target,caption", *rows]))
    images = open_images(f"pairs:{tmp_path}/pairs.csv")
    assert [(r.path, r.captions) for r in images.gallery] == [("p/a.png", ("one", "two")), ("p/b.png", ())]
    assert [(r.path, r.instance, r.captions) for r in images.of_style("query")] == [
        ("s/a.png", "p/a.png", ("one", "two")),
        ("s/b.png", "p/a.png", ("one",)),
        ("s/b.png", "p/b.png", ()),
        ("s/b.png", "p/b.png", ()),
    ]


@pytest.mark.parametrize(
    ("name", "text", "captions", "reason"),
    [
        ("a.txt", b"\xef\xbb\xbfa dog\r\n\r\n a small dog \n", ("a dog", "a small dog"), None),
        ("a.json", b'{"caption": ["x", "y"], "category": "z"}', ("x", "y"), None),
        ("a.json", b'{"caption": "x"}', ("x",), None),
        ("a.json", b'{"caption": ["x", {"y": 1}]}', (), "caption must be a text or a list of texts"),
        ("a.json", b'{"category": ["x", "y"]}', (), "category must be one text, got 2"),
    ],
)
def test_a_shard_has_several_captions_a_key(tmp_path, name, text, captions, reason):
    trees.shard_of_one_key(tmp_path, name, text)
    images = open_images(f"shards:{tmp_path}")
    assert {record.captions for record in images.records} == {captions}
    assert len(images.skipped) == (reason is not None)
    assert all(reason in entry.reason for entry in images.skipped)


def test_shards_of_pictures_and_captions_alone_are_queried_by_text(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(trees.picture(tmp_path / "a.png"), "a.png")
        trees.add_member(tar, "a.txt", b"a dog\na hound")
    images = open_images(str(tmp_path / "0.tar"))
    assert [(record.style, record.captions) for record in images.records] == [("image", ("a dog", "a hound"))]


def test_a_picture_of_dsr_that_is_listed_twice_is_one_picture(tmp_path):
    trees.dsr(tmp_path, n=2)
    entries = json.loads((tmp_path / "test.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps([entries[0], {**entries[0], "caption": entries[1]["caption"]}]))
    images = open_images(f"dsr:{tmp_path}")
    assert [record.captions for record in images.gallery] == [("picture number 0", "picture number 1")]


def test_captions_of_one_picture_are_held_out_together(tmp_path):
    names = [f"{i}.png" for i in range(40)]
    for name in names:
        trees.picture(tmp_path / name)
    lines = [f"{name}#{k}\tcaption {k} of {name}\n" for k in range(5) for name in names]
    (tmp_path / "c.token").write_text("".join(lines))
    training, held_out = hold_out(open_images(str(tmp_path / "c.token")), 0.3)
    assert 0 < len(held_out.records) < 40 and len(training.records) + len(held_out.records) == 40
    assert all(len(record.captions) == 5 for record in (*training.records, *held_out.records))
