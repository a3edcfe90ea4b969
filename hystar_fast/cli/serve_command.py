"""``hystar-fast serve``: answer queries over HTTP from an index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hystar_fast.terminal.console import Console

EXTRA = "pip install 'hystar-fast[serve]'"
_PACKAGES = ("fastapi", "pydantic", "uvicorn", "python_multipart", "prometheus_client")


def run_serve(
    index: str,
    console: Console,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    allow_hosts: Sequence[str],
    allow_writes: bool,
    body_mib: int,
    megapixels: int,
    queue: int,
    deadline: float,
    device: str,
    encoders: int | None,
    max_wait_ms: float | None,
) -> None:
    """Serve an index until SIGTERM or Ctrl-C; its log goes to stderr, one JSON object a request.

    Raises:
        ModuleNotFoundError: the extra `serve` is not installed.
        ValueError: an option is wrong, or the index cannot be used.
    """
    try:
        from hystar_fast.serve.server import MAX_WAIT_ON_CPU, ServerSettings, serve_index
        from hystar_fast.serve.service import Limits
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _PACKAGES:
            raise
        raise ModuleNotFoundError(f"serve needs {error.name}, which is not installed: {EXTRA}") from error
    from hystar_fast.methods.device import select_device

    where = select_device(device)
    is_cpu = where.type == "cpu"
    default_wait = MAX_WAIT_ON_CPU if is_cpu else 0.0
    settings = ServerSettings(
        host=host,
        port=port,
        token_file=token_file,
        allow_hosts=allow_hosts,
        allow_writes=allow_writes,
        limits=Limits(body_mib * 2**20, megapixels * 1_000_000, queue, deadline),
        device=where,
        encoders=encoders or (max(1, (os.cpu_count() or 1) // 2) if is_cpu else 1),
        max_wait=default_wait if max_wait_ms is None else max_wait_ms / 1000,
    )
    serve_index(index, settings, console.print)
