"""Prompts with learned words: places, exactness of the shared beginning, and where gradients go."""

from __future__ import annotations

import time
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from hystar_fast.methods.suite import tiny_config
from hystar_fast.methods.tki.tki_prompts import Prompts
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.text_tower import OpenClipText, text_tower
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.config import HystarConfig
from tests.support.small_backbones import WRITERS

NAMES = ["red cat", "cat", "drawing of a cat"]
KINDS = ("tiny", "open_clip", "transformers clip")


def build(kind: str, folder: Path) -> tuple[TowerBackbone, Prompts]:
    if kind == "tiny":
        config = tiny_config()
    else:
        small = WRITERS[kind](folder)
        config = HystarConfig(backbone=small.backbone, pretrained=small.pretrained, style="clip")
    backbone = create_backbone(config)
    return backbone, Prompts(text_tower(backbone), backbone.tokenizer)


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TowerBackbone, Prompts]:
    return build(request.param, tmp_path)


def words(prompts: Prompts, count: int = 4, scale: float = 0.5) -> torch.Tensor:
    return torch.randn(count, prompts.tower.width, generator=torch.Generator().manual_seed(3)) * scale


def test_the_embedding_of_a_real_word_makes_its_prompt(made: tuple[TowerBackbone, Prompts]) -> None:
    """A learned word that equals the embedding of "x" gives the vectors of the prompts with "x"."""
    backbone, prompts = made
    ids = backbone.tokenizer(["A x style of"])
    real = prompts.tower.embed_tokens(ids)[0, 2][None]
    with torch.no_grad():
        truth = F.normalize(backbone.encode_text(backbone.tokenizer([f"A x style of {n}." for n in NAMES])), dim=-1)
        torch.testing.assert_close(prompts.styled(real, NAMES)[0], truth, rtol=0, atol=1e-5)
        torch.testing.assert_close(prompts.in_style("x", NAMES), truth, rtol=0, atol=1e-5)
        torch.testing.assert_close(prompts.domains(real), F.normalize(backbone.encode_text(ids), dim=-1))
        plain = F.normalize(backbone.encode_text(backbone.tokenizer(NAMES)), dim=-1)
        torch.testing.assert_close(prompts.classes(NAMES), plain, rtol=0, atol=1e-5)


