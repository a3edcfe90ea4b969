"""The OpenAPI description of the routes."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from hystar_fast.serve.problems import CODES, MEDIA_TYPE

API = (
    "Search pictures by a picture, by words, or by both. Errors are problem documents (RFC 9457) with a stable `code`: "
    + ", ".join(f"{code} ({status})" for code, status in CODES.items())
    + "."
)
_PROBLEM = {"$ref": "#/components/schemas/ProblemAnswer"}
_BINARY = {"type": "string", "format": "binary"}


def described(
    tag: str,
    answer: type[BaseModel] | None = None,
    fields: type[BaseModel] | None = None,
    *,
    only_json: bool = False,
    media_type: str = "",
    status: int = 200,
) -> dict[str, Any]:
    """Return the arguments of a route that describe it.

    Args:
        tag: its group.
        answer: what it answers, unless `media_type` says so.
        fields: of its body, which is JSON or a form.
        only_json: the body is no form.
        media_type: of an answer that is no JSON.
        status: of the answer.
    """
    responses: dict[int | str, dict[str, Any]] = {
        "default": {"description": "An error.", "content": {MEDIA_TYPE: {"schema": _PROBLEM}}},
        422: {"description": "A field is wrong.", "content": {MEDIA_TYPE: {"schema": _PROBLEM}}},
    }
    if answer is not None:
        responses[status] = {"model": answer, "description": (answer.__doc__ or "").strip()}
    if media_type:
        responses[200] = {"description": "A picture.", "content": {media_type: {"schema": _BINARY}}}
    extra = {} if fields is None else {"requestBody": {"required": True, "content": _contents(fields, only_json)}}
    route = {"tags": [tag], "responses": responses, "openapi_extra": extra, "status_code": status}
    return {**route, "response_model": None, "response_class": Response if media_type else JSONResponse}


def _contents(fields: type[BaseModel], only_json: bool) -> dict[str, Any]:
    schema = fields.model_json_schema()
    if only_json:
        return {"application/json": {"schema": schema}}
    form = {**schema, "properties": {name: _in_a_form(name, entry) for name, entry in schema["properties"].items()}}
    return {"multipart/form-data": {"schema": form}, "application/json": {"schema": schema}}


def _in_a_form(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    if name == "image":
        return _BINARY
    if name == "style":
        return {"anyOf": [{"type": "string"}, _BINARY], "description": entry.get("description", "")}
    return entry
