"""Files of small backbones of every kind, each with the library's own model as the reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

import tests.support.small_timm  # noqa: F401, registers its models
from hystar_fast.models.backbones.open_clip import OpenClipBackbone
from hystar_fast.models.tiny import NORMALISE, RESIZE
from tests.support.small_clip import IMAGE_SIZE, write_small_clip
from tests.support.tolerance import relative_error

DEPTH, WIDTH, EMBED = 4, 32, 24
OWN_ATTENTION = {"block_type": "custom", "scale_attn": True, "scale_fc": True}
WORDS = ["[PAD]", "[UNK]", "a", "[SEP]", "[CLS]", "red", "cat", "drawing", "of"]
SIGLIP = {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}  # 6 blocks of width 64
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 4,
    "eos_token_id": 3,
}


@dataclass(frozen=True)
class Small:
    """A small backbone: its name in a configuration, and the library's own model with the same weights."""

    backbone: str
    untouched: Callable[[], Any]
    encode_image: Callable[[Any, Tensor], Tensor]
    encode_text: Callable[[Any, Tensor], Tensor]
    depth: int = DEPTH
    width: int = WIDTH
    embed_dim: int = EMBED
    registers: int = 0
    pretrained: str = "folder"


class Images(nn.Module):
    """The image encoder of the library's model as a module, for functional_call."""

    def __init__(self, small: Small) -> None:
        super().__init__()
        self.model = small.untouched()
        self.encode_image = small.encode_image

    def forward(self, images: Tensor) -> Tensor:
        return self.encode_image(self.model, images)


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def disturb(model: nn.Module, seed: int = 0) -> None:
    """Move every weight and bias away from its default."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def write_transformers(kind: str, folder: Path, *, inputs: bool = True) -> Small:
    """Write a small model of transformers, with its tokenizer and image processor unless `inputs` is False."""
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    image = {"image_size": IMAGE_SIZE}
    embed_dim, processor, config = EMBED, None, None
    if kind == "clip":
        vision, text = {**VISION, **image}, dict(TEXT)
        config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=EMBED)
        size = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": square}
        processor = transformers.CLIPImageProcessor(**size, **statistics)
    elif kind == "siglip":
        embed_dim = WIDTH
        config = transformers.SiglipConfig(
            vision_config={**VISION, **image}, text_config={**TEXT, "projection_size": WIDTH}
        )
        processor = transformers.SiglipImageProcessor(size=square, **statistics)
    elif kind == "siglip2":
        embed_dim = WIDTH
        grid = {"num_patches": (IMAGE_SIZE // 8) ** 2}
        config = transformers.Siglip2Config(
            vision_config={**VISION, **grid}, text_config={**TEXT, "projection_size": WIDTH}
        )
        processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16, **statistics)
    else:
        config = transformers.BlipConfig(
            vision_config={**VISION, **image}, text_config=dict(TEXT), image_text_hidden_size=EMBED
        )
        processor = transformers.BlipImageProcessor(size=square, **statistics)
    library: Any = transformers.BlipForImageTextRetrieval if kind == "blip" else transformers.AutoModel
    model = library(config) if kind == "blip" else library.from_config(config)
    disturb(model)
    model.save_pretrained(folder)
    if inputs:
        processor.save_pretrained(folder)
        write_tokenizer(folder)
    return Small(
        f"transformers:{folder}",
        lambda: library.from_pretrained(folder).eval(),
        *_TRUTH[kind],
        embed_dim=embed_dim,
    )


def _siglip2_images(model: Any, images: Tensor) -> Tensor:
    """Embed images through the library's mask and shapes; a patch is its pixels row by row, channels last."""
    patches = images.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.full((len(images), 2), IMAGE_SIZE // 8)
    return model.get_image_features(patches, torch.ones(patches.shape[:2]), shapes).pooler_output


def _blip_images(model: Any, images: Tensor) -> Tensor:
    return model.vision_proj(model.vision_model(pixel_values=images).last_hidden_state[:, 0])


def _blip_texts(model: Any, tokens: Tensor) -> Tensor:
    return model.text_proj(model.text_encoder(tokens, attention_mask=(tokens != 0).long()).last_hidden_state[:, 0])


def _features(model: Any, images: Tensor) -> Tensor:
    return model.get_image_features(pixel_values=images).pooler_output


def _text_features(model: Any, tokens: Tensor) -> Tensor:
    return model.get_text_features(input_ids=tokens).pooler_output


_TRUTH: dict[str, Any] = {
    "clip": (_features, _text_features),
    "siglip": (_features, _text_features),
    "siglip2": (_siglip2_images, _text_features),
    "blip": (_blip_images, _blip_texts),
}


class TruthAlbef(nn.Module):
    """The unimodal half of ALBEF, assembled from the models of timm and transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_encoder = timm.models.vision_transformer.VisionTransformer(
            img_size=IMAGE_SIZE, patch_size=8, embed_dim=128, depth=3, num_heads=2, num_classes=0, global_pool=""
        )
        sizes = {**TEXT, "hidden_size": 128, "intermediate_size": 64, "layer_norm_eps": 1e-12}
        self.text_encoder = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)
        self.vision_proj, self.text_proj = nn.Linear(128, EMBED), nn.Linear(128, EMBED)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.vision_proj(self.visual_encoder(images)[:, 0])

    def encode_text(self, tokens: Tensor) -> Tensor:
        states = self.text_encoder(tokens, attention_mask=(tokens != 0).long()).last_hidden_state
        return self.text_proj(states[:, 0])


def write_albef(folder: Path, *, pretraining: bool = True) -> Small:
    """Write a checkpoint in the published layout: of pretraining (``text_encoder.bert.``) or tuned for retrieval."""
    model = TruthAlbef().eval()
    disturb(model)
    bert = "text_encoder.bert." if pretraining else "text_encoder."
    state = {name.replace("text_encoder.", bert): value.clone() for name, value in model.state_dict().items()}
    for name in [name for name in state if ".layer.1." in name]:  # the fusion layers continue the numbering
        for fusion in (2, 3):
            state[name.replace(".layer.1.", f".layer.{fusion}.")] = torch.randn_like(state[name])
            cross = name.replace(".layer.1.attention.", f".layer.{fusion}.crossattention.")
            if cross != name:
                state[cross] = torch.randn_like(state[name])
    parts = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    for name in [name for name in state if name.split(".")[0] in parts]:
        part, _, rest = name.partition(".")
        state[f"{part}_m.{rest}"] = torch.randn_like(state[name])  # the momentum twin
    state[f"{bert}embeddings.position_ids"] = torch.arange(12)[None]
    if pretraining:
        state["text_encoder.cls.predictions.bias"] = torch.randn(len(WORDS))
    state |= {"temp": torch.tensor(0.07), "itm_head.weight": torch.randn(2, 128), "image_queue": torch.randn(EMBED, 8)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state, "config": {"image_res": IMAGE_SIZE}, "epoch": 3}, folder / "ALBEF.pth")
    write_tokenizer(folder)
    return Small(
        f"albef:{folder / 'ALBEF.pth'}",
        lambda: copy.deepcopy(model),
        lambda model, images: model.encode_image(images),
        lambda model, tokens: model.encode_text(tokens),
        depth=3,
        width=128,
    )


def write_open_clip(folder: Path, *, depth: int = DEPTH, width: int = WIDTH, registers: int = 0, **model: Any) -> Small:
    name = write_small_clip(folder, **model)
    return Small(
        name,
        lambda: open_clip.create_model(name.removeprefix("open_clip:")).eval(),
        lambda model, images: model.encode_image(images),
        lambda model, tokens: model.encode_text(tokens),
        depth=depth,
        width=width,
        embed_dim=model.get("embed_dim", EMBED),
        registers=registers,
    )


WRITERS: dict[str, Callable[[Path], Small]] = {
    "open_clip": write_open_clip,
    "open_clip, its own attention": lambda folder: write_open_clip(folder, **OWN_ATTENTION),
    "open_clip siglip": lambda folder: write_open_clip(folder, depth=6, width=64, embed_dim=64, **SIGLIP),
    "transformers clip": lambda folder: write_transformers("clip", folder),
    "transformers siglip": lambda folder: write_transformers("siglip", folder),
    "transformers siglip2": lambda folder: write_transformers("siglip2", folder),
    "transformers blip": lambda folder: write_transformers("blip", folder),
    "albef": write_albef,
}


def write_timm(folder: Path, name: str, pool: str, registers: int = 0) -> Small:
    tower = {"timm_model_name": name, "timm_pool": pool, "timm_proj": "none"}
    return write_open_clip(folder, embed_dim=WIDTH, registers=registers, **tower)


# These add positions to every attention: no prompts fit into their tokens.
POSITIONED: dict[str, Callable[[Path], Small]] = {
    "open_clip eva, rotary": lambda folder: write_timm(folder, "small_pe", "map"),
    "open_clip eva, dinov3": lambda folder: write_timm(folder, "small_dinov3", "token", registers=2),
    "open_clip beit": lambda folder: write_timm(folder, "small_beit", "avg"),
}
ALL_WRITERS = {**WRITERS, **POSITIONED}


def backbone_and_clip(
    tmp_path: Path, dtype: torch.dtype = torch.float32, **vision: Any
) -> tuple[OpenClipBackbone, Any]:
    """Create a backbone and a model of open_clip with the same weights."""
    name = write_small_clip(tmp_path / "clip", **vision).removeprefix("open_clip:")
    models = [open_clip.create_model(name).to(dtype).eval() for _ in range(2)]
    tokenizer = open_clip.get_tokenizer(name)
    return OpenClipBackbone(models[0], RESIZE, NORMALISE, tokenizer), models[1]


def images_of(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random images of the size of the small models."""
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=dtype)


def assert_equal_before_and_after_injection(
    backbone: OpenClipBackbone, clip: Any, images: Tensor, tolerance: float
) -> None:
    """Assert that a backbone embeds as its library does, as it is and with zero offsets in every block."""
    truth = clip.encode_image(images)
    assert relative_error(backbone.encode_image(images), truth) < tolerance
    for number in range(1, backbone.depth + 1):
        backbone.inject_dynamic(number, None)
        backbone.inject_static(number, None)
    offsets = torch.zeros(len(images), backbone.width, dtype=images.dtype)
    zero = dict.fromkeys(range(1, backbone.depth + 1), offsets)
    assert relative_error(backbone.encode_image(images), truth) < tolerance
    assert relative_error(backbone.encode_image(images, zero), truth) < tolerance
