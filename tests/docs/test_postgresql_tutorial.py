"""The tutorial of PostgreSQL runs as written: its commands, the rights that it names, and how an index is removed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.suite import create_hystar, tiny_config
from tests.support.cli import run
from tests.support.postgres_server import PostgresServer
from tests.support.served import drawing, encoded
from tests.support.served_process import serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "postgresql.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
STATEMENTS = re.findall(r"(?:-c '|`)((?:CREATE|DROP) [^'`]+)['`]", PAGE.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.xdist_group("postgres")
def test_the_page_runs_as_written(tmp_path, monkeypatch, postgres: PostgresServer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / f"photos/{number}.png").write_bytes(encoded(drawing(number)))
    (tmp_path / "sketch.png").write_bytes(encoded(drawing(2)))
    torch.manual_seed(0)
    save_method(create_hystar(tiny_config()), tmp_path / "runs/train/adapter")
    postgres.execute("CREATE USER me")
    postgres.execute("CREATE DATABASE pictures OWNER me")
    extension, *_, removal = STATEMENTS
    postgres.execute(extension, "pictures")
    folder = f"host={postgres.folder}&port={postgres.port}"
    for line in COMMANDS:
        program, *arguments = shlex.split(
            line.replace("runs/index", "'postgresql://me@localhost/pictures?index=photos'")
        )
        arguments = [word.replace("@localhost/pictures?", f"@/pictures?{folder}&") for word in arguments]
        assert program == "hystar-fast"
        if arguments[0] == "serve":
            with serving(tmp_path, *arguments[1:], "--port", "0") as running, running.client() as client:
                assert client.get("readyz").status_code == 200
            continue
        result = run(*arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"
        if arguments[1] == "search":
            assert result.output.index("2.png") < result.output.index("1.png")
    assert (tmp_path / "runs/back/index.db").is_file()
    postgres.execute(removal, "pictures")
    assert postgres.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'hystar%'", "pictures") == [
        ("hystar_copied",)
    ]
    postgres.execute("DROP DATABASE pictures")
    postgres.execute("DROP USER me")
