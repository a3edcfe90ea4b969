"""Binary codes of an evaluation: their options, and the training pictures that they are fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hystar_fast.cli.eval_parts import unseen_division
from hystar_fast.data.image_set import ImageSet, Skipped
from hystar_fast.data.open import open_images
from hystar_fast.methods.interface import GALLERY, QUERY, Method
from hystar_fast.retrieval.codes import CODES
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.evaluate_codes import FITS, TRAIN, Quantise, quantiser, stack_vectors
from hystar_fast.train.data_record import DataRecord


@dataclass(frozen=True)
class CodeSettings:
    """Options of binary codes.

    Attributes:
        bits: of a code.
        code: one of `CODES`.
        fit: "train" fits iterative quantisation on training pictures, "queries" on the queries (transductive).

    Raises:
        ValueError: one of them is unknown.
    """

    bits: int
    code: str = "itq"
    fit: str = TRAIN

    def __post_init__(self) -> None:
        for name, value, known in (("code", self.code, CODES), ("itq_fit", self.fit, FITS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")

    @property
    def needs_training(self) -> bool:
        return self.code == "itq" and self.fit == TRAIN

    def line(self, fitted_on: int | None) -> str:
        """Return a line that says what the codes are; `fitted_on` is a number of training pictures."""
        if self.code == "sign":
            how = "signs of the embeddings"
        elif fitted_on is None:
            how = "itq, transductive: fitted on the queries, each side centred by its own mean"
        else:
            how = f"itq, fitted on {fitted_on:,} training pictures"
        return f"codes of {self.bits} bits: {how}; Hamming distance"


def training_part(
    whole: ImageSet, source: str, gallery_style: str | None, unseen: str | None, adapter: Path | None
) -> ImageSet:
    """Return the pictures that codes may be fitted on.

    Raises:
        ValueError: it is not known which pictures of the data are for training.
    """
    if whole.has_splits:
        training = open_images(source, "train", gallery_style=gallery_style)
        return training if unseen is None else unseen_division(whole, source, adapter, unseen).training(training)
    if unseen is not None:
        return unseen_division(whole, source, adapter, unseen).training(whole)
    record = None if adapter is None else DataRecord.read(adapter)
    if record is None or not record.is_of(source, whole):
        raise ValueError(
            f"itq_fit must be 'queries' for {whole.name}, of which no part is known to be for training (or give "
            "--unseen), got 'train'"
        )
    return record.shares.part(whole, "train")


def fit_codes(
    settings: CodeSettings, method: Method, training: ImageSet | None, limit: int | None
) -> tuple[Quantise, str]:
    """Return what makes codes, and a line about them.

    Args:
        settings: the options.
        method: embeds the training pictures.
        training: what to fit on; None for codes that need none.
        limit: at most so many pictures of each style.

    Raises:
        ValueError: the method is not compared by cosine, or as `quantiser`.
    """
    if not method.similarity.is_cosine:
        raise ValueError(
            f"bits must be left out for {method.name!r}, whose similarity {method.similarity.name!r} has no codes"
        )
    if training is None:
        return quantiser(settings.code, settings.bits), settings.line(None)
    images, skipped = training.select(limit=limit), list[Skipped]()
    parts = [
        embed_records(
            method,
            images,
            images.of_style(style),
            skipped,
            role=GALLERY if style == images.gallery_style else QUERY,
        )
        for style in images.styles
    ]
    vectors = stack_vectors(parts)
    return quantiser(settings.code, settings.bits, training=vectors), settings.line(len(vectors))
