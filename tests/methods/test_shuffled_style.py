"""Hystar without the style: another picture's style in training and in evaluation."""

from __future__ import annotations

import pytest
import torch

from hystar_fast.experiments.variants import create_variant
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.shuffled_style import BANK, ShuffledStyle
from hystar_fast.methods.suite import create_method
from hystar_fast.models.config import HystarConfig
from tests.support.small_clip import small_config

NAME = "hystar+style_order=shuffled"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> HystarConfig:
    return small_config(tmp_path_factory.mktemp("backbone"))


def create(config: HystarConfig) -> tuple[ShuffledStyle, HystarMethod]:
    method, plain = create_variant(NAME, config, seed=3), create_method("hystar", config, seed=3)
    assert isinstance(method, ShuffledStyle) and isinstance(plain, HystarMethod)
    return method, plain


@pytest.mark.parametrize("given", [True, False])
def test_a_training_batch_has_its_own_styles_in_another_order(config, given):
    method, plain = create(config)
    pictures = torch.rand(6, 3, 32, 32)
    styles = plain.style(pictures)
    assert styles is not None
    method.train(True)
    torch.manual_seed(7)
    found = method.encode_image(pictures, styles if given else None)
    torch.manual_seed(7)
    order = torch.randperm(6)
    assert order.tolist() != list(range(6))
    torch.testing.assert_close(found, plain.encode_image(pictures, styles[order]))
    torch.testing.assert_close(method.bank["styles"].data, styles[torch.arange(BANK) % 6])


def test_an_evaluation_takes_styles_of_the_last_training_batch_whatever_it_is_given(config, tmp_path):
    method, plain = create(config)
    seen = plain.style(torch.rand(BANK, 3, 32, 32))
    assert seen is not None
    method.train(True)
    method.encode_image(torch.rand(BANK, 3, 32, 32), seen)
    method.train(False)
    pictures = torch.rand(5, 3, 32, 32)
    rows = torch.randint(BANK, (5,), generator=torch.Generator().manual_seed(0))
    wanted = plain.encode_image(pictures, seen[rows])
    torch.testing.assert_close(method.encode_image(pictures), wanted)
    torch.testing.assert_close(method.encode_image(pictures, plain.style(pictures)), wanted)
    save_method(method, tmp_path)
    again = load_method(tmp_path)
    assert isinstance(again, ShuffledStyle) and again.name == "hystar"
    torch.testing.assert_close(again.encode_image(pictures), wanted)


def test_the_styles_are_kept_and_not_trained(config):
    method, plain = create(config)
    groups = method.parameter_groups()
    assert {name: len(group) for name, group in groups.items()} == {
        k: len(v) for k, v in plain.parameter_groups().items()
    }
    assert set(method.trained_parameters()) - set(plain.trained_parameters()) == {"styles"}
