"""Run the server: bind its address, open and warm up the index, answer until a signal, and stop in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hystar_fast.index.added_files import sweep_added
from hystar_fast.index.engine import Engine, Generation
from hystar_fast.index.generation_methods import open_views
from hystar_fast.index.open_index import open_engine
from hystar_fast.methods.device import batch_size_on, on_device
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.interface import Method
from hystar_fast.serve.answering import Answerer
from hystar_fast.serve.app import create_app, routed
from hystar_fast.serve.decoding import Decoder
from hystar_fast.serve.door import LARGEST_HEADERS, Door
from hystar_fast.serve.encoder import Encoder
from hystar_fast.serve.live_index import LiveIndex, LoadMethods
from hystar_fast.serve.pictures import Pictures
from hystar_fast.serve.problems import MEDIA_TYPE
from hystar_fast.serve.security import Hosts, Tokens, check_binding, is_loopback
from hystar_fast.serve.service import Limits, Service
from hystar_fast.serve.telemetry import Metrics

_HEADER_SECONDS = 10.0
_IDLE_SECONDS = 75  # longer than nginx keeps a connection to it
_UNREAD_SECONDS = 60.0  # that an answer waits for a client which reads nothing of it
_STOP_SECONDS = 5  # for the requests that are being answered
_DECODERS = 4
# The CPU time of a request beside decoding and encoding, 16 clients: 2.07 ms; 1.26 with the first of these alone, 1.71
# with the second alone.
_SWITCH_SECONDS = 0.02  # that a thread of Python goes on while others wait: at 5 ms it is stopped in a short task
MAX_WAIT_ON_CPU = 0.0015  # seconds for each query
_YOUNG = 20_000  # objects made between two searches for garbage: one request makes more than the usual 700


@dataclass(frozen=True)
class ServerSettings:
    """How a server is started.

    Attributes:
        host, port: the address to bind; port 0 takes a free one.
        token_file: see `Tokens.read`; None lets everyone ask who reaches the server, which must be this machine alone.
        allow_hosts: names besides those of this machine under which it may be called.
        allow_writes: whether items may be added and removed.
        limits: of requests.
        device: where the models run.
        encoders: encoding threads.
        max_wait: seconds that an encoding thread may wait after a pass for each of its queries, see `Batches`; the
            default is for a CPU.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    allow_hosts: Sequence[str] = ()
    allow_writes: bool = False
    limits: Limits = field(default_factory=Limits)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    encoders: int = 1
    max_wait: float = MAX_WAIT_ON_CPU


def serve_index(uri: str | Path, settings: ServerSettings, say: Callable[[str], object]) -> None:
    """Serve an index until a signal, and say where, and that it has stopped.

    Raises:
        ValueError: as `Server`, or there is no such index, or its model cannot be opened.
    """
    with open_engine(uri) as engine:
        server = Server(engine, open_views, settings)
        warning = engine.generation().notes.get("warning")
        if warning:
            say(str(warning))
        say(f"serving {engine.uri}, {server.service.index.count} pictures: {server.url} (Ctrl-C stops)")
        server.run()
        say("stopped")


