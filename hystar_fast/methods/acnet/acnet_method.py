"""ACNet: generator, discriminator, retrieval network and proxies, trained together step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from hystar_fast.data.images import ResizeTo, to_float
from hystar_fast.methods.acnet.acnet_config import ACNetConfig
from hystar_fast.methods.acnet.acnet_losses import adversarial_loss, create_embedding_loss, whole
from hystar_fast.methods.acnet.augment import change_colours
from hystar_fast.methods.acnet.discriminator import Discriminator, draw_normal_weights
from hystar_fast.methods.acnet.extractor import HALF, create_extractor
from hystar_fast.methods.acnet.generator import Generator
from hystar_fast.methods.acnet.translation import Translation
from hystar_fast.methods.device import multiplies_bf16
from hystar_fast.methods.step_trained import CategoryBatch, RunTooShort, StepPlan, StepTrained
from hystar_fast.models.config import HystarConfig

_GROUPS = ("extractor", "proxies", "generator", "discriminator", "translation")
_NOT_KEPT = ("discriminator", "translation")  # in the checkpoint alone
_RETRIEVAL_BETAS, _GAN_BETAS = (0.9, 0.999), (0.5, 0.999)


class ACNet(StepTrained):
    """L = L_adv + λ L_norm + γ L_ide (Eq. 8): a query is Φ(G(query)), a gallery picture Φ(picture).

    G makes a photo-like picture of a sketch, Φ embeds, D judges patches. L_norm is the mean of the retrieval losses of
    sketch, photo and G(sketch), which share the proxies; it reaches G through G(sketch). L_ide is mean |G(photo) -
    photo|.

    | loss | Φ | proxies | G | D |
    |---|---|---|---|---|
    | adversarial, of G | | | yes | |
    | γ L_ide | | | yes | |
    | λ L of sketch and photo | yes | yes | | |
    | λ L of G(sketch) | yes | yes | yes | |
    | adversarial, of D | | | | yes |

    Adam's step does not change with the scale of its gradient, so λ, γ and the mean decide what reaches G, not how fast
    Φ and the proxies learn.

    Args:
        config: names the backbone, for ``settings.extractor = "backbone"``.
        own: the settings.
        categories: of a saved one; 0 before `begin`.

    Source: Ren et al., ACNet: Approaching-and-Centralizing Network for Zero-Shot Sketch-Based Image Retrieval (IEEE
    TCSVT 33(9), 2023).
    """

    name = "acnet"

    def __init__(self, config: HystarConfig, own: ACNetConfig, *, categories: int = 0) -> None:
        self.config, self.own = config, own
        self.settings = own.to_dict() | {"categories": categories}
        self.batching = own.batching
        self.resize = ResizeTo((own.image_size, own.image_size), "squash", "bilinear")
        self.extractor = create_extractor(own, config, starts_trained=categories > 0)
        self.fingerprints = self.extractor.fingerprints
        self.model = nn.ModuleDict({"extractor": self.extractor})
        if own.synthesis != "none":
            self.model["generator"] = Generator(own.channels, own.generator_blocks)
            self.model["discriminator"] = Discriminator(own.channels)
            if own.synthesis == "two-stage":
                self.translation = Translation(own.channels, own.generator_blocks)
                self.model["translation"] = self.translation
            if own.gan_init == "normal":
                for name in ("generator", *_NOT_KEPT):
                    if name in self.model:
                        draw_normal_weights(self.model[name])
        if categories:
            self.model["proxies"] = create_embedding_loss(own, categories, 0)
        self.modules = (self.model,)
        self._optimizers: dict[str, optim.Optimizer] = {}
        self.train(False)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        return F.normalize(self._embed(self._to_input(images)), dim=-1)

    def encode_query(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Return unit vectors [B, D] of Φ(G(images)); without a generator, of Φ(images)."""
        pixels = self._to_input(images)
        return F.normalize(self._embed(self.generate(pixels)), dim=-1)

    def generate(self, pixels: Tensor) -> Tensor:
        """Return G of images [B, 3, H, W] in [-1, 1], in the same range; without a generator, the images."""
        return self.model["generator"](pixels) if "generator" in self.model else pixels

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        found = {name: [*self.model[name].parameters()] for name in _GROUPS if name in self.model}
        return {name: members for name, members in found.items() if members}

    def trained_parameters(self) -> dict[str, Tensor]:
        """Return all of the extractor, its buffers too, the proxies and the generator; not who judged it."""
        kept = {n: t for n, t in self.model.state_dict().items() if n.partition(".")[0] not in _NOT_KEPT}
        return {name: tensor for name, tensor in kept.items() if tensor.is_floating_point()}

    def train(self, mode: bool = True) -> None:
        super().train(mode)
        if self.own.norm_statistics == "fixed":
            self.extractor.eval()

    def begin(self, plan: StepPlan) -> None:
        self._check_not_begun()
        if plan.chunk_size and self.own.needs_whole_batch:
            raise ValueError(
                "optim.chunk_size must be 0 for acnet.loss = proxy_anchor, triplet or margin and for "
                f"acnet.norm_statistics = batch, whose losses are of the whole batch, got {plan.chunk_size}"
            )
        if self.own.synthesis == "two-stage" and plan.epoch:
            first = self.own.cycle_epochs * plan.epoch
            self.scores_from = first + 1
            if plan.steps <= first:
                raise RunTooShort(
                    "acnet.cycle_epochs must leave steps to the second stage, which trains what embeds, got "
                    f"{self.own.cycle_epochs} epochs of {plan.epoch} steps in a run of {plan.steps}"
                )
        self._plan = plan
        if "proxies" not in self.model:
            self.model["proxies"] = create_embedding_loss(self.own, plan.categories, plan.seed)
            self.settings = self.own.to_dict() | {"categories": plan.categories}
        rates = {
            "extractor": plan.learning_rate,
            "proxies": self.own.proxy_lr,
            "generator": self.own.generator_lr,
            "discriminator": self.own.discriminator_lr,
        }
        members = self.parameter_groups()
        if members.pop("translation", None):
            rates |= {"generator": self.own.cycle_lr, "discriminator": self.own.cycle_lr}
            members["generator"] += self.translation.to_sketch.parameters()
            members["discriminator"] += self.translation.sketch_discriminator.parameters()
        groups = {n: {"name": n, "params": p, "lr": rates[n]} for n, p in members.items()}
        retrieval = [groups.pop(name) for name in ("extractor", "proxies") if name in groups]
        self._optimizers = {"retrieval": optim.Adam(retrieval, betas=_RETRIEVAL_BETAS, fused=True)}
        self._optimizers |= {name: optim.Adam([group], betas=_GAN_BETAS, fused=True) for name, group in groups.items()}

    def optimizers(self) -> Mapping[str, optim.Optimizer]:
        return self._optimizers

    def state(self) -> Mapping[str, nn.Module]:
        return dict(self.model.items())

    def step(self, batch: CategoryBatch, epoch: int, step: int) -> dict[str, float]:
        plan, own = self._begun(), self.own
        first = own.cycle_epochs if own.synthesis == "two-stage" else 0
        self.extractor.set_training(last_layer_only=epoch < first + own.warmup_epochs and self._has_head())
        generator = torch.Generator().manual_seed(plan.seed * 9_176_347 + step)
        sketches = self._to_input(change_colours(to_float(batch.queries), own.augment, generator))
        photos = self._to_input(change_colours(to_float(batch.targets), own.augment, generator))
        size = plan.chunk_size or len(photos)
        chunks = [slice(start, start + size) for start in range(0, len(photos), size)]
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Any] = {}
        made: list[tuple[Tensor, ...]] = []
        for chunk in chunks:
            share = len(photos[chunk]) / len(photos)
            if epoch < first:
                found, pictures = self._translation_losses(sketches[chunk], photos[chunk])
            else:
                found, fakes = self.losses(sketches[chunk], photos[chunk], batch.labels[chunk])
                pictures = () if fakes is None else (fakes,)
            loss = share * found["loss"]
            loss.backward()
            made.append(tuple(picture.detach() for picture in pictures))
            losses = {name: losses.get(name, 0.0) + share * value.detach() for name, value in found.items()}
        # The discriminators judge the pictures of this step, made before the generators change.
        for chunk, pictures in zip(chunks, made, strict=True):
            if not pictures:
                continue
            if epoch < first:
                judged = self._translation_judged(sketches[chunk], photos[chunk], pictures)
            else:
                judged = self.discriminator_loss(photos[chunk], pictures[0])
            share = len(photos[chunk]) / len(photos)
            (share * judged).backward()
            losses["discriminator"] = losses.get("discriminator", 0.0) + share * judged.detach()
        for optimizer in self._optimizers.values():
            optimizer.step()
        values = torch.stack([*losses.values()]).tolist()
        return dict(zip(losses, values, strict=True))

    def _has_head(self) -> bool:
        """Return whether the last layer or the loss has parameters, without which a warm-up would train nothing."""
        return any(True for part in (self.extractor.last_layer, self.model["proxies"]) for _ in part.parameters())

    def losses(self, sketches: Tensor, photos: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the losses of generator, extractor and proxies by name, and G(sketches).

        "loss" is L_adv + λ L_norm + γ L_ide. In the second of two stages it is λ L_norm of photos and G(sketches), and
        no pictures are returned, because G and D train no more.

        G makes the pictures of sketches and photos in one pass, and Φ embeds sketches, photos and G(sketches) in one,
        unless BatchNorm takes its statistics from each.

        Args:
            sketches, photos: [b, 3, H, W] in [-1, 1].
            labels: int64 [b].
        """
        own, found, fakes = self.own, {}, None
        inputs = {"sketch": sketches, "photo": photos} if own.sketch_term else {"photo": photos}
        if own.synthesis == "joint":
            with self._autocast(photos):
                if own.gamma_identity:
                    fakes, same = self.generate(torch.cat([sketches, photos])).split(len(photos))
                    found["identity"] = (whole(same) - photos).abs().mean()
                else:
                    fakes = self.generate(sketches)
            inputs["synthesised"] = fakes
            judge = self.model["discriminator"].requires_grad_(False)  # its gradients in this pass are not needed
            with self._autocast(photos):
                scores = judge(fakes)
            judge.requires_grad_(True)
            found["adversarial"] = adversarial_loss(whole(scores), is_real=True, gan=own.gan)
        elif own.synthesis == "two-stage":
            with torch.no_grad(), self._autocast(photos):
                inputs = {"photo": photos, "synthesised": self.generate(sketches)}
        terms = self._retrieval_terms(inputs, labels)
        parts = torch.stack([*terms.values()])
        norm = parts.mean() if own.norm_reduction == "mean" else parts.sum()
        total = found.get("adversarial", 0.0) + own.lambda_norm * norm
        if "identity" in found:
            total = total + own.gamma_identity * found["identity"]
        return {"loss": total, **found, **terms}, fakes

    def discriminator_loss(self, photos: Tensor, fakes: Tensor) -> Tensor:
        """Return the mean of the discriminator's losses on photos and on G(sketches), whose graph is cut."""
        judge = self.model["discriminator"]
        with self._autocast(photos):
            real, fake = judge(photos), judge(fakes.detach())
        gan = self.own.gan
        right = adversarial_loss(whole(real), is_real=True, gan=gan)
        return (right + adversarial_loss(whole(fake), is_real=False, gan=gan)) / 2

    def _translation_losses(self, sketches: Tensor, photos: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        generator, judge = self.model["generator"], self.model["discriminator"]
        with self._autocast(photos):
            return self.translation.losses(generator, judge, sketches, photos, self.own.gan)

    def _translation_judged(self, sketches: Tensor, photos: Tensor, made: tuple[Tensor, ...]) -> Tensor:
        with self._autocast(photos):
            judge = self.model["discriminator"]
            return self.translation.discriminator_loss(judge, sketches, photos, made, self.own.gan)

    def _retrieval_terms(self, inputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return the retrieval loss of each input by name; of a loss that compares pairs, one of all inputs."""
        with self._autocast(labels):
            if self.own.norm_statistics == "batch":
                parts = [whole(self.extractor(images)) for images in inputs.values()]
            else:
                parts = [*whole(self.extractor(torch.cat([*inputs.values()]))).split(len(labels))]
        criterion = self.model["proxies"]
        if self.own.compares_pairs:
            return {"retrieval": criterion(torch.cat(parts), labels.repeat(len(parts)))}
        return {name: criterion(part, labels) for name, part in zip(inputs, parts, strict=True)}

    def _to_input(self, images: Tensor) -> Tensor:
        """Return images in [-1, 1], in the type of the parameters; `images` are uint8, or in [0, 1]."""
        return HALF(images).to(next(self.extractor.parameters()).dtype)

    def _embed(self, pixels: Tensor) -> Tensor:
        return whole(self.extractor(pixels))

    def _autocast(self, like: Tensor) -> torch.autocast:
        plan, device = self._begun(), like.device
        return torch.autocast(device.type, torch.bfloat16, enabled=plan.bf16 and multiplies_bf16(device))
