"""Variants: a method with other settings, by name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from hystar_fast.experiments.experiment_settings import Model
from hystar_fast.experiments.variants import Variant, create_variant
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.suite import METHODS, OWN_STEPS, create_method, hystar_size, tiny_config


def test_variants_change_fields_and_the_loss():
    config = tiny_config(None)
    plain = create_variant("hystar", config)
    found = create_variant("hystar+blocks=2-3+gamma=10+loss=info_nce", config)
    assert found.config == dataclasses.replace(config, blocks=(2, 3), gamma=10)  # type: ignore[attr-defined]
    pairs = torch.randn(2, 4, 8)
    cosines = torch.nn.functional.cosine_similarity(pairs[0][:, None], pairs[1][None], dim=-1) / config.temperature
    expected = torch.nn.functional.cross_entropy(cosines, torch.arange(4))
    assert found.loss(pairs[0], pairs[1]).item() == pytest.approx(expected.item(), rel=1e-5)
    assert plain.loss(pairs[0], pairs[1]).item() != pytest.approx(expected.item(), rel=1e-2)
    assert set(create_variant("hystar+static=false", config).parameter_groups()) == {"dynamic"}
    options = create_variant("hystar+gamma=10+lam=0.5", config).criterion.options  # type: ignore[attr-defined]
    assert (options["gamma"], options["lam"]) == (10, 0.5)
    assert Variant.parse("hystar+blocks=none").changes == {"blocks": ()}


@pytest.mark.parametrize("loss", ["", "+loss=style_nce"])
def test_options_of_the_loss_apply_with_and_without_its_name(loss):
    config = tiny_config(None)
    found = create_variant(f"hystar+temperature=0.1+n_iter=9+weights=authors+plan_grad=unroll{loss}", config)
    kept = {"temperature": 0.1, "n_iter": 9, "weights": "authors", "plan_grad": "unroll", "gamma": config.gamma}
    assert kept.items() <= found.criterion.options.items()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name",
    [
        *("hystar", "hystar+static=false", "hystar+design=dynamic-all", "hystar+design=reversed"),
        *("hystar+blocks=none", "vpt", "static"),
    ],
)
def test_a_grid_has_a_rate_for_every_parameter_group(name):
    groups = set(create_variant(name, tiny_config(None)).parameter_groups())
    assert all(set(rates) == groups for rates in Variant.parse(name).grid())


def test_lora_has_the_size_of_the_configured_hystar():
    config = tiny_config(None)
    sizes = {count_parameters(create_variant(name, config))["lora"] for name in ("lora", "lora+gamma=10")}
    assert sizes == {count_parameters(create_method("lora", config, parameters=hystar_size(config)))["lora"]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hystar+colour=red", "must change fields of HystarConfig.*got 'colour=red'"),
        ("hystar+gamma", "must change fields of HystarConfig.*got 'gamma'"),
        ("hystar+loss=hinge", "loss must be one of"),
        ("hystar+blocks=x", "blocks must be numbers"),
        ("hystar+styles=a-a", "styles must be different names"),
        ("clip", "methods must be some of"),
        ("frozen+loss=info_nce", "frozen must have no loss and no training styles"),
        ("pixels+styles=a", "pixels must have no loss and no training styles"),
        ("mean_shift+loss=info_nce", "mean_shift must have no loss"),
        ("hystar+style_order=sorted", "style_order must be shuffled, for a hystar with a style, got 'sorted'"),
        ("hystar+blocks=none+style_order=shuffled", "style_order must be shuffled, for a hystar with a style"),
        ("lora+style_order=shuffled", "style_order must be shuffled, for a hystar with a style"),
        ("hystar+gamma=10+gamma=20", "each field once, got gamma twice"),
    ],
)
def test_bad_names_are_rejected(name, message):
    with pytest.raises(ValueError, match=message):
        Variant.parse(name)


@pytest.mark.parametrize("name", OWN_STEPS)
def test_a_method_with_its_own_steps_is_refused_with_what_compares_it(name):
    bench = Path(__file__).parents[2] / "bench"
    for given in (name, f"{name}+gamma=10"):
        with pytest.raises(ValueError, match="methods must be trained by the steps that all share") as caught:
            Variant.parse(given)
        assert f"got {given!r}" in str(caught.value)
        named = re.findall(r"python bench/(\w+\.py)", str(caught.value))
        assert named == ["systems.py", f"{name}_demo.py"] and all((bench / one).is_file() for one in named)


@pytest.mark.parametrize(
    "name",
    [
        *("static+blocks=1", "static+static=false", "lora+rank=8", "vpt+blocks=2", "adaptformer+design=reversed"),
        *("frozen+gamma=10", "pixels+backbone=tiny", "ia3+style=vgg", "mean_shift+gamma=10"),
    ],
)
def test_variants_that_would_change_nothing_are_rejected(name):
    method, _, rest = name.partition("+")
    with pytest.raises(ValueError, match=f"a field that {method} uses, got {rest.partition('=')[0]}"):
        Variant.parse(name)


def test_fields_that_change_something_are_kept():
    assert Variant.parse("static+rank=8").changes == {"rank": 8}
    found = Variant.parse("freestyle+style=vgg+style_pretrained=/data/vgg+16.pth+gamma=10")
    assert found.changes == {"style": "vgg", "style_pretrained": "/data/vgg+16.pth", "gamma": 10}


def test_larger_backbones_have_grids_of_the_same_groups_around_the_papers_rates():
    assert {"static": 1e-3, "dynamic": 1e-5} in Variant.parse("hystar").grid("open_clip:ViT-L-14")
    for name in METHODS:
        tiny, large = Variant.parse(name).grid(Model().backbone), Variant.parse(name).grid("open_clip:ViT-L-14")
        assert [set(rates) for rates in large[:1]] == [set(rates) for rates in tiny[:1]]
        assert len({tuple(rates.values()) for rates in large}) == (5 if tiny else 0)
