"""Models without weights are the same in every process, also where their library leaves memory uninitialised."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.models.random_weights import repeatable_weights
from tests.support.small_clip import write_small_clip


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Let torch fill uninitialised memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


CREATIONS: list[Callable[[], Tensor]] = [
    lambda: torch.empty(5),
    lambda: torch.empty_like(torch.ones(5)),
    lambda: torch.ones(2).new_empty(5),
    lambda: torch.empty_strided((5,), (2,)),
    lambda: torch.nn.Parameter(torch.Tensor(5)).detach(),
]


@pytest.mark.parametrize("create", CREATIONS)
@pytest.mark.usefixtures("poisoned_memory")
def test_memory_begins_as_zeros(create: Callable[[], Tensor]) -> None:
    with repeatable_weights():
        assert not create().any()
    assert create().isnan().all()


def write_small_coca(folder: Path) -> str:
    """Write the configuration of a CoCa, of whose decoder open_clip leaves the last matrix uninitialised."""
    name = write_small_clip(folder, weights=False, attentional_pool=True, attn_pooler_queries=3, attn_pooler_heads=2)
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    sizes = {"context_length": 12, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1}
    text = {**sizes, "context_length": 11, "embed_cls": True, "output_tokens": True}
    config["model_cfg"]["vision_cfg"]["output_tokens"] = True
    config["model_cfg"] |= {"multimodal_cfg": sizes, "text_cfg": text, "custom_text": True}
    file.write_text(json.dumps(config))
    return name


@pytest.mark.usefixtures("poisoned_memory")
def test_a_coca_without_weights_reads_its_own_save(tmp_path: Path) -> None:
    config = HystarConfig(write_small_coca(tmp_path / "coca"), None, style="clip", blocks=(2,))
    state = create_backbone(config).state_dict()
    assert "clip.text_decoder.text_projection" in state
    assert all(value.isfinite().all() for value in state.values())
    model, images = Hystar(config), torch.randn(2, 3, 32, 32)
    model.save_pretrained(tmp_path / "adapter")
    torch.use_deterministic_algorithms(False)
    again = Hystar.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again.encode_image(images), model.encode_image(images))
