"""Strangers: tokens, Host, paths out of the source, bombs, names in answers, and what the log must not hold."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import suppress

import pytest

from hystar_fast.index.engine import Item
from hystar_fast.serve.security import Hosts, Problem, Tokens, check_binding, is_loopback
from tests.support import bombs, served
from tests.support.served import COUNT, drawing, encoded, form, problem

READ, WRITE = "r" * 32, "w" * 32
PICTURE = encoded(drawing(0))


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# of the gallery\nread {READ}\n\nwrite {WRITE}\n")
    path.chmod(0o600)
    return path


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_a_token_is_needed_and_a_reader_may_not_write(start, token_file):
    running = start(token_file=token_file)
    client = running.client
    for headers in ({}, bearer("x" * 32), bearer("-"), {"Authorization": READ}, {"Authorization": f"Basic {READ}"}):
        refused = client.get("v1/index", headers=headers)
        assert problem(refused)[:2] == (401, "unauthorized") and refused.headers["www-authenticate"] == "Bearer"
        assert problem(client.get("metrics", headers=headers))[1] == "unauthorized"
        assert problem(client.post("v1/search", files=form(image=PICTURE), headers=headers))[1] == "unauthorized"
    assert client.get("v1/index", headers=bearer(READ)).status_code == 200
    put = {"files": form(image=PICTURE)}
    assert problem(client.put("v1/styles/a", headers=bearer(READ), **put))[:2] == (403, "forbidden")
    assert client.put("v1/styles/a", headers=bearer(WRITE), **put).status_code == 200
    key = Item("000.png").key
    for right in (READ, WRITE):  # the server was not started with --allow-writes
        assert problem(client.delete(f"v1/items/{key}", headers=bearer(right)))[:2] == (403, "forbidden")
    for open_to_all in ("healthz", "readyz", ""):
        assert client.get(open_to_all).status_code == 200
    assert not any(token in line for token in (READ, WRITE) for line in running.lines)


def test_a_wrong_token_takes_as_long_as_a_right_one(token_file):
    tokens = Tokens.read(token_file)

    def spent(header):
        start = time.perf_counter()
        for _ in range(300):
            with suppress(Problem):
                tokens.right(header)
        return time.perf_counter() - start

    almost = spent(f"Bearer {READ[:-1]}x")
    ratios = [spent(f"Bearer {READ[:-1]}x") / spent(f"Bearer {'x' * 32}") for _ in range(15)]
    assert almost > 0 and 0.8 < statistics.median(ratios) < 1.25


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (f"read {READ}", 0o640, "closed to other users"),
        (f"read {READ}", 0o604, "chmod 600"),
        ("read short", 0o600, "at least 16 characters"),
        (f"admin {READ}", 0o600, "line 1"),
        (READ, 0o600, "`read TOKEN`"),
        ("read pässwort-pässwort", 0o600, "in ASCII"),
        ("# none\n", 0o600, "got none"),
    ],
)
def test_a_wrong_token_file_is_refused(tmp_path, text, mode, words):
    path = tmp_path / "tokens"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(ValueError, match="token_file must") as error:
        Tokens.read(path)
    assert words in str(error.value) and READ not in str(error.value)


def test_a_missing_token_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="token_file must be a text file"):
        Tokens.read(tmp_path / "none")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_only_this_machine_may_be_bound_without_tokens(host):
    assert not is_loopback(host)
    with pytest.raises(ValueError, match=r"^host must be .*--token-file") as error:
        check_binding(host, has_tokens=False)
    assert "\n" not in str(error.value)
    check_binding(host, has_tokens=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_this_machine_may_be_bound(host):
    check_binding(host, has_tokens=False)


def test_a_port_in_use_is_told_before_a_model_is_loaded(server):
    settings = served.ServerSettings(port=server.address[1])
    with pytest.raises(ValueError, match=rf"^port must be free on 127\.0\.0\.1, got {settings.port}: "):
        served.Server(server.engine, lambda engine, generation: pytest.fail("loaded"), settings)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]", "[::1]:9", "a.org", "b.c.org:1"])
def test_names_of_the_server(name):
    Hosts(["a.org", "*.c.org"]).check(name)


@pytest.mark.parametrize("name", ["", "evil.org", "a.org.evil.org", "c.org", "xa.org", "localhost.evil.org", "a.org:x"])
def test_foreign_names(name):
    with pytest.raises(Problem, match="--allow-host"):
        Hosts(["a.org", "*.c.org"]).check(name)


def test_a_foreign_page_cannot_reach_the_server_under_its_own_name(server):
    foreign = {"Host": "evil.org"}
    for path in ("", "v1/index", "metrics", "openapi.json"):
        assert problem(server.client.get(path, headers=foreign))[:2] == (421, "wrong_host")
    answer = server.client.get("v1/index", headers={"Origin": "https://evil.org"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["https://foreign.example", "null", "http://localhost.foreign.example", "localhost"])
def test_a_foreign_page_cannot_send_a_form(start, origin):
    running = start(allow_writes=True, allow_hosts=["*.gallery.example"])
    sent = {"files": form(image=PICTURE, id="foreign")}
    refused = running.client.post("v1/items", headers={"Origin": origin}, **sent)
    assert problem(refused)[:2] == (403, "forbidden")
    assert problem(running.client.put("v1/styles/a", headers={"Origin": origin}, **sent))[:2] == (403, "forbidden")
    key = Item("000.png").key
    assert problem(running.client.delete(f"v1/items/{key}", headers={"Origin": origin}))[:2] == (403, "forbidden")
    assert running.engine.count() == COUNT and running.engine.fetch([Item("foreign").key]) == {}
    assert running.client.get("v1/index", headers={"Origin": origin}).status_code == 200
    for own in (str(running.client.base_url).rstrip("/"), "https://a.gallery.example"):
        assert running.client.post("v1/items", headers={"Origin": own}, **sent).status_code == 201


def test_every_answer_has_the_headers_that_protect_a_browser(server):
    for path in ("", "v1/index", "v1/nothing", "healthz", f"v1/items/{Item('001.png').key}/picture"):
        headers = server.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert len(headers["x-request-id"]) == 16


WAYS = [
    *("..", "../..", "../secret.png", "../../etc/passwd", "%2e%2e/secret.png", "..%2fsecret.png"),
    *("%2e%2e%2fsecret.png", "....//secret.png", "..;/secret.png", "..\\secret.png", "..%5csecret.png"),
    *("%252e%252e%252fsecret.png", "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "file:///etc/passwd"),
    *("C:/windows/win.ini", "~/.ssh/id_rsa", "index.html/../../app.py", "page/../app.py", "app.py", "."),
    *("%00", "index.html%00.png", "%ff", "\ufeff", "*", "static/../../../../etc/passwd"),
    *("..%c0%afsecret.png", "%uff0e%uff0e/", "./../secret.png", "a/../../secret.png", "?../secret.png"),
    *("#../secret.png", "proc/self/environ", "..%2f..%2f..%2fproc%2fself%2fenviron", "secret.png"),
    *("0123456789abcdef/../../secret.png", "0123456789abcdef%2f..", "'; DROP TABLE items; --", "1 OR 1=1"),
    *("-1", "$(id)"),
]


def test_no_path_leads_out(server):
    (server.folder.parent / "secret.png").write_bytes(b"secret")
    assert len(WAYS) >= 40
    for way in WAYS:
        for start in ("/", "/v1/items/", "/v1/styles/"):
            with server.connect() as connection:  # a client would tidy the path
                path = (start + way).encode("utf-8", "surrogateescape").replace(b" ", b"%20")
                connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = b""
                while part := connection.recv(65536):
                    answer += part
            status = int(answer.split()[1])
            is_page = start == "/" and way.startswith("?")
            assert status in ((200,) if is_page else (400, 404, 405)), (start, way, status)
            assert b"root:" not in answer and b"secret" not in answer and b"from __future__" not in answer


@pytest.mark.parametrize("kind", ["link", "folder link", "fifo", "folder", "dots", "absolute"])
def test_nothing_but_pictures_below_the_source_is_sent(start, tmp_path, kind):
    running = start()
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(drawing(50)))
    path = {"dots": "../secret.png", "absolute": str(secret), "folder link": "out/secret.png"}.get(kind, "x.png")
    place = running.folder / "x.png"
    match kind:
        case "link":
            place.symlink_to(secret)
        case "folder link":
            (running.folder / "out").symlink_to(tmp_path)
        case "fifo":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
    item = Item("x", "pictures", path, sha256="0" * 64)
    outside = [Item("s", path="secret.png")]
    running.engine.upsert([item], served.vectors({"adapted": served.method(1)}, tmp_path, outside))
    assert problem(running.client.get(f"v1/items/{item.key}/picture"))[:2] == (404, "picture_gone")
    assert running.client.get(f"v1/items/{item.key}/thumbnail").headers["x-picture"] == "gone"


def test_a_link_within_the_source_is_sent(start):
    running = start()
    (running.folder / "001.png").unlink()
    (running.folder / "001.png").symlink_to("002.png")
    picture = running.client.get(f"v1/items/{Item('001.png').key}/picture")
    assert picture.content == encoded(drawing(2))


@pytest.mark.parametrize(
    "content", [b"<script>alert(1)</script>", b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_a_file_of_another_kind_is_not_sent(start, content):
    running = start()
    (running.folder / "001.png").write_bytes(content)
    assert problem(running.client.get(f"v1/items/{Item('001.png').key}/picture"))[:2] == (404, "picture_gone")


def test_any_name_is_shown_and_its_picture_sent(start):
    names = [
        "caf\udce9.png",
        "a\nb.png",
        "\x1b[31mred.png",
        "[red]a.png",
        "<b>&\"'.png",
        "%2e%2e.png",
        "é" * 100 + ".png",
        "..a.png",
    ]
    running = start()
    methods, items = {"adapted": served.method(1)}, []
    for number, name in enumerate(names, start=60):
        (running.folder / name).write_bytes(encoded(drawing(number)))
        items.append(Item(name, "pictures", name, name, sha256=f"{number:064}"))
    running.engine.upsert(items, served.vectors(methods, running.folder, items))
    for number, entry in enumerate(items, start=60):
        (hit,) = running.search(image=encoded(drawing(number)), k=1).json()["hits"]
        assert hit["key"] == entry.key
        hit["id"].encode()  # no half of a surrogate pair
        assert "\x1b" not in hit["id"]
        assert running.client.get(f"v1/items/{entry.key}").json()["id"] == hit["id"]
        assert running.client.get(f"v1/items/{entry.key}/picture").content == encoded(drawing(number))


def test_a_bomb_is_refused_at_once(server):
    bomb = bombs.png(13_000, 13_000)
    server.search(text="moon")
    start = time.perf_counter()
    assert problem(server.search(image=bomb))[:2] == (413, "too_many_pixels")
    assert time.perf_counter() - start < 0.1 * (1 + os.getloadavg()[0])


def test_words_and_pictures_are_not_in_the_log(start):
    running = start()
    running.search(text="a very secret moon", image=PICTURE, where="nothing=hidden")
    running.client.get("v1/nothing/secret?hidden=1")
    running.client.put("v1/styles/secret", files=form(image=PICTURE))
    time.sleep(0.1)
    assert len(running.lines) >= 3
    assert not any(word in line for word in ("secret", "hidden") for line in running.lines)
