"""Text towers from embedded tokens: equal to the library's, cut at the end, continued from a beginning, refused."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from hystar_fast.methods.suite import tiny_config
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.text_tower import OpenClipText, text_tower
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.config import HystarConfig
from tests.support.small_backbones import WRITERS
from tests.support.tolerance import relative_error

TEXTS = ["red cat", "a red cat drawing of a cat", "a"]
KINDS = ("tiny", "open_clip", "transformers clip")
REFUSED = ("transformers siglip", "transformers siglip2", "transformers blip", "albef")


def build(kind: str, folder: Path) -> TowerBackbone:
    if kind == "tiny":
        return create_backbone(tiny_config())
    small = WRITERS[kind](folder)
    return create_backbone(HystarConfig(backbone=small.backbone, pretrained=small.pretrained, style="clip"))


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> TowerBackbone:
    return build(request.param, tmp_path)


def test_it_equals_the_library_at_full_length_and_cut_at_the_last_end(backbone: TowerBackbone) -> None:
    tower, ids = text_tower(backbone), backbone.tokenizer(TEXTS)
    with torch.no_grad():
        truth = backbone.encode_text(ids)
        whole = tower.encode(tower.embed_tokens(ids), tower.ends(ids))
        cut = tower.encode_ids(ids)
    assert relative_error(whole, truth) < 1e-5 and relative_error(cut, truth) < 1e-5
    assert ids.shape[1] == tower.context > int(tower.ends(ids).max()) + 1, "something was cut"
    assert tower.embed_tokens(ids).shape[-1] == tower.width


def test_tokens_behind_the_end_and_other_texts_change_nothing(backbone: TowerBackbone) -> None:
    tower, ids = text_tower(backbone), backbone.tokenizer(TEXTS)
    with torch.no_grad():
        embedded, ends = tower.embed_tokens(ids), tower.ends(ids)
        spoilt = torch.where(torch.arange(ids.shape[1])[None, :, None] > ends[:, None, None], 7.0, embedded)
        assert relative_error(tower.encode(spoilt, ends), tower.encode(embedded, ends)) < 1e-6


def test_a_shared_beginning_gives_the_same(backbone: TowerBackbone) -> None:
    tower, ids = text_tower(backbone), backbone.tokenizer(["a red cat", "a red cat of a cat", "a red drawing"])
    with torch.no_grad():
        embedded, ends = tower.embed_tokens(ids), tower.ends(ids)
        other = embedded.clone()
        other[:, 1] += 0.5  # another beginning of the same length
        rows = torch.cat([embedded, other])
        past = tower.begin(torch.stack([embedded[0, :3], other[0, :3]]))
        found = tower.encode(rows[:, 3:], ends.repeat(2), past)
        assert relative_error(found, tower.encode(rows, ends.repeat(2))) < 1e-5


def test_recomputed_blocks_have_the_same_gradient(backbone: TowerBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    tower, ids = text_tower(backbone), backbone.tokenizer(TEXTS)
    gradients = []
    for stored in (4096, 0):
        monkeypatch.setattr("hystar_fast.models.backbones.text_tower._STORED_TOKENS", stored)
        embedded = tower.embed_tokens(ids).detach().requires_grad_()
        tower.encode(embedded, tower.ends(ids)).square().sum().backward()
        gradients.append(embedded.grad)
    assert relative_error(gradients[1], gradients[0]) < 1e-5
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("kind", REFUSED)
def test_towers_that_are_not_causal_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a CLIP whose text tower is causal and read at the end of a text, got"):
        text_tower(build(kind, tmp_path))


@pytest.mark.parametrize("changes", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_a_text_tower_of_open_clip_like_that_of_siglip_is_refused(changes: dict[str, Any]) -> None:
    text = {"context_length": 9, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1, **changes}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 8, "patch_size": 16}
    backbone: Any = SimpleNamespace(clip=open_clip.CLIP(16, vision, text))
    with pytest.raises(ValueError, match="read at the end of a text, got CLIP"):
        text_tower(backbone)


def test_wrong_lengths_are_refused(backbone: TowerBackbone) -> None:
    tower = text_tower(backbone)
    embedded = torch.zeros(2, tower.context + 1, tower.width)
    with pytest.raises(ValueError, match=f"texts must have at most {tower.context} tokens, got {tower.context + 1}"):
        tower.encode(embedded, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"ends must lie among the 3 tokens from 0 on, got \[1, 3\]"):
        tower.encode(embedded[:, :3], torch.tensor([1, 3]))


def long_tower() -> Any:
    """Return a text tower with the width of ViT-B/32, two blocks and 77 places."""
    text = {"context_length": 77, "vocab_size": 600, "width": 512, "heads": 8, "layers": 2}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 8, "patch_size": 16}
    return OpenClipText(open_clip.CLIP(512, vision, text).eval())


def test_short_prompts_cost_a_fraction_of_77_tokens() -> None:
    tower, ids = long_tower(), torch.zeros(64, 77, dtype=torch.long)
    ids[:, :9] = torch.arange(1, 10)
    ends = tower.ends(ids)

    def seconds(make: Any) -> tuple[float, Tensor]:
        times = []
        with torch.no_grad():
            for _ in range(4):
                start = time.process_time()
                found = make()
                times.append(time.process_time() - start)
        return min(times), found

    whole, truth = seconds(lambda: tower.encode(tower.embed_tokens(ids), ends))
    cut, found = seconds(lambda: tower.encode_ids(ids))
    assert relative_error(found, truth) < 1e-5 and whole > 4 * cut, (whole, cut)
