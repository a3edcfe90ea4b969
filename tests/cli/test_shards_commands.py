"""``hystar-fast embed --shards`` under torchrun and ``index load``, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hystar_fast.index.load_shards import plan_in
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.shard_files import ShardFolder
from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.suite import create_method, tiny_config
from tests.support import picture_trees as trees
from tests.support.cli import refused, run

COUNT = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pictures, one that cannot be read, two adapters, and shards of the first with both views."""
    root = tmp_path_factory.mktemp("made")
    for i in range(COUNT):
        trees.picture(root / "pics" / f"{'sub/' * (i % 2)}{i}.png", seed=i)
    (root / "pics" / "bad.png").write_text("no picture")
    for seed in (0, 5):
        save_method(create_method("hystar", tiny_config(None), seed=seed), root / f"adapter-{seed}")
    (root / "none").mkdir()
    return root


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


@pytest.fixture(scope="module")
def shards(made: Path) -> Path:
    """Return shards of both views."""
    arguments = ("--shards", made / "both", "--shard-size", 5, "--with-frozen", "--adapter", made / "adapter-0")
    result = run("embed", made / "pics", *arguments)
    assert result.exit_code == 0, result.output
    return made / "both"


def output(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def content(index: Path) -> dict[str, dict[str, torch.Tensor]]:
    with LocalEngine(index) as engine:
        assert engine.verify() == []
        found: dict[str, dict[str, torch.Tensor]] = {}
        for items, vectors in engine.scan():
            for row, item in enumerate(items):
                found[item.id] = {view: part[row] for view, part in vectors.items()}
        return found


def check_same(one: Path, two: Path) -> None:
    found, expected = content(one), content(two)
    assert found.keys() == expected.keys()
    for item, vectors in expected.items():
        assert all(torch.allclose(found[item][view], vector, atol=1e-6) for view, vector in vectors.items())


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_index_of_one(here):
    arguments = ["embed", "pics", "--shards", "out", "--shard-size", "3", "--adapter", "adapter-0"]
    program = Path(sys.executable).with_name("hystar-fast")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python", str(program)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run([*torchrun, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    headers = ShardFolder(here / "out", plan_in(here / "out")).headers().values()
    assert sum(header.encoded for header in headers) == COUNT and {header.tries for header in headers} == {1}
    assert done.stdout.count("out holds 12 pictures in 5 shards; out/timeline.png") == 1, "one process alone prints"
    assert "embed, 1 skipped" in done.stdout and "13/13" in done.stdout and "pictures/s" in done.stdout
    for process in {header.process for header in headers}:
        assert process in done.stdout
    with Image.open(here / "out" / "timeline.png") as drawn:
        assert drawn.width > 1000
    shown = output("index", "load", "x", "out")
    assert "made x for hystar" in shown and "12 added, 1 skipped" in shown and "skipped bad.png" in shown
    output("embed", "pics", "--output", "one", "--adapter", "adapter-0")
    check_same(here / "x", here / "one")
    hits = json.loads(run("index", "search", "x", "--query", "pics/4.png", "--json").stdout)
    assert hits[0]["id"] == "4.png" and hits[0]["score"] > 0.9999
    assert "12 unchanged" in output("index", "sync", "x")


def test_a_second_run_has_nothing_to_do_and_a_second_load_nothing_to_load(here, shards):
    again = ("embed", "pics", "--shards", shards, "--with-frozen", "--adapter", "adapter-0")
    shown = output(*again)
    assert "process" not in shown and "holds 12 pictures in 3 shards" in shown
    assert "--retry-skipped tries these again" in shown
    output("index", "load", "y", shards)
    counts = json.loads(run("index", "load", "y", shards, "--json").stdout)
    assert (counts["added"], counts["shards"], counts["missing_shards"], counts["pictures"]) == (0, 0, 0, COUNT)
    assert content(here / "y")["4.png"].keys() == {"adapted", "frozen"}


def test_shards_go_into_an_index_that_was_created_for_the_same_model_alone(here, shards):
    output("index", "create", "same", "--adapter", "adapter-0", "--with-frozen")
    assert "12 added" in output("index", "load", "same", shards)
    output("index", "create", "other", "--adapter", "adapter-5", "--with-frozen")
    message = refused("index", "load", "other", shards)
    assert "other must have vectors of one model, got tensors_sha256" in message
    output("index", "create", "fewer", "--adapter", "adapter-0")
    assert "got the views adapted in it and adapted, frozen now" in refused("index", "load", "fewer", shards)


def test_missing_shards_are_named(here, shards):
    shutil.copytree(shards, here / "part")
    (here / "part" / "shard-000001.safetensors").unlink()
    shown = output("index", "load", "z", "part")
    assert "1 of 3 shards are missing: make them with `hystar-fast embed --shards part`, then load again" in shown


def test_where_the_pictures_are_can_be_said_later(here):
    trees.picture(here / "there" / "0.png")
    output("embed", "there", "--shards", "far", "--adapter", "adapter-0")
    (here / "there").rename(here / "mounted")
    shown = output("index", "load", "w", "far")
    assert f"`hystar-fast index move w {here}/there NEW` says where they are" in shown
    output("index", "move", "w", here / "there", "mounted")
    assert "1 unchanged" in output("index", "sync", "w")


def test_wrong_arguments_are_refused_in_one_line(here, shards, monkeypatch):
    message = refused("embed", "pics", "--shards", shards, "--with-frozen", "--adapter", "adapter-5")
    assert "plan.json must have vectors of one model, got tensors_sha256" in message
    wrong = ("embed", "pics", "--shards", shards, "--with-frozen", "--adapter", "adapter-0", "--shard-size", 7)
    assert "--shard-size must be that of" in refused(*wrong)
    assert "SOURCE must hold pictures, but none holds none" in refused("embed", "none", "--shards", "new")
    assert "SOURCE must be a folder of pictures or of tars, or a tar, got no" in refused(
        "embed", "no", "--shards", "new"
    )
    assert "--shards must be a folder, got the file" in refused("embed", "pics", "--shards", "pics/0.png")
    assert "--output must be left out if --shards" in refused("embed", "pics", "--shards", "new", "--output", "x")
    assert "--overwrite must be left out if --shards" in refused("embed", "pics", "--shards", "new", "--overwrite")
    assert "--retry-skipped must be left out unless --shards" in refused("embed", "pics", "--retry-skipped")
    assert "OUT must be a folder that `hystar-fast embed --shards` wrote, got pics" in refused(
        "index", "load", "new", "pics"
    )
    assert "--shards must lie outside of" in refused("embed", "pics", "--shards", "pics/new")
    assert not (here / "new" / "plan.json").exists() and not (here / "pics" / "new").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--shards must be given under torchrun" in refused("embed", "pics", "--output", "index")
    assert not (here / "index").exists() and not (here / "new" / "adapter").exists()


def test_torchrun_divides_the_cores_of_the_machine(monkeypatch):
    from hystar_fast.methods.device import cores_of_process

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(16)})
    assert cores_of_process() == 16
    for processes, cores in ((4, 4), (5, 3), (64, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert cores_of_process() == cores
