"""Train the embedded model on text with associative recall, lengthening the context stage by stage.

    python -m model.training.train --run run --minutes 66 --seed 1

`run` holds train.txt and tokenizer.json; checkpoint.pt and loss.csv are written there. The stages and the learning rate
follow the clock, so that a run ends when it was told to; the steps it made are in loss.csv. A run that was cut off goes
on with --resume.
"""

import argparse
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing

from model import tasks
from model.training.bpe import TrainingTokenizer
from model.training.muon import Muon
from model.training.torch_model import EMBEDDED, TinyModel

TOKENS_PER_PROCESS = 4096
# (share of the run's time, context length): recall forms at short contexts, where it is cheap, then is stretched.
STAGES = [(0.30, 128), (0.12, 256), (0.18, 512), (0.08, 1024), (0.16, 2048), (0.16, 4096)]
# From SKIP_FROM tokens of context on, half the documents are torn apart at up to three places: positions jump there, to
# anywhere within the model's context. Far distances are learned at a short document's price (PoSE, arXiv 2309.10400).
SKIP_FROM, SKIP_SHARE, MOST_SKIPS = 256, 0.5, 3
WARM_UP_STEPS = 60
PEAK_LR_MUON = 0.006
PEAK_LR_ADAM = 0.003
DECAY_FROM = 0.45  # share of the run after which the learning rate falls, linearly, to FINAL_LR of its peak
FINAL_LR = 0.03
BIAS_RATE = 0.002
NO_PREFIX, NO_FACTS = 0.15, 0.10  # shares of the documents without the opening tokens, and of plain text
MAX_LINES = 192
SAVE_SECONDS = 150.0
LOG_STEPS = 20
CHECK_LENGTHS = [128, 256, 512, 1024, 2048, 4096]


@dataclass(frozen=True)
class Batch:
    """B documents of T tokens and the weight of each next-token prediction."""

    tokens: Tensor  # int64 [B, T]
    text_mask: Tensor  # bool [B, T - 1]
    answer_mask: Tensor  # bool [B, T - 1]
    positions: Tensor  # int64 [B, T]


