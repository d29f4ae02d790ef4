"""The likeliest tokens, found on the device: a few hundred logits cross to the host in place of the vocabulary's.

Every group's best logit gives a bound that at least k logits reach; what reaches it is listed. So the list holds the k
largest and some more, which the sampler ranks and filters as it would the whole vocabulary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model import kernels
from model.scratch import TOP_GROUPS, TOP_LIST, Scratch
from vkbackend.device import Device
from vkbackend.program import Program

MOST_K = TOP_GROUPS // 2  # so that about 1.4 k logits are listed; a fuller bound would list many more
# On a CPU's device a submission takes longer than it takes the host to look through fewer logits (lavapipe: 1.4 times
# as long for 32,000, half as long for 154,880; results/performance-log.md).
LEAST_TOKENS_CPU = 65_536


def serves(device: Device, n_tokens: int, k: int) -> bool:
    """Whether the device is to find the ``k`` likeliest of ``n_tokens``."""
    return 1 <= k <= MOST_K and (device.info.kind != "cpu" or n_tokens >= LEAST_TOKENS_CPU)


class TopK:
    """The program that lists candidates for the ``k`` likeliest of a vocabulary's first ``n_tokens``."""

    def __init__(self, device: Device, scratch: Scratch, n_tokens: int, k: int) -> None:
        """Raises ValueError where ``k`` is not 1 to ``MOST_K``."""
        if not 1 <= k <= MOST_K:
            raise ValueError(f"k is {k}, expected 1 to {MOST_K}")
        self._top = scratch["top"]
        self.program = program = Program(device, f"top {k}")
        share, grid = -(-n_tokens // TOP_GROUPS), (TOP_GROUPS, 1, 1)
        program.launch(
            kernels.ARGMAX,
            {"logits": scratch["logits"], "best": scratch["top_best"]},
            grid,
            push={"count": n_tokens, "share": share},
        )
        program.launch(
            kernels.for_device(kernels.TOP_K_BOUND, device.info.kind),
            {"best": scratch["top_best"], "top": self._top},
            (1, 1, 1),
            spec={"PER_LANE": -(-TOP_GROUPS // device.subgroup_size)},
            push={"groups": TOP_GROUPS, "k": k},
        )
        program.launch(
            kernels.TOP_K_COLLECT,
            {"logits": scratch["logits"], "top": self._top},
            grid,
            push={"count": n_tokens, "share": share, "capacity": TOP_LIST},
        )

    def find(self) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Ids, ascending, and f32 logits of at least the k likeliest tokens and of all that are no numbers; None where
        so many are equal that the list cannot hold them."""
        self.program.run()
        words = self._top.download(np.uint32, 2 + 2 * TOP_LIST)
        count = int(words[1])
        if count > TOP_LIST:
            return None
        found = words[2 : 2 + 2 * count].reshape(count, 2)
        found = found[np.argsort(found[:, 1])]
        return found[:, 1].astype(np.int64), np.ascontiguousarray(found[:, 0]).view(np.float32)
