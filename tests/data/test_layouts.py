"""The layouts of public data sets on small synthetic trees: listed, skipped and rejected files."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from hystar_fast.data.image_set import ImageSet, Record, Skipped, read_images
from hystar_fast.data.images import ResizeTo
from hystar_fast.data.open import open_images
from tests.support import picture_trees as trees


def paths(images: ImageSet, style: str) -> list[str]:
    return [record.path for record in images.of_style(style)]


def test_dsr_lists_every_picture_in_every_style_with_its_caption(tmp_path):
    found = open_images(str(trees.dsr(tmp_path)))
    assert found.name == "DSR"
    assert found.styles == ("images", "art", "sketch", "mosaic")
    assert paths(found, "mosaic") == [f"mosaic/n0{i % 2}/{i}.png" for i in range(4)]
    assert found.of_style("sketch")[3] == Record(
        "sketch/n01/3.png", "sketch", "n01", "n01/3.png", ("picture number 3",)
    )
    assert found.read(found.of_style("art")[0]).size == (20, 16)
    assert found.skipped == ()


def test_dsr_counts_unreadable_captions_and_reads_the_styles_present(tmp_path):
    trees.dsr(tmp_path, styles=("sketch",))
    (tmp_path / "text/n01/1.txt").unlink()
    (tmp_path / "text/n00/2.txt").write_bytes(b"\xff\xfe\xfa")
    found = open_images(f"dsr:{tmp_path}")
    assert found.styles == ("images", "sketch")
    assert [record.caption for record in found.of_style("sketch")] == [
        "picture number 0",
        None,
        None,
        "picture number 3",
    ]
    assert [entry.path for entry in found.skipped] == ["text/n01/1.txt", "text/n00/2.txt"]


def test_domainnet_lists_its_split_files_by_category(tmp_path):
    found = open_images(str(trees.domainnet(tmp_path)))
    assert (found.name, found.gallery_style, found.styles) == ("DomainNet", "real", ("real", "clipart", "sketch"))
    assert found.of_style("clipart")[2] == Record("clipart/hot_dog/clipart_1_0.png", "clipart", "hot_dog")


def test_sketchy_matches_sketches_to_the_photo_they_were_drawn_from(tmp_path):
    found = open_images(str(trees.sketchy(tmp_path / "Sketchy")))
    assert found.gallery_style == "photo"
    instances = {record.path.split("/")[-1]: record.instance for record in found.of_style("sketch")}
    assert instances == {
        "n0_cat-1.png": "cat/n0_cat",
        "n1_cat-2.png": "cat/n1_cat",
        "n0_dog-1.png": "dog/n0_dog",
        "n1_dog-2.png": "dog/n1_dog",
        "other.png": None,
    }
    assert {record.category for record in found.records} == {"cat", "dog"}
    assert {record.instance for record in found.of_style("photo")} == set(instances.values()) - {None}


def test_sketchy_is_read_in_its_standard_rendering(tmp_path):
    found = open_images(str(trees.sketchy(tmp_path / "Sketchy")))
    assert found.name == "Sketchy (photo/tx_000000000000, sketch/tx_000000000000)"
    assert len(found.of_style("photo")) == 4 and len(found.of_style("sketch")) == 5
    assert {record.path.split("/")[1] for record in found.records} == {"tx_000000000000"}
    alone = open_images(str(trees.sketchy(tmp_path / "alone", ("tx_000100000000",))))
    assert alone.name == "alone" and len(alone.records) == 9
    with pytest.raises(ValueError, match=r"Found: tx_000000001110, tx_000100000000 below photo/, of which none is"):
        open_images(str(trees.sketchy(tmp_path / "others", ("tx_000100000000", "tx_000000001110"))))


def test_tu_berlin_and_quickdraw_are_read_by_category(tmp_path):
    found = open_images(str(trees.tu_berlin(tmp_path / "TU-Berlin")))
    assert found.styles == ("photo", "png") and len(found.records) == 8
    assert found.of_style("png")[2] == Record("png/alarm clock/3.png", "png", "alarm clock")
    root = trees.quickdraw_extended(tmp_path / "QuickDraw")
    with pytest.raises(ValueError, match="Found: QuickDraw_images_final/, QuickDraw_sketches_final/"):
        open_images(str(root))
    found = open_images(str(root), gallery_style="QuickDraw_images_final")
    assert found.styles == ("QuickDraw_images_final", "QuickDraw_sketches_final")
    assert {record.category for record in found.records} == {"bear", "windmill"}
    assert {record.instance for record in found.records} == {None}


def test_stroke_files_are_rejected_with_an_explanation(tmp_path):
    trees.picture(tmp_path / "photo/cat/1.jpg")
    for name in ("sketch/cat.ndjson", "sketch/dog.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for place, found in (
        (tmp_path, "cat.ndjson and 1 more files like it: strokes or arrays, not pictures"),
        (tmp_path / "sketch", "cat.ndjson and 1 more files like it: strokes or arrays"),
        (tmp_path / "sketch/dog.npy", "dog.npy: strokes or arrays, not pictures; draw each into <style>/<category>/"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"Found: {found}")):
            open_images(str(place))


def test_gallery_style_names_the_gallery_of_folders(tmp_path):
    for style in ("renders", "drawings"):
        trees.picture(tmp_path / style / "cup" / "1.png")
    assert open_images(str(tmp_path), gallery_style="renders").gallery_style == "renders"


def test_pairs_list_each_target_once(tmp_path):
    for name in ("a.png", "b.png", "qa1.png", "qa2.png", "qb.png"):
        trees.picture(tmp_path / name)
    table = tmp_path / "mine.csv"
    table.write_text(
        "query,target,style,caption\nqa1.png,a.png,sketch,an a\nqa2.png,a.png,,an a\nqb.png,b.png,sketch,\n"
    )
    found = open_images(str(table))
    assert (found.name, found.styles) == ("mine", ("gallery", "sketch", "query"))
    assert found.of_style("gallery") == (
        Record("a.png", "gallery", None, "a.png", ("an a",)),
        Record("b.png", "gallery", None, "b.png"),
    )
    assert found.of_style("query") == (Record("qa2.png", "query", None, "a.png", ("an a",)),)


def test_shards_group_members_by_key_and_read_pictures_from_the_tar(tmp_path):
    images = open_images(str(trees.shards(tmp_path / "set")))
    assert images.name == "set" and images.gallery_style == "photo" and images.styles == ("photo", "sketch")
    assert len(images.records) == 8 and not images.skipped
    record = images.of_style("sketch")[3]
    assert record == Record("part-001.tar/0001.sketch.png", "sketch", "dog", "part-001/0001", ("thing 1 of 1",))
    assert images.records[0].category == "cat" and images.records[0].caption is None
    expected = trees.picture(tmp_path / "same.png", seed=11)
    with Image.open(expected) as same:
        assert images.read(record).tobytes() == same.tobytes()
    sketches = open_images(f"shards:{tmp_path / 'set' / 'part-000.tar'}", gallery_style="sketch")
    assert sketches.gallery_style == "sketch" and len(sketches.records) == 4


def test_damaged_shards_are_reported(tmp_path):
    (tmp_path / "one").mkdir()
    with tarfile.open(tmp_path / "one/0.tar", "w") as tar:
        tar.add(trees.picture(tmp_path / "loose.png"), "a.photo.png")
    with pytest.raises(ValueError, match=r"WebDataset shards.*Found: styles \['photo'\]"):
        open_images(str(tmp_path / "one"))
    shard = tmp_path / "bad.tar"
    shard.write_bytes(b"not a tar" * 100)
    with pytest.raises(ValueError, match=r"bad\.tar does not have the layout of WebDataset shards"):
        open_images(str(shard))
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for style in ("photo", "sketch"):
            tar.add(trees.picture(tmp_path / "loose.png"), f"a.{style}.png")
        note = tmp_path / "note.json"
        note.write_text("[1, 2")
        tar.add(note, "a.json")
        (tmp_path / "cut.png").write_bytes((tmp_path / "loose.png").read_bytes()[:60])
        tar.add(tmp_path / "cut.png", "b.photo.png")
    images = open_images(str(tmp_path / "odd.tar"))
    assert [skipped.path for skipped in images.skipped] == ["odd.tar/a.json"]
    with pytest.raises(ValueError, match=r"odd\.tar/b\.photo\.png is truncated or damaged"):
        images.read(images.of_style("photo")[1])


def test_a_second_picture_of_one_key_and_style_is_skipped_and_counted(tmp_path):
    png, jpg = trees.picture(tmp_path / "a.png", seed=1), trees.picture(tmp_path / "a.jpg", seed=2)
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set/x.tar", "w") as tar:
        for name in ("0.photo.png", "0.sketch.png", "0.photo.jpg", "0.sketch.svg", "._0.photo.png", "a/._1.sketch.png"):
            tar.add(jpg if name.endswith("jpg") else png, name)
    (tmp_path / "set/._x.tar").write_bytes(b"\0\5\26\7")
    images = open_images(str(tmp_path / "set"))
    assert [record.path for record in images.records] == ["x.tar/0.photo.png", "x.tar/0.sketch.png"]
    with Image.open(png) as first:
        assert images.read(images.records[0]).tobytes() == first.tobytes()
    assert images.skipped == (
        Skipped("x.tar/0.photo.jpg", "another picture of style photo beside x.tar/0.photo.png"),
        Skipped("x.tar/0.sketch.svg", "an image in an unsupported format, .svg"),
    )


def test_a_table_with_a_byte_order_mark_is_read(tmp_path):
    table = trees.pairs(tmp_path, [("q.png", "a.png")])
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert paths(open_images(str(table)), "gallery") == ["a.png"]


@pytest.mark.parametrize(
    ("make", "split", "found"),
    [
        (trees.dsr, "val", "DSR.*Found: no val.json, but test.json"),
        (trees.dsr, "train", "DSR.*Found: no train.json, but test.json"),
        (trees.domainnet, "val", "DomainNet.*Found: no real_val.txt, but split files of test"),
        (trees.domainnet, "train", "DomainNet.*Found: no real_train.txt, but split files of test"),
    ],
)
@pytest.mark.parametrize("kind", ["", "{}:"])
def test_a_missing_split_is_rejected_and_does_not_mean_the_whole_folder(tmp_path, make, split, found, kind):
    make(tmp_path)
    (tmp_path / "._real_val.txt").write_bytes(b"\0\5\26\7")
    name = kind.format(make.__name__)
    with pytest.raises(ValueError, match=found):
        open_images(f"{name}{tmp_path}", split)
    open_images(f"{name}{tmp_path}", "test")


def test_lists_beside_folders_do_not_change_the_layout(tmp_path):
    trees.sketchy(tmp_path)
    for name in ("classes_test.txt", "val.json"):
        (tmp_path / name).write_text("")
    assert open_images(str(tmp_path)).gallery_style == "photo"


def test_data_sets_report_whether_they_have_splits(tmp_path):
    trees.pairs(tmp_path / "pairs", [("q.png", "a.png")])
    made = {
        "emoji": True,
        f"dsr:{trees.dsr(tmp_path / 'dsr')}": True,
        f"domainnet:{trees.domainnet(tmp_path / 'domainnet')}": True,
        f"folders:{trees.sketchy(tmp_path / 'folders')}": False,
        f"pairs:{tmp_path / 'pairs/pairs.csv'}": False,
        f"shards:{trees.shards(tmp_path / 'shards')}": False,
    }
    for data, splits in made.items():
        images = open_images(data, "test").select(limit=2)
        assert images.has_splits is splits, data


def test_a_gallery_style_is_rejected_where_the_gallery_is_fixed(tmp_path):
    trees.pairs(tmp_path / "pairs", [("q.png", "a.png")])
    for kind, data in {
        "emoji": "emoji",
        "dsr": str(trees.dsr(tmp_path / "dsr")),
        "domainnet": f"domainnet:{trees.domainnet(tmp_path / 'domainnet')}",
        "pairs": str(tmp_path / "pairs/pairs.csv"),
    }.items():
        with pytest.raises(ValueError, match=rf"gallery_style must be left out for {kind}, .* got 'sketch'"):
            open_images(data, gallery_style="sketch")


def test_unreadable_pictures_are_skipped_and_listed(tmp_path):
    trees.dsr(tmp_path)
    trees.damaged(tmp_path / "sketch/n01/1.png")
    (tmp_path / "sketch/n00/2.png").write_text("no picture")
    (tmp_path / "sketch/n01/3.png").unlink()
    found = open_images(str(tmp_path))
    skipped: list[Skipped] = []
    parts = list(read_images(found, found.of_style("sketch"), ResizeTo((8, 8)), skipped, batch_size=1))
    assert [rows for rows, _ in parts] == [[0]]
    assert parts[0][1].shape == (1, 3, 8, 8) and parts[0][1].dtype == torch.uint8
    assert [entry.path for entry in skipped] == [f"sketch/n0{i % 2}/{i}.png" for i in (1, 2, 3)]
    for entry, reason in zip(skipped, ("truncated or damaged", "not an image", "does not exist"), strict=True):
        assert reason in entry.reason


def test_a_selection_keeps_categories_and_spreads_its_limit(tmp_path):
    images = open_images(str(trees.domainnet(tmp_path, n=4)))
    ants = images.select(categories=["ant"])
    assert {record.category for record in ants.records} == {"ant"}
    few = images.select(limit=2)
    assert [record.category for record in few.of_style("clipart")] == ["ant", "hot_dog"]
    with pytest.raises(ValueError, match="categories must be categories of DomainNet, got 'bee'"):
        images.select(categories=["ant", "bee"])
    with pytest.raises(ValueError, match="limit must be at least 1"):
        images.select(limit=0)
    with pytest.raises(ValueError, match="style must be one of"):
        images.of_style("oil")


def no_images(root: Path) -> None:
    trees.dsr(root)
    (root / "images").rename(root / "pictures")


def no_json(root: Path) -> None:
    (trees.dsr(root) / "test.json").write_text("{")


def no_split(root: Path) -> None:
    (trees.dsr(root) / "test.json").rename(root / "train.json")


def records_with_other_keys(root: Path) -> None:
    (trees.dsr(root) / "test.json").write_text(json.dumps([{"image_path": "a/b.jpg"}]))


def missing_pictures(root: Path) -> None:
    (trees.dsr(root) / "test.json").write_text(json.dumps([{"image": "elsewhere/b.jpg"}]))


def no_gallery(root: Path) -> None:
    trees.domainnet(root, styles=("clipart", "sketch"))


def bad_line(root: Path) -> None:
    (trees.domainnet(root) / "sketch_test.txt").write_text("sketch/ant/1.png\n")


def two_names_of_a_label(root: Path) -> None:
    (trees.domainnet(root) / "sketch_test.txt").write_text("sketch/bee/1.png 0\n")


def one_style(root: Path) -> None:
    trees.picture(root / "photo/cat/1.png")


def no_categories(root: Path) -> None:
    trees.picture(root / "photo/1.png")
    trees.picture(root / "sketch/cat/1.png")


def no_common_category(root: Path) -> None:
    trees.picture(root / "photo/dog/1.png")
    trees.picture(root / "sketch/cat/1.png")


@pytest.mark.parametrize(
    ("kind", "make", "found"),
    [
        ("dsr", no_images, "Found: art/, mosaic/, pictures/, sketch/, test.json, text/"),
        ("dsr", no_json, "Found: test.json, which is not JSON"),
        ("dsr", no_split, "and test.json: a list"),
        ("dsr", no_split, "Found: no test.json, but train.json"),
        ("dsr", records_with_other_keys, "Found: record 0 of test.json is {'image_path': 'a/b.jpg'}"),
        ("dsr", missing_pictures, "Found: none of the 1 pictures listed, the first being images/elsewhere/b.jpg"),
        ("domainnet", no_gallery, "Found: split files of clipart, sketch, none of real"),
        ("domainnet", bad_line, "Found: line 1 of sketch_test.txt is 'sketch/ant/1.png'"),
        ("domainnet", two_names_of_a_label, "Found: label 0 for ant and, in line 1 of sketch_test.txt, for bee"),
        ("domainnet", one_style, "Found: photo/"),
        ("folders", one_style, "Found: photo/"),
        ("folders", no_categories, "Found: no <category>/<picture> below photo/"),
        ("folders", no_common_category, "Found: no category of photo/ in any other style"),
    ],
)
def test_the_error_for_another_layout_gives_expected_and_found(tmp_path, kind, make, found):
    make(tmp_path)
    with pytest.raises(ValueError) as error:
        open_images(f"{kind}:{tmp_path}")
    message = str(error.value)
    assert message.startswith(f"{tmp_path} does not have the layout of")
    assert "Expected: " in message
    assert found in message


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "an empty file"),
        ("query,target\n", "a header without rows"),
        ("picture,target\na.png,b.png\n", "columns ['picture', 'target']"),
        ("query,target\na.png,\n", "no query or no target in line 2"),
        (
            "query,target,category\nq.png,a.png,one\nq.png,a.png,two\n",
            "line 3 and another give different categories to a.png",
        ),
        (
            "query,target,style\nq.png,a.png,gallery\n",
            "queries of style 'gallery' in line 2, a name with another meaning",
        ),
        (
            "query,target,caption\nq.png,a.png,a dog, running\n",
            "more cells than columns in line 2; a text with",
        ),
        ("query;target\nq.png;a.png\n", "one column 'query;target'; save the file with commas between its cells"),
        ("Query,Target\nq.png,a.png\n", "write them in lower case and without spaces, query,target"),
        ("query,target\nq.png,a.png\n", "none of the 1 pictures listed"),
    ],
)
def test_a_malformed_table_is_rejected(tmp_path, text, found):
    table = tmp_path / "pairs.csv"
    table.write_text(text)
    with pytest.raises(ValueError) as error:
        open_images(str(table))
    assert found in str(error.value)


def test_missing_data_is_reported(tmp_path):
    with pytest.raises(ValueError, match=r"data must be emoji, dsr:<path>.*'imagenet' does not exist"):
        open_images("imagenet")
    with pytest.raises(ValueError, match="Found: an empty folder"):
        open_images(str(tmp_path))