def test_a_shared_beginning_changes_no_vector_and_no_gradient(made: tuple[TowerBackbone, Prompts]) -> None:
    _, prompts = made
    found = []
    for reuse in (True, False):
        nu = words(prompts).requires_grad_()
        vectors = prompts.styled(nu, NAMES, reuse=reuse)
        assert vectors.shape == (4, 3, vectors.shape[-1])
        (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
        found.append((vectors.detach(), nu.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=2e-6)
    assert (found[0][1] - found[1][1]).norm() < 1e-4 * found[1][1].norm()


def test_the_beginning_is_shared_up_to_the_class(made: tuple[TowerBackbone, Prompts], monkeypatch) -> None:
    _, prompts = made
    seen: list[tuple[int, ...]] = []
    begin = prompts.tower.begin
    monkeypatch.setattr(prompts.tower, "begin", lambda x: seen.append(tuple(x.shape)) or begin(x))
    with torch.no_grad():
        prompts.styled(words(prompts), ["red", "cat"])
        prompts.styled(words(prompts), ["cat"])
    assert seen[0][:2] == (4, 5), "begin, a, word, style, of; once for each of four words"
    assert seen[1][1] == int(prompts.tower.ends(prompts._ids(["A x style of cat."]))[0]), "the end is never shared"


def test_gradients_reach_each_word_from_its_own_prompts_alone(made: tuple[TowerBackbone, Prompts]) -> None:
    backbone, prompts = made
    nu = words(prompts).requires_grad_()
    weights = torch.randn(backbone.embed_dim, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((prompts.styled(nu, NAMES)[1] @ weights).sum(), nu)
    assert bool(gradient[1].abs().max() > 0) and not gradient[[0, 2, 3]].any()
    (gradient,) = torch.autograd.grad((prompts.domains(nu)[2] @ weights).sum(), nu)
    assert bool(gradient[2].abs().max() > 0) and not gradient[[0, 1, 3]].any()
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_the_end_comes_from_the_ids_and_not_from_the_vectors(made: tuple[TowerBackbone, Prompts]) -> None:
    _, prompts = made
    with torch.no_grad():
        huge = prompts.styled(words(prompts, scale=50.0), NAMES)
    assert bool(huge.isfinite().all()) and not torch.allclose(huge[:, 0], huge[:, 1])


def test_a_word_behind_the_class_is_in_its_place(made: tuple[TowerBackbone, Prompts]) -> None:
    backbone, _ = made
    prompts = Prompts(text_tower(backbone), backbone.tokenizer, template="{class} in {word} style")
    texts = [f"{name} in x style" for name in NAMES]
    ids = backbone.tokenizer(["A x style of"])
    with torch.no_grad():
        truth = F.normalize(backbone.encode_text(backbone.tokenizer(texts)), dim=-1)
        found = prompts.styled(prompts.tower.embed_tokens(ids)[0, 2][None], NAMES)[0]
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)


def test_a_class_may_be_named_as_a_place_of_the_template(tmp_path: Path) -> None:
    backbone, prompts = build("tiny", tmp_path)
    names, x = ["{word}", "{class}", "cat"], backbone.tokenizer(["A x style of"])
    with torch.no_grad():
        texts = backbone.tokenizer([f"A x style of {name}." for name in names])
        truth = F.normalize(backbone.encode_text(texts), dim=-1)
        found = prompts.styled(prompts.tower.embed_tokens(x)[0, 2][None], names)[0]
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)


def test_wrong_templates_are_refused(tmp_path: Path) -> None:
    backbone, _ = build("tiny", tmp_path)
    tower, tokenizer = text_tower(backbone), backbone.tokenizer
    for changes, message in (
        ({"template": "A style of {class}"}, "template must have {word} and {class} once each, got 'A style of"),
        ({"domain_template": "A {word} {class}"}, "domain_template must have {word} once each, got 'A {word} {class}'"),
        ({"class_template": "{word} {class}"}, "class_template must have {class} alone, got '{word} {class}'"),
        ({"domain_template": "y{word}"}, "template must give the learned word one token within the context, got"),
    ):
        with pytest.raises(ValueError) as caught:
            Prompts(tower, tokenizer, **changes)
        assert message in str(caught.value)
    prompts = Prompts(tower, tokenizer)
    with pytest.raises(ValueError, match="one token within the context, got 'cat cat"):
        Prompts(tower, tokenizer, "{class} {word}").styled(words(prompts), ["cat " * 20])


def test_a_cut_prompt_is_at_least_four_times_faster_than_one_of_77_tokens() -> None:
    """At the text width of ViT-B/32, two of its twelve blocks; about 9 tokens take the place of 77."""
    text = {"width": 512, "heads": 8, "layers": 2, "context_length": 77, "vocab_size": 49408}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    torch.manual_seed(0)
    model = open_clip.CLIP(512, vision, text).eval().requires_grad_(False)
    prompts = Prompts(OpenClipText(model), open_clip.get_tokenizer("ViT-B-32"))
    names, nu = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"], words(prompts, scale=0.02)
    ids, places = prompts._with_word(prompts.template, names)
    ends = prompts.tower.ends(ids).repeat(len(nu))

    def whole() -> torch.Tensor:
        embedded = prompts._embed(nu, ids, places).flatten(0, 1)
        return F.normalize(prompts.tower.encode(embedded, ends), dim=-1).view(len(nu), len(names), -1)

    assert ids.shape[1] == 77 and int(ends.max()) < 12
    truth = whole()
    seconds: dict[str, list[float]] = {"whole": [], "cut": []}
    for _ in range(3):
        for name, encode in (("whole", whole), ("cut", lambda: prompts.styled(nu, names))):
            start = time.process_time()
            found = encode()
            seconds[name].append(time.process_time() - start)
            torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)
    assert min(seconds["whole"]) >= 4 * min(seconds["cut"]), seconds
