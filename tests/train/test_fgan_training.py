"""FGAN in the loop that all methods share: data, log, adapter, exact resume, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hystar_fast.cli.eval_parts import choose_unseen
from hystar_fast.data.image_set import Record
from hystar_fast.data.images import load_image
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import split_classes
from hystar_fast.index.open_index import open_engine
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.fgan.fgan_method import FGAN, choose_retrieval
from hystar_fast.methods.step_trained import Batching
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.train.category_data import open_categories
from hystar_fast.train.run import Trained, run_training
from hystar_fast.train.settings import DataSettings, read_settings
from tests.support.cli import refused, run
from tests.support.fgan_cases import CLASSES, PASCAL, changes, sentences, vectors
from tests.support.killed_run import train_and_kill
from tests.support.picture_trees import damaged

TERMS = {"negative", "semi_positive", "align", "reconstruction", "divergence", "loss"}
SPREADS = {"image_saliency_spread", "other_saliency_spread"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = sentences(tmp_path_factory.mktemp("pascal") / "data")
    vectors(root / "vectors.npz")
    return root


@pytest.fixture(scope="module")
def trained(tree: Path) -> Trained:
    return run_training(read_settings("fgan", changes(tree, tree.parent / "whole")))


def check_same_run(folder: Path, expected: Path) -> None:
    for name in ("metrics.jsonl", "adapter/adapter.safetensors", "adapter/config.json"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    found, wanted = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (folder, expected))
    for key, tensor in wanted["modules"]["heads"].items():
        assert torch.equal(found["modules"]["heads"][key], tensor), key
    for number, state in wanted["optimizers"]["heads"]["state"].items():
        for key, value in state.items():
            assert torch.equal(found["optimizers"]["heads"]["state"][number][key], value), (number, key)


def test_the_log_has_every_term_and_rates_follow_the_schedule(trained: Trained) -> None:
    lines = [json.loads(line) for line in (trained.adapter.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all(set(line) == TERMS | SPREADS | {"step", "kind", "learning_rate"} for line in lines)
    assert lines[0]["learning_rate"] == {"heads": pytest.approx(1e-5)}  # the first of 10 steps of warm-up
    line = lines[0]
    assert line["loss"] == pytest.approx(
        line["negative"]
        + 0.1 * line["semi_positive"]
        + 0.5 * line["align"]
        + line["reconstruction"]
        + 1e-4 * line["divergence"],
        rel=1e-5,
    )


def test_only_the_heads_are_in_the_adapter_and_it_computes_the_same(trained: Trained) -> None:
    loaded, images = load_method(trained.adapter), torch.rand(2, 3, 64, 64)
    assert isinstance(loaded, FGAN) and isinstance(trained.method, FGAN)
    assert torch.equal(loaded.encode_image(images), trained.method.encode_image(images))
    assert torch.equal(loaded.describe_texts(["a dog"]).descriptors, trained.method.encode_text(["a dog"]))
    assert loaded.settings == trained.method.settings and loaded.settings["classes"] == 2
    assert set(loaded.fingerprints) == {"image encoder", "word vectors"}
    assert {*loaded.trained_parameters()} == {name for name, _ in loaded.heads.named_parameters()}


def test_an_adapter_needs_the_vectors_it_was_trained_with(trained: Trained, tree: Path, tmp_path: Path) -> None:
    kept = (tree / "vectors.npz").read_bytes()
    try:
        vectors(tree / "vectors.npz", (*CLASSES, "eel"))
        with pytest.raises(ValueError, match="must hold an adapter of this word vectors, got"):
            load_method(trained.adapter)
    finally:
        (tree / "vectors.npz").write_bytes(kept)


def test_a_run_in_two_parts_is_the_run_in_one(trained: Trained, tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:  # a run that ends after its checkpoint of two steps
        patch.setattr(FGAN, "step", fails_after(2, FGAN.step))
        with pytest.raises(KeyboardInterrupt):
            run_training(read_settings("fgan", changes(tree, folder)))
    run_training(read_settings("fgan", changes(tree, folder)), resume=True)
    check_same_run(folder, trained.adapter.parent)


def fails_after(steps: int, make: Any) -> Any:
    def step(method: FGAN, batch: Any, epoch: int, number: int) -> dict[str, float]:
        if number >= steps:
            raise KeyboardInterrupt
        return make(method, batch, epoch, number)

    return step


@pytest.mark.slow
def test_a_run_that_was_killed_is_the_run_in_one(tree: Path, tmp_path: Path) -> None:
    more = ("optim.steps=60", "run.checkpoint_every=5", "fgan.augment=none")
    whole = run_training(read_settings("fgan", changes(tree, tmp_path / "whole", *more)))
    folder = tmp_path / "run"
    settings = read_settings("fgan", changes(tree, folder, *more))
    train_and_kill(settings, 7)
    run_training(settings, resume=True)
    check_same_run(folder, whole.adapter.parent)


def test_pictures_that_do_not_change_are_encoded_once(tree: Path, tmp_path: Path) -> None:
    with_none = read_settings("fgan", changes(tree, tmp_path / "a", "fgan.augment=none"))
    method = run_training(with_none).method
    assert isinstance(method, FGAN)
    data = open_categories(with_none.data, with_none.own.batching)
    pairs = data.batches(method.resize, 4, 0)
    batch = pairs.load(1)
    assert batch.gallery is not None and isinstance(batch.queries, list)
    image, _ = method._stored["gallery"].rows(batch.gallery_rows)
    other, _ = method._stored["query"].rows(batch.query_rows)
    torch.testing.assert_close(image.values, method.images(batch.gallery).values, rtol=1e-5, atol=1e-5)
    fresh = method.texts(batch.queries)
    assert torch.equal(other.values, fresh.values) and torch.equal(other.padding, fresh.padding)


def test_unseen_classes_never_train_and_the_paper_s_splits_come_out(tmp_path: Path) -> None:
    root = sentences(tmp_path / "pascal", PASCAL, train=1, test=1)
    data = DataSettings(source=f"crossmodal:{root}", unseen="half:42", validation="none")
    found = open_categories(data, read_settings("fgan").own.batching)
    seen = ["bottle", "bus", "car", "cow", "horse", "motorbike", "person", "pottedplant", "train", "tvmonitor"]
    assert sorted({str(record.category) for record in found.training.records}) == seen
    assert found.notes[0].endswith("no category is held out; 10 unseen categories of half:42 take no part")
    assert {*found.record.unseen} == {*split_classes(PASCAL, 42)[1]} and found.record.division == "half:42"


def test_eval_by_each_similarity_on_unseen_classes(trained: Trained, tree: Path, tmp_path: Path) -> None:
    shared = (
        "--adapter",
        trained.adapter,
        "--data",
        f"crossmodal:{tree}",
        "--unseen",
        "half:0",
        "--task",
        "crossmodal",
    )
    found = {}
    for retrieval in ("joint", "regions", "labels"):
        line = (*shared, "--task", "crossmodal", "--support", "train", "--metrics", "mAP@all", "--retrieval", retrieval)
        for folder in ("first", "second"):
            done = run("eval", *line, "--output", tmp_path / folder)
            assert done.exit_code == 0, done.output
        results = json.loads((tmp_path / "first" / "results.json").read_text())
        assert results["retrieval"] == retrieval and set(results["queries"]) == {"I2T", "T2I", "Avg"}
        again = json.loads((tmp_path / "second" / "results.json").read_text())
        assert again["queries"] == results["queries"]
        assert results["queries"]["I2T"]["chance of mAP@all"] == pytest.approx(100 * (0.3397 + 3 / 7 * 0.6603), abs=0.1)
        assert {"low", "high"} <= set(results["queries"]["Avg"]["mAP@all"])
        found[retrieval] = results["queries"]["Avg"]["mAP@all"]["value"]
    assert found["regions"] != found["labels"]
    message = refused("eval", "--method", "pixels", "--retrieval", "joint", "--output", tmp_path / "third")
    assert "retrieval must be left out for method 'pixels', whose vectors have one part, got 'joint'" in message


def test_search_answers_by_the_joint_similarity(trained: Trained, tree: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    done = run("embed", tree / "image" / "test", "--adapter", trained.adapter, "--output", index)
    assert done.exit_code == 0, done.output
    done = run("search", "--index", index, "--text", "a dog", "--top", 8, "--json")
    assert done.exit_code == 0, done.output
    found = [hit["id"] for hit in json.loads(done.stdout)]
    method = load_method(trained.adapter)
    files = sorted((tree / "image" / "test").rglob("*.png"))
    pictures = torch.stack([method.resize(load_image(file)) for file in files])
    prepared = [
        method.similarity.prepare(rows) for rows in (method.encode_text(["a dog"]), method.encode_image(pictures))
    ]
    order = method.similarity.scores(*prepared)[0].argsort(descending=True).tolist()
    assert found == [str(files[row].relative_to(tree / "image" / "test")) for row in order]
    with open_engine(index) as engine:
        view = engine.generation().views[0]
        with pytest.raises(
            ValueError, match=r"similarity must be 'fgan-joint-6', with which .* was made, got 'cosine'"
        ):
            engine.search(view, torch.zeros(1, 13), 1)


def test_a_text_run_selects_by_both_directions(tree: Path, tmp_path: Path) -> None:
    found = run_training(
        read_settings("fgan", changes(tree, tmp_path, "data.validation=0.3", "data.unseen=", "optim.steps=1"))
    )
    (line,) = [
        entry
        for entry in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        if entry["kind"] == "validation"
    ]
    assert set(line["mAP@all"]) == {"I2T", "T2I"} and found.progress.best == (line["score"], 1)
    assert line["score"] == pytest.approx(sum(line["mAP@all"].values()) / 2)


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    root = sentences(tmp_path / "data")
    vectors(root / "vectors.npz")
    for part in ("ant", "bee", "cat", "dog"):
        damaged(root / "image" / "train" / part / "train0.png")
    for number, augment in enumerate(("none", "crop")):
        folder = tmp_path / str(number)
        found = run_training(read_settings("fgan", changes(root, folder, f"fgan.augment={augment}", "optim.steps=6")))
        names = {Path(path).name for path in found.progress.skipped}
        assert names == {"train0.png"} and len(found.progress.losses) == 6


def test_sketches_train_with_their_own_picture_or_any_of_their_category(tmp_path: Path) -> None:
    small = [
        "fgan.width=8", "fgan.embedding=6", "fgan.samples=20", "fgan.image_regions_kept=3", "data.limit=20",
        "optim.steps=2", "optim.batch_size=8", "fgan.text_regions_kept=3", "run.device=cpu",
    ]  # fmt: skip
    drawn = {}
    for by in ("instance", "category"):
        folder = tmp_path / by
        settings = read_settings("fgan-emoji-sketch", [*small, f"fgan.pairs={by}", f"run.output={folder}"])
        found = run_training(settings)
        assert found.method.settings["labels"] == 20  # the flat drawings of the concepts that train
        data = open_categories(settings.data, settings.own.batching)
        assert {record.style for record in data.training.records} == {"noto", "sketch"}
        pairs = data.batches(found.method.resize, 8, 0)
        drawn[by] = [
            (pairs.queries[a], pairs.gallery[b]) for step in (0, 3) for a, b in zip(*pairs.draw(step), strict=True)
        ]
        assert all(query.category == answer.category for query, answer in drawn[by])
    assert all(query.instance == answer.instance for query, answer in drawn["instance"])
    assert any(query.path.partition("/")[2] != answer.path.partition("/")[2] for query, answer in drawn["category"])


def test_a_prototype_that_cannot_be_read_is_left_out_and_listed() -> None:
    settings = read_settings("fgan-emoji", ["data.limit=6"])
    data = open_categories(settings.data, settings.own.batching)
    resize = create_method("frozen", tiny_config()).resize
    skipped: dict[str, str] = {}
    whole = data.prototypes(resize, skipped)
    assert len(whole) == 6 and skipped == {}
    trained = [record.instance for record in data.training.gallery]
    lost = next(record.path for record in data.drawn if record.instance == trained[2])
    read = data.training.read

    def damaged_reader(record: Record) -> torch.Tensor:
        if record.path == lost:
            raise ValueError("image file is truncated")
        return read(record)

    left = replace(data, training=replace(data.training, read=damaged_reader)).prototypes(resize, skipped)
    assert [*skipped] == [lost] and "truncated" in skipped[lost]
    assert len(left) == 5 and all((picture == whole).flatten(1).all(1).any() for picture in left)


ROWS = (  # the options of the losses are tested with the heads
    *("label_weight=0", "contrast=classify", "teacher=random", "teacher=one-hot", "teacher=class-words"),
    *("teacher=names", "jacobian=diagonal", "aggregate=mean", "perturb_at_evaluation=true"),
)


@pytest.mark.slow
def test_what_decides_labels_and_choice_trains(tmp_path: Path) -> None:
    small = [
        "fgan.width=8",
        "fgan.embedding=6",
        "fgan.samples=10",
        "data.limit=12",
        "optim.steps=1",
        "optim.batch_size=6",
    ]
    losses = {}
    for row in ROWS:
        folder = tmp_path / re.sub(r"\W", "_", row)
        found = run_training(read_settings("fgan-emoji", [*small, f"fgan.{row}", f"run.output={folder}"]))
        losses[row] = found.progress.losses[0]
        if row in ("contrast=classify", "teacher=class-words", "aggregate=mean"):  # heads of other shapes
            images = torch.full((1, 3, 64, 64), 0.5)
            assert torch.equal(load_method(found.adapter).encode_image(images), found.method.encode_image(images)), row
    assert len({round(loss, 4) for loss in losses.values()}) >= len(ROWS) - 2  # two do not change the first loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fgan.margn=1", "unknown key fgan.margn; did you mean fgan.margin?"),
        ("fgan.teacher=prototype", "fgan.teacher must be one of"),
        ("fgan.image_regions_kept=0.1", 'fgan.image_regions_kept must be a whole number with aggregate="concat"'),
        ("loss.gamma=3", "loss.gamma must be left out for model.method = 'fgan', got 3.0"),
    ],
)
def test_errors_of_the_section(change: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        read_settings("fgan", [change])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "fgan.text_vectors=",
            "fgan.text_vectors must be a file of word vectors for fgan.text_encoder = 'words', got ''",
        ),
        ("optim.clip_norm=1", "clip_norm must be 0.0 for method 'fgan', which has steps of its own, got 1.0"),
        (
            "optim.chunk_size=2",
            "optim.chunk_size must be 0 for method 'fgan', whose contrast is of the whole batch, got 2",
        ),
        ('data.styles=["sketch"]', "data.styles must be ['text'], as fgan.text_encoder reads texts, got ['sketch']"),
        ("fgan.teacher=names", "fgan.image_encoder must be 'backbone' for fgan.teacher = 'names', got another"),
    ],
)
def test_what_a_run_cannot_do_is_refused(tree: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run_training(read_settings("fgan", changes(tree, tmp_path, change)))


def test_unseen_is_that_of_training(trained: Trained, tree: Path) -> None:
    images = open_images(f"crossmodal:{tree}", "test")
    part = choose_unseen(images, f"crossmodal:{tree}", None, trained.adapter, "half:0", None)
    assert {record.category for record in part.images.records} == {*split_classes(CLASSES, 0)[1]}
    with pytest.raises(ValueError, match="retrieval must be left out for method 'pixels'"):
        choose_retrieval(create_method("pixels", tiny_config()), "joint")


def test_pictures_with_texts_are_counted_in_what_a_run_says_that_it_has_read(tree: Path) -> None:
    data = DataSettings(source=f"crossmodal:{tree}", validation="none")
    texts = open_categories(data, Batching(of="pairs", texts=True))
    captioned = [record for record in texts.training.gallery if record.captions]
    kinds = len({record.category for record in captioned})
    assert captioned and texts.notes[0].startswith(f"read {len(captioned)} pictures with texts of {kinds} categories; ")
