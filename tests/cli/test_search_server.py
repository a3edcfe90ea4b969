"""``hystar-fast index search --server``: the answers of the server, without torch."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support import served
from tests.support.cli import refused, run
from tests.support.served import Served, drawing, encoded

CHECKED = """
import sys
from hystar_fast.cli.main import app
try:
    app()
finally:
    heavy = ("torch", "numpy", "PIL", "safetensors", "open_clip", "transformers", "matplotlib", "sqlite3", "httpx")
    print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    engine = served.make_index(folder, {"adapted": served.method(1), "frozen": served.method(2)})
    with served.serve(engine, folder / "pictures") as running:
        yield running


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "query.png").write_bytes(encoded(drawing(3)))
    return tmp_path / "query.png"


def found(*arguments: object) -> list[dict[str, object]]:
    result = run("index", "search", *arguments, "--json")
    assert result.exit_code == 0, result.output
    assert " score " in result.output and "cosine" not in result.output  # a method may have a similarity of its own
    return list(json.loads(result.stdout))


def test_a_server_answers_as_the_index_does(server, picture):
    url = server.server.url
    result = run("index", "search", "--server", url, "--query", picture, "--top", 2)
    assert result.exit_code == 0, result.output
    assert f"{picture}: first 2 from {url}" in result.output and "drawing 3" in result.output
    first, second = found("--server", url, "--query", picture, "--top", 2)
    assert (first["rank"], first["id"], first["caption"], second["rank"]) == (1, "003.png", "drawing 3", 2)
    assert first.keys() == {"rank", "key", "id", "caption", "score", "by"} and first["by"] == "image"
    hits = found("--server", url, "--text", "a heart", "--where", "parity=1", "--view", "frozen", "--top", 3)
    assert len(hits) == 3 and all(int(str(hit["caption"]).split()[1]) % 2 for hit in hits)


def test_several_queries_are_answered_in_their_order(server, tmp_path):
    for number in (5, 7):
        (tmp_path / f"{number}.png").write_bytes(encoded(drawing(number)))
    names = [tmp_path / f"{number}.png" for number in (7, 5)]
    one, two = found("--server", server.server.url, "--query", names[0], "--query", names[1], "--style", names[1])
    assert [entry["query"] for entry in (one, two)] == [str(name) for name in names]
    assert two["answers"][0]["id"] == "005.png" and len(one["answers"]) == 5


def test_neither_torch_nor_the_index_is_imported_and_it_takes_half_a_second(server, picture):
    arguments = ["index", "search", "--server", server.server.url, "--query", str(picture), "--text", "a heart"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", CHECKED, *arguments], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "003.png" in done.stdout, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 0.5


def test_what_the_server_refuses_names_the_option(server, picture, tmp_path):
    url = server.server.url
    (tmp_path / "bad.png").write_text("no picture")
    for arguments, words in (
        (("--query", picture, "--top", 101), "--top must be less than or equal to 100"),
        (("--query", picture, "--where", "year"), "--where must be field=value"),
        (("--query", picture, "--view", "other"), "--view must be one of adapted, frozen"),
        (("--query", tmp_path / "bad.png"), f"{tmp_path / 'bad.png'}: image must be an image file"),
    ):
        message = refused("index", "search", "--server", url, *arguments)
        assert words in message, message


def test_wrong_options_and_servers_are_one_line(server, picture, tmp_path):
    query = ("--query", picture)
    both = "exactly one of NAME and --server must be given"
    assert both in refused("index", "search", *query)
    assert both in refused("index", "search", "x", "--server", "http://localhost:1", *query)
    for option in ("--device=cpu", "--picture=a.png"):
        message = refused("index", "search", "--server", "http://localhost:1", *query, option)
        assert f"{option.partition('=')[0]} must be left out if --server" in message
    assert "--token-file must be left out unless" in refused("index", "search", "x", *query, "--token-file", picture)
    for url in ("localhost:8000", "file:///etc/passwd", "http://"):
        assert "--server must be an address such as" in refused("index", "search", "--server", url, *query)
    message = refused("index", "search", "--server", "http://127.0.0.1:9", *query)
    assert "http://127.0.0.1:9 cannot be reached: " in message and "refused" in message
    (tmp_path / "empty").touch()
    message = refused("index", "search", "--server", "http://localhost:1", *query, "--token-file", tmp_path / "empty")
    assert "--token-file must hold a token in its first line" in message


def test_a_token_is_sent_to_the_server_alone(picture, tmp_path):
    asked: list[str | None] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(302)
            self.send_header("Location", f"{other}/v1/search")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Redirecting) as first, HTTPServer(("127.0.0.1", 0), Redirecting) as second:
        other = f"http://127.0.0.1:{second.server_port}"
        for one in (first, second):
            Thread(target=one.serve_forever, daemon=True).start()
        (tmp_path / "token").write_text("read 4f1c0b9a7d3e4f5a8b6c\n")
        url = f"http://127.0.0.1:{first.server_port}"
        message = refused("index", "search", "--server", url, "--query", picture, "--token-file", tmp_path / "token")
        first.shutdown()
        second.shutdown()
    assert f"--server must be one of `hystar-fast serve`, got {url}, which answered with status 302" in message
    assert asked == ["Bearer 4f1c0b9a7d3e4f5a8b6c"]


def test_a_server_with_tokens_is_asked_with_one(picture, tmp_path):
    token = "4f1c0b9a7d3e4f5a8b6c"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# of the page\n\nread {token}\n")
    tokens.chmod(0o600)
    engine = served.make_index(tmp_path, {"adapted": served.method(1)})
    with served.serve(engine, tmp_path / "pictures", token_file=tokens) as running:
        arguments = ("--server", running.server.url, "--query", picture)
        assert found(*arguments, "--token-file", tokens)[0]["id"] == "003.png"
        assert "--token-file must hold a token of the server" in refused("index", "search", *arguments)


def test_a_token_file_that_cannot_be_read_is_named(tmp_path):
    said = refused(
        "index", "search", "--server", "http://localhost:9", "--text", "red", "--token-file", tmp_path / "no"
    )
    assert f"--token-file must be a file with a token, but {tmp_path / 'no'} cannot be read: No such file" in said
