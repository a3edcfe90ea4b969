"""TKI as a method: both stages, what trains, its adapter, its settings and what is refused."""

from __future__ import annotations

import hashlib
import re

import pytest
import torch
import torch.nn.functional as F

from hystar_fast.data.open import open_images
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.step_trained import NameBatch, StepPlan
from hystar_fast.methods.suite import create_method, tiny_config, uses_backbone
from hystar_fast.methods.tki.aggregation import aggregation_floor
from hystar_fast.methods.tki.text_selection import HELD_OUT, TextCriterion
from hystar_fast.methods.tki.tki_config import TKIConfig
from hystar_fast.methods.tki.tki_method import TKI, _other_names, create_tki
from hystar_fast.methods.tki.whitening_head import within_class_whitening
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import weightless

PACS = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
PICTURES = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ALL = NameBatch(torch.arange(len(PACS)))


def method(**settings) -> TKI:
    made = create_method("tki", tiny_config(), settings={"words": 4, **settings})
    assert isinstance(made, TKI)
    return made


def begun(seed: int = 0, rate: float = 0.005, **settings) -> TKI:
    made = method(**settings)
    made.begin(StepPlan(len(PACS), rate, seed=seed, names=PACS))
    return made


def run(made: TKI) -> list[dict[str, float]]:
    return [made.step(ALL, step, step) for step in range(made.own.steps)]


def digest(made: TKI) -> str:
    found = hashlib.sha256()
    for _, tensor in sorted(made.model.state_dict().items()):
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def test_it_begins_as_clip_and_compares_by_its_similarity() -> None:
    made, frozen = method(), create_method("frozen", tiny_config())
    with torch.no_grad():
        for found, truth in (
            (made.encode_image(PICTURES), frozen.encode_image(PICTURES)),
            (made.encode_text(PACS), frozen.encode_text(PACS)),
        ):
            torch.testing.assert_close(found, truth, rtol=0, atol=1e-6)
    assert made.similarity.is_cosine and method(similarity="poincare", radius=2.0).similarity.name == "poincare-2"


@pytest.mark.slow
def test_seven_names_are_fitted_in_two_stages_and_clip_stays_as_it_was() -> None:
    made = begun(steps_expansion=100, steps_aggregation=100, start="random")
    before, pictures = digest(made), made.model.encode_image(made.normalise(PICTURES))
    lines = run(made)
    first, last = lines[0], lines[99]
    assert last["diversity"] < 0.1 < first["diversity"] and last["mean_cosine"] < 0.6 < first["mean_cosine"]
    assert last["accuracy"] >= first["accuracy"]
    assert lines[-1]["loss"] < aggregation_floor(4) + 0.05 and lines[-1]["floor"] == pytest.approx(aggregation_floor(4))
    assert lines[-1]["within_cosine"] > 0.9 > 0.5 > lines[-1]["between_cosine"]
    assert digest(made) == before and all(p.grad is None for p in made.model.parameters())
    assert torch.equal(made.model.encode_image(made.normalise(PICTURES)), pictures)


@pytest.mark.parametrize(
    ("name", "text", "image", "words", "head", "whole"),
    [
        ("ViT-B-32", 63_428_096, 87_849_216, 10_240, 525_312, 151_277_313),
        ("ViT-L-14", 123_650_304, 303_966_208, 15_360, 1_181_184, 427_616_513),
        ("RN50", 63_690_240, 38_316_896, 10_240, 2_099_200, 102_007_137),
    ],
)
def test_the_sizes_of_the_papers_models(name: str, text: int, image: int, words: int, head: int, whole: int) -> None:
    config = HystarConfig(backbone=f"open_clip:{name}", pretrained=None, style="clip", blocks=None)
    with weightless(config) as sizes:
        made = create_tki(sizes, {})
    assert count_parameters(made) == {"words": words, "head": head}
    clip = made.model.clip
    towers = {"image": clip.visual, "whole": clip}
    found = {part: sum(parameter.numel() for parameter in tower.parameters()) for part, tower in towers.items()}
    assert found == {"image": image, "whole": whole}
    assert whole - image - 1 == text, "what is left is the text tower and the temperature"


def test_each_stage_trains_its_own_part() -> None:
    made = begun(steps_expansion=1, steps_aggregation=1, start="random")
    words, head = made.words.vectors.detach().clone(), made.head.layers[0].linear.weight.detach().clone()
    assert {*made.step(ALL, 0, 0)} >= {"loss", "category", "diversity"}
    assert not torch.equal(made.words.vectors, words) and torch.equal(made.head.layers[0].linear.weight, head)
    words = made.words.vectors.detach().clone()
    assert {*made.step(ALL, 1, 1)} == {"loss", "floor", "within_cosine", "between_cosine"}
    assert torch.equal(made.words.vectors, words) and not torch.equal(made.head.layers[0].linear.weight, head)


def test_the_terms_are_weighed_and_can_be_left_out() -> None:
    for lam, category in ((1.0, 1.0), (0.0, 1.0), (2.0, 0.0)):
        line = begun(lam=lam, category_weight=category).step(ALL, 0, 0)
        assert line["loss"] == pytest.approx(category * line["category"] + lam * line["diversity"], rel=1e-5)


