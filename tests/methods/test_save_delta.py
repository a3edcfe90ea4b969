"""Adapters that hold the difference of trained weights from the released ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hystar_fast.methods.adapter_files import load_method, save_delta, save_method
from hystar_fast.methods.ma_sbir.ma_sbir_method import MASBIR
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.models.adapter_format import DELTA_FORMAT, read_description
from hystar_fast.models.hystar import Hystar
from tests.support.cli import refused, run

pytestmark = pytest.mark.usefixtures("narrow_tiny")
STYLES = {"styles": "photo\nsketch"}
FINE = {"fine": True, "freeze_text": True}


def tuned(scale: float = 1e-3, **settings: object) -> MASBIR:
    """Return MA-SBIR whose weights have moved a little, as training moves them, with means of its styles."""
    method = create_method("ma_sbir", tiny_config(None), settings=STYLES | settings)
    assert isinstance(method, MASBIR)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.trained_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    method.style_means = {"photo": torch.ones(method.model.embed_dim), "sketch": torch.zeros(method.model.embed_dim)}
    return method


@pytest.mark.parametrize("settings", [{}, {"freeze_text": True}, FINE])
def test_a_difference_gives_the_trained_weights_up_to_their_last_digits(
    settings: dict[str, object], tmp_path: Path
) -> None:
    method = tuned(**settings)
    save_method(method, tmp_path / "whole")
    save_delta(method, tmp_path / "delta")
    loaded = load_method(tmp_path / "delta")
    tuned_names, found = method.tuned_weights(), loaded.trained_parameters()
    assert ("clip.text_projection" in tuned_names) == (not settings) and "clip.visual.conv1.weight" in tuned_names
    released = create_method("ma_sbir", tiny_config(None), settings=method.settings).trained_parameters()
    for name, value in method.trained_parameters().items():
        if name in tuned_names:
            bound = (value - released[name]).abs() * 2.0**-8 + 1e-7
            assert ((found[name] - value).abs() <= bound).all(), name
            assert (value - released[name]).abs().max() > 1e-4
        else:
            assert torch.equal(found[name], value), name
    pictures = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_image(pictures), method.encode_image(pictures), rtol=0, atol=1e-4)
    assert [*loaded.style_means] == ["photo", "sketch"] and [*loaded.conversions()] == [*method.conversions()]
    sizes = [(tmp_path / name / "adapter.safetensors").stat().st_size for name in ("whole", "delta")]
    assert sizes[1] < 0.6 * sizes[0]
    kinds = {n: t.dtype for n, t in load_file(tmp_path / "delta" / "adapter.safetensors").items()}
    assert {n for n, kind in kinds.items() if kind == torch.bfloat16} == tuned_names


def test_readers_that_would_take_differences_for_weights_refuse_them(tmp_path: Path) -> None:
    save_delta(tuned(), tmp_path)
    assert read_description(tmp_path)["format"] == DELTA_FORMAT
    with pytest.raises(ValueError, match="must have format"):
        Hystar.from_pretrained(tmp_path)


def test_a_method_that_trained_no_weight_of_its_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have trained weights of its backbone to be saved as their difference"):
        save_delta(create_method("lora", tiny_config(None), parameters=2000), tmp_path)


def test_the_command_writes_it_and_search_and_eval_take_it(tmp_path: Path) -> None:
    save_method(tuned(), tmp_path / "whole")
    done = run("save-delta", "--adapter", tmp_path / "whole", "--output", tmp_path / "delta")
    assert done.exit_code == 0 and " MB in place of " in done.output, done.output
    done = run("eval", "--adapter", tmp_path / "delta", "--limit", 8, "--output", tmp_path / "eval", "--device", "cpu")
    assert done.exit_code == 0, done.output
    same = ("save-delta", "--adapter", tmp_path / "whole", "--output", tmp_path / "whole")
    assert "--output must be another folder than that of the adapter" in refused(*same)
