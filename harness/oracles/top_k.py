"""The likeliest tokens: a bound that k logits reach, and the list of those that do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from harness.oracles.activations import LOGITS
from harness.oracles.case import CANARY, UNTOUCHED, Case, Draft, Expected, Target, anything
from model import kernels
from vkbackend.physical import DeviceInfo

Floats = NDArray[np.float32]


def sorted_list(count: int, capacity: int, words: NDArray[np.uint32]) -> Floats:
    """The buffer ``top`` as numbers: the bound, the count, then logits and ids of the list, of which the device leaves
    the order open, by their ids; and whether the rest is untouched. Of a list that was too short no more is known."""
    listed = words[2 : 2 + 2 * min(count, capacity)].reshape(-1, 2)
    listed = listed[np.argsort(listed[:, 1], kind="stable")] if count <= capacity else listed[:0]
    values = np.ascontiguousarray(listed[:, 0]).view(np.float32)
    pairs = np.stack([np.where(np.isnan(values), np.float32(CANARY), values), listed[:, 1].astype(np.float32)], axis=1)
    untouched = words[2 + 2 * min(count, capacity) : 2 + 2 * capacity] == UNTOUCHED
    return np.concatenate(
        [words[:1].view(np.float32), words[1:2].astype(np.float32), pairs.reshape(-1), untouched.astype(np.float32)]
    )


def top_k_case(
    info: DeviceInfo, what: str, values: NDArray[np.floating], k: int, *, groups: int, capacity: int = 2048
) -> Case:
    """The bound of ``groups`` shares of ``values`` [n] and all that reach it, in a list of ``capacity``; larger numbers
    behind them must not count."""
    logits = values.astype(np.float32)
    draft = Draft(info, f"{what}: {k} of {logits.size} logits in {groups} groups, a list of {capacity}")
    best, top = draft.untouched(2 * groups), draft.untouched(2 + 2 * capacity)
    buffer = draft.upload(np.concatenate([logits, np.full(64, 1e9, np.float32)]))
    share, grid = -(-logits.size // groups), (groups, 1, 1)
    push: dict[str, int | float] = {"count": logits.size, "share": share}
    draft.launch(kernels.ARGMAX, {"logits": buffer, "best": best}, grid, push=push)
    bound = kernels.for_device(kernels.TOP_K_BOUND, info.kind)
    spec = {"PER_LANE": -(-groups // info.subgroup_size)}
    draft.launch(bound, {"best": best, "top": top}, (1, 1, 1), spec=spec, push={"groups": groups, "k": k})
    draft.launch(kernels.TOP_K_COLLECT, {"logits": buffer, "top": top}, grid, push=push | {"capacity": capacity})
    highest = [np.fmax.reduce(logits[g * share : (g + 1) * share], initial=-np.inf) for g in range(groups)]
    least = np.sort(np.array(highest, np.float32))[-k]
    (reach,) = np.nonzero(~(logits < least))
    words = np.full(2 + 2 * max(capacity, reach.size), UNTOUCHED, np.uint32)
    words[0], words[1] = least.view(np.uint32), reach.size
    words[2 : 2 + 2 * reach.size : 2], words[3 : 3 + 2 * reach.size : 2] = logits[reach].view(np.uint32), reach
    decode = partial(sorted_list, reach.size, capacity)
    listed = 2 * reach.size if reach.size <= capacity else 0

    def locate(index: int) -> str:
        return ("bound", "count")[index] if index < 2 else f"entry {index // 2 - 1}" if index < 2 + listed else "behind"

    whole = Expected(decode(words), decode=decode, words=2 + 2 * capacity, locate=locate)
    return draft.case({best: anything(groups, 2), top: whole})


def cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Ties, infinities, numbers that are none, groups with nothing, lists that are too short; both kernels, whichever
    is under test. The groups are as many as the lanes have places for, or some fewer."""
    most = target.spec.get("PER_LANE", 16) * target.lanes

    def case(what: str, values: NDArray[np.floating], k: int, fewer: int = 0, capacity: int = 2048) -> Case:
        groups = most - fewer
        return top_k_case(target.info, what, values, min(k, groups), groups=groups, capacity=capacity)

    for what, values in LOGITS.items():
        for k in (1, 40):
            yield case(what, values, k)
    for k in (1, 2, int(rng.integers(3, 100))):
        values = rng.standard_normal(int(rng.integers(2000, 9000)))
        yield case("random", values, k, int(rng.integers(target.lanes)), 400)
    yield case("many equal", rng.integers(0, 30, 3001) / 7, 20, target.lanes - 1, 77)
    broken = rng.standard_normal(1500)
    broken[[3, 700, 1499]] = np.nan
    broken[[70, 71]] = np.inf
    yield case("no numbers among them", broken, 7, 1, 300)
