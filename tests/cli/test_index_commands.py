"""``hystar-fast index`` as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hystar_fast.index.local import LocalEngine
from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.suite import create_method, tiny_config
from tests.support import picture_trees as trees
from tests.support.cli import refused, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pictures, two adapters and an index of the first with both views."""
    root = tmp_path_factory.mktemp("made")
    for i in range(8):
        trees.picture(root / "pics" / f"{'sub/' * (i % 2)}{i}.png", seed=i)
    for seed in (0, 5):
        save_method(create_method("hystar", tiny_config(None), seed=seed), root / f"adapter-{seed}")
    lines = [json.dumps({"path": f"{i}.png", "caption": f"number {i}", "year": 2000 + i}) for i in (0, 2)]
    (root / "about.jsonl").write_text("\n".join(lines))
    assert run("index", "create", root / "x", "--adapter", root / "adapter-0", "--with-frozen").exit_code == 0
    result = run("index", "add", root / "x", root / "pics", "--attributes", root / "about.jsonl")
    assert "8 added" in result.output and "holds 8 pictures" in result.output, result.output
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of `made`."""
    copy = Path(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.chdir(copy)
    settings_of(copy / "x", copy / "pics")
    return copy


def settings_of(index: Path, pictures: Path) -> None:
    with LocalEngine(index) as engine:
        settings = engine.settings()
        settings["sources"]["pics"]["folder"] = str(pictures)
        engine.put_settings(settings)


def output(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_sync_says_what_it_found_and_did(here):
    trees.picture(here / "pics" / "new.png", seed=30)
    (here / "pics" / "0.png").rename(here / "pics" / "zero.png")
    (here / "pics" / "2.png").unlink()
    (here / "pics" / "bad.png").write_text("no picture")
    shown = output("index", "sync", "x", "--dry-run")
    assert "2 new, 0 changed, 1 moved or copied, 6 unchanged, 2 gone, 0 skipped" in shown
    shown = output("index", "sync", "x")
    assert "1 added, 6 unchanged, 1 moved, 1 removed, 1 skipped" in shown
    assert "skipped bad.png: path must be an image file" in shown and "x/skipped.jsonl" in shown
    counts = json.loads(run("index", "sync", "x", "--json").stdout)
    assert counts["unchanged"] == counts["pictures"] == 8 and counts["skipped"] == 1
    hits = json.loads(run("index", "search", "x", "--query", "pics/zero.png", "--json").stdout)
    assert hits[0]["id"] == "zero.png" and hits[0]["caption"] == "number 0"


def test_attributes_of_no_picture_are_named(here):
    lines = [{"path": "4.png", "year": 2030}, {"path": "pics/4.png", "year": 2031}, {"path": "nothing.png"}]
    (here / "more.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shown = output("index", "add", "x", "pics", "--attributes", "more.jsonl")
    assert "2 of 3 paths are of none, such as 'nothing.png': a path begins below the folder of its source" in shown
    hits = json.loads(run("index", "search", "x", "--text", "a heart", "--where", "year=2030", "--json").stdout)
    assert [hit["id"] for hit in hits] == ["4.png"]


def test_search_takes_pictures_words_both_styles_and_filters(here):
    shown = output("index", "search", "x", "--query", "pics/4.png", "--text", "a heart", "--style", "pics/6.png")
    assert 'pics/4.png and "a heart": first 5 of 8' in shown
    shown = output("index", "search", "x", "--text", "a heart", "--where", "year in (2000, 2002)")
    assert '"a heart": first 2 of 2' in shown and "number 2" in shown
    one, two = json.loads(
        run("index", "search", "x", "--query", "pics/4.png", "--query", "pics/6.png", "--top", 1, "--json").stdout
    )
    assert (one["answers"][0]["id"], two["answers"][0]["id"]) == ("4.png", "6.png")
    assert two["query"] == "pics/6.png"
    frozen = json.loads(run("index", "search", "x", "--query", "pics/4.png", "--view", "frozen", "--json").stdout)
    assert frozen[0]["id"] == "4.png"
    assert "--where must be field=value" in refused("index", "search", "x", "--text", "a", "--where", "year")
    assert "--view must be one of adapted, frozen" in refused("index", "search", "x", "--text", "a", "--view", "b")
    assert "--query or --text must be given, got neither" in refused("index", "search", "x")
    assert "--text must hold a word" in refused("index", "search", "x", "--text", " ")
    message = refused("index", "search", "x", "--text", "a", "--combine", "sum")
    assert "--combine must be one of" in message
    message = refused("index", "search", "x", "--query", "pics/4.png", "--query", "pics/6.png", "--picture", "a.png")
    assert "--picture must be left out for several queries" in message


def test_another_model_is_a_generation_beside_the_live_one_until_it_is_switched(here):
    before = json.loads(run("index", "search", "x", "--query", "pics/4.png", "--json").stdout)
    shown = output("index", "reembed", "x", "--adapter", "adapter-5")
    assert "embedded 8 pictures for generation 2, 0 are missing" in shown
    assert "embedded 0 pictures" in output("index", "reembed", "x", "--adapter", "adapter-5")
    assert json.loads(run("index", "search", "x", "--query", "pics/4.png", "--json").stdout) == before
    trees.picture(here / "pics" / "new.png", seed=30)
    output("index", "sync", "x")
    message = refused("index", "switch", "x")
    assert "generation must have the vectors of all pictures, got 2, where 1 are missing" in message.lower()
    output("index", "reembed", "x", "--adapter", "adapter-5")
    assert "x is searched in generation 2" in output("index", "switch", "x")
    after = json.loads(run("index", "search", "x", "--query", "pics/4.png", "--json").stdout)
    assert after[0]["id"] == "4.png" and [hit["score"] for hit in after] != [hit["score"] for hit in before]
    assert "is live" in refused("index", "drop", "x", 2).replace("must not be the live one", "is live")
    assert (here / "x/adapter").is_dir() and (here / "x/adapter-2").is_dir()
    assert "removed generation 1" in output("index", "drop", "x", 1)
    assert not (here / "x/adapter").exists()
    assert "x is whole: 9 pictures" in output("index", "verify", "x")
    message = refused("index", "reembed", "x", "--adapter", "adapter-5")
    assert "--adapter must be another than that of the index" in message


def test_info_shows_sources_generations_and_stamps(here):
    shown = output("index", "info", "x")
    assert f"source pics: {here}/pics" in shown and "1 (live)" in shown and "hystar" in shown and "frozen" in shown
    found = json.loads(run("index", "info", "x", "--json").stdout)
    assert found["pictures"] == 8 and found["generations"][0]["views"]["adapted"]["method"] == "hystar"


def test_remove_takes_ids_or_a_filter_and_asks_above_a_hundred(here, monkeypatch):
    from hystar_fast.cli import index_work

    shown = " ".join(output("index", "remove", "x", "--id", "0.png").split())
    assert "removed 1 pictures; x holds 7" in shown
    assert "the files of 1 of them are still in their folders, and `hystar-fast index sync` adds these again" in shown
    assert "--id must be in the index, got '0.png'" in refused("index", "remove", "x", "--id", "0.png")
    assert "exactly one of --id and --where" in refused("index", "remove", "x")
    monkeypatch.setattr(index_work, "_ASKS_ABOVE", 2)
    message = refused("index", "remove", "x", "--where", "path^=sub/")
    assert "--yes must be given to remove 4 pictures without being asked" in message
    assert "removed 4 pictures; x holds 3" in output("index", "remove", "x", "--where", "path^=sub/", "--yes")
    assert (here / "pics/0.png").exists()


def test_a_moved_folder_is_named_and_nothing_is_embedded_again(here):
    (here / "pics").rename(here / "moved")
    assert "mount it, or say where it is now with" in refused("index", "sync", "x")
    assert f"pics is {here}/moved now" in output("index", "move", "x", here / "pics", "moved")
    assert "8 unchanged" in output("index", "sync", "x")
    assert "NEW must be a folder" in refused("index", "move", "x", "pics", "nothing")
    assert "OLD must be the folder of a source" in refused("index", "move", "x", "nothing", "moved")


def test_a_damaged_index_is_named_verified_and_repaired(here):
    with LocalEngine(here / "x") as engine:
        engine._file.connection.execute("UPDATE vectors_1 SET vectors = substr(vectors, 1, 100) WHERE row = 2")
    message = refused("index", "search", "x", "--text", "a")
    assert "x/index.db is damaged" in message and "hystar-fast index verify x" in message
    result = run("index", "verify", "x")
    assert result.exit_code == 1 and "the vectors of " in result.output and "--repair" in result.output
    shown = output("index", "verify", "x", "--repair")
    assert "x holds 7 pictures; next: hystar-fast index sync x" in shown
    assert "1 added, 7 unchanged" in output("index", "sync", "x")


def test_wrong_arguments_are_refused_in_one_line(here):
    assert "NAME must be new, but x holds an index" in refused("index", "create", "x", "--adapter", "adapter-0")
    assert "--ids must be path or content" in refused("index", "create", "y", "--ids", "name")
    assert "NAME must be a folder that" in refused("index", "sync", "nothing")
    assert "SOURCE must be a folder, a picture or a list" in refused("index", "add", "x", "nothing")
    (here / "bad.jsonl").write_text('{"caption": 1}\n')
    message = refused("index", "add", "x", "pics", "--attributes", "bad.jsonl")
    assert '--attributes must hold a JSON object with a "path" on each line' in message
    message = refused("index", "add", "x", "pics", "--device", "tpu")
    assert "--device must be" in message


def test_a_full_disk_is_one_line(here, monkeypatch):
    trees.picture(here / "pics" / "new.png", seed=30)
    from hystar_fast.index.engine import EngineFull

    def full(*arguments: object) -> None:
        raise EngineFull("No space left on device for x/index.db; it holds what it held before")

    monkeypatch.setattr(LocalEngine, "upsert", full)
    assert "the disk is full (No space left on device for x/index.db" in refused("index", "sync", "x")
