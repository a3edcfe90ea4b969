"""Steps of MA-SBIR: both towers train, captions are encoded once, chunks and processes change nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.ma_sbir.create_ma_sbir import create_ma_sbir
from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.methods.ma_sbir.ma_sbir_losses import clip_loss
from hystar_fast.methods.ma_sbir.ma_sbir_method import MASBIR
from hystar_fast.methods.step_trained import StepPlan
from hystar_fast.models.backbones.tower_parameters import tower_parameters
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import weightless
from hystar_fast.train.processes import World, join_world, leave_world
from tests.support.ma_sbir_cases import begun, drawings, small_method
from tests.support.processes import in_processes
from tests.support.small_tiny import shrink_tiny

pytestmark = [pytest.mark.usefixtures("narrow_tiny"), pytest.mark.xdist_group("distributed")]
OWN = MASBIRConfig(labels="captions", template="{}", lambda_ortho=0.1, modality_init="normal", learn_temperature=True)


def gradients(method: MASBIR, world: World | None = None, **load: Any) -> tuple[Tensor, dict[str, Tensor]]:
    pictures = drawings(OWN)
    rank = (0, 1) if world is None else (world.rank, world.size)
    values, _ = method.backward(pictures.load(1, rank))
    named = {n: p for module in method.modules for n, p in module.named_parameters()}
    return values["loss"].detach(), {n: p.grad for n, p in named.items() if p.grad is not None}


def check_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= tolerance * value.norm() + 1e-9, name


def test_both_towers_and_the_vectors_get_gradients_and_the_scale_of_clip_none() -> None:
    _, found = gradients(begun(OWN, drawings(OWN)))
    assert all(bool(value.any()) for value in found.values())
    for name in ("clip.visual.proj", "clip.text_projection", "clip.token_embedding.weight", "vectors", "log_scale"):
        assert name in found
    assert "classifier.weight" in found and "clip.logit_scale" not in found


def test_the_towers_of_a_backbone_are_its_parameters_but_for_the_scale() -> None:
    model = small_method(OWN).model
    image, text = (tower_parameters(model, tower) for tower in ("image", "text"))
    assert {id(p) for p in image} == {id(p) for p in model.visual.parameters()}
    everything = {id(p) for n, p in model.named_parameters() if not n.endswith("logit_scale")}
    assert {id(p) for p in (*image, *text)} == everything and not {*map(id, image)} & {*map(id, text)}
    with pytest.raises(ValueError, match="tower must be 'image' or 'text', got 'words'"):
        tower_parameters(model, "words")


def test_captions_are_encoded_once_each_as_if_each_item_had_its_own() -> None:
    pictures, seen = drawings(OWN), []
    method = begun(OWN, pictures)
    encode = method.tower.encode_ids
    method.tower.encode_ids = lambda ids: seen.append(ids) or encode(ids)  # type: ignore[method-assign]
    batch = pictures.load(1)
    loss, found = gradients(method)
    assert len(seen) == 1 and len(seen[0]) == len(batch.labels.unique()) < len(batch.labels)
    other = begun(OWN, pictures)
    labels = [pictures.categories[label] for label in batch.labels.tolist()]
    z = other._embed(batch.pictures)
    t = torch.nn.functional.normalize(other.model.encode_text(other.model.tokenizer(labels)), dim=-1)
    tau = torch.exp(-other.temperature.log_scale)  # type: ignore[union-attr]
    values = other.modalities.losses(z, t, batch.labels, batch.kinds, tau)
    values["loss"].backward()
    torch.testing.assert_close(loss, values["loss"].detach())
    named = {n: p for module in other.modules for n, p in module.named_parameters()}
    check_same(found, {n: p.grad for n, p in named.items() if p.grad is not None}, 1e-4)


@pytest.mark.parametrize("chunk", [3, 8])
def test_a_step_in_chunks_is_the_whole_step(chunk: int) -> None:
    whole = gradients(begun(OWN, drawings(OWN)))
    parts = gradients(begun(OWN, drawings(OWN), chunk_size=chunk))
    torch.testing.assert_close(parts[0], whole[0])
    check_same(parts[1], whole[1], 1e-5)


def run_process(rank: int, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shrink_tiny(patch)
        os.environ.update(WORLD_SIZE="2", RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_port(folder)))
        torch.set_num_threads(1)
        world = join_world(torch.device("cpu"))
        try:
            found = gradients(begun(OWN, drawings(OWN), world), world)
        finally:
            leave_world()
    torch.save(found, folder / f"{rank}.pt")


def _port(folder: Path) -> int:
    return int((folder / "port").read_text())


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    in_processes(run_process, (tmp_path,), 2)
    whole = gradients(begun(OWN, drawings(OWN)))
    for rank in range(2):
        loss, found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(loss, whole[0])
        check_same(found, whole[1], 1e-5)


def test_a_frozen_text_tower_is_called_once_and_gets_no_gradient() -> None:
    own = MASBIRConfig(labels="captions", template="{}", freeze_text=True)
    pictures, calls = drawings(own), []
    method = begun(own, pictures)
    encode = method.tower.encode_ids
    method.tower.encode_ids = lambda ids: calls.append(1) or encode(ids)  # type: ignore[method-assign]
    before = method.model.clip.text_projection.clone()
    for step in range(3):
        method.step(pictures.load(step), 0, step)
    assert len(calls) == 1, "the table of captions at the first step"
    assert method.model.clip.text_projection.grad is None and torch.equal(method.model.clip.text_projection, before)


def test_what_decays_and_at_which_rate() -> None:
    own = MASBIRConfig(labels="captions", template="{}", modality_lr=0.25)
    (optimizer,) = begun(own, drawings(own), weight_decay=0.1).optimizers().values()
    found = {(g["name"], g["weight_decay"]): (g["lr"], {p.ndim for p in g["params"]}) for g in optimizer.param_groups}
    assert found == {("towers", 0.1): (1e-3, {2, 4}), ("towers", 0.0): (1e-3, {1}), ("modalities", 0.0): (0.25, {1, 2})}
    authors = MASBIRConfig.preset("authors", labels="captions", template="{}")
    (optimizer,) = begun(authors, drawings(authors), weight_decay=0.1).optimizers().values()
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.1}


def test_steps_of_5e_8_vanish_in_16_bits_and_so_do_runs_of_such_parameters() -> None:
    for dtype, moved in ((torch.float32, True), (torch.bfloat16, False)):
        weight = torch.nn.Parameter(torch.tensor([0.03], dtype=dtype))
        optimizer = torch.optim.AdamW([weight], lr=5e-8, weight_decay=0.0)
        start = weight.detach().float().clone()
        for _ in range(1000):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        change = (start - weight.detach().float()).item()
        assert change == (pytest.approx(1000 * 5e-8, rel=0.05) if moved else 0.0)
    pictures, method = drawings(OWN), small_method(OWN)
    method.model.half()
    plan = StepPlan(4, 1e-3, names=pictures.categories, styles=pictures.styles, processes=World())
    with pytest.raises(ValueError, match=r"parameters must be float32 .*, got torch\.float16"):
        method.begin(plan)


@pytest.mark.parametrize("fine", [False, True])
def test_captions_of_the_same_tokens_are_refused(fine: bool) -> None:
    method = small_method(MASBIRConfig.preset("fine" if fine else "package", template="{}"))
    plan = StepPlan(3, 1e-3, names=("Dog", "cat", "dog"), styles=("photo", "sketch"), processes=World())
    with pytest.raises(ValueError, match=r"ma_sbir\.labels must give captions .*, got Dog and dog"):
        method.begin(plan)


def test_a_step_needs_two_pictures_that_can_be_read() -> None:
    pictures = drawings(OWN)
    method, batch = begun(OWN, pictures), pictures.load(0)
    batch.usable[1:] = False
    with pytest.raises(ValueError, match="a batch must have 2 pictures that can be read, got 1 of 8"):
        method.backward(batch)
    batch.usable[1:3] = True
    values, _ = method.backward(batch)
    z, t = method._embed(batch.pictures[:3]), method._words(batch.labels[:3])
    torch.testing.assert_close(values["clip"], clip_loss(z, t, batch.labels[:3], 0.07, "masked"))


@pytest.mark.slow
def test_drawings_and_names_are_overfitted() -> None:
    own = MASBIRConfig(labels="captions", template="{}", modality_lr=0.02, modality_init="normal", lambda_mc=0.1)
    pictures = drawings(own, batch_size=48, limit=16)
    method = begun(own, pictures)
    for step in range(150):
        values = method.step(pictures.load(step), step, step)
    assert len(pictures.categories) == 16 and values["clip"] < 0.05 and values["mc"] < 0.1
    assert all(0 < values[f"norm_{name}"] < 30 for name in (*pictures.styles, "text"))


def test_the_towers_of_clip_have_the_published_numbers_of_parameters() -> None:
    config = HystarConfig(backbone="open_clip:ViT-B-32", pretrained=None, style="clip")
    with weightless(config) as sizes:
        method = create_ma_sbir(sizes, {"styles": "photo\nsketch"})
    counts = {name: sum(p.numel() for p in tower_parameters(method.model, name)) for name in ("image", "text")}
    assert counts == {"image": 87_849_216, "text": 63_428_096}
    assert count_parameters(method) == {"towers": 151_277_312, "modalities": 1_536 + 1_539}
    assert sum(count_parameters(method).values()) + 1 == 151_280_388, (
        "and the scale of the logits, which is not trained"
    )
