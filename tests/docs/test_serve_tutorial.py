"""The tutorial of the server runs as written: its commands, its curl lines against a running server, and its Python."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.suite import create_hystar, tiny_config
from hystar_fast.serve.problems import CODES
from hystar_fast.serve.security import Tokens
from tests.support.cli import run
from tests.support.served import drawing, encoded
from tests.support.served_process import serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "serve.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
SHELL = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
STARTS = [line for line in SHELL if line.startswith("hystar-fast serve")]
CURLS = [line for line in SHELL if line.startswith("curl")]
SHARDED = [line for line in SHELL if line.startswith("torchrun") or " index load " in line]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Make a folder with what the page takes for granted: pictures, two queries and an adapter from training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "trips").mkdir(parents=True)
    for number in range(8):
        (tmp_path / "photos" / ("trips" if number % 2 else "") / f"{number}.png").write_bytes(encoded(drawing(number)))
    for name, number in (("sketch", 3), ("other", 4)):
        (tmp_path / f"{name}.png").write_bytes(encoded(drawing(number)))
    torch.manual_seed(0)
    save_method(create_hystar(tiny_config()), tmp_path / "runs/train/adapter")
    return tmp_path


@pytest.mark.slow
def test_the_page_runs_as_written(place):
    for line in SHELL[: SHELL.index(STARTS[0])]:
        program, *arguments = shlex.split(line)
        assert program == "hystar-fast"
        result = run(*arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"
    with serving(place, *shlex.split(STARTS[0])[2:], "--port", "0") as running:
        port = httpx.URL(running.url).port
        answers = {}
        for line in CURLS:
            command = line.replace("localhost:8000", f"localhost:{port}").replace(
                "curl -s", "curl -sS --fail-with-body"
            )
            done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            answers[line] = done.stdout
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for line in SHARDED:
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert "8 unchanged" in done.stdout and "runs/photos holds 8 pictures" in done.stdout
    found = [json.loads(answers[line]) for line in CURLS if "/v1/search " in line]
    assert found[0]["hits"][0]["id"] == "trips/3.png" and len(found[0]["hits"]) == 5
    assert all(hit["id"].startswith("trips/") for hit in found[2]["hits"]) and len(found[3]["hits"]) == 3
    assert set(found[4]["compared"]) == {"frozen"}
    assert found[5]["hits"][0]["id"] == "trips/3.png" and found[5]["hits"][0]["score"] < found[0]["hits"][0]["score"]
    example = next(json.loads(block) for kind, block in BLOCKS if kind == "json")
    assert set(example) == set(found[0]) and set(example["hits"][0]) == set(found[0]["hits"][0])
    assert example["timing"].keys() == found[0]["timing"].keys()
    names: dict[str, object] = {}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, PAGE.name, "exec"), names)
    assert names["sketch"][0].id == "trips/3.png"


def test_the_page_has_lines_of_every_kind():
    assert len(STARTS) == 2 and len(CURLS) >= 10 and len(SHARDED) == 2
    assert "ThreadPool" not in TEXT


def test_its_tokens_and_codes_are_those_of_the_server(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(next(block for kind, block in BLOCKS if kind == "text"))
    tokens.chmod(0o600)
    assert Tokens.read(tokens).right("Bearer 9e8d7c6b5a4f3e2d1c0b") == "write"
    rows = re.findall(r"^\| ([\d, ]+) \| (`.*?) \|", TEXT, re.MULTILINE)
    assert len(rows) == 7
    for statuses, codes in rows:
        listed = re.findall(r"`(\w+)`", codes)
        assert {str(CODES[code]) for code in listed} == {*statuses.split(", ")}
