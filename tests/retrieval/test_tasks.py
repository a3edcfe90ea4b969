"""Evaluation of data sets: encoders whose ranks are known, on small synthetic trees, and the eval command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.data.open import open_images
from hystar_fast.methods.interface import Method
from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.batch24 import CUTOFFS, LABEL
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.evaluate import Evaluation, evaluate
from tests.support import picture_trees as trees
from tests.support.cli import refused, run


class LookupText(Pixels):
    """Pixels for images, and a table of embeddings for texts."""

    name = "lookup"

    def __init__(self, meanings: dict[str, Tensor]) -> None:
        super().__init__(side=8)
        self.meanings = meanings

    @classmethod
    def of(cls, images: ImageSet, key: str) -> LookupText:
        """Embed each caption, or class sentence, as the first gallery picture that has it."""
        meanings: dict[str, Tensor] = {}
        for record in images.of_style(images.gallery_style):
            pixels = torch.frombuffer(bytearray(images.read(record).resize((64, 64)).tobytes()), dtype=torch.uint8)
            vector = Pixels(side=8).encode_image(pixels.view(1, 64, 64, 3).permute(0, 3, 1, 2) / 255)[0]
            words = record.caption if key == "caption" else f"a photo of a {str(record.category).replace('_', ' ')}."
            meanings.setdefault(str(words), vector)
        return cls(meanings)

    def encode_text(self, texts) -> Tensor:
        return F.normalize(torch.stack([self.meanings[text] for text in texts]), dim=-1)


def value(report: Evaluation, queries: str, metric: str) -> float:
    row = next(row for row in report.kinds if row.kind == queries)
    found = row.values[metric]
    assert found is not None
    assert found.low <= found.value <= found.high
    return found.value


@pytest.fixture
def dsr(tmp_path: Path) -> ImageSet:
    return open_images(str(trees.dsr(tmp_path, n=6)))


def test_queries_are_styles_styles_with_text_and_text_alone(dsr):
    report = evaluate(LookupText.of(dsr, "caption"), dsr, metrics=[Metric.parse("R@1"), Metric.parse("mAP@all")])
    styles = ["art", "sketch", "mosaic"]
    expected = [name for s in styles for name in (s, f"{s}+text, max", f"{s}+text, softmax")] + ["text"]
    assert [row.kind for row in report.kinds] == expected
    assert (report.task, report.gallery) == ("instance", ("images", 6))
    for row in report.kinds:
        assert (row.n, row.unanswerable) == (6, 0)
        assert value(report, row.kind, "R@1") == value(report, row.kind, "mAP@all") == 1.0


def test_every_caption_of_a_picture_is_a_query_for_it(tmp_path):
    """Five captions each, of which the third describes the next picture: R@1 is 4 of 5 over 5 n queries."""
    names = [f"{i}.png" for i in range(6)]
    for i, name in enumerate(names):
        trees.picture(tmp_path / name, seed=i)
    lines = [f"{name}#{k}\t{k} of {name}" for name in names for k in range(5)]
    (tmp_path / "c.token").write_text("\n".join(lines))
    images = open_images(f"captions:{tmp_path / 'c.token'}")
    first = LookupText.of(images, "caption").meanings
    shown = {f"{k} of {name}": f"0 of {names[(i + (k == 2)) % 6]}" for i, name in enumerate(names) for k in range(5)}
    report = evaluate(LookupText({text: first[picture] for text, picture in shown.items()}), images)
    assert [(row.kind, row.n) for row in report.kinds] == [("text", 30)] and report.gallery == ("photo", 6)
    assert value(report, "text", "R@1") == pytest.approx(0.8)
    assert [(record.path, record.captions) for record in report.kinds[0].queries[:6]] == [
        *(("0.png", (f"{k} of 0.png",)) for k in range(5)),
        ("1.png", ("0 of 1.png",)),
    ]
    assert len(set(report.ranks.ids.by_kind["text"].tolist())) == 30
    with pytest.raises(ValueError, match=r"one caption a picture for protocol 'batch24', got 5 for 0\.png"):
        evaluate(LookupText(first), images, protocol="batch24")
    with pytest.raises(ValueError, match="method must take text for c, whose queries are captions, got 'pixels'"):
        evaluate(Pixels(side=8), images)


def test_a_picture_with_several_captions_is_a_joint_query_with_each(tmp_path):
    for i, name in enumerate(("p/a", "p/b", "s/a", "s/b")):
        trees.picture(tmp_path / f"{name}.png", seed=i % 2)
    rows = "s/a.png,p/a.png,one\ns/a.png,p/a.png,two\ns/b.png,p/b.png,three\n"
    (tmp_path / "pairs.csv").write_text("query,target,caption\n" + rows)
    images = open_images(f"pairs:{tmp_path / 'pairs.csv'}")
    pixels = LookupText.of(images, "caption").meanings
    report = evaluate(LookupText({**pixels, "two": pixels["one"]}), images)
    counted = {row.kind: (row.n, value(report, row.kind, "R@1")) for row in report.kinds}
    assert counted == {"query": (2, 1), "query+text, max": (3, 1), "query+text, softmax": (3, 1), "text": (3, 1)}
    ids = {kind: found.tolist() for kind, found in report.ranks.ids.by_kind.items()}
    assert ids["text"] == ids["query+text, max"] and ids["query"] == [ids["text"][0], ids["text"][2]]


def test_embeddings_that_are_not_finite_are_refused(dsr):
    class Broken(LookupText):
        def encode_text(self, texts) -> Tensor:
            return super().encode_text(texts) * torch.tensor([[1.0]] * (len(texts) - 1) + [[torch.nan]])

    with pytest.raises(FloatingPointError, match="of 'lookup' must be finite, got NaN or inf for picture number 5"):
        evaluate(Broken(LookupText.of(dsr, "caption").meanings), dsr)
    method = Pixels(side=8)
    encode = method.encode_image
    method.encode_image = lambda images, style=None: encode(images) * torch.inf  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=r"of 'pixels' must be finite, got NaN or inf for images/n00/0\.png"):
        evaluate(method, dsr)


class UninformativePictures(Method):
    """Query pictures are equally similar to all items; texts have low scores, highest for the relevant item."""

    name = "uninformative"

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        number = images[:, 0, 0, 0].long() // 10
        in_gallery = images[:, 1, 0, 0] > 127
        return self._vectors(3.0, number, in_gallery[:, None].float())

    def encode_text(self, texts) -> Tensor:
        return self._vectors(-1.0, torch.tensor([int(text) for text in texts]), torch.ones(len(texts), 1))

    def _vectors(self, common: float, number: Tensor, own: Tensor) -> Tensor:
        return F.normalize(torch.cat([torch.full_like(own, common), own * F.one_hot(number, 6)], 1), dim=-1)


@pytest.mark.parametrize("protocol", ["full", "batch24"])
def test_the_two_joint_rows_use_the_two_rules(protocol):
    """The larger similarity is the picture's, which ranks nothing; the larger softmax is the text's."""
    count = {"full": 6, "batch24": 24}[protocol]
    records = [
        Record(f"{i}", style, None, f"{i}", (f"{i % 6}",)) for style in ("photo", "drawing") for i in range(count)
    ]

    def read(record: Record) -> Image.Image:
        return Image.new("RGB", (4, 4), (10 * (int(record.path) % 6), 255 * (record.style == "photo"), 0))

    report = evaluate(
        UninformativePictures(), ImageSet("uninformative", "photo", tuple(records), read), protocol=protocol
    )
    metric = next(iter(report.kinds[0].values))
    assert value(report, "drawing", metric) == value(report, "drawing+text, max", metric) == 0.0
    # Of 24 pictures, four are alike in each of six ways, and ties count against the query.
    assert value(report, "drawing+text, softmax", metric) == (1.0 if protocol == "full" else 0.0)
    last = [*report.kinds[0].values][-1]
    assert value(report, "drawing+text, softmax", last) == 1.0
    assert value(report, "drawing+text, max", last) == 0.0


def test_without_text_only_pictures_are_queries(dsr):
    report = evaluate(Pixels(), dsr)
    assert [row.kind for row in report.kinds] == ["art", "sketch", "mosaic"]
    assert report.protocol == "full: ranked over the whole gallery"


def test_damaged_pictures_are_counted_and_their_queries_are_excluded(tmp_path):
    trees.dsr(tmp_path, n=6, styles=("sketch",))
    trees.damaged(tmp_path / "images/n01/3.png")
    trees.damaged(tmp_path / "sketch/n00/4.png")
    (tmp_path / "text/n00/0.txt").unlink()
    report = evaluate(Pixels(), open_images(str(tmp_path)))
    assert [entry.path for entry in report.skipped] == ["text/n00/0.txt", "images/n01/3.png", "sketch/n00/4.png"]
    row = report.kinds[0]
    assert (report.gallery[1], row.n, row.unanswerable) == (5, 4, 1)
    assert value(report, "sketch", "R@1") == 1.0


def test_every_picture_of_the_category_is_relevant(tmp_path):
    images = open_images(str(trees.domainnet(tmp_path)))
    metrics = [Metric.parse(name) for name in ("R@1", "mAP@all", "Prec@1:k")]
    report = evaluate(Pixels(), images, metrics=metrics)
    assert report.task == "category"
    assert [(row.kind, row.n) for row in report.kinds] == [("clipart", 4), ("sketch", 4)]
    assert value(report, "clipart", "R@1") == 1.0
    assert value(report, "sketch", "Prec@1:k") == 1.0
    assert value(report, "sketch", "mAP@all") > 0.5


def test_every_sketch_of_sketchy_finds_its_photo(tmp_path):
    report = evaluate(Pixels(), open_images(str(trees.sketchy(tmp_path))))
    assert (report.gallery, report.kinds[0].n, report.kinds[0].unanswerable) == (("photo", 4), 4, 1)
    assert value(report, "sketch", "R@1") == 1.0


def test_every_copy_of_an_instance_in_the_gallery_is_relevant(tmp_path):
    for i in range(3):
        for place in ("photo/first", "photo/second", "sketch"):
            trees.picture(tmp_path / place / "cup" / f"{i}.png", seed=i)
    images = open_images(str(tmp_path))
    report = evaluate(Pixels(), images, metrics=[Metric.parse("R@1"), Metric.parse("mAP@all")])
    assert report.gallery == ("photo", 6)
    assert value(report, "sketch", "R@1") == value(report, "sketch", "mAP@all") == 1.0
    with pytest.raises(
        ValueError, match=r"one gallery picture an instance .*'batch24', got photo/first/cup/0.png and photo/s"
    ):
        evaluate(Pixels(), images, protocol="batch24")


def test_classification_has_the_class_names_as_gallery(tmp_path):
    images = open_images(str(trees.domainnet(tmp_path, n=1)))
    report = evaluate(LookupText.of(images, "category"), images, task="classify", metrics=[Metric.parse("R@1")])
    assert report.gallery == ("class names", 2)
    assert [(row.kind, row.n) for row in report.kinds] == [("real", 2), ("clipart", 2), ("sketch", 2)]
    assert value(report, "sketch", "R@1") == 1.0


def test_batch24_has_its_own_metric_names_and_label(tmp_path):
    images = open_images(str(trees.dsr(tmp_path, n=26, styles=("sketch",))))
    report = evaluate(LookupText.of(images, "caption"), images, protocol="batch24")
    assert report.protocol == LABEL
    assert report.gallery == ("images", 24)
    for row in report.kinds:
        assert list(row.values) == list(CUTOFFS)
        assert row.n == 24
        assert value(report, row.kind, "R@1 of 24") == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "detection"}, "task must be one of"),
        ({"protocol": "batch48"}, r"protocol must be one of \('full', 'batch24'\), got 'batch48'"),
        ({"task": "category", "protocol": "batch24"}, "task must be 'instance' for protocol 'batch24', got 'category'"),
        ({"task": "classify"}, "method must take text"),
        ({"protocol": "batch24"}, "at least 24 for the batch24 protocol, got 6"),
        (
            {"protocol": "batch24", "metrics": [Metric.parse("mAP@all")]},
            r"metrics must be left out .* its own, R@1 of 24 and R@5 of 24 \(4 places\), got mAP@all",
        ),
    ],
)
def test_evaluations_that_are_not_defined_are_rejected(dsr, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Pixels(), dsr, **arguments)


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("instance", Record("a", "photo", "cat"), "got few, which has categories, for task 'category' or 'classify'"),
        ("category", Record("a", "photo", None, "a"), "got few, which has instances, for task 'instance'"),
        ("classify", Record("a", "photo", None, "a"), "got few, which has instances, for task 'instance'"),
        (None, Record("a", "photo"), "for task 'category', got few, which has no instances either"),
    ],
)
def test_a_task_the_data_cannot_have_is_rejected_with_one_that_fits(task, record, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Pixels(), ImageSet("few", "photo", (record,), lambda record: Image.new("RGB", (4, 4))), task=task)


def test_an_unreadable_gallery_is_rejected(tmp_path):
    trees.dsr(tmp_path, n=1)
    trees.damaged(tmp_path / "images/n00/0.png")
    with pytest.raises(ValueError, match="images must have a readable picture in gallery 'images', got none in DSR"):
        evaluate(Pixels(), open_images(str(tmp_path)))


def test_the_command_evaluates_a_folder_and_reports_skipped_pictures(tmp_path):
    trees.dsr(tmp_path / "DSR", n=3, styles=("sketch",))
    trees.damaged(tmp_path / "DSR/sketch/n01/1.png")
    result = run("eval", "--method", "pixels", "--data", tmp_path / "DSR", "--output", tmp_path / "out",
                 "--metrics", "R@1, mAP@2:capped")  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in (f"pixels on DSR ({tmp_path / 'DSR'}), task instance; gallery images, n=3",
                  "full: ranked over the whole gallery", "sketch",
                  "100.0 [100.0, 100.0]", "skipped 1 of 6 pictures, the first: sketch/n01/1.png"):  # fmt: skip
        assert words in " ".join(result.output.split())
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["queries"]["sketch"]["mAP@2:capped"] == {"value": 100.0, "low": 100.0, "high": 100.0}
    assert found["queries"]["sketch"]["n"] == 2
    assert (found["skipped"]["n"], found["skipped"]["of"]) == (1, 6)
    assert found["protocol"] == "full: ranked over the whole gallery"


def test_the_command_reports_missing_splits_and_the_backbone(tmp_path):
    trees.tu_berlin(tmp_path / "in")
    result = run("eval", "--method", "frozen", "--weights", "random", "--data", tmp_path / "in", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.output.split())
    assert (
        "frozen (tiny) on" in shown
        and "all 4 gallery pictures of in; --split test for the part that train holds out" in shown
    )
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["data"]["split"] == "all"
    assert found["config"]["pretrained"] is None and found["adapter"] is None
    assert found["network"] == "tiny" and found["settings"] == {}
    result = run("eval", "--method", "pixels", "--limit", 3, "--output", tmp_path)
    assert "holds out" not in result.output and "kept the results of an earlier evaluation" in result.output
    assert json.loads((tmp_path / "results.json").read_text())["data"]["split"] == "test"


def test_the_command_prints_the_label_of_the_published_protocol(tmp_path):
    result = run("eval", "--method", "pixels", "--protocol", "batch24", "--split", "val", "--limit", 40,
                 "--output", tmp_path)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert LABEL in " ".join(result.output.split())
    assert "R@5 of 24 (4 places)" in " ".join(result.output.split())
    assert json.loads((tmp_path / "results.json").read_text())["protocol"] == LABEL


def test_the_command_keeps_the_categories_of_a_file(tmp_path):
    trees.domainnet(tmp_path / "data")
    (tmp_path / "seen.txt").write_text("ant\n\n")
    result = run("eval", "--method", "hog", "--data", f"domainnet:{tmp_path / 'data'}", "--output", tmp_path / "out",
                 "--categories", tmp_path / "seen.txt")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out/results.json").read_text())["gallery"] == {"what": "real", "n": 2}


def test_the_command_rejects_bad_arguments(tmp_path):
    trees.domainnet(tmp_path / "domainnet")
    message = refused("eval", "--method", "pixels", "--task", "instance", "--data", f"domainnet:{tmp_path}/domainnet")
    assert (
        "must have instances for task 'instance', got DomainNet, which has categories, for task 'category'" in message
    )
    assert "must be a method without training" in refused("eval", "--method", "lora")
    assert "metrics must be left out with protocol 'batch24'" in refused(
        "eval", "--method", "pixels", "--protocol", "batch24", "--metrics", "R@10"
    )
    assert "must name its definition" in refused("eval", "--method", "pixels", "--metrics", "R@1,mAP@200")
    assert "'/nowhere' does not exist" in refused("eval", "--method", "pixels", "--data", "dsr:/nowhere")
    assert "one category a line" in refused("eval", "--method", "pixels", "--categories", tmp_path)
    (tmp_path / "file").write_text("")
    assert "output must be a folder" in refused("eval", "--method", "pixels", "--output", tmp_path / "file")
