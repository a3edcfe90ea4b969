"""TKI as a method: a head behind both towers of a frozen CLIP, trained in two stages on class names alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from hystar_fast.data.open import open_images
from hystar_fast.methods.device import multiplies_bf16
from hystar_fast.methods.step_trained import NameBatch, StepPlan, StepTrained, read_losses
from hystar_fast.methods.tki.aggregation import aggregation_floor, aggregation_loss
from hystar_fast.methods.tki.ball_similarity import create_similarity
from hystar_fast.methods.tki.expansion import category_loss, diversity_loss, off_diagonal
from hystar_fast.methods.tki.text_selection import HELD_OUT, TextCriterion
from hystar_fast.methods.tki.tki_config import TKIConfig
from hystar_fast.methods.tki.tki_head import TKIHead
from hystar_fast.methods.tki.tki_prompts import CLASS, WORD, Prompts, mean_embedding
from hystar_fast.methods.tki.whitening_head import WhiteningHead
from hystar_fast.models.backbone_identity import backbone_fingerprints
from hystar_fast.models.backbones import create_encoders
from hystar_fast.models.backbones.base import Backbone
from hystar_fast.models.backbones.clip_encoders import CLIPEncoders
from hystar_fast.models.backbones.text_tower import same_tokens, text_tower
from hystar_fast.models.config import HystarConfig

_WHOLE, _BATCH = 8192, 256  # prompts of a step of the second stage, and its classes where there are more
_PROMPTS = 1024  # that are encoded at a time without gradients


class StyleWords(nn.Module):
    """The learned style words: ν [P, width] ~ N(centre, deviation²)."""

    def __init__(self, count: int, width: int, deviation: float, centre: Tensor | None = None) -> None:
        super().__init__()
        vectors = torch.randn(count, width) * deviation
        self.vectors = nn.Parameter(vectors if centre is None else vectors + centre)


class TKI(StepTrained):
    """Retrieval across domains by z = h(I(x)), with h trained on texts.

    Stage 1, expansion: P style words are learned through the frozen text tower, so that prompts of one class in their
    styles lie far apart and still mean the class. Stage 2, aggregation: h pulls the P styles of a class together. No
    picture is read in training.

    Args:
        own: the settings of the method.
        backbone: a CLIP; it is frozen in place.

    Raises:
        ValueError: a backbone whose text tower cannot take learned words.

    Source: Yan et al., Retrieval Across Any Domains via Large-scale Pre-trained Model (ICML 2024).
    """

    name = "tki"

    def __init__(self, own: TKIConfig, backbone: Backbone | CLIPEncoders) -> None:
        self.own, self.batching = own, own.batching
        self.model: Any = backbone.requires_grad_(False).eval()
        self.resize, self.normalise = backbone.resize, backbone.normalise
        self.tower = text_tower(backbone)
        centre = mean_embedding(self.tower, backbone.tokenizer, HELD_OUT) if own.word_init == "words" else None
        self.words = StyleWords(own.words, self.tower.width, own.word_std, centre)  # first: the same for every head
        self.head: TKIHead | WhiteningHead = _create_head(own, backbone.embed_dim)
        self.modules = (self.model, self.head, self.words)
        self.similarity = create_similarity(own.similarity, own.radius)
        self.settings, self.scores_from = own.to_dict(), own.steps_expansion
        self._prompts: Prompts | None = None
        self._prototypes: Tensor | None = None
        self._styled: Tensor | None = None
        self._criterion: TextCriterion | None = None
        self.train(False)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Return h(I(x)) [B, D]: unit vectors, or with another similarity than the cosine points."""
        return self.head(self.model.encode_image(self.normalise(images)))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        ids = self.model.tokenizer(list(texts)).to(self.words.vectors.device)
        return self.head(self.model.encode_text(ids))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"words": list(self.words.parameters())}
        return groups if isinstance(self.head, WhiteningHead) else groups | {"head": list(self.head.parameters())}

    def trained_parameters(self) -> dict[str, Tensor]:
        computed = dict(self.head.named_parameters()) if isinstance(self.head, WhiteningHead) else {}
        return super().trained_parameters() | computed

    def begin(self, plan: StepPlan) -> None:
        self._check_not_begun()
        own = self.own
        if plan.chunk_size:
            raise ValueError(f"optim.chunk_size must be 0 for method 'tki', got {plan.chunk_size}")
        for template in (own.template.replace(WORD, "a"), own.class_template):
            prompts = [template.replace(CLASS, name) for name in plan.names]
            if CLASS in template and (same := same_tokens(self.model.tokenizer, prompts)):
                raise ValueError(f"tki.labels must give names that the tokenizer tells apart, got {' and '.join(same)}")
        self._plan = plan
        self.settings = {**self.settings, "names": "\n".join(plan.names)}
        rates = {"words": own.lr_expansion, "head": plan.learning_rate}
        self._optimizers = {
            name: optim.Adam([{"name": name, "params": params, "lr": rates[name], "peak_lr": rates[name]}])
            for name, params in self.parameter_groups().items()
        }
        if own.aggregation_classes == 1:
            raise ValueError("tki.aggregation_classes must be 0 or at least 2, got 1")

    def optimizers(self) -> Mapping[str, optim.Optimizer]:
        self._begun()
        return self._optimizers

    def state(self) -> Mapping[str, nn.Module]:
        return {"words": self.words, "head": self.head}

    def step(self, batch: NameBatch, epoch: int, step: int) -> dict[str, float]:
        plan = self._begun()
        is_expansion = step < self.own.steps_expansion
        optimizer = self._optimizers.get("words" if is_expansion else "head")
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        values = self._expansion(batch.rows) if is_expansion else self._aggregation(plan, step)
        if optimizer is not None:
            values["loss"].backward()
            optimizer.step()
        return read_losses(values)

    def own_score(self) -> tuple[float, dict[str, Any]]:
        """Return the score of :class:`hystar_fast.methods.tki.text_selection.TextCriterion` and its parts."""
        if self._criterion is None:
            plan = self._begun()
            self._criterion = TextCriterion(self.prompts, plan.names, _other_names(plan))
        score, parts = self._criterion.score(self.head, self.similarity)
        return score, dict(parts)

    @property
    def prompts(self) -> Prompts:
        """The encoder of its prompts, on the device of the words when it is first asked for."""
        if self._prompts is None:
            own, device = self.own, self.words.vectors.device
            templates = own.template, own.domain_template, own.class_template
            self._prompts = Prompts(self.tower, self.model.tokenizer, *templates, device=device)
        return self._prompts

    @torch.no_grad()
    def styled_prompts(self) -> Tensor:
        """Return the unit vectors [P, C, D] of every prompt of the learned words and the names of the run."""
        names, words = self._begun().names, self.words.vectors
        at_once = max(1, _PROMPTS // len(words))
        parts = [self.prompts.styled(words, names[start : start + at_once]) for start in range(0, len(names), at_once)]
        return torch.cat(parts, dim=1)

    def _expansion(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the terms of Eq. 5 for some classes, with what they measure."""
        plan, own, words = self._begun(), self.own, self.words.vectors
        if self._prototypes is None:
            self._prototypes = torch.cat(
                [self._no_grad_classes(plan.names[at : at + _PROMPTS]) for at in range(0, len(plan.names), _PROMPTS)]
            )
        names = [plan.names[row] for row in rows.tolist()]
        enabled = plan.bf16 and multiplies_bf16(words.device)
        with torch.autocast(words.device.type, torch.bfloat16, enabled=enabled):
            styled, domains = self.prompts.styled(words, names), self.prompts.domains(words)
        styled, domains = styled.float(), domains.float()
        category = category_loss(styled, self._prototypes, rows, own.tau_expansion)
        diversity = diversity_loss(domains, own.alpha, own.mu)
        cosines = off_diagonal(domains @ domains.mT)
        right = (styled @ self._prototypes.mT).argmax(-1) == rows
        return {
            "loss": own.category_weight * category + own.lam * diversity,
            "category": category,
            "diversity": diversity,
            "mean_cosine": cosines.mean(),
            "max_cosine": cosines.max(),
            "accuracy": right.float().mean(),
            "word_norm": words.norm(dim=-1).mean(),
        }

    @torch.no_grad()
    def _no_grad_classes(self, names: Sequence[str]) -> Tensor:
        return self.prompts.classes(names)

    def _aggregation(self, plan: StepPlan, step: int) -> dict[str, Tensor]:
        """Return Eq. 6 of all classes, or of some, and the mean cosines of its result."""
        own = self.own
        if self._styled is None:  # the words no longer change; a resumed run computes the same
            self._styled = self.styled_prompts()
        if isinstance(self.head, WhiteningHead):
            self.head.fit(self._styled)
        P, C, _ = self._styled.shape
        count = own.aggregation_classes or (C if P * C <= _WHOLE else _BATCH)
        vectors = self._styled
        if count < C:
            generator = torch.Generator().manual_seed(plan.seed * 6_700_417 + step)
            vectors = vectors[:, torch.randperm(C, generator=generator)[:count].to(vectors.device)]
        z = self.head(vectors)
        loss = aggregation_loss(
            z,
            own.tau_aggregation,
            similarity=self.similarity,
            self_in_denominator=own.self_in_denominator,
            positives=own.positives,
        )
        within, between = _mean_cosines(F.normalize(z.detach(), dim=-1))
        floor = aggregation_floor(P) if own.self_in_denominator else 0.0
        return {"loss": loss, "floor": loss.new_tensor(floor), "within_cosine": within, "between_cosine": between}


def create_tki(config: HystarConfig, settings: Mapping[str, Any]) -> TKI:
    """Build TKI from settings, or from those of a saved one.

    Args:
        config: names the backbone.
        settings: of `TKIConfig`; of a saved one also "names", of the classes that trained.

    Raises:
        ValueError: a setting is wrong, or the text tower of the backbone cannot take learned words.
    """
    values = dict(settings)
    names = values.pop("names", None)
    backbone = create_encoders(config)
    made = TKI(TKIConfig.from_dict(values), backbone)
    made.config, made.fingerprints = config, backbone_fingerprints(backbone)
    if names is not None:
        made.settings = {**made.settings, "names": names}
    return made


def _create_head(own: TKIConfig, width: int) -> TKIHead | WhiteningHead:
    if own.head == "wccn":
        return WhiteningHead(width, own.rho)
    return TKIHead(
        width,
        depth=own.depth,
        hidden=own.hidden,
        geometry=own.geometry,
        radius=own.radius,
        bias=own.bias,
        start=own.start,
        input_norm=own.input_norm,
        similarity=own.similarity,
    )


def _mean_cosines(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cosine of two styles of a class, and of two classes, of unit vectors [P, C, D].

    Sums of vectors give them: no matrix of pairs is made.
    """
    P, C, _ = z.shape
    of_class = z.sum(0).square().sum()
    of_all = z.sum((0, 1)).square().sum()
    within = (of_class - P * C) / (C * P * (P - 1))
    return within, (of_all - of_class) / max(P * P * C * (C - 1), 1)


def _other_names(plan: StepPlan) -> list[str]:
    """Return at most as many names of embedded drawings as train, none that trains and none of an unseen category."""
    known = {name.replace("_", " ").casefold() for name in (*plan.names, *plan.unseen)}
    drawings = [record for record in open_images("emoji", "val").gallery if record.category not in plan.unseen]
    found = dict.fromkeys(str(record.caption) for record in drawings)
    return [name for name in found if name.casefold() not in known][: len(plan.names)]
