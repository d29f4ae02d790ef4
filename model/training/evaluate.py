"""Recall and perplexity by context length, of a checkpoint (float32) or of the exported GGUF (dequantised).

python -m model.training.evaluate --run run --weights checkpoint --json run/float32.json
python -m model.training.evaluate --run run --weights model/data/latentvk-tiny.gguf --json run/quantised.json
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from model import tasks
from model.gguf_file import GGUFFile, dequantize
from model.training.bpe import TrainingTokenizer
from model.training.export import checkpoint_weights, gguf_name
from model.training.torch_model import EMBEDDED, TinyModel

# (context, documents): short contexts need more documents for as many questions and text tokens.
LENGTHS = [(128, 32), (256, 24), (512, 16), (1024, 12), (2048, 8), (4096, 6), (8192, 4), (16384, 2)]
FIRST_SEED = 1000


def load_model(weights: dict[str, np.ndarray]) -> TinyModel:
    """A TinyModel holding GGUF-named weights."""
    model = TinyModel(EMBEDDED)
    state = {name: torch.from_numpy(np.array(weights[gguf_name(name)], np.float32)) for name in model.state_dict()}
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def score(model: TinyModel, document: tasks.Document) -> tuple[np.ndarray, float, int]:
    """(which answers are right, summed negative log-likelihood of the text, number of text tokens), in float32."""
    hidden = model.hidden(torch.from_numpy(document.tokens.astype(np.int64))[None])[0]
    answers = F.linear(hidden[document.answer_positions], model.output).argmax(-1).numpy() == document.answers
    targets = torch.from_numpy(document.tokens[document.text_positions + 1].astype(np.int64))
    nll = F.cross_entropy(F.linear(hidden[document.text_positions], model.output), targets, reduction="sum")
    return answers, float(nll), len(targets)


def main() -> None:
    """Print and save a row per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--weights", required=True, help="'checkpoint' (of --run) or a GGUF file")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--max-context", type=int, default=LENGTHS[-1][0])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.weights == "checkpoint":
        model = load_model(checkpoint_weights(arguments.run / "checkpoint.pt"))
    else:
        gguf_file = GGUFFile.open(Path(arguments.weights))
        model = load_model({name: dequantize(info) for name, info in gguf_file.tensors.items()})
    tokenizer = TrainingTokenizer(arguments.run / "tokenizer.json")
    rows = []
    for n_ctx, count in LENGTHS:
        if n_ctx > arguments.max_context:
            break
        scores = [score(model, tasks.build_document(tokenizer, n_ctx, FIRST_SEED + i)) for i in range(count)]
        right = np.concatenate([answers for answers, _, _ in scores])
        n_text = sum(n for _, _, n in scores)
        row = {
            "context": n_ctx,
            "documents": count,
            "questions": len(right),
            "recall": 100 * float(right.mean()),
            "text_tokens": n_text,
            "perplexity": float(np.exp(sum(nll for _, nll, _ in scores) / n_text)),
        }
        rows.append(row)
        print(f"| {n_ctx} | {len(right)} | {row['recall']:.1f} | {n_text} | {row['perplexity']:.2f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
