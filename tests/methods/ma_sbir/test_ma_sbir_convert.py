"""Conversion between modalities: identities, the bias that it is, rows of an evaluation, and search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import ImageSet
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.conversion import Conversion
from hystar_fast.methods.device import on_device
from hystar_fast.methods.interface import GALLERY, QUERY, Method
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.modality_means import modality_means
from tests.support.cli import refused, run
from tests.support.picture_trees import picture

pytestmark = pytest.mark.usefixtures("narrow_tiny")
D = 12
UNIT = F.normalize(torch.randn(300, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)
M = torch.randn(3, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CONVERSION = Conversion(dict(zip(("photo", "sketch", "text"), M, strict=True)))


def test_the_own_modality_is_the_identity_and_equal_modalities_change_no_bit() -> None:
    assert CONVERSION(UNIT, "sketch", "sketch") is UNIT
    same = Conversion({"photo": M[0], "sketch": M[0].clone()})
    assert same(UNIT, "sketch", "photo") is UNIT
    printed = replace(CONVERSION, normalises=True)
    assert (printed(UNIT, "sketch", "sketch") - UNIT).abs().max() > 0.1
    with pytest.raises(ValueError, match="modality must be one of photo, sketch, text, got 'clip art'"):
        CONVERSION(UNIT, "clip art", "photo")


def test_conversion_adds_a_number_to_each_gallery_item() -> None:
    queries, gallery = UNIT[:100], UNIT[100:]
    scores = queries @ gallery.T + (M[0] - M[1]) @ gallery.T
    found = CONVERSION(queries, "sketch", "photo") @ gallery.T
    assert torch.equal(found.argsort(1), scores.argsort(1))


def drawings() -> ImageSet:
    images = load_emoji("train").select(limit=12)
    kept = {r.instance for r in images.of_style("twemoji")} & {r.instance for r in images.of_style("sketch")}
    return replace(images, records=tuple(r for r in images.records if r.style != "twemoji" and r.instance in kept))


def frozen() -> Method:
    return create_method("frozen", tiny_config(None))


def test_means_weigh_classes_equally_and_are_of_shared_classes_alone() -> None:
    images, method = drawings(), frozen()
    assert method.convert(UNIT, "sketch", "noto") is UNIT, "a method without means converts nothing"
    lost = {images.of_style("sketch")[0].path, images.of_style("noto")[5].path}
    kept = replace(images, records=tuple(r for r in images.records if r.path not in lost))
    means = modality_means(method, kept)
    assert [*means] == [*images.styles] and images.gallery_style == "noto"
    shared = set.intersection(*({r.instance for r in kept.of_style(style)} for style in kept.styles))
    assert 3 < len(shared) <= len(images.gallery) - 2
    for style, mean in means.items():
        records = [r for r in kept.of_style(style) if r.instance in shared]
        vectors = embed_records(method, kept, records, [], role=GALLERY if style == "noto" else QUERY).vectors
        torch.testing.assert_close(mean, vectors.mean(0))
    several = tuple(replace(r, instance=r.category) for r in images.records)
    grouped = modality_means(method, replace(images, records=several))["sketch"]
    found = embed_records(method, images, images.of_style("sketch"), [], role=QUERY)
    names = [record.category for record in found.records]
    common = set.intersection(*({r.category for r in images.of_style(style)} for style in images.styles))
    parts = [found.vectors[[i for i, n in enumerate(names) if n == name]].mean(0) for name in sorted(common & {*names})]
    torch.testing.assert_close(grouped, torch.stack(parts).mean(0))


@pytest.mark.parametrize("task", ["category", "instance"])
def test_original_and_converted_rows_come_from_one_embedding(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, method = drawings(), frozen()
    plain = evaluate(method, images, task=task, metrics=[Metric.parse("mAP@all")], kinds=("sketch",)).kinds
    method.style_means = modality_means(method, images)
    calls: list[int] = []
    encode = method.encode_image

    def counted(pixels: torch.Tensor, style: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(len(pixels))
        return encode(pixels, style)

    monkeypatch.setattr(method, "encode_image", counted)
    found = evaluate(
        on_device(method, torch.device("cpu")),
        images,
        task=task,
        metrics=[Metric.parse("mAP@all")],
        kinds=("sketch",),
    )
    assert sum(calls) == 2 * len(images.gallery), "sketches and pictures, once each"
    assert [result.kind for result in found.kinds] == ["sketch [original]", "sketch [mean shift]"]
    assert found.kinds[0].values == plain[0].values and [result.kind for result in plain] == ["sketch"]
    queries, gallery = (embed_records(method, images, images.of_style(s), []).vectors for s in ("sketch", "noto"))
    shift = method.style_means["noto"] - method.style_means["sketch"]
    scores = queries @ gallery.T + gallery @ shift
    if task == "instance":
        ranks = (scores >= scores.diagonal()[:, None]).sum(1) - 1
        assert torch.equal(found.kinds[1].ranks, ranks)


def test_styles_without_a_mean_have_one_row() -> None:
    images, method = drawings(), frozen()
    means = modality_means(method, images)
    method.style_means = {style: means[style] for style in ("noto", "sketch")}
    found = evaluate(method, images, kinds=("outline", "sketch"))
    assert [result.kind for result in found.kinds] == ["outline", "sketch [original]", "sketch [mean shift]"]


@pytest.mark.parametrize("name", ["frozen", "hystar", "lora"])
def test_an_adapter_keeps_the_means_of_every_method(name: str, tmp_path: Path) -> None:
    method = create_method(name, tiny_config(None), parameters=2000)
    method.style_means = {"photo": torch.randn(32), "a sketch": torch.randn(32)}
    save_method(method, tmp_path)
    loaded = load_method(tmp_path)
    assert [*loaded.style_means] == ["photo", "a sketch"], "in their order"
    assert all(torch.equal(value, method.style_means[key]) for key, value in loaded.style_means.items())
    assert loaded.name == name and "mean shift" in loaded.conversions()
    with pytest.raises(ValueError, match="by must be one of mean shift for"):
        loaded.convert(torch.randn(1, 32), "photo", "a sketch", "converted")


def tree(root: Path, styles: Sequence[str] = ("photos", "sketches")) -> Path:
    for number, style in enumerate(styles):
        for i in range(10):
            picture(root / style / f"{i}.png", seed=100 * number + i)
    return root


def test_mean_shift_eval_embed_and_search_on_the_command_line(tmp_path: Path) -> None:
    root, shifted = tree(tmp_path / "pictures"), tmp_path / "shifted"
    base = ("--backbone", "tiny", "--weights", "random", "--device", "cpu")
    done = run("mean-shift", "--data", root, "--output", shifted, *base)
    assert done.exit_code == 0, done.output
    assert "means of photos, sketches over" in done.output
    done = run("eval", "--adapter", shifted, "--data", root, "--split", "all", "--output", tmp_path / "eval")
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())["queries"]
    assert [*rows] == ["sketches [original]", "sketches [mean shift]"]
    index = tmp_path / "index"
    assert run("embed", root / "photos", "--adapter", shifted, "--output", index).exit_code == 0

    def scores(*options: object) -> dict[str, float]:
        done = run("search", "--index", index, "--query", root / "sketches" / "3.png", "--top", 10, "--json", *options)
        assert done.exit_code == 0, done.output
        return {hit["key"]: hit["score"] for hit in json.loads(done.stdout)}

    plain, moved = scores(), scores("--modality", "sketches")
    assert moved == scores("--modality", "sketches [mean shift]") and plain.keys() == moved.keys()
    assert max(abs(moved[key] - plain[key]) for key in plain) > 1e-4
    assert scores("--modality", "photos") == plain
    query = ("search", "--index", index, "--query", root / "sketches" / "3.png")
    assert "--modality must be one of photos, sketches, got 'paintings'" in refused(*query, "--modality", "paintings")
    assert "--modality must name one of mean shift in brackets" in refused(*query, "--modality", "sketches [converted]")
    assert "--modality must belong to a --query" in refused(
        "search", "--index", index, "--text", "a", "--modality", "a"
    )
    done = run("embed", root / "photos", "--output", tmp_path / "bare", "--backbone", "tiny", "--weights", "random")
    assert done.exit_code == 0, done.output
    query = ("search", "--index", tmp_path / "bare", "--query", root / "sketches" / "3.png")
    assert "whose adapter has no means of styles" in refused(*query, "--modality", "sketches")


def test_unseen_categories_take_no_part_in_the_means(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for style in ("photo", "sketch"):
        for number in range(6):
            picture(root / style / f"class_{number}" / "a.png", seed=number)
    (tmp_path / "unseen.txt").write_text("class_1\nclass_4\n")
    base = ("--data", root, "--backbone", "tiny", "--weights", "random", "--device", "cpu")
    given = ("--unseen", tmp_path / "unseen.txt")
    done = run("mean-shift", *base, *given, "--output", tmp_path / "zero")
    assert done.exit_code == 0 and "means of photo, sketch over 8 pictures" in done.output
    record = json.loads((tmp_path / "zero" / "data.json").read_text())
    assert record["unseen"] == ["class_1", "class_4"]
    asked = (
        "eval",
        "--adapter",
        tmp_path / "zero",
        "--data",
        root,
        "--task",
        "category",
        "--output",
        tmp_path / "eval",
    )
    done = run(*asked, *given, "--metrics", "mAP@all")
    assert done.exit_code == 0 and "it is not known whether" not in done.output
    again = ("mean-shift", *base[:2], "--device", "cpu", "--adapter", tmp_path / "zero", "--output", tmp_path / "more")
    assert "--unseen must be left out for an adapter with those of" in refused(*again, *given)
