"""Frozen encoders of FGAN: tokens of every kind of backbone, of texts, and that nothing in them moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from hystar_fast.data.word_vectors import WordVectors
from hystar_fast.methods.fgan.encoders import (
    LanguageModelEncoder,
    TextTowerEncoder,
    TowerEncoder,
    WordEncoder,
    create_image_encoder,
    load_language_model,
)
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.config import HystarConfig
from tests.support.small_backbones import ALL_WRITERS, write_tokenizer

PICTURES = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)


def tiny():
    return create_backbone(HystarConfig(backbone="tiny", pretrained=None, style="clip", blocks=None))


def vectors():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    return WordVectors({"a": 0, "red": 1, "dog": 2, "runs": 3}, table)


@pytest.mark.parametrize("kind", ALL_WRITERS)
def test_image_tokens_of_a_backbone_of_any_library(tmp_path, kind):
    small = ALL_WRITERS[kind](tmp_path)
    backbone = create_backbone(
        HystarConfig(backbone=small.backbone, pretrained=small.pretrained, style="clip", blocks=None)
    )
    encoder = TowerEncoder(backbone)
    height, width = backbone.image_size
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    tokens = encoder(images)
    has_class_token, leading = backbone.leading_tokens
    last = backbone.prefix(encoder.normalise(images), backbone.depth)
    assert tokens.leading == has_class_token and tokens.padding is None
    assert tokens.values.shape == (2, last.shape[1] - leading + has_class_token, encoder.width)
    expected = nn.functional.layer_norm(last[:, leading:], (encoder.width,))
    torch.testing.assert_close(tokens.values[:, tokens.leading :], expected)
    assert not tokens.values.requires_grad


def test_the_tiny_backbone_has_64_patches_of_192():
    tokens = create_image_encoder("backbone", None, backbone=tiny())(PICTURES)
    assert tokens.values.shape == (3, 65, 192) and tokens.leading == 1


def test_the_random_encoder_is_the_same_every_time_and_takes_no_weights():
    first, second = (create_image_encoder("random", None) for _ in range(2))
    assert first(PICTURES).values.equal(second(PICTURES).values)
    assert first(PICTURES).values.shape == (3, 64, 512) and first.resize.size == (64, 64)
    rows = first.network(first.normalise(PICTURES))
    assert first(PICTURES).values[0, 8 * 2 + 5].equal(rows[0, :, 2, 5])


@pytest.mark.parametrize("regions", [49, 196])
def test_vgg_has_49_regions_and_196_without_its_last_pooling(regions):
    with torch.device("meta"):
        encoder = create_image_encoder("torchvision:vgg19_bn", None, regions=regions)
        tokens = encoder.tokens(torch.empty(2, 3, 224, 224))
    assert tokens.values.shape == (2, regions, 512) and encoder.resize.size == (224, 224)


def test_a_convolutional_network_and_a_transformer_of_timm():
    network = create_image_encoder("timm:resnet18", None)
    assert network.width == 512 and network.tokens(torch.randn(1, 3, 64, 64)).values.shape == (1, 4, 512)
    transformer = create_image_encoder("timm:test_vit", None)
    tokens = transformer.tokens(torch.randn(1, 3, *transformer.resize.size))
    patches = tokens.values.shape[1] - 1
    assert tokens.leading == 1 and patches == (transformer.resize.size[0] // 16) ** 2
    with pytest.raises(ValueError, match=r"image_encoder 'timm:no_such' with image_weights=None could not be loaded"):
        create_image_encoder("timm:no_such", None)


@pytest.mark.parametrize("name", ["random", "timm:resnet18", "backbone"])
def test_nothing_of_an_encoder_moves_in_training(name):
    encoder = create_image_encoder(name, None, backbone=tiny() if name == "backbone" else None).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    first = encoder(PICTURES).values
    for _ in range(5):
        again = encoder(PICTURES).values
    assert again.equal(first) and not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(value.equal(before[key]) for key, value in encoder.state_dict().items())
    one = torch.cat([encoder(PICTURES[i : i + 1]).values for i in range(3)])
    torch.testing.assert_close(one, first, rtol=1e-4, atol=1e-4)  # a picture's tokens do not depend on its batch


def test_words_stand_behind_the_vector_of_the_text_and_are_counted():
    encoder = WordEncoder(vectors())
    tokens = encoder(["A red dog", "runs, quickly", "nothing known"])
    assert tokens.values.shape == (3, 4, 3) and tokens.leading == 0
    assert tokens.values[0, 1:].tolist() == vectors().table[[0, 1, 2]].tolist()
    assert tokens.values[0, 0].tolist() == vectors().table[[0, 1, 2]].mean(0).tolist()
    assert tokens.padding.tolist() == [[False] * 4, [False, False, True, True], [False, True, True, True]]
    assert tokens.values[2].abs().max() == 0
    assert (encoder.unknown_words, encoder.unknown_texts) == (3, 1)
    assert encoder([]).values.shape == (0, 1, 3)


def test_text_tokens_of_the_tiny_tower_end_with_the_end_of_the_text():
    backbone = tiny()
    encoder = TextTowerEncoder(backbone)
    texts = ["dog face", "a big red heart with an arrow"]
    tokens = encoder(texts)
    ids = backbone.tokenizer(texts)
    assert tokens.values.shape == (2, 16, 192) and tokens.leading == 1
    assert (~tokens.padding).sum(1).tolist() == (ids != 0).sum(1).tolist()
    end = ids.argmax(1)
    projected = tokens.values[torch.arange(2), end] @ backbone.clip.text_projection
    torch.testing.assert_close(projected, backbone.encode_text(ids), rtol=1e-4, atol=1e-5)


def test_text_tokens_of_another_tower_are_refused(tmp_path):
    small = ALL_WRITERS["transformers siglip"](tmp_path)
    backbone = create_backbone(
        HystarConfig(backbone=small.backbone, pretrained=small.pretrained, style="clip", blocks=None)
    )
    with pytest.raises(ValueError, match=r"text tokens need a CLIP of open_clip .*got TransformersBackbone"):
        TextTowerEncoder(backbone)


def test_a_language_model_of_a_folder_masks_its_padding(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=9, max_position_embeddings=12, **sizes)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    encoder = load_language_model(str(tmp_path))
    assert isinstance(encoder, LanguageModelEncoder) and encoder.width == 16
    tokens = encoder(["red cat", "a drawing of a red cat"])
    lengths = (~tokens.padding).sum(1).tolist()
    assert tokens.leading == 1 and lengths[0] < lengths[1] == tokens.values.shape[1]
    alone = encoder(["red cat"])
    torch.testing.assert_close(alone.values[0], tokens.values[0, : lengths[0]], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="text_encoder 'transformers:/no/such' could not be loaded"):
        load_language_model("/no/such")


def test_unknown_encoders_are_named():
    with pytest.raises(ValueError, match=r"image_encoder must be .*got 'vgg'"):
        create_image_encoder("vgg", None)
    with pytest.raises(ValueError, match='image_encoder must be another than "backbone" without one'):
        create_image_encoder("backbone", None)
