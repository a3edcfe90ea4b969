"""Settings of FGAN: the shipped ones, and errors that name the field and the nearest right value."""

from __future__ import annotations

import json

import pytest

from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.train.settings import read_settings


def test_the_defaults_are_the_papers_and_the_authors_have_their_own():
    assert FGANConfig.from_dict({}) == read_settings("fgan").own == FGANConfig()
    authors = read_settings("fgan-authors", ["fgan.alpha=0.0"]).own
    assert (authors.margin, authors.semi_margin, authors.align, authors.alpha) == (0.7, 0.3, 0.25, 0.0)
    assert (authors.aggregate, authors.image_regions_kept, authors.jacobian) == ("mean", 0.1, "diagonal")


def test_settings_survive_json():
    config = FGANConfig(aggregate="mean", image_regions_kept=0.1, teacher="prototypes", labels=866)
    assert FGANConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"image_region_kept": 4}, ValueError, "got 'image_region_kept'; did you mean image_regions_kept?"),
        ({"anchors": "images"}, ValueError, r"fgan\.anchors must be one of .*got 'images'; did you mean image?"),
        ({"image_regions": 50}, ValueError, r"fgan\.image_regions must be one of 49, 196, got 50"),
        ({"text_regions_kept": 0.3}, ValueError, r'fgan\.text_regions_kept must be a whole number with aggregate="con'),
        ({"sigma": 0}, ValueError, r"fgan\.sigma must be finite and above 0, got 0"),
        ({"alpha": -1}, ValueError, r"fgan\.alpha must be finite and at least 0, got -1"),
        ({"alpha": "0.1"}, TypeError, r"fgan\.alpha must be a number, got '0.1'"),
        ({"samples": 10.0}, ValueError, r"fgan\.samples must be a whole number of at least 1, got 10.0"),
        ({"region_norm": 1}, TypeError, r"fgan\.region_norm must be True or False, got 1"),
        ({"image_encoder": "vgg19"}, ValueError, r"fgan\.image_encoder must be one of .*'timm:<name>', got 'vgg19'"),
        ({"text_encoder": "transformers:"}, ValueError, r"fgan\.text_encoder must be one of .*got 'transformers:'"),
        ({"region_weight": 0, "label_weight": 0}, ValueError, r"fgan\.region_weight or fgan\.label_weight must be"),
    ],
)
def test_wrong_settings_are_named(values, error, message):
    with pytest.raises(error, match=message):
        FGANConfig.from_dict(values)
