"""An adapter keeps the activation, the preprocessing and the tokenizer that it was trained with."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import GemmaTokenizer

from hystar_fast.data.images import Normalise
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.suite import create_method
from hystar_fast.models.backbone_identity import backbone_fingerprints, check_fingerprints
from hystar_fast.models.backbones import create_backbone, move_weights
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from tests.support.small_backbones import TEXT, VISION
from tests.support.small_clip import write_small_clip

QUICK = {"quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}
PLAIN = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28), "resize_mode": "shortest"}
NAME = "small-with-tags"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a model of open_clip whose tags "quick" and "plain" hold the same weights."""
    write_small_clip(tmp_path / "clip")
    settings = json.loads((tmp_path / "clip/open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / f"{NAME}.json").write_text(json.dumps(settings))
    factory: Any = open_clip.factory
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(tmp_path / f"{NAME}.json")
    hub = {"hf_hub": "nobody/nothing/"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, {"quick": hub | QUICK, "plain": hub | PLAIN})
    file = tmp_path / "moved.safetensors"
    clip = open_clip.create_model(f"local-dir:{tmp_path / 'clip'}")
    with torch.no_grad():  # in a trained model the activation matters more than in a fresh one
        for block in clip.visual.transformer.resblocks:
            block.mlp.c_fc.weight.mul_(3)
            block.mlp.c_proj.weight.mul_(20)
    save_file(clip.state_dict(), file)
    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: str(file))
    return file


def config(pretrained: str | None, **fields: Any) -> HystarConfig:
    return HystarConfig(backbone=f"open_clip:{NAME}", pretrained=pretrained, style="clip", blocks=(2,), **fields)


def test_an_adapter_of_a_tag_computes_the_same_on_the_file_of_its_weights(weights: Path, tmp_path: Path) -> None:
    images = torch.randn(3, 3, 32, 32)
    picture = Image.linear_gradient("L").resize((60, 30)).convert("RGB")
    model = Hystar(config("quick")).eval()
    model.save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = Hystar.from_pretrained(tmp_path / "adapter", pretrained=str(weights)).eval()
    torch.testing.assert_close(moved.encode_image(images), model.encode_image(images))
    assert torch.equal(moved.preprocess(picture), model.preprocess(picture))
    assert moved.config.pretrained_tag == "quick"

    moved.save_pretrained(tmp_path / "again")
    copied = weights.rename(tmp_path / "elsewhere.safetensors")
    again = Hystar.from_pretrained(tmp_path / "again", pretrained=str(copied)).eval()
    torch.testing.assert_close(again.encode_image(images), model.encode_image(images))


def test_a_tag_of_other_settings_is_refused_though_its_weights_are_the_same(weights: Path, tmp_path: Path) -> None:
    Hystar(config("quick")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"pretrained='plain', which is gelu, got .*adapter, .* with quick_gelu"):
        Hystar.from_pretrained(tmp_path / "adapter", pretrained="plain")


@pytest.mark.parametrize("name", ["lora", "static"])
def test_other_methods_keep_their_settings_too(weights: Path, tmp_path: Path, name: str) -> None:
    method = create_method(name, config("quick"), parameters=200 if name == "lora" else None)
    save_method(method, tmp_path / "adapter")
    moved: Any = load_method(tmp_path / "adapter", pretrained=str(weights))
    used = moved.model.config if name == "static" else moved.config
    assert used.pretrained_tag == "quick"
    with pytest.raises(ValueError, match="gelu"):
        load_method(tmp_path / "adapter", pretrained="plain")


def test_a_file_whose_tag_is_unknown_is_run_as_the_model_says_and_a_warning_names_the_tags(weights: Path) -> None:
    with pytest.warns(UserWarning, match=r"quick_gelu.*pretrained_tag='quick' or 'plain'"):
        backbone = create_backbone(config(str(weights)))
    assert backbone_fingerprints(backbone)["activation"] == "gelu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = create_backbone(config(str(weights), pretrained_tag="quick"))
        unnamed = create_backbone(config(None, pretrained_tag="quick"))  # a size is counted on random weights
        create_backbone(config(None))  # random weights have no tag
    assert [backbone_fingerprints(part)["activation"] for part in (named, unnamed)] == ["quick_gelu"] * 2
    assert (named.normalise, getattr(named.resize, "fit", "")) == (Normalise(QUICK["mean"], QUICK["std"]), "squash")


def test_settings_that_all_tags_share_need_no_tag(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = open_clip.pretrained._PRETRAINED[NAME]
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, {"quick": tags["quick"], "other": tags["quick"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = create_backbone(config(str(weights)))
    assert backbone_fingerprints(backbone)["activation"] == "quick_gelu"
    assert getattr(backbone.resize, "fit", "") == "squash"


@pytest.mark.parametrize(("pretrained", "tag"), [("quick", "quick"), ("moved.safetensors", "unknown")])
def test_a_tag_is_for_a_file_of_its_model(weights: Path, tmp_path: Path, pretrained: str, tag: str) -> None:
    place = str(tmp_path / pretrained) if "." in pretrained else pretrained
    with pytest.raises(ValueError, match=rf"pretrained_tag must be a tag .*\(quick, plain\).*got '{tag}'"):
        create_backbone(config(place, pretrained_tag=tag))
    with pytest.raises(ValueError, match="pretrained_tag must be None for backbone 'tiny'"):
        HystarConfig(backbone="tiny", pretrained_tag="quick")


def test_moving_back_to_a_tag_or_to_another_kind_of_backbone_forgets_the_tag(weights: Path) -> None:
    moved = move_weights(config("quick"), pretrained=str(weights))
    assert moved.pretrained_tag == "quick"
    assert move_weights(moved, pretrained="quick") == config("quick")
    assert move_weights(moved, backbone="tiny", pretrained="packaged").pretrained_tag is None
    assert move_weights(moved, gamma=3.0).pretrained_tag == "quick"
    assert move_weights(moved, pretrained="gone.pt", pretrained_tag="plain").pretrained_tag == "plain"


def test_a_folder_with_other_pixel_statistics_or_tokens_is_refused(tmp_path: Path) -> None:
    small = HystarConfig(backbone=write_small_clip(tmp_path / "clip"), pretrained="folder", style="clip", blocks=(2,))
    Hystar(small).save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "clip/open_clip_config.json").read_text())
    settings["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5]}
    (tmp_path / "clip/open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"the preprocessing .*mean=\(0\.5, 0\.5, 0\.5\).*trained with .*mean=\(0\.48"):
        Hystar.from_pretrained(tmp_path / "adapter")
    wanted = {"backbone": "1", "tokenizer": "a"}
    check_fingerprints(wanted, {"backbone": "1", "tokenizer": None}, small, tmp_path)
    with pytest.raises(ValueError, match="trained on another tokenizer"):
        check_fingerprints(wanted, {"backbone": "1", "tokenizer": "b"}, small, tmp_path)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_text_of_siglip_folders_is_lowered_as_the_models_were_trained(tmp_path: Path, kind: str) -> None:
    from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

    letters = {letter: 5 + n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.▁")}
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, **letters}
    text = TEXT | {"vocab_size": 80, "max_position_embeddings": 32}
    model = (
        SiglipModel(SiglipConfig(text_config=text, vision_config=VISION | {"image_size": 32}))
        if kind == "siglip"
        else Siglip2Model(Siglip2Config(text_config=text, vision_config=VISION | {"num_patches": 16}))
    )
    model.save_pretrained(tmp_path)
    GemmaTokenizer(vocab=vocab, merges=[]).save_pretrained(tmp_path)
    tokenizer = create_backbone(HystarConfig(backbone=f"transformers:{tmp_path}", pretrained="folder")).tokenizer
    assert torch.equal(tokenizer(["A RED Bird."]), tokenizer(["a red bird."]))
    assert not torch.equal(tokenizer(["a red bird."]), tokenizer(["a red cat."]))
