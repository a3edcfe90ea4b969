"""MA-SBIR: both towers of a CLIP are tuned on pictures and the captions of their classes, whatever their style."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from hystar_fast.methods.conversion import CONVERTED, Conversion
from hystar_fast.methods.device import multiplies_bf16
from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.methods.ma_sbir.modality_vectors import ModalityVectors
from hystar_fast.methods.step_trained import CaptionedBatch, Processes, StepPlan, StepTrained, read_losses
from hystar_fast.models.backbones.text_tower import same_tokens, text_tower
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.backbones.tower_parameters import tower_parameters

TEXT, UNUSED = "text", "unused"
_CAPTIONS = 256  # that are encoded at a time without gradients


class Temperature(nn.Module):
    """The learned temperature: log(1 / τ)."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / tau)))


class MASBIR(StepTrained):
    """Zero-shot retrieval of photos by sketches that are aligned with the texts of their classes only.

    L = L_clip + λ_sem L_sem + λ_mc L_mc + λ_rec L_rec + λ_ortho L_ortho, of pictures of any style and their captions;
    no query is ever compared with a gallery picture in training. A query z of modality k is compared as z ("original")
    or as N(z - m_k + m_gallery) ("converted").

    Args:
        own: the settings of the method.
        backbone: a CLIP; its image tower, and its text tower unless ``own.freeze_text``, are trained in place.
        styles: of the pictures, the gallery's first; () before `begin`.

    Raises:
        ValueError: a backbone of another kind.

    Source: Lyou et al., Modality-Aware Representation Learning for Zero-shot Sketch-based Image Retrieval (WACV 2024).
    """

    name = "ma_sbir"
    follows = frozenset({"schedule", "warmup", "weight_decay"})
    divides_batches = True
    converts = True
    styles: tuple[str, ...] = ()

    def __init__(self, own: MASBIRConfig, backbone: TowerBackbone, styles: tuple[str, ...] = ()) -> None:
        self.own, self.batching = own, own.batching
        self.model: Any = backbone.requires_grad_(False).eval()
        self.resize, self.normalise = backbone.resize, backbone.normalise
        self.tower = text_tower(backbone)
        self._towers = {"image": tower_parameters(backbone, "image")}
        if not own.freeze_text:
            self._towers["text"] = tower_parameters(backbone, "text")
        for parameter in (p for members in self._towers.values() for p in members):
            parameter.requires_grad_(True)
        self.modules = (self.model, *self._added())
        self._texts: Tensor | None = None
        self.temperature = Temperature(own.temperature) if own.learn_temperature else None
        self.settings: dict[str, Any] = own.to_dict()
        if styles:
            self._set_styles(styles)
        self.train(False)

    def _set_styles(self, styles: tuple[str, ...]) -> None:
        self.styles = styles
        self.modalities = self._vectors_of(len(styles))
        added = () if self.temperature is None else (self.temperature,)
        self.modules = (self.model, *self._added(), self.modalities, *added)
        self.settings = self.own.to_dict() | {"styles": "\n".join(styles)}

    def _added(self) -> tuple[nn.Module, ...]:
        """Return the modules beside the backbone that do not depend on the data."""
        return ()

    def _vectors_of(self, pictures: int) -> ModalityVectors:
        return ModalityVectors(self.own, pictures, self.model.embed_dim)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        return F.normalize(self.model.encode_image(self.normalise(images)), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self._encode_captions(texts)

    def conversions(self) -> dict[str, Conversion]:
        """Return "converted", by the learned vectors if they were trained, and the mean shift of a saved method."""
        if not self.own.trains_modalities or not self.styles:
            return super().conversions()
        vectors = dict(zip(self.styles, self.modalities.vectors.detach(), strict=False))
        learned = Conversion(vectors | {TEXT: self.modalities.text.detach()}, self.own.conversion == "normalised")
        return {CONVERTED: learned, **super().conversions()}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return "towers", and "modalities" where a loss trains them."""
        towers = [p for members in self._towers.values() for p in members]
        added = [] if self.temperature is None else [*self.temperature.parameters()]
        trains = self.own.trains_modalities and bool(self.styles)
        modalities = {"modalities": [*self.modalities.parameters()]} if trains else {}
        return {"towers": [*towers, *added], **modalities}

    def trained_parameters(self) -> dict[str, Tensor]:
        """Return whole towers, the vectors of the modalities and their classifier."""
        wanted = {id(p) for members in self.parameter_groups().values() for p in members}
        if self.styles:
            wanted |= {id(p) for p in self.modalities.parameters()}
        return {n: p for module in self.modules for n, p in module.named_parameters() if id(p) in wanted}

    def tuned_weights(self) -> frozenset[str]:
        own = {id(p) for members in self._towers.values() for p in members}
        return frozenset(name for name, p in self.trained_parameters().items() if id(p) in own)

    def loss_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the loss itself reads: each process has their whole gradient."""
        added = [] if self.temperature is None else [*self.temperature.parameters()]
        return [*self.modalities.parameters(), *added]

    def begin(self, plan: StepPlan) -> None:
        self._check_not_begun()
        if same := same_tokens(self.model.tokenizer, self._captions(plan)):
            raise ValueError(
                f"ma_sbir.labels must give captions that the tokenizer tells apart, got {' and '.join(same)}"
            )
        self._plan = plan
        with torch.random.fork_rng([]):
            torch.manual_seed(plan.seed)
            self._set_styles(plan.styles)
        groups = self.parameter_groups()
        low = {str(p.dtype) for members in groups.values() for p in members if p.element_size() < 4}
        if low:
            raise ValueError(
                f"parameters must be float32 to be trained with steps as small as 5e-8, which vanish in others, got "
                f"{', '.join(sorted(low))}"
            )
        parts: list[dict[str, Any]] = []
        for name, members in groups.items():
            decays = [p for p in members if self.own.decay_modalities or (name != "modalities" and p.ndim > 1)]
            rest = [p for p in members if all(p is not other for other in decays)]
            for chosen, decay in ((decays, plan.weight_decay), (rest, 0.0)):
                if chosen:
                    rate = plan.learning_rate if name == "towers" else self.own.modality_lr
                    parts.append({"name": name, "params": chosen, "lr": rate, "peak_lr": rate, "weight_decay": decay})
        self._optimizers = {"all": optim.AdamW(parts)}

    def optimizers(self) -> Mapping[str, optim.Optimizer]:
        self._begun()
        return self._optimizers

    def state(self) -> Mapping[str, nn.Module]:
        added = {} if self.temperature is None else {"temperature": self.temperature}
        return {"model": self.model, "modalities": self.modalities, **added}

    def step(self, batch: CaptionedBatch, epoch: int, step: int) -> dict[str, float]:
        plan, optimizer = self._begun(), self._optimizers["all"]
        if step == 0:
            self._start(plan)
        optimizer.zero_grad(set_to_none=True)
        values, of_gallery = self._backward_step(batch, step)
        optimizer.step()
        values |= self._measured(of_gallery)
        return read_losses(values)

    def _backward_step(self, batch: Any, step: int) -> tuple[dict[str, Tensor], Tensor]:
        return self.backward(batch)

    def backward(self, batch: CaptionedBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a batch and the gradients of the parameters, summed over the processes.

        Returns:
            The losses, and the embeddings [n, D] of the gallery's pictures in the batch.

        Raises:
            ValueError: fewer than two of its pictures can be read.
        """
        processes = self._processes()
        own, propagate = self._embedded(batch.pictures)
        labels = batch.labels[processes.share(len(batch.labels))]
        words = self._words(labels)
        texts = words.detach().requires_grad_(words.requires_grad)
        usable = processes.gather(batch.usable)
        if int(usable.sum()) < 2:
            raise ValueError(f"a batch must have 2 pictures that can be read, got {int(usable.sum())} of {len(usable)}")
        pictures, captions = processes.gather(own)[usable], processes.gather(texts)[usable]
        tau = self.own.temperature if self.temperature is None else torch.exp(-self.temperature.log_scale)
        kinds = batch.kinds[usable]
        values = self.modalities.losses(pictures, captions, batch.labels[usable], kinds, tau)
        values["loss"].backward()
        propagate()
        if texts.grad is not None:
            words.backward(texts.grad)
        for parameter in self.loss_parameters():  # whole on every process, and `reduce` sums them
            if parameter.grad is not None:
                parameter.grad /= processes.size
        processes.reduce([p for members in self.parameter_groups().values() for p in members])
        return values, pictures[kinds == 0].detach()

    def _embedded(self, pictures: Tensor) -> tuple[Tensor, Callable[[], None]]:
        """Return embeddings [b, D] as a leaf, and a function that takes its gradient on to the parameters.

        With chunks, pictures are embedded twice, and memory is that of one chunk (`hystar_fast.train.step` has the
        derivation).
        """
        size = self._begun().chunk_size or max(1, len(pictures))
        chunks = pictures.split(size)
        with torch.set_grad_enabled(len(chunks) == 1):
            made = [self._embed(chunk) for chunk in chunks]
        found = torch.cat(made).detach().requires_grad_()

        def propagate() -> None:
            gradient = torch.zeros_like(found) if found.grad is None else found.grad
            for chunk, rows in zip(chunks, gradient.split(size), strict=True):
                (made[0] if len(chunks) == 1 else self._embed(chunk)).backward(rows)

        return found, propagate

    @torch.no_grad()
    def _start(self, plan: StepPlan) -> None:
        """Set the vectors of the modalities to the means of the pictures and captions that train."""
        if self.own.modality_init == "mean" and plan.means is not None:
            means = plan.means()
            text = self._every_text(plan).mean(0)
            self.modalities.start(torch.stack([means[style].to(text) for style in self.styles]), text)
        self._processes().broadcast_parameters(p for module in self.state().values() for p in module.parameters())

    @torch.no_grad()
    def _measured(self, of_gallery: Tensor) -> dict[str, Tensor]:
        """Return the norms of the vectors, the cosines of pairs, and how much conversion adds to gallery pictures."""
        m = self.modalities.vectors
        unit = F.normalize(m, dim=-1)
        names = [*self.styles, *[UNUSED] * self.own.unused_modalities, TEXT]
        found = {f"norm_{name}": vector.norm() for name, vector in zip(names, m, strict=True)}
        pairs = [(i, j) for i in range(len(names)) for j in range(i)]
        found |= {f"cosine_{names[j]}_{names[i]}": unit[i] @ unit[j] for i, j in pairs}
        if len(of_gallery):
            for name, vector in zip(self.styles[1:], m[1:], strict=False):
                found[f"shift_{name}"] = (of_gallery @ (m[0] - vector).to(of_gallery)).abs().mean()
        return found

    def _captions(self, plan: StepPlan) -> Sequence[str]:
        """Return the captions of all labels; the batches have put them into the template."""
        return plan.names

    def _embed(self, pictures: Tensor) -> Tensor:
        device = pictures.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._begun().bf16 and multiplies_bf16(device)):
            found = self.encode_image(pictures)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def _words(self, labels: Tensor) -> Tensor:
        """Return unit vectors [b, D] of the captions of labels; each caption is encoded once."""
        plan = self._begun()
        if self.own.freeze_text:
            if self._texts is None:
                self._texts = self._every_text(plan)
            return self._texts[labels]
        distinct, index = labels.unique(return_inverse=True)
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=plan.bf16 and multiplies_bf16(labels.device)):
            found = self._encode_captions([plan.names[label] for label in distinct.tolist()])
        return found.to(torch.promote_types(found.dtype, torch.float32))[index]

    @torch.no_grad()
    def _every_text(self, plan: StepPlan) -> Tensor:
        """Return unit vectors [n, D] of all captions, without a gradient."""
        return self._encode_all(plan.names)

    def _encode_all(self, captions: Sequence[str]) -> Tensor:
        parts = [captions[at : at + _CAPTIONS] for at in range(0, len(captions), _CAPTIONS)]
        return torch.cat([MASBIR._encode_captions(self, part).float() for part in parts])

    def _encode_captions(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors [n, D]; tokens behind the longest text are not computed."""
        ids = self.model.tokenizer(list(texts)).to(next(self.model.parameters()).device)
        return F.normalize(self.tower.encode_ids(ids), dim=-1)

    def _processes(self) -> Processes:
        found = self._begun().processes
        if found is None:
            raise ValueError("plan.processes must be given, got None")
        return found
