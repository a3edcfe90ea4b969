"""Zero-shot splits by category: published lists of unseen categories, their sizes, and galleries with seen ones.

A split is named after a published list (`LISTS`), a file with one name a line, "subgroup" (the categories that a data
set itself keeps out of training, such as the unseen subgroups of the embedded drawings), or "half:<seed>" (the second
half of the shuffled categories, as FGAN divides its data). Names are compared without case, and hyphens and
underscores count as spaces.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from hystar_fast.data.hold_out import hash_fraction
from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.data.nearest_name import with_nearest
from hystar_fast.data.text_files import decode_text, read_text, split_lines

LISTS = ("sketchy21", "sketchy25", "tuberlin30", "tuberlin30-authors", "quickdraw30")
OWN, HALF = "subgroup", "half:"
GENERALISED = ("sample", "sample+queries", "all")
SAMPLE = 0.2  # seen pictures that "sample" adds, as a share of the unseen ones (Dutta and Akata, SEM-PCYC)
_SEPARATORS = re.compile(r"[_\-\s]+")


@dataclass(frozen=True)
class Sizes:
    """The published sizes of a split; None where they are not published.

    Attributes:
        seen: seen categories.
        train_queries, train_gallery: sketches and photos of the seen categories.
        queries, gallery: sketches and photos of the unseen categories.
    """

    seen: int | None
    train_queries: int | None
    queries: int | None
    train_gallery: int | None
    gallery: int | None


PUBLISHED = {
    "sketchy21": Sizes(104, 62_787, 12_694, 62_549, 10_453),
    "sketchy25": Sizes(100, 60_252, 15_229, 58_401, 14_601),
    "tuberlin30": Sizes(220, 17_600, 2_400, 176_081, 27_989),
    "tuberlin30-authors": Sizes(220, 17_600, 2_400, None, 25_708),
    "quickdraw30": Sizes(80, None, 92_291, None, 54_151),
}
SKETCHY_PAIRS = Sizes(104, 62_787, 12_694, 10_400, 2_100)  # of "sketchy21" where every photo has its sketches


@dataclass(frozen=True)
class CategorySplit:
    """A division of the categories of a data set into seen and unseen ones.

    Attributes:
        name: of the split, as given.
        unseen: the unseen categories, as the data set spells them.
    """

    name: str
    unseen: frozenset[str]

    @classmethod
    def of(cls, name: str, images: ImageSet) -> CategorySplit:
        """Find the unseen categories of a data set.

        Args:
            name: one of `LISTS`, "subgroup", "half:<seed>", or a file with one category a line (``#`` begins a
                comment).
            images: the data set.

        Raises:
            ValueError: there is no such list or file, the data set has no categories, or a name matches no category of
                it, or two; the message has the nearest.
            OSError: the file cannot be read.

        Example:
            >>> from hystar_fast.data.open import open_images
            >>> images = open_images("emoji", "test")
            >>> split = CategorySplit.of("subgroup", images)
            >>> len(split.unseen), len(split.unseen_part(images).gallery)
            (20, 65)
        """
        categories = {record.category for record in images.records if record.category is not None}
        if not categories:
            raise ValueError(f"images must have categories to be divided by them, got {images.name}, which has none")
        if name == OWN:
            if not images.unseen_categories:
                raise ValueError(f"unseen must be a list or a file for {images.name}, which marks none, got {name!r}")
            return cls(name, images.unseen_categories)
        if name.startswith(HALF):
            return cls(name, _second_half(categories, name))
        return cls(name, _matched(_listed(name), categories, images.name))

    def training(self, images: ImageSet, *, without_sample: bool = False) -> ImageSet:
        """Return the pictures of the seen categories.

        Args:
            images: the data set.
            without_sample: leave out the gallery pictures that `generalised(images, "sample")` adds to the gallery.
        """
        kept = tuple(r for r in images.records if r.category is not None and r.category not in self.unseen)
        if without_sample:
            drawn = {record.path for record in self._sampled(images, images.gallery_style)}
            kept = tuple(record for record in kept if record.path not in drawn)
        return replace(images, records=kept, unseen_categories=self.unseen)

    def unseen_part(self, images: ImageSet) -> ImageSet:
        """Return the pictures of the unseen categories: queries and gallery of a zero-shot evaluation."""
        kept = tuple(record for record in images.records if record.category in self.unseen)
        return replace(images, records=kept, unseen_categories=self.unseen)

    def generalised(self, images: ImageSet, how: str) -> ImageSet:
        """Return the unseen part with seen pictures in the gallery, as generalised zero-shot retrieval has them.

        Args:
            images: the data set.
            how: "sample" adds a fifth as many seen gallery pictures as there are unseen ones, always the same;
                "sample+queries" adds a fifth as many seen queries, too; "all" adds every seen gallery picture.

        Raises:
            ValueError: another word, or no seen gallery picture.
        """
        if how not in GENERALISED:
            raise ValueError(f"generalised must be one of {GENERALISED}, got {how!r}")
        kept = {record.path for record in self.unseen_part(images).records}
        before = len(kept)
        styles = images.styles if how == "sample+queries" else (images.gallery_style,)
        for style in styles:
            of_style = [record for record in self.training(images).records if record.style == style]
            kept |= {record.path for record in (of_style if how == "all" else self._sampled(images, style))}
        if len(kept) == before:
            raise ValueError(f"images must have gallery pictures of seen categories, got none in {images.name}")
        records = tuple(record for record in images.records if record.path in kept)
        return replace(images, records=records, unseen_categories=self.unseen)

    def _sampled(self, images: ImageSet, style: str) -> list[Record]:
        """Return the seen pictures of a style that "sample" adds: those with the smallest hashes of their paths."""
        seen = [record for record in self.training(images).records if record.style == style]
        count = round(SAMPLE * sum(record.style == style for record in self.unseen_part(images).records))
        return sorted(seen, key=lambda record: hash_fraction(record.path, "generalised"))[:count]

    def sizes(self, images: ImageSet, published: Sizes | None = None) -> tuple[str, ...]:
        """Return lines with the number of categories and pictures of both parts, and the published ones beside.

        Args:
            images: the data set.
            published: by default those of `PUBLISHED`.
        """
        wanted = published or PUBLISHED.get(self.name, Sizes(None, None, None, None, None))
        seen, unseen = self.training(images), self.unseen_part(images)
        lines = [
            f"{self.name}: {len(self.unseen)} unseen categories, {_counted(unseen, wanted.queries, wanted.gallery)}"
        ]
        trained = len({record.category for record in seen.records})
        if trained:
            counted = _counted(seen, wanted.train_queries, wanted.train_gallery)
            lines.append(f"{trained} seen categories{_published(trained, wanted.seen)}, {counted}")
        return tuple(lines)


def split_classes(names: Collection[str], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide classes into seen and unseen halves as the authors do: shuffle the sorted names, take the first half.

    Args:
        names: of the classes, in any order.
        seed: of Python's generator, the same on every machine. A run of the paper's protocol takes another one.

    Returns:
        The seen and the unseen classes, each sorted. Of an odd number the unseen have one more.

    Raises:
        ValueError: fewer than two classes.

    >>> split_classes(["d", "b", "a", "c"], 0)
    (('a', 'c'), ('b', 'd'))
    """
    ordered = sorted(set(names))
    if len(ordered) < 2:
        raise ValueError(f"names must be at least 2 classes, got {len(ordered)}")
    random.Random(seed).shuffle(ordered)
    half = len(ordered) // 2
    return tuple(sorted(ordered[:half])), tuple(sorted(ordered[half:]))


