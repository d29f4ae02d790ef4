"""Two quantisations of one model: how much of a token's time goes with the weights' bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.inference import Interval
from harness.stats import paired_ratio
from harness.units import significant


@dataclass(frozen=True)
class QuantEffect:
    """Two files of one model at one context: how their weights' bytes and their speeds compare.

    `share` is the part of a token's time that went with the weights' bytes, with its 95% interval: 1 where half of the
    bytes take half of the time, 0 where they make no difference.
    """

    bytes_ratio: float  # of the larger over the smaller
    speed_ratio: float  # of the smaller over the larger
    share: Interval

    @property
    def bottleneck(self) -> bool | None:
        """Whether the weights take most of a token's time; None where the samples do not tell."""
        if self.share.low > 0.5:
            return True
        return False if self.share.high < 0.5 else None


def quant_effect(
    larger: tuple[float, Sequence[Sequence[float]]], smaller: tuple[float, Sequence[Sequence[float]]]
) -> QuantEffect:
    """From the bytes that a token reads of each file's weights, and its seconds by repeat, measured in turns."""
    ratio = paired_ratio(smaller[1], larger[1])  # below 1 where the smaller is faster
    saved = 1 - smaller[0] / larger[0]
    low = ratio.value if ratio.low is None else ratio.low
    high = ratio.value if ratio.high is None else ratio.high
    share = Interval((1 - ratio.value) / saved, (1 - high) / saved, (1 - low) / saved)
    return QuantEffect(larger[0] / smaller[0], 1 / ratio.value, share)


def effect_text(path: str, context: int, larger: str, smaller: str, found: QuantEffect) -> str:
    """The effect in words, and whether the weights are the bottleneck."""
    says = {
        True: "the weights are the bottleneck",
        False: "the weights are not the bottleneck",
        None: "these samples do not tell whether the weights are the bottleneck",
    }[found.bottleneck]
    share = found.share
    return (
        f"{path} at {context:,}: {smaller} reads {significant(found.bytes_ratio)}x fewer weight bytes than {larger} "
        f"and decodes {significant(found.speed_ratio)}x as fast; {100 * share.value:.0f}% ({100 * share.low:.0f}% to "
        f"{100 * share.high:.0f}%) of a token's time goes with the weights' bytes: {says}."
    )
