"""Train one expert a task over one frozen language model, from batches that mix the tasks, and serve them together.

The model is a small random Llama. A task is a rule by which a sequence of numbers goes on. Each task has its own
offsets of the singular values; a batch holds all tasks, and one backward gives the gradient of every expert in it.

    python examples/train_experts.py --steps 150
    python examples/train_experts.py --loop accelerate
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import hystar_fast as hf

RULES = {"up": (1, 1), "down": (1, 30), "triple": (3, 1)}  # the next number is (factor * number + step) % 31
LENGTH = 12


def create_model() -> LlamaForCausalLM:
    """Return the frozen model, whose attention and MLP layers take offsets."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=31, **sizes)).requires_grad_(False)
    hf.inject(model, ["self_attn.*", "mlp.*"])
    return model.requires_grad_(False)  # the static offsets too: only experts train


def sequences(count: int, seed: int) -> list[dict[str, Any]]:
    """Return sequences of all tasks in turn, each with the row of its expert."""
    chosen, found = torch.Generator().manual_seed(seed), []
    for i in range(count):
        row = i % len(RULES)
        factor, step = list(RULES.values())[row]
        numbers = [int(torch.randint(31, (), generator=chosen))]
        while len(numbers) < LENGTH:
            numbers.append((factor * numbers[-1] + step) % 31)
        found.append({"input_ids": torch.tensor(numbers), "labels": torch.tensor(numbers), "expert": row})
    return found


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    """Return the model's output with its loss, each sequence under the expert of its task."""
    rows = batch.pop("expert")
    with hf.experts(model, rows):
        return model(**batch)


class ExpertTrainer(Trainer):
    """Trainer whose batches say which expert each sequence trains."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        output = loss_of(model, inputs)
        return (output.loss, output) if return_outputs else output.loss


def train_with_trainer(model: LlamaForCausalLM, data: list[dict[str, Any]], steps: int) -> None:
    """Train with the Trainer of transformers; it finds the experts among the model's parameters."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=24,
            learning_rate=5e-2,
            weight_decay=0.0,
            remove_unused_columns=False,  # keep the column "expert"
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=not torch.cuda.is_available(),
        )
        ExpertTrainer(model, arguments, train_dataset=data).train()


def train_with_accelerate(model: LlamaForCausalLM, data: list[dict[str, Any]], steps: int) -> None:
    """Train with a loop of one's own, on whatever devices accelerate finds."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    optimizer = torch.optim.AdamW(hf.ExpertBank.of(model).parameters(), lr=5e-2, weight_decay=0.0)
    loader = torch.utils.data.DataLoader(data, batch_size=24, shuffle=True)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    step = 0
    while step < steps:
        for batch in loader:
            accelerator.backward(loss_of(prepared, batch).loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == steps:
                break


@torch.inference_mode()
def losses(model: LlamaForCausalLM, data: list[dict[str, Any]], experts: list[str | None]) -> list[float]:
    """Return the loss of each task in one batch of all, with an expert for each task."""
    ids = torch.stack([entry["input_ids"] for entry in data])
    with hf.experts(model, [experts[entry["expert"]] for entry in data]):
        logits = model(ids).logits
    each = nn.functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none").mean(1)
    return [each[row :: len(RULES)].mean().item() for row in range(len(RULES))]


def main(steps: int, loop: str) -> dict[str, float]:
    """Train, save, load into a fresh model, and return the loss of each task with its own expert."""
    model = create_model().train()
    hf.ExpertBank(model, RULES)
    {"trainer": train_with_trainer, "accelerate": train_with_accelerate}[loop](model, sequences(600, seed=1), steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experts.safetensors"
        hf.ExpertBank.of(model).save(path)
        print(f"{len(RULES)} experts in {path.stat().st_size / 1024:.0f} KiB")
        served = create_model().eval()
        hf.ExpertBank.load(served, path)
    names, test = list(RULES), sequences(30, seed=2)
    found: dict[str, list[float]] = {
        "no expert": losses(served, test, [None] * len(names)),
        "its own": losses(served, test, names),
        "another's": losses(served, test, names[1:] + names[:1]),
    }
    for place, name in enumerate(names):
        print(f"{name}: loss " + ", ".join(f"{values[place]:.2f} with {who}" for who, values in found.items()))
    prompts = torch.tensor([[5, 6], [6, 5], [1, 4]])
    with hf.experts(served, names):
        answers = served.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=4, do_sample=False)
    for name, answer in zip(names, answers.tolist(), strict=True):
        print(f"{name}: {answer[:2]} goes on with {answer[2:]}")
    return dict(zip(names, found["its own"], strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="training steps of 24 sequences (default: %(default)s)")
    parser.add_argument("--loop", choices=["trainer", "accelerate"], default="trainer")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.loop)