def test_stored_prompts_are_those_of_the_words_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = begun()
    whole = made.styled_prompts()
    monkeypatch.setattr("hystar_fast.methods.tki.tki_method._PROMPTS", 8)
    torch.testing.assert_close(made.styled_prompts(), whole, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(made.prompts.styled(made.words.vectors, PACS), whole, rtol=0, atol=1e-6)


def test_mean_cosines_are_those_of_all_pairs() -> None:
    made = begun(steps_expansion=0, start="random")
    line = made.step(ALL, 0, 0)
    torch.manual_seed(0)
    fresh = begun(steps_expansion=0, start="random")
    with torch.no_grad():
        z = fresh.head(fresh.styled_prompts())
    cosines = torch.einsum("pid,qjd->pqij", z, z)
    same, own = torch.eye(7, dtype=torch.bool), torch.eye(4, dtype=torch.bool)
    assert line["within_cosine"] == pytest.approx(cosines[:, :, same][~own].mean().item(), abs=1e-5)
    assert line["between_cosine"] == pytest.approx(cosines[:, :, ~same].mean().item(), abs=1e-5)


def test_a_batch_of_classes_in_the_second_stage_follows_from_the_seed_and_the_step() -> None:
    found = [begun(seed, steps_expansion=0, aggregation_classes=3, start="random") for seed in (0, 0, 1)]
    lines = [made.step(ALL, 0, 5)["loss"] for made in found]
    assert lines[0] == lines[1] != lines[2]


def test_one_seed_is_one_result_and_an_adapter_is_the_method(tmp_path) -> None:
    settings = {"steps_expansion": 2, "steps_aggregation": 2, "geometry": "all", "hidden": 24, "similarity": "poincare"}
    first, again = begun(**settings), begun(**settings)
    assert run(first) == run(again)
    save_method(first, tmp_path / "adapter")
    loaded = load_method(tmp_path / "adapter")
    assert isinstance(loaded, TKI)
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(PICTURES), first.encode_image(PICTURES))
        assert torch.equal(loaded.encode_text(PACS), first.encode_text(PACS))
    assert loaded.settings == first.settings and loaded.settings["names"] == "\n".join(PACS)
    assert torch.equal(loaded.words.vectors, first.words.vectors) and loaded.similarity == first.similarity
    assert {*loaded.trained_parameters()} == {
        "vectors",
        *(f"layers.{n}.linear.{part}" for n in (0, 1) for part in ("weight", "bias")),
    }
    assert uses_backbone("tki", first.settings)


def test_the_criterion_ranks_classes_between_styles_that_never_trained() -> None:
    made = begun()
    criterion = TextCriterion(made.prompts, PACS, ["apple", "boat"], HELD_OUT[:2])
    score, parts = criterion.score(made.head, made.similarity)
    with torch.no_grad():
        found = []
        for names in (PACS, ("apple", "boat")):
            photo, sketch = (made.prompts.in_style(style, names) for style in ("photo", "sketch"))
            values = []
            for scores in (photo @ sketch.T, sketch @ photo.T):
                ranks = (scores >= scores.diagonal()[:, None]).sum(1)
                values.append((1 / ranks).mean().item())
            found.append(sum(values) / 2)
    assert [parts["names that train"], parts["other names"]] == pytest.approx(found)
    assert score == pytest.approx(sum(found) / 2) and parts["mean cosine to CLIP"] == pytest.approx(1.0, abs=1e-6)
    value, own = made.own_score()
    assert 0 < value <= 1 and own["mean cosine to CLIP"] == pytest.approx(1.0, abs=1e-6)


WCCN = {"head": "wccn", "steps_aggregation": 1, "select": "last"}


def test_the_closed_form_is_computed_from_the_prompts_of_the_trained_words(tmp_path) -> None:
    made = begun(steps_expansion=2, **WCCN)
    lines = run(made)
    assert {*lines[-1]} == {"loss", "floor", "within_cosine", "between_cosine"} and len(lines) == 3
    truth = within_class_whitening(made.styled_prompts(), 3.0)
    torch.testing.assert_close(made.head.whitening, truth, rtol=0, atol=1e-6)
    same = begun(steps_expansion=2, steps_aggregation=0, start="random")
    run(same)
    assert torch.equal(same.words.vectors, made.words.vectors), "the first stage is that of TKI"
    assert [*count_parameters(made)] == ["words"] and [*made.optimizers()] == ["words"]
    with torch.no_grad():
        plain = F.normalize(made.model.encode_text(made.model.tokenizer(list(PACS))), dim=-1)
        torch.testing.assert_close(made.encode_text(PACS), F.normalize(plain @ truth, dim=-1), rtol=0, atol=1e-6)
    save_method(made, tmp_path)
    loaded = load_method(tmp_path)
    assert {*loaded.trained_parameters()} == {"vectors", "whitening"}
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(PICTURES), made.encode_image(PICTURES))


