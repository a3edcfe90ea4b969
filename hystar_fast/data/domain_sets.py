"""PACS and Office-Home, one folder a domain, and the counts that the public copies of these and of DomainNet have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hystar_fast.data.image_files import list_images, unsupported_reason
from hystar_fast.data.image_set import FolderReader, ImageSet, Record, Skipped, layout_error


@dataclass(frozen=True)
class DomainSet:
    """A public data set of domains.

    Attributes:
        title: its name.
        counts: domain -> number of pictures.
        classes: number of classes.
        gallery: the domain that answers by default.
        spellings: other names of the folder of a domain.
        inside: folders of the archive that may hold the domains.
    """

    title: str
    counts: Mapping[str, int]
    classes: int
    gallery: str
    spellings: Mapping[str, tuple[str, ...]]
    inside: tuple[str, ...]

    @property
    def layout(self) -> str:
        return f"<domain>/<class>/<picture> for {', '.join(self.counts)}"


DOMAIN_SETS = {
    "pacs": DomainSet(
        "PACS",
        {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929},
        7,
        "photo",
        {},
        ("PACS", "kfold"),
    ),
    "office-home": DomainSet(
        "Office-Home",
        {"Art": 2427, "Clipart": 4365, "Product": 4439, "Real World": 4357},
        65,
        "Real World",
        {"Real World": ("RealWorld", "Real_World")},
        ("OfficeHomeDataset_10072016", "office_home"),
    ),
}
# of the cleaned release, by split; the first release had 596,010 pictures
DOMAINNET_COUNTS = {
    "train": {
        "clipart": 33525,
        "infograph": 36023,
        "painting": 50416,
        "quickdraw": 120750,
        "real": 120906,
        "sketch": 48212,
    },
    "test": {
        "clipart": 14604,
        "infograph": 15582,
        "painting": 21850,
        "quickdraw": 51750,
        "real": 52041,
        "sketch": 20916,
    },
}
DOMAINNET_CLASSES = 345


def load_domain_set(kind: str, root: str | Path, gallery_style: str | None = None) -> ImageSet:
    """List PACS or Office-Home: every domain is a style, relevant is the same class. There are no splits.

    If the pictures are not those of the public copy, the name of the data set says how many there are.

    Args:
        kind: of `DOMAIN_SETS`.
        root: the folder of the domains, or the one that the archive makes.
        gallery_style: the domain that answers; by default "photo", or "Real World".

    Raises:
        ValueError: the folder has another layout, or there is no such domain.
        OSError: a folder cannot be listed.
    """
    known, root = DOMAIN_SETS[kind], Path(root)
    found = next((names for place in ("", *known.inside) if (names := _domains(known, root, place))), None)
    if found is None:
        raise layout_error(known.title, root, known.layout)
    if gallery_style is not None and gallery_style not in known.counts:
        raise ValueError(f"gallery_style must be one of {', '.join(known.counts)}, got {gallery_style!r}")
    gallery = gallery_style or known.gallery
    records: list[Record] = []
    skipped: list[Skipped] = []
    for style in (gallery, *(name for name in known.counts if name != gallery)):
        pictures, others = list_images(root / found[style])
        listed = [Path(found[style], path) for path in pictures if len(path.parts) > 1]
        if not listed:
            raise layout_error(known.title, root, known.layout, f"no <class>/<picture> below {found[style]}/")
        records += [Record(path.as_posix(), style, path.parent.name) for path in listed]
        skipped += [
            Skipped(Path(found[style], path).as_posix(), unsupported_reason(path))
            for path in others
            if len(path.parts) > 1
        ]
    images = ImageSet(known.title, gallery, tuple(records), FolderReader(root), tuple(skipped))
    differences = count_differences(images, known.counts, known.classes)
    name = f"{known.title} ({'; '.join(differences)})" if differences else known.title
    return ImageSet(name, gallery, images.records, images.read, images.skipped)


def count_differences(images: ImageSet, counts: Mapping[str, int], classes: int) -> list[str]:
    """Return "photo 1,669 of 1,670 pictures" for each domain whose number is another than that of the public copy.

    Args:
        images: the data set.
        counts: domain -> number of pictures; a domain that is not in the data set is left out.
        classes: of the public copy.
    """
    found = Counter(record.style for record in images.records)
    names = {record.category for record in images.records}
    listed = [
        f"{style} {found[style]:,} of {wanted:,} pictures"
        for style, wanted in counts.items()
        if style in found and found[style] != wanted
    ]
    return listed if len(names) == classes else [*listed, f"{len(names)} of {classes} classes"]


def _domains(known: DomainSet, root: Path, place: str) -> dict[str, str] | None:
    """Return domain -> its folder below `root`; None unless all are there."""
    found = {}
    for style in known.counts:
        names = (style, *known.spellings.get(style, ()))
        folder = next((f"{place}/{name}" if place else name for name in names if (root / place / name).is_dir()), None)
        if folder is None:
            return None
        found[style] = folder
    return found
