"""Read the body of a request, and check its fields."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from hystar_fast.serve.problems import Problem

_MOST_FIELDS = 20
_FORM, _URL_ENCODED, _JSON = "multipart/form-data", "application/x-www-form-urlencoded", "application/json"
_KEY = re.compile(r"[0-9a-f]{16}")
_PICTURES = ("image",)
_SHOWN = 100  # characters of the name of an unknown field
Fields = TypeVar("Fields", bound=BaseModel)


def read_fields(schema: type[Fields], content_type: str, body: bytes) -> Fields:
    """Parse a form or JSON and check it.

    Raises:
        Problem: the body is neither, or a field is wrong; the problem names it.
    """
    return checked(schema, _parsed(content_type, body))


def checked(schema: type[Fields], values: Mapping[str, Any]) -> Fields:
    """Check fields.

    Raises:
        Problem: "invalid", with the field; "bad_request" for more fields than any request has.
    """
    if len(values) > _MOST_FIELDS:
        raise Problem("bad_request", f"a request must have at most {_MOST_FIELDS} fields")
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        wrong = [_fault(entry) for entry in error.errors(include_url=False, include_input=False, include_context=False)]
    raise Problem("invalid", f"{wrong[0]['field']} {wrong[0]['reason']}", field=wrong[0]["field"], others=wrong)


def is_key(text: str) -> bool:
    """Return whether a text has the form of the key of an item."""
    return _KEY.fullmatch(text) is not None


def _fault(entry: Mapping[str, Any]) -> dict[str, str]:
    message = str(entry["msg"]).removeprefix("Value error, ")
    field = ".".join(str(part) for part in entry["loc"][:1])[:_SHOWN]
    if not entry["loc"]:  # a rule over several fields begins with the one to mend
        field, _, message = message.partition(": ")
    if entry["type"] == "extra_forbidden":
        return {"field": field, "reason": "is no known field"}
    if entry["type"] == "missing":
        return {"field": field, "reason": "must be given"}
    message = re.sub("^(Input|String|List) should", "must", message.removeprefix(f"{field} "))
    return {"field": field, "reason": message}


def _parsed(content_type: str, body: bytes) -> dict[str, Any]:
    kind, options = parse_options_header(content_type)
    name = kind.decode("latin-1")
    if name in (_FORM, _URL_ENCODED):
        return _form(name, options.get(b"boundary"), body)
    if name == _JSON:
        return _json(body)
    raise Problem("unsupported_media_type", f"Content-Type must be {_FORM} or {_JSON}")


def _json(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem("bad_request", "the body must be JSON") from error
    if not isinstance(values, dict):
        raise Problem("bad_request", "the body must be a JSON object")
    return values


def _form(kind: str, boundary: bytes | None, body: bytes) -> dict[str, Any]:
    values: dict[str, Any] = {}

    def add(name: bytes | None, value: bytes, *, is_file: bool) -> None:
        text = (name or b"").decode("utf-8", "backslashreplace")
        if text in values:
            raise Problem("invalid", f"{text[:_SHOWN]} must be given once", field=text[:_SHOWN])
        if len(values) >= _MOST_FIELDS:
            raise Problem("bad_request", f"a request must have at most {_MOST_FIELDS} fields")
        values[text] = value if is_file or text in _PICTURES else _decoded(text, value)

    def on_field(field: Field) -> None:
        add(field.field_name, field.value or b"", is_file=False)

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read(), is_file=True)

    try:
        config = {"MAX_MEMORY_FILE_SIZE": math.inf}  # the size of the body is limited
        parser = FormParser(kind, on_field, on_file, boundary=boundary, config=config)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem("bad_request", "the body must be a form") from error
    return values


def _decoded(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Problem("invalid", f"{name[:_SHOWN]} must be UTF-8", field=name[:_SHOWN]) from error
