"""Errors of the API: RFC 9457 problem documents with a stable `code`."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from hystar_fast.data.images import TooManyPixels
from hystar_fast.index.engine import EngineFull, EngineUnavailable
from hystar_fast.serve.batches import Closed, DeadlinePassed
from hystar_fast.serve.decoding import BadImage
from hystar_fast.serve.encoder import NoStyle, NoText, NotFinite

MEDIA_TYPE = "application/problem+json"
# Every code of the API, with its status.
CODES = {
    "bad_request": 400,
    "bad_image": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "picture_gone": 404,
    "method_not_allowed": 405,
    "body_too_slow": 408,
    "body_too_large": 413,
    "too_many_pixels": 413,
    "unsupported_media_type": 415,
    "wrong_host": 421,
    "invalid": 422,
    "busy": 429,
    "headers_too_large": 431,
    "internal": 500,
    "not_finite": 500,
    "engine_unavailable": 503,
    "stopping": 503,
    "deadline_passed": 504,
    "engine_full": 507,
}
_RETRY_AFTER = {"busy": 1, "engine_unavailable": 2, "stopping": 5}  # seconds


class Problem(Exception):
    """An error that the caller is told.

    Args:
        code: one of `CODES`.
        detail: what is wrong, and how to mend it, in words.
        field: the field that is wrong.
        others: all fields that are wrong, each with its reason.
        methods: those that the address has, of a wrong method.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        field: str = "",
        others: list[dict[str, str]] | None = None,
        methods: Sequence[str] = (),
    ) -> None:
        super().__init__(detail)
        self.methods = methods
        self.code, self.status, self.detail, self.field, self.others = code, CODES[code], detail, field, others

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Cache-Control": "no-store"}
        if self.code in _RETRY_AFTER:
            headers["Retry-After"] = str(_RETRY_AFTER[self.code])
        if self.code == "body_too_slow":
            headers["Connection"] = "close"
        if self.methods:
            headers["Allow"] = ", ".join(self.methods)
        if self.code == "unauthorized":
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def document(self) -> dict[str, Any]:
        """Return the problem document."""
        title = HTTPStatus(self.status).phrase
        content: dict[str, Any] = {"title": title, "status": self.status, "code": self.code, "detail": self.detail}
        if self.field:
            content["field"] = self.field
        if self.others:
            content["errors"] = self.others
        return content


def problem_of(error: Exception) -> Problem:
    """Return the problem of an error; one that is no fault of the request or of the engine is "internal"."""
    match error:
        case Problem():
            return error
        case TooManyPixels():
            return Problem("too_many_pixels", str(error))
        case BadImage():
            return Problem("bad_image", str(error))
        case NoStyle():
            return Problem("invalid", str(error), field="style")
        case NoText():
            return Problem("invalid", str(error), field="text")
        case NotFinite():
            return Problem("not_finite", str(error))
        case DeadlinePassed() | TimeoutError():
            return Problem("deadline_passed", "the deadline passed before the request was answered")
        case Closed():
            return Problem("stopping", "the server is stopping")
        case EngineFull():
            return Problem("engine_full", "the disk of the index is full; nothing was changed")
        case EngineUnavailable():
            return Problem("engine_unavailable", "the index cannot be reached now; try again")
    return Problem("internal", "an error of the server, which its log describes")
