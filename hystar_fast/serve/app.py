"""The routes of the API."""

from __future__ import annotations

import asyncio
import inspect
import mimetypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute

import hystar_fast
from hystar_fast.index.added_files import drop_added
from hystar_fast.index.engine import Item
from hystar_fast.serve import schemas
from hystar_fast.serve.additions import add_picture
from hystar_fast.serve.description import API, described
from hystar_fast.serve.door import App, Receive, Scope, Send
from hystar_fast.serve.pictures import PictureGone, placeholder
from hystar_fast.serve.problems import Problem, problem_of
from hystar_fast.serve.requests import checked, is_key
from hystar_fast.serve.service import Service, json_response
from hystar_fast.serve.telemetry import CONTENT_TYPE
from hystar_fast.terminal.console import printable

PAGE = Path(__file__).parent / "page"
_CHUNK = 2**16  # bytes
_ASKED_AGAIN = {"Cache-Control": "private, no-cache"}  # a client keeps it, and asks whether it has changed


def create_app(service: Service) -> FastAPI:
    """Return the application with all routes."""
    app = FastAPI(
        title="hystar-fast",
        version=hystar_fast.__version__,
        description=API,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = _Direct
    _add_queries(app, service)
    _add_items(app, service)
    _add_state(app, service)
    _add_page(app)
    return app


class _Direct(APIRoute):
    """A route whose function takes the request, or the parts of its path alone, and returns a response.

    FastAPI describes it; the fields are checked by `Service.answer`, so what FastAPI does between is left out.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self._takes_request = "request" in inspect.signature(endpoint).parameters

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # which raises
        arguments = dict(scope["path_params"])
        if self._takes_request:
            arguments["request"] = Request(scope, receive, send)
        response = await self.endpoint(**arguments)
        await response(scope, receive, send)


def routed(app: FastAPI) -> App:
    """Return the routes of an application without its middleware; what they raise reaches the caller."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = app
        try:
            await app.router(scope, receive, send)
        except Exception as error:
            match getattr(error, "status_code", None):
                case 404:
                    detail = "there is nothing at this address; /openapi.json lists all"
                    raise Problem("not_found", detail) from error
                case 405:
                    detail = "this address has another method; /openapi.json lists all"
                    raise Problem("method_not_allowed", detail, methods=_methods(app, scope)) from error
            raise

    return call


def _methods(app: FastAPI, scope: Scope) -> list[str]:
    """Return the methods of the address of a request."""
    routes = (route for route in app.routes if route.matches(scope)[0].value)
    found = {method for route in routes for method in getattr(route, "methods", ())}
    return sorted(found | {"HEAD"} if "GET" in found else found)


def _add_queries(app: FastAPI, service: Service) -> None:
    answerer = service.answerer

    @app.post("/v1/search", **described("Search", schemas.SearchAnswer, schemas.SearchFields))
    async def search(request: Request) -> Response:
        """Find pictures by a picture, by words, or by both."""
        return await service.answer(request, schemas.SearchFields, answerer.search)

    @app.post("/v1/search/batch", **described("Search", schemas.BatchAnswer, schemas.BatchFields, only_json=True))
    async def search_batch(request: Request) -> Response:
        """Search for several queries at once; each is answered or refused on its own."""

        async def one(query: Any, deadline: float) -> dict[str, Any]:
            try:
                if not isinstance(query, dict):
                    raise Problem("invalid", "a query must be a JSON object")
                return await answerer.search(checked(schemas.SearchFields, query), deadline)
            except Exception as error:
                return problem_of(service.told(error)).document()

        async def every(fields: schemas.BatchFields, deadline: float) -> dict[str, Any]:
            return {"answers": await asyncio.gather(*(one(query, deadline) for query in fields.queries))}

        return await service.answer(request, schemas.BatchFields, every)

    @app.post("/v1/embed", **described("Search", schemas.EmbedAnswer, schemas.EmbedFields))
    async def embed(request: Request) -> Response:
        """Return the vectors of a picture, of words, or of both."""
        return await service.answer(request, schemas.EmbedFields, answerer.embed)

    @app.put("/v1/styles/{name}", **described("Styles", schemas.StyleAnswer, schemas.PictureFields))
    async def put_style(request: Request, name: str) -> Response:
        """Keep the style of a picture under a name."""
        service.check_write(request, changes_items=False)
        schemas.check_style_name(name)
        return await service.answer(
            request, schemas.PictureFields, lambda fields, deadline: answerer.style(fields.image, name, deadline)
        )

    @app.delete("/v1/styles/{name}", **described("Styles", status=204))
    async def delete_style(request: Request, name: str) -> Response:
        """Forget a style."""
        service.check_write(request, changes_items=False)
        if not await service.aside(service.index.delete_style, service.index.live, name):
            raise Problem("not_found", "there is no style of this name")
        return Response(status_code=204)


def _add_items(app: FastAPI, service: Service) -> None:
    index, pictures = service.index, service.pictures

    async def found(key: str) -> Item:
        items = await service.aside(index.engine.fetch, [key] if is_key(key) else [])
        if key not in items:
            raise Problem("not_found", "there is no picture of this key in the index")
        return items[key]

    @app.get("/v1/items/{key}", **described("Pictures", schemas.ItemAnswer))
    async def item(key: str) -> Response:
        """Describe a picture of the index."""
        return json_response(_shown(await found(key)))

    @app.post("/v1/items", **described("Pictures", schemas.ItemAnswer, schemas.ItemFields, status=201))
    async def add(request: Request) -> Response:
        """Add a picture to the index, in place of an earlier one of the same id."""
        service.check_write(request, changes_items=True)

        async def added(fields: schemas.ItemFields, deadline: float) -> dict[str, Any]:
            return _shown(await add_picture(service.answerer, fields, deadline))

        return await service.answer(request, schemas.ItemFields, added, status=201)

    @app.get("/v1/items/{key}/thumbnail", **described("Pictures", media_type="image/webp"))
    async def thumbnail(request: Request, key: str) -> Response:
        """Return a small WebP of a picture; a grey one if its file is gone."""
        shown = await found(key)
        kept = {**_ASKED_AGAIN, "ETag": f'"{shown.sha256[:32]}-{shown.mtime_ns:x}"'}
        if kept["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=kept)
        try:
            content = await service.aside(pictures.thumbnail, shown)
        except PictureGone:
            service.metrics.gone.inc()
            gone = {"Cache-Control": "no-store", "X-Picture": "gone"}
            return Response(placeholder(), media_type="image/webp", headers=gone)
        return Response(content, media_type="image/webp", headers=kept)

    @app.get("/v1/items/{key}/picture", **described("Pictures", media_type="image/*"))
    async def picture(key: str) -> Response:
        """Return the file of a picture."""
        try:
            file, kind = await service.aside(pictures.open, await found(key))
        except PictureGone as error:
            service.metrics.gone.inc()
            raise Problem("picture_gone", "the file of this picture is not there; `index sync` removes it") from error
        return StreamingResponse(_chunks(file), media_type=kind, headers=_ASKED_AGAIN)

    @app.delete("/v1/items/{key}", **described("Pictures", schemas.RemovedAnswer))
    async def remove(request: Request, key: str) -> Response:
        """Remove a picture from the index; its file stays, unless it came over HTTP."""
        service.check_write(request, changes_items=True)
        gone = await found(key)
        removed = await service.aside(index.engine.remove, [key])
        if not removed:  # by another request, meanwhile
            raise Problem("not_found", "there is no picture of this key in the index")
        await service.aside(drop_added, index.engine, [gone])
        return json_response({"removed": removed})


def _shown(item: Item) -> dict[str, Any]:
    return {
        "key": item.key,
        "id": printable(item.id),
        "source": printable(item.source),
        "caption": printable(item.caption),
        "attributes": dict(item.attributes),
        "size": item.size,
        "sha256": item.sha256,
    }


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _add_state(app: FastAPI, service: Service) -> None:
    index, limits = service.index, service.limits

    @app.get("/v1/index", **described("Server", schemas.IndexAnswer))
    async def about() -> Response:
        """Describe the index, its styles and the limits of this server."""
        live = index.live
        return json_response(
            {
                "items": index.count,
                "generation": live.generation,
                "views": dict(live.stamps),
                "styles": sorted(index.styles(live)),
                "takes_words": live.default_view in live.takes_words,
                "takes_styles": live.default_view in live.takes_styles,
                "allows_writes": service.allows_writes,
                "limits": {
                    "body": limits.body,
                    "pixels": limits.pixels,
                    "text": schemas.LONGEST_TEXT,
                    "k": schemas.MOST_HITS,
                    "batch": schemas.LARGEST_BATCH,
                    "deadline_ms": int(1000 * limits.deadline),
                },
            }
        )

    @app.get("/healthz", include_in_schema=False)
    async def alive() -> Response:
        return json_response({"status": "alive"})

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> Response:
        service.check_ready()
        return json_response({"status": "ready"})

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_page(app: FastAPI) -> None:
    """Serve the files of the page from memory."""
    for path in sorted(PAGE.iterdir()):
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        content = Response(path.read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})
        for place in ("/", "/index.html") if path.name == "index.html" else (f"/{path.name}",):
            app.add_route(place, _constant(content), methods=["GET"], include_in_schema=False)


def _constant(response: Response) -> Any:
    async def send(request: Request) -> Response:
        return response

    return send
