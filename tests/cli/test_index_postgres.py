"""``hystar-fast index`` and ``serve`` on PostgreSQL, as a user types it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.suite import create_method, tiny_config
from tests.support import picture_trees as trees
from tests.support.cli import refused, run
from tests.support.postgres_server import PASSWORD, PostgresServer
from tests.support.served import form
from tests.support.served_process import serving

pytestmark = pytest.mark.xdist_group("postgres")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pictures, two adapters and a local index of the first."""
    root = tmp_path_factory.mktemp("made")
    for i in range(6):
        trees.picture(root / "pics" / f"{i}.png", seed=i)
    for seed in (0, 5):
        save_method(create_method("hystar", tiny_config(None), seed=seed), root / f"adapter-{seed}")
    output("index", "create", root / "x", "--adapter", root / "adapter-0", "--with-frozen")
    output("index", "add", root / "x", root / "pics")
    return root


@pytest.fixture
def uri(postgres: PostgresServer) -> str:
    """Return the address of a new index, with a password."""
    name = postgres.new_uri().rpartition("=")[2]
    return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{postgres.port}/postgres?index={name}"


def output(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert PASSWORD not in result.output
    return result.output


def hits(index: object, *arguments: object) -> list[dict[str, object]]:
    return json.loads(run("index", "search", index, *arguments, "--json").stdout)


def test_an_index_lives_in_the_database_with_its_adapters(made, uri, tmp_path, monkeypatch):
    shown = uri.replace(f":{PASSWORD}", "")
    said = output("index", "create", uri, "--adapter", made / "adapter-0", "--with-frozen").replace("\n", " ")
    assert f"made {shown} for hystar" in said and f"next: hystar-fast index add '{shown}' FOLDER" in said
    assert "NAME must be new" in refused("index", "create", uri, "--adapter", made / "adapter-0")
    (tmp_path / "pics").mkdir()
    for path in (made / "pics").iterdir():
        (tmp_path / "pics" / path.name).write_bytes(path.read_bytes())
    for name in ("bad.png", "worse.png", "wrong.png", "worst.png"):
        (tmp_path / "pics" / name).write_text("no picture")
    said = output("index", "add", uri, tmp_path / "pics")
    assert "6 added, 4 skipped" in said and said.count("path must be an image file") == 4, "no list: all are named"
    monkeypatch.chdir(tmp_path)  # another machine has the address alone
    found = hits(uri, "--query", "pics/4.png")
    assert found[0]["id"] == "4.png" and found[0]["score"] > 0.9999
    assert [hit["id"] for hit in found] == [hit["id"] for hit in hits(made / "x", "--query", "pics/4.png")]
    assert hits(uri, "--query", "pics/4.png", "--view", "frozen")[0]["id"] == "4.png"
    assert json.loads(run("search", "--index", uri, "--query", "pics/4.png", "--json").stdout) == found
    (tmp_path / "pics" / "4.png").rename(tmp_path / "pics" / "four.png")
    assert "5 unchanged, 1 moved, 4 skipped" in output("index", "sync", uri)

    assert "0 are missing" in output("index", "reembed", uri, "--adapter", made / "adapter-5")
    assert "is searched in generation 2" in output("index", "switch", uri)
    assert hits(uri, "--query", "pics/four.png")[0]["id"] == "four.png"
    info = json.loads(run("index", "info", uri, "--json").stdout)
    assert info["index"] == shown and PASSWORD not in json.dumps(info)
    assert [(entry["notes"]["adapter"], entry["live"]) for entry in info["generations"]] == [
        ("adapter", False),
        ("adapter-2", True),
    ]
    assert "removed generation 1" in output("index", "drop", uri, 1)
    assert "is whole: 6 pictures" in output("index", "verify", uri).replace("\n", " ")
    assert "removed 1 pictures" in output("index", "remove", uri, "--id", "0.png")


def test_verify_says_what_is_damaged_and_repairs_it(made, uri, postgres):
    output("index", "copy", made / "x", uri)
    schema = "hystar_" + uri.rpartition("=")[2]
    postgres.execute(f"DELETE FROM {schema}.vectors_1_1")
    damaged = run("index", "verify", uri)
    assert damaged.exit_code == 1 and "6 damages; `hystar-fast index verify" in damaged.output.replace("\n", " ")
    assert PASSWORD not in damaged.output
    assert "holds 0 pictures; next: hystar-fast index sync" in run("index", "verify", uri, "--repair").output.replace(
        "\n", " "
    )
    assert "6 added" in output("index", "sync", uri, "--device", "cpu")


def test_an_index_is_copied_there_and_back(made, uri, postgres, tmp_path):
    output("index", "reembed", made / "x", "--adapter", made / "adapter-5")
    assert "12 copied" in output("index", "copy", made / "x", uri)
    assert "12 unchanged" in output("index", "copy", made / "x", uri)
    back = tmp_path / "back"
    assert "12 copied" in output("index", "copy", uri, back)
    assert {path.name for path in back.iterdir()} == {"index.db", "adapter", "adapter-2"}
    for adapter in ("adapter", "adapter-2"):
        for file in ("config.json", "adapter.safetensors"):
            assert (back / adapter / file).read_bytes() == (made / "x" / adapter / file).read_bytes()
    query = ("--query", made / "pics/3.png")
    here, there, origin = hits(back, *query), hits(uri, *query), hits(made / "x", *query)
    assert here == origin and [hit["id"] for hit in here] == [hit["id"] for hit in there]
    assert [hit["score"] for hit in here] == pytest.approx([hit["score"] for hit in there], abs=1e-6)
    output("index", "switch", back, 2)
    assert hits(back, *query)[0]["id"] == "3.png"
    message = refused("index", "copy", made / "x", back)
    assert "back must have vectors of one model, got tensors_sha256" in message
    output("index", "remove", uri, "--id", "0.png")
    message = refused("index", "copy", uri, made / "x")
    assert (
        "TARGET must hold no other pictures than the source, but" in message and "holds 1, such as '0.png'" in message
    )
    message = refused("embed", made / "pics", "--output", uri)
    assert "--output must be a folder" in message and PASSWORD not in message
    postgres.execute("CREATE SCHEMA hystar_taken; CREATE TABLE hystar_taken.state (x int)")
    message = refused("index", "copy", made / "x", re.sub("index=.*", "index=taken", uri))
    assert "TARGET must be one of hystar_fast, but" in message and "tables of another program" in message
    assert "TARGET must be another index than the source" in refused("index", "copy", uri, uri)
    assert "2 copied, 10 unchanged" in output("index", "copy", made / "x", uri)


@pytest.mark.slow
def test_a_server_answers_from_it_also_after_a_restart(made, uri, postgres, tmp_path):
    output("index", "copy", made / "x", uri)
    query = form(image=(made / "pics/2.png").read_bytes(), k=1)
    with serving(tmp_path, uri, "--port", "0", "--allow-writes") as running, running.client() as client:

        def first() -> object:
            answer = client.post("v1/search", files=query)
            assert answer.status_code == 200, answer.text
            return answer.json()["hits"][0]["id"]

        assert first() == "2.png"
        postgres.restart()
        assert first() == "2.png", "a restart between two requests is not seen"
        postgres.kill()
        down = client.post("v1/search", files=query)
        assert (down.status_code, down.json()["code"]) == (503, "engine_unavailable")
        assert client.get("healthz").status_code == 200
        end = time.monotonic() + 10
        while client.get("readyz").status_code != 503:
            assert time.monotonic() < end
        postgres.start()
        while client.get("readyz").status_code != 200:
            assert time.monotonic() < end
        assert first() == "2.png"
        added = client.post("v1/items", files=form(image=(made / "pics/5.png").read_bytes(), id="new")).json()
        assert client.get(f"v1/items/{added['key']}/picture").json()["code"] == "picture_gone", "no place for its file"
        assert PASSWORD not in running.out + running.log and "Traceback" not in running.log
