"""FGAN as a method: which heads encode what, and that nothing but the heads trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hystar_fast.data.word_vectors import WordVectors
from hystar_fast.methods.fgan.encoders import WordEncoder, create_image_encoder
from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.fgan_method import FGAN
from hystar_fast.methods.step_trained import StepPlan

SMALL = {"image_encoder": "random", "width": 16, "embedding": 12, "labels": 7}
PICTURES = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)


def words():
    return WordEncoder(WordVectors({"a": 0, "dog": 1}, np.eye(2, 6, dtype=np.float32)))


def method(**options):
    settings = FGANConfig(**SMALL, **options)
    texts = None if settings.text_encoder == "pictures" else words()
    made = FGAN(settings, create_image_encoder("random", None), texts)
    made.train(False)
    return made


def test_pictures_and_texts_have_descriptors_that_the_similarity_compares():
    made = method()
    with torch.no_grad():
        pictures, texts = made.encode_image(PICTURES), made.encode_text(["a dog", "a cat"])
        assert made.encode_query(PICTURES).equal(pictures) and pictures.equal(made.encode_image(PICTURES))
    assert pictures.shape == (5, 19) and texts.shape == (2, 19)
    prepare = made.similarity.prepare
    assert made.similarity.scores(prepare(texts), prepare(pictures)).shape == (2, 5)
    assert made.similarity.name == "fgan-joint-12"


def test_sketches_are_encoded_by_heads_of_their_own():
    made = method(text_encoder="pictures")
    with torch.no_grad():
        queries, gallery = made.encode_query(PICTURES), made.encode_image(PICTURES)
    assert queries.shape == gallery.shape and not queries.equal(gallery)
    assert made.encode_text(["a dog"]) is None


def test_nothing_but_the_heads_trains():
    made = method()
    made.train(True)
    trained = made.trained_parameters()
    assert {id(p) for p in trained.values()} == {id(p) for p in made.heads.parameters()}
    made.encode_image(PICTURES).sum().backward()
    assert all(parameter.grad is None for parameter in made.images.parameters())


def test_an_encoder_of_texts_must_fit_the_settings():
    with pytest.raises(ValueError, match="texts must be None with text_encoder='pictures' alone, got 'words'"):
        FGAN(FGANConfig(**SMALL), create_image_encoder("random", None), None)


@pytest.mark.parametrize("teacher", ["network", "one-hot"])
def test_labels_of_the_network_are_its_classes(teacher):
    with pytest.raises(ValueError, match=r"fgan\.labels must be 1000, the classes of ResNet-50, for .*, got 7"):
        method(teacher=teacher, teacher_weights=None).begin(StepPlan(2, 1e-3))
