"""The smoke test on load: one real forward step before the first answer, its logits looked at, the state rewound.

Weights or metadata that are wrong often run, and give nonsense: what can be seen of that in one step is told.
"""

import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.engine import Session

# Random weights of any scale spread their logits more than this; a network that has lost its input does not.
NEARLY_UNIFORM = 1.1  # probability of the likeliest token, in units of 1 / number of tokens


def try_out(session: "Session") -> None:
    """Run one token on a fresh session and rewind; warn on standard error where the logits look broken.

    Raises DeviceError for logits that are not finite.
    """
    config = session.model.config
    logits = session.trial(_first_token(session))[: config.n_tokens]
    warning = broken(logits, config)
    if warning:
        print(f"latentvk: warning: {session.model.gguf.path}: {warning}", file=sys.stderr)


def broken(logits: np.ndarray, config: "ModelConfig") -> str:
    """What is wrong with ``logits`` f32 [n_tokens] and what may help; empty where nothing is to be seen."""
    exact = logits.astype(np.float64)
    likeliest = 1 / np.exp(exact - exact.max()).mean()
    if len(logits) == 1 or likeliest >= NEARLY_UNIFORM:
        return ""
    remedy = "check the file's hash, or use another file"
    if config.n_dense < config.n_layer:
        other = {"softmax": "2 for sigmoid", "sigmoid": "1 for softmax"}[config.gating]
        remedy += f"; if its router is no {config.gating}, --override-kv {config.arch}.expert_gating_func=int:{other}"
    return (
        f"after one token all {len(logits)} tokens are about equally likely (logits from {exact.min():.4g} to "
        f"{exact.max():.4g}), expected some to stand out: {remedy}"
    )


def _first_token(session: "Session") -> int:
    """The token that texts begin with, where the file names one."""
    found = session.model.gguf.kv.get("tokenizer.ggml.bos_token_id")
    return found if type(found) is int and 0 <= found < session.model.config.n_tokens else 0
