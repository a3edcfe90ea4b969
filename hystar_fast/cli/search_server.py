"""``hystar-fast index search --server``: ask a running server. Neither torch nor an index is loaded."""

from __future__ import annotations

import base64
import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from hystar_fast.cli.hits_table import print_hits
from hystar_fast.cli.search_settings import SearchSettings
from hystar_fast.terminal.console import Console

_SECONDS = 60.0  # more than the deadline of a server
_AT_ONCE = 16  # queries, which the server encodes together
_LARGEST = 2**24  # bytes of an answer
_OF_A_PICTURE = ("bad_image", "too_many_pixels", "body_too_large")


def run_server_search(
    url: str, settings: SearchSettings, console: Console, *, token_file: Path | None = None
) -> list[dict[str, Any]]:
    """Print the answers of a server to every query, and return them as `run_search` does.

    Args:
        url: of the server.
        settings: of the search; `device` and `picture` are not used.
        console: where to.
        token_file: a file with the token of the server, the last word of its first line that is no comment.

    Raises:
        ValueError: the server refuses a query, or is none of `hystar-fast serve`; or an option is wrong.
        OSError: it cannot be reached, or cannot answer now.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ValueError(f"server must be an address such as http://localhost:8000, got {url!r}")
    headers = {"Content-Type": "application/json", "User-Agent": "hystar-fast"}
    if token_file is not None:
        headers["Authorization"] = f"Bearer {_token(token_file)}"
    queries: list[Path | None] = [*settings.query] or [None]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = [*pool.map(lambda picture: _ask(url, headers, picture, settings), queries)]
    for picture, hits in zip(queries, found, strict=True):
        print_hits(hits, picture, settings.text, f"first {len(hits)} from {url}", console)
    if len(queries) == 1:
        return found[0]
    return [{"query": str(picture), "answers": hits} for picture, hits in zip(queries, found, strict=True)]


def _ask(url: str, headers: dict[str, str], picture: Path | None, settings: SearchSettings) -> list[dict[str, Any]]:
    fields = {
        "image": None if picture is None else _base64(picture),
        "text": settings.text,
        "style": None if settings.style is None else {"image": _base64(settings.style)},
        "combine": settings.combine,
        "k": settings.top,
        "where": settings.where,
        "view": settings.view,
        "modality": settings.modality,
    }
    body = json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
    request = Request(f"{url.rstrip('/')}/v1/search", body, headers)
    try:
        with build_opener(_NoRedirect).open(request, timeout=_SECONDS) as answer:
            content = json.loads(answer.read(_LARGEST))
        return [{"rank": hit.pop("place"), **hit} for hit in content["hits"]]
    except HTTPError as error:
        raise _refusal(url, error, picture) from error
    except (URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise OSError(f"{url} cannot be reached: {reason}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _stranger(url, "whose answer has another form") from error


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirect: it would carry the token to another server."""

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _refusal(url: str, error: HTTPError, picture: Path | None) -> Exception:
    try:
        problem = json.loads(error.read(_LARGEST))
        code, detail = str(problem["code"]), str(problem["detail"])
    except (OSError, ValueError, KeyError, TypeError):
        return _stranger(url, f"which answered with status {error.code}")
    if code in _OF_A_PICTURE and picture is not None:
        return ValueError(f"{picture}: {detail}")
    if code in ("unauthorized", "forbidden"):
        return ValueError(f"token_file must hold a token of the server: {detail}")
    return ValueError(detail) if error.code == 422 else OSError(f"{url} cannot answer ({code}): {detail}")


def _stranger(url: str, why: str) -> ValueError:
    return ValueError(f"server must be one of `hystar-fast serve`, got {url}, {why}")


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _token(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(
            f"token_file must be a file with a token, but {path} cannot be read: {error.strerror}"
        ) from error
    lines = (line.split() for line in text.split("\n"))
    words: list[str] = next((line for line in lines if line and not line[0].startswith("#")), [])
    if not words or not words[-1].isascii():
        raise ValueError(f"token_file must hold a token in its first line that is no comment, got {path} with none")
    return words[-1]
