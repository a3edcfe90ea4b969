"""Fine-grained MA-SBIR: shuffled patches, losses of pairs, steps, and the image tower before its projection."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hystar_fast.data.emoji import load_emoji
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.ma_sbir.create_ma_sbir import create_ma_sbir
from hystar_fast.methods.ma_sbir.fine_method import FineMASBIR
from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.methods.ma_sbir.ma_sbir_losses import clip_loss
from hystar_fast.methods.ma_sbir.pair_vectors import PairVectors
from hystar_fast.methods.ma_sbir.patch_shuffle import draw_orders, shuffle_patches
from hystar_fast.methods.step_trained import PairedBatch, StepPlan
from hystar_fast.methods.suite import tiny_config
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.image_projection import drop_image_projection
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import weightless
from hystar_fast.models.tiny import RESIZE
from hystar_fast.train.paired_batches import PairedBatches
from hystar_fast.train.processes import World
from tests.support.small_backbones import WRITERS

pytestmark = pytest.mark.usefixtures("narrow_tiny")
B, D = 5, 6
GENERATOR = torch.Generator().manual_seed(0)
UNIT = F.normalize(torch.randn(3, B, D, generator=GENERATOR, dtype=torch.float64), dim=-1)
CAPTIONS, PHOTOS, KINDS_OF = torch.tensor([0, 0, 1, 2, 1]), torch.tensor([0, 0, 1, 2, 3]), torch.ones(B).long()
PICTURES = torch.arange(2 * 3 * 12 * 8).view(2, 3, 12, 8)
TERMS = ("loss", "clip_img", "clip_txt", "ps", "sem", "mc", "rec", "ortho")


def close(a: Tensor, b: Any) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=1e-10, atol=1e-10)


def vectors_of(**changes: Any) -> PairVectors:
    torch.manual_seed(1)
    found = PairVectors(MASBIRConfig.preset("fine", **changes), 2, D).double()
    with torch.no_grad():
        found.vectors.copy_(torch.randn(3, D, dtype=torch.float64))
    return found


def losses(found: PairVectors, unit: Tensor = UNIT, tau: float = 0.5) -> dict[str, Tensor]:
    return found.pair_losses(unit, unit[:2].flip(2), CAPTIONS, PHOTOS, KINDS_OF, tau)


def test_the_inverse_order_restores_the_picture_and_no_square_is_lost() -> None:
    orders = draw_orders(2, 4, seed=0, step=3)
    moved = shuffle_patches(PICTURES, orders)
    assert not torch.equal(moved, PICTURES) and torch.equal(shuffle_patches(moved, orders.argsort(1)), PICTURES)
    squares = [
        x.unfold(2, 3, 3).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 16, -1) for x in (PICTURES, moved)
    ]
    for before, after, order in zip(*squares, orders, strict=True):
        assert torch.equal(after, before[order])
    assert torch.equal(shuffle_patches(PICTURES, draw_orders(2, 1, 0, 0)), PICTURES)
    with pytest.raises(ValueError, match="shuffle_grid must divide the sides of pictures of 12 x 8 pixels, got 3"):
        shuffle_patches(PICTURES, draw_orders(2, 3, 0, 0))


def test_orders_are_of_the_seed_and_the_step() -> None:
    first = draw_orders(50, 2, 1, 7)
    assert torch.equal(first, draw_orders(50, 2, 1, 7)) and len({*map(tuple, first.tolist())}) > 15, "of 24"
    assert not torch.equal(first, draw_orders(50, 2, 1, 8)) and not torch.equal(first, draw_orders(50, 2, 2, 7))


@pytest.mark.parametrize("pairs", ["all", "sketch_photo"])
@pytest.mark.parametrize("conversion", ["additive", "normalised"])
def test_the_losses_are_those_of_every_pair_one_by_one(pairs: str, conversion: str) -> None:
    weights = {"lambda_ps": 0.5, "lambda_sem": 0.1, "lambda_mc": 0.02, "lambda_rec": 0.3, "lambda_ortho": 0.2}
    found = vectors_of(fine_pairs=pairs, conversion=conversion, clip_img=0.8, **weights)
    values, m, tau = losses(found), found.vectors, 0.5
    own = {0: 1, 1: 0, 2: 2}  # the modality of sketch, photo and text
    moves = [(i, j) for i in range(3) for j in range(3) if i != j and (pairs == "all" or 2 not in (i, j))]
    sem, rec, mc, ortho = [], [], [], []
    for b in range(B):
        z = UNIT[:, b]
        middle = z.sum(0) / z.sum(0).norm()
        bare = [z[i] - m[own[i]] for i in range(3)]
        sem.append(sum(1 - x @ middle / x.norm() for x in bare) * 2 / 3)
        for i, j in moves:
            moved = (bare[i] / bare[i].norm() if conversion == "normalised" else bare[i]) + m[own[j]]
            moved = moved / moved.norm()
            rec.append(2 * (1 - moved @ z[j]))
            logit = found.classifier(moved)
            mc.append(logit.logsumexp(0) - logit[own[j]])
        ortho.append(sum((middle @ m[k]).abs() for k in range(3)) / 3)
    for name, terms in {"sem": sem, "rec": rec, "mc": mc, "ortho": ortho}.items():
        close(values[name], torch.stack(terms).mean())
    sketch, photo, text = UNIT
    close(values["clip_img"], clip_loss(sketch, photo, PHOTOS, tau, "masked"))
    texts = [clip_loss(pictures, text, CAPTIONS, tau, "masked") for pictures in (sketch, photo)]
    close(values["clip_txt"], sum(texts) / 2)
    close(values["ps"], clip_loss(sketch.flip(1), photo.flip(1), PHOTOS, tau, "masked"))
    total = 0.8 * values["clip_img"] + 0.2 * values["clip_txt"]
    close(values["loss"], total + sum(weight * values[name[7:]] for name, weight in weights.items()))


def test_vectors_and_a_classifier_of_zero_have_closed_forms() -> None:
    found = vectors_of()
    for parameter in found.parameters():
        torch.nn.init.zeros_(parameter)
    values = losses(found)
    cosines = [UNIT[i] * UNIT[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    close(values["rec"], 2 - 2 * torch.stack(cosines).sum(-1).mean())
    close(values["sem"], 2 - 2 / 3 * UNIT.sum(0).norm(dim=-1).mean())  # as Σ z_i · z / |z| = |z|
    close(values["mc"], math.log(3))
    close(values["ortho"], 0.0)
    same = UNIT[:, :1].expand(3, B, D)
    alone = torch.arange(B)
    close(found.pair_losses(same, None, alone, alone, KINDS_OF, 0.07)["clip_img"], math.log(B))


def test_sketches_of_one_photo_are_no_negatives_unless_asked() -> None:
    unit = torch.eye(D, dtype=torch.float64)[PHOTOS].expand(3, B, D)
    for duplicates, expected in (("masked", 0.0), ("negatives", 2 / B * math.log(2))):
        found = vectors_of(duplicates=duplicates).pair_losses(unit, unit[:2], PHOTOS, PHOTOS, KINDS_OF, 1e-3)
        close(found["clip_img"], expected)
        close(found["ps"], expected)


def test_gradients_are_those_of_finite_differences_and_the_order_does_not_matter() -> None:
    found = vectors_of(clip_img=0.6)
    m, (weight, bias) = found.vectors, found.classifier.parameters()
    unit = UNIT[:, :3, :3].clone().requires_grad_()

    def total(unit: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(("vectors", "classifier.weight", "classifier.bias"), values, strict=True))
        part = CAPTIONS[:3], PHOTOS[:3], KINDS_OF[:3], 0.5
        return torch.func.functional_call(_Losses(found), _prefixed(named), (unit, unit[:2].flip(1), *part))

    small = [value.detach()[..., :3].clone().requires_grad_() for value in (m, weight)]
    assert torch.autograd.gradcheck(total, (unit, *small, bias.detach().clone().requires_grad_()))
    order = torch.randperm(B, generator=torch.Generator().manual_seed(2))
    turned = found.pair_losses(UNIT[:, order], UNIT[:2, order].flip(2), CAPTIONS[order], PHOTOS[order], KINDS_OF, 0.5)
    for name, value in losses(found).items():
        close(turned[name], value)


class _Losses(torch.nn.Module):
    """The total of `pair_losses`, for a functional call."""

    def __init__(self, found: PairVectors) -> None:
        super().__init__()
        self.found = found

    def forward(self, *arguments: Any) -> Tensor:
        return self.found.pair_losses(*arguments)["loss"]


def _prefixed(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"found.{name}": value for name, value in values.items()}


def drawings(own: MASBIRConfig, batch_size: int = 6, limit: int = 12) -> PairedBatches:
    images = load_emoji("train").select(limit=limit)
    return PairedBatches(images, ("outline", "sketch"), RESIZE, own.batching, batch_size=batch_size, seed=1)


def begun(own: MASBIRConfig, pairs: PairedBatches, **plan: Any) -> FineMASBIR:
    torch.manual_seed(0)
    method = create_ma_sbir(tiny_config(None), own.to_dict())
    assert isinstance(method, FineMASBIR)
    names, styles = pairs.categories, pairs.modalities
    method.begin(StepPlan(len(names), 1e-3, names=names, styles=styles, processes=World(), **plan))
    method.train(True)
    return method


def gradients(method: FineMASBIR, batch: PairedBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    values, _ = method.backward_pairs(batch, 0)
    named = {n: p for module in method.modules for n, p in module.named_parameters()}
    return values, {n: p.grad for n, p in named.items() if p.grad is not None}


OWN = MASBIRConfig.preset("fine")


def test_a_step_moves_the_image_tower_the_text_layer_and_the_vectors_and_not_the_text_tower() -> None:
    pairs = drawings(OWN)
    method, batch = begun(OWN, pairs), pairs.load(0)
    with torch.no_grad():
        method.modalities.vectors.normal_(generator=torch.Generator().manual_seed(0))
    _, found = gradients(method, batch)
    moved = {name for name, value in found.items() if value.abs().max() > 0}
    assert {"clip.visual.conv1.weight", "text_layer.weight", "vectors", "classifier.weight"} <= moved
    assert not any(name.startswith("clip.") and ".visual." not in name for name in found)
    calls, encode = [], method.tower.encode_ids
    method.tower.encode_ids = lambda ids: calls.append(1) or encode(ids)  # type: ignore[func-returns-value,method-assign]
    method._texts = None
    for step in range(1, 4):
        method.step(pairs.load(step), 0, step)
    assert len(calls) == 1, "the table of captions"


def test_a_step_has_the_losses_of_its_sketches_photos_and_captions() -> None:
    pairs = drawings(OWN, batch_size=40, limit=30)
    method, batch = begun(OWN, pairs), pairs.load(0)
    counts = [len({*numbers.tolist()}) for numbers in (batch.labels, batch.instances)]
    assert counts[0] < counts[1] < len(batch.labels) == 40, "pictures of one category, sketches of one picture"
    with torch.no_grad():
        method.modalities.vectors.normal_(generator=torch.Generator().manual_seed(0))
        captions = [f"a photo of a {pairs.categories[label].replace('_', ' ')}." for label in batch.labels]
        parts = method.encode_image(batch.queries), method.encode_image(batch.gallery), method.encode_text(captions)
        orders = draw_orders(40, 2, 0, 5)
        moved = [method.encode_image(shuffle_patches(x, orders)) for x in (batch.queries, batch.gallery)]
        kinds = torch.tensor([pairs.modalities.index(pairs.queries[row].style) for row in batch.query_rows])
        photos = torch.tensor([sorted({*batch.gallery_rows.tolist()}).index(row) for row in batch.gallery_rows])
        expected = method.modalities.pair_losses(
            torch.stack(parts), torch.stack(moved), batch.labels, photos, kinds, 0.07
        )
    found, _ = method.backward_pairs(batch, 5)
    assert {*found} == {*TERMS}
    for name in TERMS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, check_stride=False)


@pytest.mark.parametrize("chunk", [5, 24])
def test_a_step_in_chunks_is_the_whole_step(chunk: int) -> None:
    pairs = drawings(OWN)
    whole = gradients(begun(OWN, pairs), pairs.load(0))
    parts = gradients(begun(OWN, pairs, chunk_size=chunk), pairs.load(0))
    for a, b in zip(whole, parts, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-5)


def test_a_pair_has_one_order_and_the_step_draws_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, seen = drawings(OWN), []
    method, batch = begun(OWN, pairs, seed=3), pairs.load(0)
    embed = method._embed
    monkeypatch.setattr(method, "_embed", lambda pictures: seen.append(pictures) or embed(pictures))
    for step in (4, 5):
        method.backward_pairs(batch, step)
    for pictures, step in zip(seen, (4, 5), strict=True):
        sketch, photo, sketch_moved, photo_moved = pictures.split(len(batch.labels))
        orders = draw_orders(len(batch.labels), 2, 3, step)
        assert torch.equal(sketch, batch.queries) and torch.equal(photo, batch.gallery)
        assert torch.equal(sketch_moved, shuffle_patches(sketch, orders))
        assert torch.equal(photo_moved, shuffle_patches(photo, orders))


def test_one_square_makes_l_ps_the_loss_of_pictures_and_no_weight_shuffles_none() -> None:
    pairs = drawings(OWN)
    values, _ = gradients(begun(MASBIRConfig.preset("fine", shuffle_grid=1), pairs), pairs.load(0))
    torch.testing.assert_close(values["ps"], values["clip_img"])
    plain, _ = gradients(begun(MASBIRConfig.preset("fine", lambda_ps=0.0), pairs), pairs.load(0))
    assert "ps" not in plain
    torch.testing.assert_close(plain["clip_img"], values["clip_img"])


@pytest.mark.parametrize("kind", ["open_clip", "transformers clip"])
def test_the_embedding_is_the_pooled_output_of_the_library(kind: str, tmp_path: Path) -> None:
    small = WRITERS[kind](tmp_path)
    backbone = create_backbone(HystarConfig(backbone=small.backbone, pretrained=small.pretrained, style="clip"))
    text_width = backbone.embed_dim
    drop_image_projection(backbone)
    assert backbone.embed_dim == small.width != text_width == small.embed_dim
    model = small.untouched()
    images = torch.randn(2, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if kind == "open_clip":
            model.visual.proj = None
            expected = model.encode_image(images)
        else:
            expected = model.vision_model(pixel_values=images).pooler_output
        torch.testing.assert_close(backbone.encode_image(images), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="backbone must be a CLIP of open_clip or transformers whose image tower ends"):
        drop_image_projection(backbone)


def test_the_parts_of_vit_b_16_have_the_published_numbers_of_parameters() -> None:
    with weightless(HystarConfig(backbone="open_clip:ViT-B-16", pretrained=None, style="clip")) as sizes:
        method = create_ma_sbir(sizes, OWN.to_dict() | {"styles": "photo\nsketch"})
    assert count_parameters(method) == {"towers": 85_799_424, "modalities": 2_304 + 2_307, "text": 393_984}


def test_the_text_layer_begins_orthogonal_and_texts_have_the_width_of_pictures() -> None:
    method = begun(OWN, drawings(OWN))
    weight = method.text_layer.text_layer.weight.detach()
    torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]), rtol=1e-4, atol=1e-5)
    texts, pictures = method.encode_text(["cat", "dog"]), method.encode_image(torch.rand(2, 3, 64, 64))
    assert texts.shape == pictures.shape
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freeze_text": False}, "ma_sbir.freeze_text must be True with ma_sbir.fine, got False"),
        ({"unpaired": "disjoint"}, "ma_sbir.unpaired must be 'none' with ma_sbir.fine, got 'disjoint'"),
        ({"unused_modalities": 1}, "ma_sbir.unused_modalities must be 0 with ma_sbir.fine, got 1"),
        ({"clip_img": 1.5}, "ma_sbir.clip_img must be at most 1, got 1.5"),
        ({"shuffle_grid": 0}, "ma_sbir.shuffle_grid must be a whole number of at least 1, got 0"),
        ({"fine_pairs": "text"}, "ma_sbir.fine_pairs must be one of 'all', 'sketch_photo', got 'text'"),
        ({"fine": False}, "ma_sbir.lambda_ps must be left out without ma_sbir.fine, got 0.2"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as found:
        MASBIRConfig.preset("fine", **{"lambda_ps": 0.2} | change)
    assert message in str(found.value)


def test_a_grid_that_does_not_divide_the_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="shuffle_grid must divide the sides of pictures of 64 x 64 pixels, got 3"):
        create_ma_sbir(tiny_config(None), MASBIRConfig.preset("fine", shuffle_grid=3).to_dict())
