"""From an inference to words: what a runtime's cache is, why, what to do, and what to measure where that stays open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.inference import Inference, Likely, Point
from harness.layouts import WORDS, Candidate
from harness.measurements import Measurements
from harness.roofline import Weights
from harness.units import about_text, bytes_text, rate_text, seconds_text, significant
from model.config import ModelConfig
from model.layout import CacheLayout, cache_bytes, cache_bytes_per_token, max_context

SURE = 0.9  # probability from which a layout is named
RULED_OUT = 0.05
CONTRADICTORY = 0.15  # relative error of a point beyond which a straight line explains nothing
FLAT = 0.2  # of a token's time at the longest context, what may have come with the context where speed "holds"
COARSE = 0.03  # relative rounding of a printed rate from which more digits would help
_OVER = 1.2  # a stated bandwidth is taken to be that much too low at most
FEWEST_CONTEXTS = 3  # two points lie on a line whatever they are

Kind = Literal["mha", "latent", "flat", "unexplained", "undecided", "contradictory", "too few"]


@dataclass(frozen=True)
class Case:
    """What a verdict is drawn from; ``bandwidth`` in bytes/s and ``memory`` in bytes are None where not stated."""

    config: ModelConfig
    weights: Weights
    bandwidth: float | None
    memory: int | None
    measured: Measurements
    inference: Inference | None  # None with fewer than two contexts
    processor: str | None = None  # "gpu" or "cpu", None where nobody said

    @property
    def points(self) -> tuple[Point, ...]:
        return self.measured.points

    @property
    def named(self) -> Candidate | None:
        """The candidate that is likelier than all else together, if the points lie on a line at all."""
        found = self.inference
        if found is None or found.error > CONTRADICTORY or found.best.probability <= 0.5:
            return None
        return found.best.candidate

    @property
    def contexts(self) -> list[float]:
        """The measured contexts, each once, the shortest first."""
        return sorted({point.context for point in self.points})


@dataclass(frozen=True)
class Verdict:
    kind: Kind
    headline: str
    reasons: tuple[str, ...]
    remedies: tuple[str, ...]
    measure_next: tuple[str, ...]


def judge(case: Case) -> Verdict:
    """The verdict; where it stays open, what to measure next."""
    found = case.inference
    if found is None:
        return Verdict("too few", "no verdict: all points are at one context", (), (), tuple(measure_next(case)))
    fastest = max(case.points, key=lambda point: point.rate)
    least = fastest.rate * case.weights.active_bytes
    if case.bandwidth is not None and least > _OVER * case.bandwidth:
        headline = (
            f"no verdict: {rate_text(fastest.rate)} tok/s read {significant(least / 1e9)} GB/s of weights alone, more "
            f"than the {significant(case.bandwidth / 1e9)} GB/s that are stated"
        )
        again = "Give the memory's true bandwidth, or the quantisation that ran (--mix, or the file itself)."
        return Verdict("contradictory", headline, (), (), (again,))
    if found.error > CONTRADICTORY:
        return _contradictory(case, found)
    of_heads = sum(each.probability for each in found.likely if not each.candidate.latent)
    of_latent = sum(each.probability for each in found.likely if each.candidate.latent)
    if len(case.contexts) < FEWEST_CONTEXTS:
        leaning = _leaning(of_heads, of_latent, found.none)
        headline = f"no verdict yet: two contexts point to {leaning}, but two points lie on a line whatever they are"
        return Verdict("too few", headline, tuple(_line_reasons(case, found)), (), tuple(measure_next(case)))
    if of_heads >= SURE:
        return _mha(case, found, of_heads)
    grown = _grown(case, found)
    if of_heads <= RULED_OUT and grown <= FLAT:
        return _flat(case, found)
    if of_latent >= SURE:
        return _latent(case, found, of_latent)
    reasons = tuple(_line_reasons(case, found))
    if found.none >= 0.5:
        headline = "no cache layout explains these speeds: what grows with the context costs more than even MHA's cache"
        remedies = (
            "Look for what else grows: a cache in host memory while the model runs on the GPU, layers on the CPU, "
            "swapping, or a clock that falls as the device warms up.",
        )
        return Verdict("unexplained", headline, reasons, remedies, tuple(measure_next(case)))
    headline = f"undecided: {_leaning(of_heads, of_latent, found.none)} is likelier"
    if of_heads <= RULED_OUT:
        headline = "no MHA fallback; what else it is stays open"
    return Verdict("undecided", headline, reasons, (), tuple(measure_next(case)))


def _mha(case: Case, found: Inference, probability: float) -> Verdict:
    best = _best(found, latent=False)
    right = cache_bytes_per_token(case.config, CacheLayout.LATENT)
    headline = (
        f"MHA fallback ({percent(probability)}; {best.candidate.cache_type} {percent(best.probability)}): the runtime "
        f"caches keys and values per head, {megabytes(best.bytes_per_token.value)} a token by these timings, "
        f"{megabytes(best.candidate.bytes_per_token)} by the formula; MLA needs {megabytes(right)}"
    )
    least = best.candidate.bytes_per_token / right
    remedies = [
        f"Use a runtime that implements MLA for this architecture: its cache is {significant(least)} times smaller. "
        "Where its log tells the size of the KV cache, that settles it.",
    ]
    if not case.config.split_kv_b:
        remedies.append(
            "This file has a joint attn_kv_b: llama.cpp falls back to MHA on such files in every version. Convert the "
            "model again, or get a file with attn_k_b and attn_v_b."
        )
    else:
        remedies.append(
            "With llama.cpp and what is built on it, take a version that knows MLA and a file with attn_k_b and "
            "attn_v_b: on files with a joint attn_kv_b it falls back."
        )
    reasons = [*_line_reasons(case, found), *_memory_reasons(case, best.candidate), *_quant_reasons(case, found)]
    if case.processor is None:
        reasons.append(
            "This takes it that a GPU runs the model: on a CPU the arithmetic on a latent cache may cost as much "
            "(--processor cpu)."
        )
    return Verdict("mha", headline, tuple(reasons), tuple(remedies), ())


def _latent(case: Case, found: Inference, probability: float) -> Verdict:
    best = _best(found, latent=True)
    sure = best.probability >= SURE
    what = best.candidate.name if sure else "a latent cache"
    headline = f"MLA is used: {what} ({percent(best.probability if sure else probability)}); no MHA fallback"
    reasons = [*_line_reasons(case, found), *_quant_reasons(case, found)]
    remedies = []
    if sure and best.candidate.layout is CacheLayout.LATENT_V:
        less = cache_bytes_per_token(case.config, CacheLayout.LATENT, best.candidate.cache_type)
        remedies.append(
            f"The cache holds a second copy of its values: a runtime without it needs "
            f"{significant(best.candidate.bytes_per_token / less)} times less of it."
        )
    open_question = [] if sure else measure_next(case)
    return Verdict("latent", headline, tuple(reasons), tuple(remedies), tuple(open_question))


def _flat(case: Case, found: Inference) -> Verdict:
    shortest, longest = (min(case.points, key=_context), max(case.points, key=_context))
    headline = (
        f"no MHA fallback: speed holds as the context fills, {rate_text(shortest.rate)} tok/s at "
        f"{shortest.context:,.0f} and {rate_text(longest.rate)} at {longest.context:,.0f}"
    )
    reasons = _line_reasons(case, found)
    per_head = cache_bytes_per_token(case.config, CacheLayout.PER_HEAD)
    if case.bandwidth is not None:
        reach = longest.context - shortest.context
        reasons.append(
            f"MHA's cache would have added at least {seconds_text(per_head * reach / case.bandwidth)} to a token "
            f"between these contexts; {seconds_text(longest.seconds - shortest.seconds)} were added."
        )
        reasons += _intercept_reasons(case, found)
    remedies = (
        "Not the cache, but what a token costs at any context governs: weights, arithmetic or launches. A smaller "
        "quant tells which: where it does not help, weights are not it.",
    )
    again = [
        "Check that the contexts were really filled: a runtime that cuts prompts to its own limit holds its speed too."
    ]
    return Verdict("flat", headline, tuple(reasons), remedies, tuple(again))


def _contradictory(case: Case, found: Inference) -> Verdict:
    headline = f"no verdict: the points contradict each other, a straight line leaves {percent(found.error)} at a point"
    worst = worst_point(case.points)
    if worst is None:
        again = "Measure all contexts again on an idle machine."
    else:
        again = (
            f"Measure {worst.context:,.0f} again: {rate_text(worst.rate)} tok/s lies furthest from the others' line."
        )
    return Verdict("contradictory", headline, (), (), (again, *measure_next(case)))


def worst_point(points: Sequence[Point]) -> Point | None:
    """The point furthest from the line through two of them that leaves the least sum of absolute errors of logarithms;
    None where three points or fewer do not tell which of them is wrong."""
    chosen = sorted(points, key=_context)[:: max(1, len(points) // 40)]
    if len(chosen) < 4:
        return None
    best: tuple[float, Point] | None = None
    for index, first in enumerate(chosen):
        for second in chosen[index + 1 :]:
            if second.context == first.context:
                continue
            slope = (second.seconds - first.seconds) / (second.context - first.context)
            line = [max(first.seconds + slope * (p.context - first.context), 1e-9) for p in chosen]
            errors = [abs(math.log(at / p.seconds)) for at, p in zip(line, chosen, strict=True)]
            furthest = chosen[max(range(len(chosen)), key=errors.__getitem__)]
            if best is None or sum(errors) < best[0]:
                best = sum(errors), furthest
    return best[1] if best else None


def measure_next(case: Case) -> list[str]:
    """What would tell the candidates apart that these points do not."""
    found = []
    if contexts := next_contexts(case):
        found.append(f"Measure decoding at contexts {', '.join(f'{context:,}' for context in contexts)} as well.")
    coarsest = max(case.points, key=lambda point: point.rounding / point.rate)
    if coarsest.rounding / coarsest.rate > COARSE:
        found.append(
            f"Give more digits: {coarsest.rate:g} tok/s may be {percent(coarsest.rounding / coarsest.rate)} off by its "
            "rounding alone; decode more tokens and divide."
        )
    if case.bandwidth is None:
        found.append("Give --bandwidth: `latentvk devices --measure` measures it.")
    longest = round(case.contexts[-1]) or 4096
    sizes = ", ".join(
        f"{bytes_text(cache_bytes(case.config, layout, 'f16', longest))} ({words})" for layout, words in WORDS.items()
    )
    found.append(f"Look for the KV cache's size in the runtime's log: with {longest:,} tokens in f16 {sizes}.")
    return found


def next_contexts(case: Case) -> list[int]:
    """Contexts that would help, the shortest first: a spread of 16 and four points, within training and memory."""
    limit = case.config.n_ctx_train
    if case.memory is not None:
        room = case.memory - case.weights.total_bytes
        limit = min(limit, max_context(case.config, CacheLayout.PER_HEAD, "f16", room))
    measured = case.contexts
    wanted = [context for context in (1024, 4096, 16_384, 65_536) if context <= limit]
    if len(measured) >= 4 and measured[-1] >= 16 * max(measured[0], 1):
        return []
    near = [context for context in wanted if all(not 0.5 < context / max(m, 1) < 2 for m in measured)]
    return near[-4:]


def _line_reasons(case: Case, found: Inference) -> list[str]:
    best, slope = found.best, found.slope
    reasons = [
        f"Each cached token adds {seconds_text(slope.value)} to a generated one (95%: {seconds_text(slope.low)} to "
        f"{seconds_text(slope.high)}); a token without any takes {seconds_text(found.intercept.value)}."
    ]
    if found.none < best.probability:
        reasons.append(
            f"If it is {best.candidate.name}, the runtime reads {significant(best.bandwidth / 1e9)} GB/s"
            + (f", {percent(best.bandwidth / case.bandwidth)} of what is there" if case.bandwidth else "")
            + f", and the line gives {megabytes(best.bytes_per_token.value)} a token "
            f"({megabytes(best.bytes_per_token.low)} to {megabytes(best.bytes_per_token.high)}), "
            f"{significant(best.bytes_per_token.value / best.candidate.bytes_per_token)} of the formula's."
        )
    crossing = found.intercept.value / found.slope.value
    if crossing < 2 * case.contexts[-1]:
        reasons.append(
            f"Cache-bound from about {about_text(crossing)} tokens on: there the context takes half of the time."
        )
    return reasons


def _intercept_reasons(case: Case, found: Inference) -> list[str]:
    if case.bandwidth is None:
        return []
    share = case.weights.active_bytes / case.bandwidth / found.intercept.value
    return [f"Reading the weights explains {percent(min(share, 1.0))} of a token's time without context."]


def _memory_reasons(case: Case, candidate: Candidate) -> list[str]:
    """What did not fit, or will not at twice the longest context, and what would have."""
    tried = case.measured.out_of_memory
    ahead = 2 * round(case.contexts[-1])
    context = min(tried) if tried else ahead
    if case.memory is None:
        return [f"It ran out of memory at {context:,}."] if tried else []
    cache = case.config, candidate.layout, candidate.cache_type, context
    needed = cache_bytes(*cache) + case.weights.total_bytes
    less = cache_bytes(case.config, CacheLayout.LATENT, candidate.cache_type, context)
    if needed <= case.memory:
        return [f"It ran out of memory at {context:,}, where this layout would fit."] if tried else []
    saw = "It ran" if tried else "It will run"
    return [
        f"{saw} out of memory at {context:,}: this cache is {bytes_text(cache_bytes(*cache))} there, with the weights "
        f"{bytes_text(needed)} of {bytes_text(case.memory)}; the V-less latent is {bytes_text(less)}."
    ]


def _quant_reasons(case: Case, found: Inference) -> list[str]:
    longest = case.contexts[-1]
    total = found.intercept.value + found.slope.value * longest
    gain = total / (total - found.intercept.value / 2)
    return [
        f"A quant of half the size makes a token at most {significant(gain)} times as fast at {longest:,.0f}: "
        + ("the weights are not the bottleneck." if gain < 1.1 else "the weights still count.")
    ]


def _grown(case: Case, found: Inference) -> float:
    """Share of a token's time at the longest context that came with the context."""
    grown = found.slope.value * case.contexts[-1]
    return grown / (found.intercept.value + grown)


def _best(found: Inference, latent: bool) -> Likely:
    return max((each for each in found.likely if each.candidate.latent == latent), key=lambda each: each.probability)


def _leaning(of_heads: float, of_latent: float, none: float) -> str:
    value, name = max((of_heads, "MHA fallback"), (of_latent, "a latent cache"), (none, "neither layout"))
    return f"{name} ({percent(value)})"


def _context(point: Point) -> float:
    return point.context


def megabytes(value: float) -> str:
    return f"{significant(value / 1e6)} MB"


def percent(value: float) -> str:
    """Whole percent, with '<1%' and '>99%' at the ends, as no inference is certain."""
    if 0 < value < 0.01:
        return "<1%"
    return ">99%" if 0.99 < value < 1 else f"{100 * value:.0f}%"
