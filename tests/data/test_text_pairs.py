"""Pictures and texts in classes: the layouts of the public sets, and the parts of the zero-shot protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from hystar_fast.data.image_set import Record
from hystar_fast.data.open import open_images
from hystar_fast.data.text_pairs import load_crossmodal, zero_shot_parts
from hystar_fast.data.unseen import split_classes
from tests.support import picture_trees as trees

PASCAL = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
WIKIPEDIA = ["art", "biology", "geography", "history", "literature", "media", "music", "royalty", "sport", "warfare"]
HALVES = [
    (PASCAL, 42, "bottle bus car cow horse motorbike person pottedplant train tvmonitor"),
    (PASCAL, 5, "bicycle bird bottle bus car cow person pottedplant sofa train"),
    (PASCAL, 0, "aeroplane bird boat cow diningtable dog person sheep sofa train"),
    (WIKIPEDIA, 42, "geography history media royalty sport"),
    (WIKIPEDIA, 5, "art biology geography history sport"),
    (WIKIPEDIA, 0, "biology history media royalty sport"),
]
TEXT = "A dog  runs.\nA brown dog.\n"


def tree(root: Path, images: str, texts: str, parts: dict[str, int], classes=("cat", "dog")) -> Path:
    """Write pairs, `parts` of each class; the files of a layout may be empty pictures, as none is decoded here."""
    for part, count in parts.items():
        for category in classes:
            for number in range(count):
                picture = root / images / part / category / f"{part}{number}.jpg"
                text = root / texts / part / category / f"{part}{number}.txt"
                for file in (picture, text):
                    file.parent.mkdir(parents=True, exist_ok=True)
                picture.touch()
                text.write_text(TEXT)
    return root


@pytest.mark.parametrize(
    ("images", "texts", "text"),
    [
        ("image", "sentence", "A dog runs. A brown dog."),
        ("images", "texts", "A dog runs."),
        ("image", "text", "A dog runs."),
        ("images", "sentences", "A dog runs. A brown dog."),
    ],
)
def test_the_layouts_of_the_public_sets(tmp_path, images, texts, text):
    tree(tmp_path, images, texts, {"train": 2, "test": 1})
    for data in (f"crossmodal:{tmp_path}", str(tmp_path)):
        found = open_images(data, "test")
        assert found.records == (
            Record(f"{images}/test/cat/test0.jpg", "photo", "cat", "cat/test0", (text,)),
            Record(f"{images}/test/dog/test0.jpg", "photo", "dog", "dog/test0", (text,)),
        )
        assert found.has_splits and found.classes == ("cat", "dog") and not found.skipped
        assert len(open_images(data, "train").records) == 4


def test_a_picture_is_read(tmp_path):
    tree(tmp_path, "image", "text", {"train": 1, "test": 1})
    found = load_crossmodal(tmp_path)
    trees.picture(tmp_path / "picture.png").rename(tmp_path / found.records[0].path)
    assert found.read(found.records[0]).size == (20, 16)


def test_pairs_without_a_partner_and_empty_texts_are_skipped_and_counted(tmp_path):
    tree(tmp_path, "image", "sentence", {"train": 6, "test": 1}, ("cat",))
    train = Path("train/cat")
    (tmp_path / "sentence" / train / "train0.txt").unlink()
    (tmp_path / "sentence" / train / "train1.txt").write_text(" \n\n")
    (tmp_path / "sentence" / train / "train2.txt").write_bytes(b"a \xff dog")
    (tmp_path / "image" / train / "train3.jpg").unlink()
    (tmp_path / "image" / train / "train4.jpg").rename(tmp_path / "image" / train / "train4.svg")
    (tmp_path / "sentence" / train / "train5.txt").write_text("cat")  # few words are no reason
    found = load_crossmodal(tmp_path, "train")
    assert [record.instance for record in found.records] == ["cat/train5"]
    reasons = {entry.path.rpartition("/")[2]: entry.reason for entry in found.skipped}
    assert reasons == {
        "train0.jpg": "a picture without a text",
        "train1.jpg": "a picture with an empty text",
        "train2.jpg": reasons["train2.jpg"],
        "train3.txt": "a text without a picture",
        "train4.svg": "an image in an unsupported format, .svg",
        "train4.txt": "a text without a picture",
    }
    assert "must be UTF-8" in reasons["train2.jpg"]


def test_a_set_without_parts_is_divided_by_a_hash(tmp_path):
    tree(tmp_path, "images", "texts", {"all": 60})
    train, test = (load_crossmodal(tmp_path, split) for split in ("train", "test"))
    names = [{record.instance for record in part.records} for part in (train, test)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 120
    assert 12 <= len(names[1]) <= 36
    assert load_crossmodal(tmp_path, "test").records == test.records


def test_a_list_names_pairs_classes_and_parts(tmp_path):
    trees.picture(tmp_path / "p/1.png")
    (tmp_path / "pairs.csv").write_text(
        'image,text,class,split\np/1.png,"sky, sea",clouds,train\np/2.png,person,people,test\n'
    )
    (record,) = load_crossmodal(tmp_path, "train").records
    assert record == Record("p/1.png", "photo", "clouds", "clouds/p/1.png", ("sky, sea",))
    trees.picture(tmp_path / "p/2.png")
    assert [r.category for r in load_crossmodal(tmp_path, "test").records] == ["people"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("image,text,class\n", "pairs.csv with the columns image,text,class"),
        ("image,text,class,split\na.png,x,y\n", "line 2: 'a.png,x,y,'"),
        ("image,text,class,split\na.png,x,y,val\n", "line 2: 'a.png,x,y,val'"),
        ("image,text,class,split\na.png,x,y,test,z\n", "line 2: 'a.png,x,y,test'"),
        ("image,text,class,split\nb.png,x,y,test\n", "no picture b.png beside pairs.csv"),
        ("image,text,class,split\na.png,x,y,test\na.png,x,z,test\n", "a picture in two lines"),
        ("image,text,class,split\na.png,x,y,train\n", "no pair of the split test, 0 files without partner"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(tmp_path, text, found):
    trees.picture(tmp_path / "a.png")
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"does not have the layout of pictures and texts in classes.*{found}"):
        load_crossmodal(tmp_path)


def test_other_folders_and_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Expected: image/<split>/<class>.*Found: an empty folder"):
        load_crossmodal(tmp_path)
    tree(tmp_path, "image", "text", {"train": 1})
    with pytest.raises(ValueError, match="Found: no image/test/ with text/test/"):
        load_crossmodal(tmp_path)
    with pytest.raises(ValueError, match=r"split must be one of \('train', 'test'\) for .*got 'val'"):
        load_crossmodal(tmp_path, "val")


@pytest.mark.parametrize(("names", "seed", "seen"), HALVES)
def test_the_seen_half_is_that_of_the_authors(names, seed, seen):
    found = split_classes(list(reversed(names)), seed)
    assert found[0] == tuple(seen.split())
    assert sorted(found[0] + found[1]) == names


def test_fewer_than_two_classes_have_no_halves():
    with pytest.raises(ValueError, match="names must be at least 2 classes, got 1"):
        split_classes(["a", "a"], 0)


def test_the_parts_of_pascal_have_the_papers_sizes_and_share_nothing(tmp_path):
    tree(tmp_path, "image", "sentence", {"train": 40, "test": 10}, PASCAL)
    train, test = load_crossmodal(tmp_path, "train"), load_crossmodal(tmp_path, "test")
    assert (len(train.records), len(test.records)) == (800, 200)
    for seed in range(3):
        parts = zero_shot_parts(train, test, seed)
        listed = (parts.training, parts.support, parts.queries)
        assert [len(part.records) for part in listed] == [400, 400, 100]
        paths = [{record.path for record in part.records} for part in listed]
        assert not paths[0] & paths[1] and not paths[0] & paths[2] and not paths[1] & paths[2]
        seen, unseen = split_classes(PASCAL, seed)
        assert {record.category for record in parts.training.records} == set(seen)
        assert {record.category for part in listed[1:] for record in part.records} == set(unseen)
        assert parts.training.unseen_categories == set(unseen)
        assert all("/train/" in path for path in paths[0] | paths[1]) and all("/test/" in path for path in paths[2])


def test_parts_of_other_classes_are_refused(tmp_path):
    train = load_crossmodal(tree(tmp_path / "a", "image", "text", {"train": 1, "test": 1}), "train")
    test = load_crossmodal(tree(tmp_path / "b", "image", "text", {"train": 1, "test": 1}, ("cat", "cow")), "test")
    with pytest.raises(ValueError, match="train and test must have the same classes, got cow, dog in one of them"):
        zero_shot_parts(train, test, 0)