def draw_batch(pieces: tasks.Pieces, text: np.ndarray, n_ctx: int, n_tokens: int, rng: np.random.Generator) -> Batch:
    """At least n_tokens of documents as model.tasks composes them, over random stretches of the training text.

    The number of facts and questions is random; a short context with few facts asks about each several times, which
    is where recall is learned first.
    """
    count = max(n_tokens // n_ctx, 1)
    tokens = np.zeros((count, n_ctx), np.int64)
    text_mask = np.zeros((count, n_ctx - 1), bool)
    answer_mask = np.zeros((count, n_ctx - 1), bool)
    positions = np.tile(np.arange(n_ctx), (count, 1))
    most_lines = min(n_ctx // 6, 40 + n_ctx // 16, MAX_LINES)
    for row in range(count):
        start = int(rng.integers(len(text) - n_ctx))
        n_facts = n_questions = 0
        if rng.random() >= NO_FACTS:
            n_facts = int(rng.integers(2, int(0.65 * most_lines)))
            n_questions = int(rng.integers((most_lines - n_facts) // 2, most_lines - n_facts + 1))
        of = dataclasses.replace(pieces, prefix=[]) if rng.random() < NO_PREFIX else pieces
        document = tasks.compose(of, text[start : start + n_ctx], n_ctx, n_facts, n_questions, rng)
        tokens[row] = document.tokens
        text_mask[row, document.text_positions] = True
        answer_mask[row, document.answer_positions] = True
        if n_ctx >= SKIP_FROM and rng.random() < SKIP_SHARE:
            positions[row] += skips(n_ctx, rng)
    return Batch(*map(torch.from_numpy, (tokens, text_mask, answer_mask, positions)))


def skips(n_ctx: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [n_ctx]: how far each position is moved; the last stays within the model's context."""
    count = int(rng.integers(1, MOST_SKIPS + 1))
    total = int(rng.integers(EMBEDDED.n_ctx_train - n_ctx + 1))
    moved = np.append(np.sort(rng.integers(0, total + 1, count - 1)), total)
    return np.append(0, moved)[np.searchsorted(np.sort(rng.integers(1, n_ctx, count)), np.arange(n_ctx), "right")]


def losses(model: TinyModel, batch: Batch) -> tuple[Tensor, Tensor, float]:
    """(mean text loss, mean answer loss, share of answers right)."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(batch.tokens, batch.positions)[:, :-1]
        target = batch.tokens[:, 1:]
        text_loss = F.cross_entropy(F.linear(hidden[batch.text_mask], model.output).float(), target[batch.text_mask])
        logits = F.linear(hidden[batch.answer_mask], model.output).float()
    answers = target[batch.answer_mask]
    right = float((logits.argmax(-1) == answers).float().mean()) if len(answers) else 0.0
    answer_loss = F.cross_entropy(logits, answers) if len(answers) else text_loss * 0
    return text_loss, answer_loss, right


def learning_rate(step: int, progress: float) -> float:
    """Factor on the peak rates: linear warm-up by step, flat, linear decay by share of the run done."""
    decay = 1 - (1 - FINAL_LR) * max(progress - DECAY_FROM, 0) / (1 - DECAY_FROM)
    return min((step + 1) / WARM_UP_STEPS, 1.0) * max(decay, FINAL_LR)


def context_at(progress: float) -> int:
    """Context length of the stage that this share of the run falls into."""
    end = 0.0
    for share, n_ctx in STAGES:
        end += share
        if progress < end:
            return n_ctx
    return STAGES[-1][1]


@torch.no_grad()
def check(model: TinyModel, tokenizer: TrainingTokenizer, lengths: list[int]) -> dict[int, float]:
    """Recall % of the live weights on held-out documents, by length."""
    model.eval()
    result = {}
    for n_ctx in lengths:
        right = []
        for seed in range(2):
            document = tasks.build_document(tokenizer, n_ctx, seed)
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.hidden(torch.from_numpy(document.tokens.astype(np.int64))[None])[
                    0, document.answer_positions
                ]
                right.append(tasks.score_recall(document, F.linear(hidden, model.output).argmax(-1).numpy()))
        result[n_ctx] = sum(right) / len(right)
    model.train()
    return result


def load_tokens(run: Path, tokenizer: TrainingTokenizer) -> np.ndarray:
    """The training text as int32 ids."""
    lines = (run / "train.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    chunks = ["".join(lines[i : i + 200]) for i in range(0, len(lines), 200)]
    return np.concatenate([np.array(tokenizer.encode(chunk), np.int32) for chunk in chunks])


class Worker:
    """One of the processes that share a step: same weights and updates everywhere, each with its own documents."""

    def __init__(self, rank: int, arguments: argparse.Namespace) -> None:
        self.rank, self.arguments = rank, arguments
        self.first = rank == 0
        self.run: Path = arguments.run
        torch.set_num_threads(1)
        torch.manual_seed(arguments.seed)
        self.tokenizer = TrainingTokenizer(self.run / "tokenizer.json")
        self.pieces = tasks.Pieces.of(self.tokenizer)
        self.text = load_tokens(self.run, self.tokenizer)
        self.model = TinyModel(EMBEDDED)
        named = list(self.model.named_parameters())
        hidden = [p for name, p in named if p.ndim >= 2 and "blocks" in name and "gate_inp" not in name]
        ids = {id(p) for p in hidden}
        self.others = [p for _, p in named if id(p) not in ids]
        self.parameters = [p for _, p in named]
        adam = torch.optim.AdamW(self.others, PEAK_LR_ADAM, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.optimizers: list[torch.optim.Optimizer] = [Muon(hidden, PEAK_LR_MUON), adam]
        self.step, self.spent, self.seen = 0, 0.0, 0
        if arguments.resume:
            self.restore()
        self.rng = np.random.default_rng([arguments.seed, self.step, rank])

    def restore(self) -> None:
        """Go on from the run's checkpoint."""
        state = torch.load(self.run / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.spent, self.seen = state["step"], state["spent"], state["seen"]

    def save(self) -> None:
        """Write the checkpoint under a temporary name, then rename."""
        partial = self.run / "checkpoint.partial"
        state = {"step": self.step, "spent": self.spent, "seen": self.seen, "model": self.model.state_dict()}
        torch.save(state | {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}, partial)
        partial.rename(self.run / "checkpoint.pt")

    def share(self, values: list[float]) -> list[float]:
        """Average gradients over the processes, sum the expert loads; returns the mean of `values` over processes."""
        layers = self.model.expert_layers()
        extra = [torch.tensor(values), *(layer.load for layer in layers)]
        pieces = [*(p.grad for p in self.parameters if p.grad is not None), *extra]
        flat = torch.cat([piece.flatten() for piece in pieces])
        distributed.all_reduce(flat)
        flat /= self.arguments.processes
        for piece, mean in zip(pieces, flat.split([piece.numel() for piece in pieces]), strict=True):
            piece.copy_(mean.view(piece.shape))
        return extra[0].tolist()

    def train_step(self, n_ctx: int, factor: float) -> list[float]:
        """One update; returns text loss, answer loss, share of answers right, largest expert load."""
        for optimizer, peak in zip(self.optimizers, (PEAK_LR_MUON, PEAK_LR_ADAM), strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        batch = draw_batch(self.pieces, self.text, n_ctx, TOKENS_PER_PROCESS, self.rng)
        text_loss, answer_loss, right = losses(self.model, batch)
        (text_loss + answer_loss).backward()
        means = self.share([text_loss.item(), answer_loss.item(), right])
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loads = [layer.update_bias(BIAS_RATE * max(factor, 0.1)) for layer in self.model.expert_layers()]
        self.step, self.seen = self.step + 1, self.seen + batch.tokens.numel() * self.arguments.processes
        return [*means, max(loads)]

    def train(self) -> None:
        """Steps until the time is up; the first process keeps the clock, the log and the checkpoint."""
        start, last_save, last_ctx = time.monotonic() - self.spent, self.spent, 0
        whole = self.arguments.minutes * 60
        rows: list[list[float]] = []
        log_path = self.run / "loss.csv"
        if self.first and not self.arguments.resume:
            log_path.write_text("step,seconds,tokens,context,lr_factor,text_loss,answer_loss,recall,max_expert_load\n")
        while self.spent < whole:
            n_ctx = context_at(self.spent / whole)
            if self.first and n_ctx != last_ctx:
                recall = check(self.model, self.tokenizer, CHECK_LENGTHS)
                print(f"step {self.step}, {self.spent:.0f} s: context {n_ctx}; recall {recall}", flush=True)
            last_ctx = n_ctx
            factor = learning_rate(self.step, self.spent / whole)
            rows.append(self.train_step(n_ctx, factor))
            clock = torch.tensor(time.monotonic() - start)
            distributed.broadcast(clock, 0)
            self.spent = float(clock)
            if self.first and self.step % LOG_STEPS == 0:
                means = ",".join(f"{value:.4f}" for value in np.mean(rows, axis=0))
                with log_path.open("a") as log:
                    log.write(f"{self.step},{self.spent:.0f},{self.seen},{n_ctx},{factor:.4f},{means}\n")
                rows.clear()
            if self.first and self.spent - last_save > SAVE_SECONDS:
                self.save()
                last_save = self.spent
        if self.first:
            self.save()
            recall = check(self.model, self.tokenizer, CHECK_LENGTHS)
            print(f"step {self.step}, {self.spent:.0f} s: done; recall {recall}", flush=True)


def work(rank: int, arguments: argparse.Namespace) -> None:
    """Body of one process."""
    store = f"file://{(arguments.run / 'rendezvous').resolve()}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=arguments.processes)
    Worker(rank, arguments).train()
    distributed.destroy_process_group()


def main() -> None:
    """Train until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="one thread each: scales better than threads here")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    (arguments.run / "rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(work, (arguments,), arguments.processes)


if __name__ == "__main__":
    main()
