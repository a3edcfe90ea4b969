"""`eval --bits`: rows of binary codes beside those of the embeddings."""

from __future__ import annotations

import json

import pytest
import torch

from hystar_fast.data.emoji import load_emoji
from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.codes import fit_itq, measure_codes
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.results_json import to_percent
from hystar_fast.retrieval.zero_shot import number_labels
from tests.support import picture_trees as trees
from tests.support.cli import refused, run

LINE = ("eval", "--method", "pixels", "--unseen", "subgroup", "--metrics", "mAP@all", "--limit", "40")


@pytest.mark.parametrize("fit", ["train", "queries"])
def test_rows_of_codes_are_those_of_a_quantiser_of_the_training_or_the_query_pictures(tmp_path, fit):
    found = run(*LINE, "--bits", "16", "--itq-fit", fit, "--output", tmp_path)
    assert found.exit_code == 0, found.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["codes"] == {"bits": 16, "code": "itq", "fit": fit}
    rows = results["queries"]
    assert {"sketch", "sketch, 16 bits, ties against", "sketch, 16 bits, mean of 10 orders"} <= {*rows}
    assert ("transductive" in found.output) == (fit == "queries")

    test, train = load_emoji("test"), load_emoji("train").select(limit=40)
    images = test.select(categories=test.unseen_categories & {r.category for r in test.records}).select(limit=40)
    gallery = embed_records(Pixels(), images, images.gallery, [])
    queries = embed_records(Pixels(), images, images.of_style("sketch"), [])
    if fit == "train":
        vectors = [embed_records(Pixels(), train, train.of_style(style), []).vectors for style in train.styles]
        assert f"fitted on {sum(map(len, vectors))} training pictures" in found.output
        itq = fit_itq(torch.cat(vectors), 16)
        codes = itq.encode(queries.vectors), itq.encode(gallery.vectors)
    else:
        itq = fit_itq(queries.vectors, 16)
        codes = itq.encode(queries.vectors), itq.encode(gallery.vectors, mean=gallery.vectors.mean(0))
    labels = number_labels([record.category for record in (*queries.records, *gallery.records)])
    for ties, row in (("against", "ties against"), ("mean", "mean of 10 orders")):
        metric = Metric.parse("mAP@all")
        wanted = labels[: len(queries.records)], labels[len(queries.records) :]
        expected = measure_codes(*codes, *wanted, [metric], ties=ties).interval(metric)
        assert rows[f"sketch, 16 bits, {row}"]["mAP@all"]["value"] == to_percent(expected.value)


def test_signs_need_no_training_and_as_many_bits_as_numbers(tmp_path):
    assert run(*LINE, "--bits", "256", "--code", "sign", "--output", tmp_path).exit_code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    against, mean = (results["queries"][f"sketch, 256 bits, {rule}"] for rule in ("ties against", "mean of 10 orders"))
    assert against["mAP@all"]["value"] <= mean["mAP@all"]["value"]
    message = refused(*LINE, "--bits", "64", "--code", "sign", "--output", tmp_path)
    assert "bits must be 256, the width of the embeddings, for signs, got 64" in message


def test_codes_of_data_without_a_training_part_are_refused(tmp_path):
    root = trees.sketchy(tmp_path / "Sketchy", ("tx_000000000000",))
    line = ("eval", "--method", "pixels", "--data", root, "--output", tmp_path / "eval", "--bits", "2")
    assert "--itq-fit must be 'queries' for Sketchy" in refused(*line)
    assert run(*line, "--itq-fit", "queries").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--code", "lsh"), "code must be one of ('itq', 'sign'), got 'lsh'"),
        (("--itq-fit", "test"), "--itq-fit must be one of ('train', 'queries'), got 'test'"),
        (
            ("--protocol", "batch24"),
            "bits must be left out for tasks 'classify', 'instance-in-category' and 'crossmodal' and protocol",
        ),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    line = ("eval", "--method", "pixels", "--bits", "8", "--output", tmp_path)
    assert message in refused(*line, *options)
