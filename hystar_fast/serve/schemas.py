"""The fields of requests and answers of the API, checked and described by pydantic."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from hystar_fast.index.where import Where
from hystar_fast.methods.interface import Role
from hystar_fast.serve.problems import Problem

LONGEST_TEXT, MOST_HITS, LARGEST_BATCH = 1000, 100, 64
_LONGEST_WHERE, _MOST_ATTRIBUTES = 4000, 50
STYLE_NAME = r"^[A-Za-z0-9_.-]{1,64}$"


def check_style_name(name: str) -> None:
    """Raise Problem unless a style may have this name."""
    if re.fullmatch(STYLE_NAME, name) is None:
        raise Problem("invalid", "name must be 1 to 64 letters, digits, dots, dashes or underscores", field="name")


def _picture(value: Any) -> Any:
    """Return the bytes of a picture: those of a form, or base64 in JSON."""
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("must be a picture in base64") from error


def _style(value: Any) -> Any:
    """Return a style: its name, or the bytes of a picture."""
    if isinstance(value, dict):
        if set(value) != {"image"} or not isinstance(value["image"], str):
            raise ValueError('must be the name of a style, or {"image": a picture in base64}')
        return _picture(value["image"])
    return value


_BASE64 = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}
PictureField = Annotated[
    bytes,
    BeforeValidator(_picture),
    WithJsonSchema({**_BASE64, "description": "A file in a form, base64 in JSON."}),
]
StyleField = Annotated[
    str | bytes,
    BeforeValidator(_style),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": STYLE_NAME},
                {"type": "object", "properties": {"image": _BASE64}, "required": ["image"]},
            ],
            "description": "A registered style, or a second picture (in a form: a file) whose style is used.",
        }
    ),
]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QueryFields(_Fields):
    """A picture, words, or both."""

    image: PictureField | None = None
    text: str | None = Field(None, max_length=LONGEST_TEXT, description="Words to search by.")
    style: StyleField | None = None
    view: str | None = Field(None, max_length=64, description="Whose vectors: by default the first view of the index.")

    @field_validator("text")
    @classmethod
    def _not_blank(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("must hold a word")
        return text

    @model_validator(mode="after")
    def _something(self) -> QueryFields:
        if self.image is None and self.text is None:
            raise ValueError("image: a picture, text or both must be given")
        if self.style is not None and self.image is None:
            raise ValueError("style: needs an image, which it is the style of")
        return self


class SearchFields(QueryFields):
    """One search."""

    combine: Literal["similarity", "softmax"] = Field(
        "similarity", description="How picture and words are combined: the larger cosine, or the larger softmax."
    )
    k: int = Field(10, ge=1, le=MOST_HITS, description="Number of hits.")
    where: str | None = Field(
        None, max_length=_LONGEST_WHERE, description="A filter, such as: year=2024 and path^=trips/"
    )
    compare: bool = Field(False, description="Also search the other views of the index.")
    modality: str | None = Field(
        None,
        max_length=200,
        description="The style of the picture by name, such as sketch: its vector is moved to the gallery's style.",
    )

    @field_validator("where")
    @classmethod
    def _parsed(cls, where: str | None) -> str | None:
        if where is not None:
            Where.parse(where)
        return where

    @model_validator(mode="after")
    def _of_a_picture(self) -> SearchFields:
        if self.modality is not None and self.image is None:
            raise ValueError("modality: needs an image, which it is the style of")
        return self


class EmbedFields(QueryFields):
    """A picture, words, or both, to be embedded."""

    role: Role = Field("query", description="Whether the picture is a query or belongs to a gallery.")


class PictureFields(_Fields):
    """One picture."""

    image: PictureField


def _attributes(value: Any) -> Any:
    """Return attributes, which are JSON in a form."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError("must be a JSON object") from error
    if isinstance(value, dict) and len(value) > _MOST_ATTRIBUTES:  # before each of them is checked
        raise ValueError(f"must hold at most {_MOST_ATTRIBUTES} values")
    return value


class ItemFields(_Fields):
    """A picture for the index."""

    image: PictureField
    id: str | None = Field(None, min_length=1, max_length=LONGEST_TEXT, description="By default from the content.")
    caption: str = Field("", max_length=LONGEST_TEXT, description="By default the id.")
    attributes: Annotated[dict[str, bool | int | FiniteFloat | str], BeforeValidator(_attributes)] = Field(
        {}, max_length=_MOST_ATTRIBUTES, description="Values for filters; JSON in a form."
    )


class BatchFields(_Fields):
    """Several searches; each is answered or refused on its own."""

    queries: list[Any] = Field(
        min_length=1,
        max_length=LARGEST_BATCH,
        description="Searches, each as for /v1/search.",
        json_schema_extra={"items": {"type": "object"}},
    )


class Hit(BaseModel):
    """One answer."""

    place: int = Field(description="1 is the best.")
    key: str = Field(description="The address of the picture: /v1/items/KEY.")
    id: str
    caption: str
    score: float = Field(
        description="The similarity of the method, by default cosine; with combine=softmax log(softmax) / 100."
    )
    by: Literal["image", "text"] = Field(description="Which part of the query found it.")


class Timing(BaseModel):
    """Milliseconds, and the size of the batch in which the query was encoded."""

    decode: float
    queue: float
    encode: float
    search: float
    batch: int


class SearchAnswer(BaseModel):
    """The hits of a query."""

    stamp: str = Field(description="The SHA-256 of what made the vectors of the view.")
    view: str
    hits: list[Hit]
    compared: dict[str, list[Hit]] | None = Field(None, description="The hits of the other views.")
    timing: Timing


class ProblemAnswer(BaseModel):
    """An error (RFC 9457)."""

    title: str
    status: int
    code: str
    detail: str
    field: str | None = None
    errors: list[dict[str, str]] | None = None


class BatchAnswer(BaseModel):
    """An answer or an error for each query, in their order."""

    answers: list[SearchAnswer | ProblemAnswer]


class EmbedAnswer(BaseModel):
    """Unit vectors."""

    stamp: str
    view: str
    image: list[float] | None = None
    text: list[float] | None = None


class StyleAnswer(BaseModel):
    """A registered style."""

    name: str
    dimension: int


class ItemAnswer(BaseModel):
    """A picture of the index."""

    key: str
    id: str
    source: str
    caption: str
    attributes: dict[str, Any]
    size: int
    sha256: str


class RemovedAnswer(BaseModel):
    """Number of pictures that were removed."""

    removed: int


class IndexAnswer(BaseModel):
    """The index behind the server."""

    items: int
    generation: int
    views: dict[str, str] = Field(description="View -> stamp; the first is the default.")
    styles: list[str]
    takes_words: bool
    takes_styles: bool
    allows_writes: bool
    limits: dict[str, int]
