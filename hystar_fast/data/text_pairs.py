"""Pairs of a picture and a text in classes: Pascal Sentence, Wikipedia, XMediaNet, and NUS-WIDE from a list.

The zero-shot protocol of these sets (`zero_shot_parts`) divides the classes in halves: on the seen ones a method
trains, and the unseen ones have a gallery from the training part and queries from the test part.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hystar_fast.data.hold_out import hash_fraction
from hystar_fast.data.image_files import list_images, unsupported_reason
from hystar_fast.data.image_set import FolderReader, ImageSet, Record, Skipped, layout_error
from hystar_fast.data.text_files import read_text
from hystar_fast.data.unseen import split_classes

GALLERY_STYLE = "photo"
LIST = "pairs.csv"
SPLITS = ("train", "test")
LAYOUT = (
    "image/<split>/<class>/<name>.jpg and sentence/<split>/<class>/<name>.txt (also images/, sentences/, text/, "
    "texts/), with the splits train and test, or all in their place; or pairs.csv with the columns "
    "image,text,class,split and the pictures beside it"
)
_NAME = "pictures and texts in classes"
_IMAGES, _SENTENCES, _TEXTS = ("image", "images"), ("sentence", "sentences"), ("text", "texts")
_WHOLE, _TEST_SHARE = "all", 0.2
_COLUMNS = ("image", "text", "class", "split")


def is_crossmodal(root: Path) -> bool:
    """Return whether a folder looks like one of pictures and texts in classes."""
    images, texts = _folder(root, _IMAGES), _folder(root, (*_SENTENCES, *_TEXTS))
    return bool(images and texts) and any((root / str(images) / part).is_dir() for part in (*SPLITS, _WHOLE))


def load_crossmodal(root: str | Path, split: str = "test") -> ImageSet:
    """List pairs of a picture and its text. The gallery is all pictures; the texts are their captions.

    Below ``sentence(s)/`` a text is all lines of its file, as Pascal Sentence has five; below ``text(s)/`` it is the
    first line. A picture without a text, a text without a picture and an empty text are skipped and counted. Pictures
    in ``all/`` are divided by a hash of their class and name, a fifth for the test part.

    NUS-WIDE has no published list of pairs: it is read from ``pairs.csv`` alone. `text` is the text itself there.

    Args:
        root: the folder, see `LAYOUT`.
        split: "train" or "test".

    Raises:
        ValueError: another layout or split; the message says what was expected and found.
        OSError: a folder cannot be listed.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS} for {_NAME}, got {split!r}")
    skipped: list[Skipped] = []
    records = _of_list(root, split) if (root / LIST).is_file() else _of_folders(root, split, skipped)
    if not records:
        raise layout_error(_NAME, root, LAYOUT, f"no pair of the split {split}, {len(skipped)} files without partner")
    classes = tuple(sorted({str(record.category) for record in records}))
    return ImageSet(
        root.name, GALLERY_STYLE, tuple(records), FolderReader(root), tuple(skipped), classes=classes, has_splits=True
    )


def _of_folders(root: Path, split: str, skipped: list[Skipped]) -> list[Record]:
    images, sentences, texts = (_folder(root, names) for names in (_IMAGES, _SENTENCES, _TEXTS))
    written = sentences or texts
    if images is None or written is None:
        raise layout_error(_NAME, root, LAYOUT)
    is_whole = not any((root / images / part).is_dir() for part in SPLITS)
    part = _WHOLE if is_whole else split
    if not (root / images / part).is_dir() or not (root / written / part).is_dir():
        raise layout_error(_NAME, root, LAYOUT, f"no {images}/{part}/ with {written}/{part}/")
    found, unsupported = list_images(root / images / part)
    skipped += [Skipped(f"{images}/{part}/{p.as_posix()}", unsupported_reason(p)) for p in unsupported]
    records: list[Record] = []
    taken: set[Path] = set()
    for path in found:
        if len(path.parts) < 2:
            continue  # in no class
        taken.add(path.with_suffix(""))
        name, category = path.with_suffix("").as_posix(), path.parts[0]
        if is_whole and (hash_fraction(name, "crossmodal") < _TEST_SHARE) != (split == "test"):
            continue
        place = f"{images}/{part}/{path.as_posix()}"
        text = _text(root / written / part / path.with_suffix(".txt"), whole=written == sentences)
        if isinstance(text, Skipped):
            skipped.append(replace(text, path=place))
        else:
            records.append(Record(place, GALLERY_STYLE, category, name, (text,)))
    for file in sorted((root / written / part).rglob("*.txt")):
        path = file.relative_to(root / written / part).with_suffix("")
        if len(path.parts) > 1 and path not in taken:
            skipped.append(Skipped(file.relative_to(root).as_posix(), "a text without a picture"))
    return records


def _text(path: Path, *, whole: bool) -> str | Skipped:
    try:
        content = read_text(path)
    except FileNotFoundError:
        return Skipped("", "a picture without a text")
    except (OSError, ValueError) as error:
        return Skipped("", f"no text: {error}")
    text = " ".join((content if whole else content.partition("\n")[0]).split())
    return text or Skipped("", "a picture with an empty text")


def _of_list(root: Path, split: str) -> list[Record]:
    try:
        reader = csv.DictReader(io.StringIO(read_text(root / LIST), newline=""), strict=True)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise ValueError(f"the columns {','.join(reader.fieldnames or ())}")
        records = []
        for row in reader:
            cells = [str(row[name] or "").strip() for name in _COLUMNS]
            if None in row or not all(cells) or cells[3] not in SPLITS:
                raise ValueError(f"line {reader.line_num}: {','.join(cells)[:60]!r}")
            image, text, category, part = cells
            if part == split:
                records.append(Record(image, GALLERY_STYLE, category, f"{category}/{image}", (text,)))
    except (ValueError, csv.Error) as error:
        raise layout_error(_NAME, root, LAYOUT, f"{LIST} with {error}") from error
    if len({record.path for record in records}) < len(records):
        raise layout_error(_NAME, root, LAYOUT, f"{LIST} with a picture in two lines; a picture has one class and text")
    if records and not any((root / record.path).is_file() for record in records):
        raise layout_error(_NAME, root, LAYOUT, f"no picture {records[0].path} beside {LIST}")
    return records


def _folder(root: Path, names: Sequence[str]) -> str | None:
    return next((name for name in names if (root / name).is_dir()), None)


@dataclass(frozen=True)
class ZeroShotParts:
    """Parts of a data set of seen and unseen classes. Seen classes of the test part are in none.

    Attributes:
        training: seen classes of the training part; nothing else is trained on.
        support: unseen classes of the training part, the gallery.
        queries: unseen classes of the test part.
    """

    training: ImageSet
    support: ImageSet
    queries: ImageSet


def zero_shot_parts(train: ImageSet, test: ImageSet, seed: int) -> ZeroShotParts:
    """Divide a training and a test part by their classes, see `split_classes`.

    Raises:
        ValueError: the parts have other classes.
    """
    classes, others = ({r.category for r in part.records if r.category is not None} for part in (train, test))
    if classes != others:
        shown = ", ".join(sorted(classes ^ others)[:3])
        raise ValueError(f"train and test must have the same classes, got {shown} in one of them alone")
    seen, unseen = split_classes(classes, seed)
    training, support = (train.select(categories=part) for part in (seen, unseen))
    return ZeroShotParts(
        replace(training, unseen_categories=frozenset(unseen)), support, test.select(categories=unseen)
    )