def hold_out_categories(images: ImageSet, share: float, *, least: int = 2) -> tuple[ImageSet, ImageSet]:
    """Split a data set in two, the second with about `share` of its categories by a hash of their names.

    Args:
        images: the data set, such as the training part of a zero-shot split.
        share: of the categories, between 0 and 1.
        least: the second part has at least so many.

    Raises:
        ValueError: `share` is not between 0 and 1, or there are not more than `least` categories.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    names = sorted(
        {record.category for record in images.records if record.category is not None},
        key=lambda name: hash_fraction(name, "categories"),
    )
    if len(names) <= least:
        raise ValueError(f"images must have more than {least} categories to hold some out, got {len(names)}")
    held = {*names[: max(least, round(share * len(names)))]}
    first = tuple(record for record in images.records if record.category is not None and record.category not in held)
    second = tuple(record for record in images.records if record.category in held)
    return replace(images, records=first), replace(images, records=second)


def _counted(images: ImageSet, queries: int | None, gallery: int | None) -> str:
    """Return the numbers of drawn queries, gallery pictures and those with texts, with the published ones."""
    found = len(images.gallery)
    rest = len(images.records) - found
    texts = sum(1 for record in images.gallery if record.captions)
    asked = f"{rest:,} queries{_published(rest, queries)}, " if rest or not texts else ""
    told = f", {texts:,} with texts" if texts else ""
    return f"{asked}{found:,} gallery pictures{_published(found, gallery)}{told}"


def _published(found: int, wanted: int | None) -> str:
    if wanted is None:
        return ""
    return f" (published: {wanted:,}{'' if found == wanted else ', another number'})"


def _listed(name: str) -> list[str]:
    """Return the names of a published list or of a file."""
    if name in LISTS:
        place = files("hystar_fast.data").joinpath("category_lists", f"{name}.txt")
        text = decode_text(place.read_bytes(), name)
    elif Path(name).is_file():
        text = read_text(name)
    else:
        shown = with_nearest(name, (*LISTS, OWN))
        raise ValueError(
            f"unseen must be one of {', '.join(LISTS)}, {OWN}, {HALF}<seed> or a file of names, got {shown}"
        )
    names = [line.partition("#")[0].strip() for line in split_lines(text)]
    found = [entry for entry in names if entry]
    if not found:
        raise ValueError(f"unseen must be a file with one category a line, got {name} without any")
    return found


def _canonical(name: str) -> str:
    return _SEPARATORS.sub(" ", name.casefold()).strip()


def _matched(names: Collection[str], categories: Collection[str], data: str) -> frozenset[str]:
    spelled: dict[str, list[str]] = {}
    for category in sorted(categories):
        spelled.setdefault(_canonical(category), []).append(category)
    found = []
    for name in names:
        matches = spelled.get(_canonical(name), [])
        if not matches:
            near = difflib.get_close_matches(_canonical(name), spelled, n=1, cutoff=0)
            raise ValueError(
                f"unseen must name categories of {data}, got {name!r}, which it has not; the nearest is "
                f"{spelled[near[0]][0]!r}"
            )
        if len(matches) > 1:
            raise ValueError(f"unseen must name one category of {data} each, got {name!r} for {' and '.join(matches)}")
        found.append(matches[0])
    return frozenset(found)


def _second_half(categories: Collection[str], name: str) -> frozenset[str]:
    """Return the unseen half of "half:<seed>": the names after the first half of the shuffled sorted ones."""
    seed = name.removeprefix(HALF)
    if not seed.isdecimal():
        raise ValueError(f"unseen must be {HALF}<seed> with a whole number, got {name!r}")
    return frozenset(split_classes(categories, int(seed))[1])