class Server:
    """A server over an open engine.

    Args:
        engine: the index.
        load: opens the methods of a generation.
        settings: how to start.
        log: called with each line of the log, JSON.

    Raises:
        ValueError: the address cannot be bound, or must not be; the token file is wrong.
    """

    def __init__(
        self,
        engine: Engine,
        load: LoadMethods,
        settings: ServerSettings,
        log: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        check_binding(settings.host, has_tokens=settings.token_file is not None)
        tokens = Tokens() if settings.token_file is None else Tokens.read(settings.token_file)
        self._socket = _bound(settings.host, settings.port)
        try:
            _quieten()
            torch.set_num_threads(1)
            self.service = _service(engine, load, settings, log)
        except BaseException:
            self._socket.close()
            raise
        names = (*settings.allow_hosts, *(() if settings.host in ("0.0.0.0", "::") else (_named(settings.host),)))
        self.app = create_app(self.service)
        room, metrics = self.service.check_room, self.service.metrics
        door = Door(routed(self.app), tokens, Hosts(names), room, metrics, settings.limits.body, log)
        config = uvicorn.Config(
            door,
            http=_Protocol,
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=LARGEST_HEADERS,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = _Uvicorn(config, self.stop)
        gc.collect()
        gc.freeze()  # what lives as long as the server: to look through it stopped all requests for 0.25 s now and then

    @property
    def url(self) -> str:
        """The address of the page."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{_named(host) if is_loopback(host) else 'localhost'}:{port}/"

    def run(self) -> None:
        """Answer requests until `stop`, SIGTERM or Ctrl-C, then finish those that have begun."""
        before = sys.getswitchinterval(), gc.get_threshold()
        sys.setswitchinterval(_SWITCH_SECONDS)
        gc.set_threshold(_YOUNG, *before[1][1:])
        try:
            self._server.run(sockets=[self._socket])
        finally:
            sys.setswitchinterval(before[0])
            gc.set_threshold(*before[1])
            gc.unfreeze()
            self.service.close()

    def stop(self) -> None:
        """Take no more requests; `run` returns when those that have begun are answered, at most ten seconds later."""
        self.service.is_stopping = True
        self._server.should_exit = True


def _service(engine: Engine, load: LoadMethods, settings: ServerSettings, log: Callable[[str], object]) -> Service:
    metrics = Metrics()

    def methods(engine: Engine, generation: Generation) -> Mapping[str, Method]:
        return {view: _merged(method, settings.device) for view, method in load(engine, generation).items()}

    def encoder(methods: Mapping[str, Method]) -> Encoder:
        batch = batch_size_on(settings.device)
        workers, observe = settings.encoders, metrics.batches.observe
        return Encoder(methods, batch=batch, workers=workers, max_wait=settings.max_wait, on_batch=observe)

    if settings.allow_writes:
        sweep_added(engine)
    index = LiveIndex(
        engine,
        methods,
        encoder,
        on_change=lambda live: metrics.show_stamps(live.stamps),
        log=lambda line: log(json.dumps({"event": line})),
    )
    answerer = Answerer(index, Decoder(settings.limits.pixels), metrics, threads=min(_DECODERS, os.cpu_count() or 1))
    metrics.watch("index_items", "Pictures in the index.", lambda: index.count)
    metrics.watch("queue_depth", "Requests that wait for the encoder.", lambda: index.live.encoder.depth)
    metrics.watch("engine_up", "1 if the index can be reached.", lambda: float(index.is_up))
    return Service(index, answerer, Pictures(engine), metrics, settings.limits, settings.allow_writes)


def _merged(method: Method, device: torch.device) -> Method:
    """Return a method as it serves: its static offsets in its weights, on a device."""
    if isinstance(method, HystarMethod):
        method.model.merge_static_()
    return on_device(method, device)


def _bound(host: str, port: int) -> socket.socket:
    """Bind an address, so that a port in use is known before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol named, asyncio sends small answers at once; without it each waits 40 ms for the client's ACK
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), port))
    except OSError as error:
        bound.close()
        raise ValueError(f"port must be free on {host}, got {port}: {error.strerror}") from error
    return bound


def _named(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _quieten() -> None:
    """Silence what libraries print about requests: the log has a line for each."""
    for name in ("uvicorn", "python_multipart", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\..*")


class _Uvicorn(uvicorn.Server):
    """uvicorn with `stop` at SIGTERM and Ctrl-C, after which the process ends with status 0."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], object]) -> None:
        super().__init__(config)
        self._stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def handle(number: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit  # at the second signal
            self._stop()

        try:
            before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # no signals outside the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with problem documents for what is no HTTP, and limits of time.

    The headers of a request must come in time, and a client must read its answer: a full buffer must get room in time.
    """

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _is_waiting = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._close_after(_HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
            return
        is_waiting = self.cycle is None or bool(self.conn.trailing_data[0])  # for the rest of some headers
        if not (is_waiting and self._is_waiting):
            self._forget()
            self._close_after(_HEADER_SECONDS if is_waiting else _IDLE_SECONDS)
            self._is_waiting = is_waiting

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_unread()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._forget_unread()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"title": "Bad Request", "status": 400, "code": "bad_request", "detail": msg}).encode()
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        self.transport.close()

    def _close_after(self, seconds: float) -> None:
        self._late = self.loop.call_later(seconds, self._close)

    def _close(self) -> None:
        """Close the connection, at once if the client has left a part of an answer unread all the time."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _forget(self) -> None:
        self._is_waiting = False
        if self._late is not None:
            self._late.cancel()
            self._late = None
