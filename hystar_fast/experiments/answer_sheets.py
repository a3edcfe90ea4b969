"""Figures 8 to 11: the first answers of three methods to queries at fixed places, framed by relevance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import ImageSet, Skipped
from hystar_fast.data.open import open_images
from hystar_fast.experiments.experiment_settings import ExperimentSettings
from hystar_fast.experiments.splits import open_splits, place_queries
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.answer_grid import answer_sheet
from hystar_fast.retrieval.answers import TEXT, first_answers, pick_queries, query_vector, question_of
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.picture_sheet import IRRELEVANT, RELEVANT, SAME_CATEGORY, Mark
from hystar_fast.retrieval.plot_style import save_picture

_COLOURS = 32  # of the file: its size is that of 256, divided by 1.7
_ANSWERS, _QUERIES = 10, 6  # the paper's top 10, and as many queries as stay legible
_STYLES = 3  # of data without the paper's styles


@dataclass(frozen=True)
class Sheet:
    """One of the paper's sheets.

    Attributes:
        styles: of its queries, with the names of DSR and DomainNet.
        emoji_styles: the styles of the embedded drawings in their place.
        by_category: whether the paper's relevant answers are a category (DomainNet), so that another picture of the
            query's category has a frame of its own; otherwise one picture is relevant (DSR).
    """

    styles: tuple[str, ...]
    emoji_styles: tuple[str, ...]
    by_category: bool


SHEETS = {
    8: Sheet(("art", "sketch", "mosaic", TEXT), ("sketch", "lowres", TEXT), by_category=False),
    9: Sheet(("clipart", "sketch"), ("twemoji", "sketch"), by_category=True),
    10: Sheet(("painting", "quickdraw"), ("photo3d", "outline"), by_category=True),
    11: Sheet(("infograph",), ("flat",), by_category=True),
}


def draw_sheet(number: int, methods: Mapping[str, Method], settings: ExperimentSettings, path: Path) -> None:
    """Draw one of `SHEETS`; data without the paper's styles is queried in its first styles.

    Raises:
        ValueError: a query or the gallery cannot be read, or a method has no text encoder.
    """
    sheet = SHEETS[number]
    images, styles = _images_and_styles(sheet, settings)
    queries = pick_queries(images, styles, _QUERIES, turns=max(1, _QUERIES // len(styles)))
    answers = {}
    for name, method in methods.items():
        skipped: list[Skipped] = []
        gallery = embed_records(method, images, images.of_style(images.gallery_style), skipped)
        if not gallery.records:
            raise ValueError(f"the gallery must have readable pictures, got none in {images.name}")
        answers[name] = [
            first_answers(
                gallery,
                images,
                query,
                query_vector(method, images, query),
                _ANSWERS,
                by_category=sheet.by_category,
                similarity=method.similarity,
            )
            for query in queries
        ]
    questions = [
        question_of(images, query, {name: found[i] for name, found in answers.items()})
        for i, query in enumerate(queries)
    ]
    notes = ["Queries at fixed places of the test part, not selected; training with seed 0."]
    unseen = [style for style in styles if style not in (*open_splits(settings).styles, TEXT)]
    if unseen:
        notes.append(f"No method was trained with queries of {' and '.join(unseen)}.")
    size = len(images.gallery)
    title = f"Figure {number} with {'the embedded drawings' if images.name == 'emoji' else images.name}: "
    title += f"first {min(_ANSWERS, size)} of {size}"
    drawn = answer_sheet(questions, title, notes, _legend(images, sheet))
    save_picture(drawn, path, _COLOURS)


def _images_and_styles(sheet: Sheet, settings: ExperimentSettings) -> tuple[ImageSet, tuple[str, ...]]:
    """Return the test data and the query styles of a sheet."""
    limit = settings.data.limit or None
    if settings.data.test and sheet.by_category:
        images = place_queries(open_images(settings.data.test, "test").select(limit=limit), settings.data)
    elif settings.data.source == "emoji":
        pictures = [style for style in sheet.emoji_styles if style != TEXT]
        return place_queries(load_emoji("test", pictures).select(limit=limit), settings.data), sheet.emoji_styles
    else:
        images = open_splits(settings).test
    available = list(images.query_styles)
    if any(record.caption is not None for record in images.gallery):
        available.append(TEXT)
    styles = tuple(style for style in sheet.styles if style in available)
    return images, styles if styles not in ((), (TEXT,)) else tuple(available[:_STYLES])


def _legend(images: ImageSet, sheet: Sheet) -> dict[Mark, str]:
    """Return the meaning of each mark."""
    is_emoji = images.name == "emoji"
    kind = "subgroup" if is_emoji else "category"
    if not images.has_instances:
        return {RELEVANT: f"the query's {kind}", IRRELEVANT: "another"}
    relevant = {RELEVANT: f"the query's {'concept' if is_emoji else 'picture'}"}
    if sheet.by_category:
        return {**relevant, SAME_CATEGORY: f"another of its {kind}", IRRELEVANT: f"another {kind}"}
    return {**relevant, IRRELEVANT: "another"}
