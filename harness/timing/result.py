"""A timing as figures: rates of a kernel's work, and how near they come to what the device can do at most."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness import stats
from harness.roofline import Bound, Peaks
from harness.shader_variants import Variant
from harness.timing.job import Timing
from harness.timing.work import Amount


@dataclass(frozen=True)
class Result:
    """One choice of a variant's constants, timed. ``peaks`` are the device's own, measured by the same process."""

    variant: Variant
    amount: Amount
    timing: Timing
    peaks: Peaks
    choice: int = 0

    @property
    def samples(self) -> tuple[float, ...]:
        """Seconds a launch."""
        return self.timing.samples[self.choice]

    @cached_property
    def seconds(self) -> float:
        """The median of the samples."""
        return stats.median(self.samples)

    @property
    def bandwidth(self) -> float:
        """Bytes a second, of those that must be moved."""
        return self.amount.nbytes / self.seconds

    @property
    def flops(self) -> float:
        """f32 operations a second."""
        return self.amount.flops / self.seconds

    @property
    def unit_rate(self) -> float:
        """Units of work a second."""
        return self.amount.units / self.seconds

    @property
    def memory_share(self) -> float:
        """Of the measured bandwidth."""
        return self.bandwidth / self.peaks.bandwidth

    @property
    def arithmetic_share(self) -> float:
        """Of the measured arithmetic peak."""
        return self.flops / self.peaks.flops

    @property
    def bound(self) -> Bound:
        """The least that the peaks allow; its ``seconds`` over the median is the share of the roofline."""
        return self.peaks.bound(self.amount.nbytes, self.amount.flops)

    @property
    def share(self) -> float:
        """Of the roofline: of the peak that governs."""
        return self.bound.seconds / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain values, every sample among them."""
        launch, timing, amount = self.variant.launch, self.timing, self.amount
        return {
            "name": self.variant.name,
            "tensor": launch.label,
            "tokens": self.variant.tokens,
            "n_past": self.variant.n_past,
            "grid": list(launch.grid),
            "unit": amount.unit,
            "units": amount.units,
            "bytes": amount.nbytes,
            "flops": amount.flops,
            "samples_seconds": list(self.samples),
            "seconds": self.seconds,
            "spread_seconds": stats.spread(self.samples),
            "launches_per_sample": timing.launches[self.choice],
            "copies": timing.copies,
            "rotated_bytes": timing.rotated_bytes,
            "from_caches": timing.from_caches,
            "clock": timing.clock,
            "bytes_per_second": self.bandwidth,
            "flops_per_second": self.flops,
            "units_per_second": self.unit_rate,
            "memory_share": self.memory_share,
            "arithmetic_share": self.arithmetic_share,
            "governs": self.bound.governs,
            "roofline_share": self.share,
        }