def test_words_begin_about_the_mean_of_real_style_words() -> None:
    torch.manual_seed(0)
    made = method(words=3, word_init="words", word_std=0.0)
    tower, tokenizer = made.tower, made.model.tokenizer
    tokens = []
    for style in HELD_OUT:
        ids = tokenizer([style])[0]
        tokens += [tower.embed_tokens(token) for token in ids[1 : int(tower.ends(ids[None])[0])]]
    truth = torch.stack(tokens).mean(0)
    torch.testing.assert_close(made.words.vectors.detach(), truth.expand(3, -1))
    assert truth.norm() > 0 and not method(word_std=0.0).words.vectors.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "wccn"}, "tki.steps_aggregation must be 1 for tki.head = 'wccn', which is computed and not trained"),
        ({**WCCN, "select": "text"}, "tki.select must be 'last' for tki.head = 'wccn'"),
        ({**WCCN, "similarity": "dot"}, "tki.similarity must be 'cosine' for tki.head = 'wccn'"),
        ({"rho": 0.0}, "tki.rho must be finite and above 0, got 0.0"),
        ({"word_init": "word"}, "tki.word_init must be one of 'normal', 'words', got 'word'"),
        ({"geometry": "lats"}, "tki.geometry must be one of 'last', 'all', 'euclidean', got 'lats'"),
        ({"words": 1}, "tki.words must be a whole number of at least 2, got 1"),
        ({"radius": 0.0}, "tki.radius must be finite and above 0, got 0.0"),
        ({"lam": -1.0}, "tki.lam must be finite and at least 0, got -1.0"),
        ({"mu": float("nan")}, "tki.mu must be finite, got nan"),
        ({"labels": "names"}, "tki.labels must be one of 'categories', 'captions' or 'file:<path>', got 'names'"),
        (
            {"steps_expansion": 0, "steps_aggregation": 0},
            "tki.steps_expansion or tki.steps_aggregation must be above 0",
        ),
        ({"lam": 0, "category_weight": 0}, "tki.lam or tki.category_weight must be above 0, got 0 and 0"),
        ({"bias": False}, "tki.bias must be true unless tki.similarity is 'poincare'"),
        (
            {"similarity": "poincare", "geometry": "euclidean"},
            "must be 'cosine' or 'dot' for tki.geometry = 'euclidean'",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TKIConfig.from_dict(settings)


def test_wrong_names_and_types_and_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="settings must be those of TKI, got 'radus'"):
        TKIConfig.from_dict({"radus": 1.0})
    with pytest.raises(TypeError, match=r"tki\.bias must be True or False, got 1"):
        TKIConfig(bias=1)
    with pytest.raises(TypeError, match=r"tki\.alpha must be a number, got 'x'"):
        TKIConfig(alpha="x")
    assert (
        not TKIConfig(bias=False, similarity="poincare").bias and not TKIConfig(bias=False, geometry="euclidean").bias
    )
    with pytest.raises(ValueError, match="begin must be called before the first step"):
        method().step(ALL, 0, 0)
    with pytest.raises(ValueError, match=r"optim\.chunk_size must be 0 for method 'tki', got 4"):
        method().begin(StepPlan(7, 0.1, chunk_size=4, names=PACS))
    with pytest.raises(ValueError, match=r"tki\.aggregation_classes must be 0 or at least 2, got 1"):
        begun(aggregation_classes=1)


@pytest.mark.parametrize("names", [("Dog", "cat", "dog"), tuple(f"cat {'of many words ' * 20}{i}" for i in range(2))])
def test_names_of_the_same_tokens_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"tki\.labels must give names that the tokenizer tells apart") as caught:
        method().begin(StepPlan(len(names), 0.1, names=names))
    assert names[0] in str(caught.value) and names[-1] in str(caught.value)


def test_without_other_names_the_names_that_train_are_the_criterion() -> None:
    names = tuple(str(record.caption) for record in open_images("emoji", "val").gallery)
    made = method()
    made.begin(StepPlan(len(names), 0.1, names=names))
    score, parts = made.own_score()
    assert score == parts["names that train"] > 0 and "other names" not in parts


def test_no_name_of_an_unseen_category_is_among_the_other_names() -> None:
    drawings = open_images("emoji", "val").gallery
    unseen = frozenset({str(drawings[0].category), f"{drawings[-1].caption}".replace(" ", "_").upper()})
    plan = StepPlan(len(drawings), 0.1, names=tuple(f"name {i}" for i in range(len(drawings))), unseen=unseen)
    expected = [str(r.caption) for r in drawings if r.category != drawings[0].category and r is not drawings[-1]]
    assert len(expected) < len(drawings) - 1 and _other_names(plan) == [*dict.fromkeys(expected)]


def test_vectors_are_unit_vectors_after_training() -> None:
    made = begun(steps_expansion=1, steps_aggregation=2, start="random")
    run(made)
    with torch.no_grad():
        assert torch.allclose(made.encode_image(PICTURES).norm(dim=-1), torch.ones(3))
        assert F.cosine_similarity(made.encode_text(["dog"]), made.encode_text(["house"])).item() < 1
