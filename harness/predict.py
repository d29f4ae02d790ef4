"""Rows that were never run: what a chip's peaks allow a model to reach, path by path and context by context."""

from collections.abc import Sequence

from harness.chips import Chip
from harness.results import PathLine, Row, Table, governing
from harness.roofline import (
    Peaks,
    Weights,
    chip_peaks,
    decode_bound,
    fit_line,
    flops_per_cache_byte,
    prompt_bound,
)
from model.config import ModelConfig
from model.layout import Path, cache_bytes, cache_bytes_per_token

PROMPT_CHUNK = 512  # tokens a pass assumed for predicted prompts, llama.cpp's default micro-batch


def predict(
    config: ModelConfig,
    weights: Weights,
    chip: Chip,
    contexts: Sequence[int],
    paths: Sequence[Path],
    memory: int | None = None,
) -> Table:
    """The comparison table of `config` on `chip`, all figures upper bounds; `memory` in bytes overrides the chip's
    own."""
    peaks = chip_peaks(chip)
    limit = chip.memory if memory is None else memory
    rows = tuple(predict_row(config, weights, peaks, path, context, limit) for context in contexts for path in paths)
    lines = tuple(line_of(config, path, [row for row in rows if row.path == path.name], peaks) for path in paths)
    return Table("predicted", config.name, chip.name, weights, peaks, rows, lines, memory=limit)


def predict_row(
    config: ModelConfig, weights: Weights, peaks: Peaks, path: Path, context: int, memory: int | None
) -> Row:
    """One predicted row; over `memory` bytes it says so and has no speeds."""
    formula = cache_bytes(config, path.layout, path.cache_type, context)
    needed = weights.total_bytes + formula
    if memory is not None and needed > memory:
        return Row(path.name, context, formula, not_run="does not fit", needed_bytes=needed)
    decode = decode_bound(config, weights.active_bytes, path, context, peaks)
    prompt = prompt_bound(config, weights, path, context, PROMPT_CHUNK, peaks)
    return Row(
        path.name,
        context,
        formula,
        decode_seconds=((decode.seconds,),),
        decode_contexts=(context,),
        prompt_seconds=(prompt.seconds,),
        first_token_seconds=(prompt.seconds,),
        decode_bound=decode,
        prompt_bound=prompt,
        needed_bytes=needed,
    )


def line_of(config: ModelConfig, path: Path, rows: Sequence[Row], peaks: Peaks | None) -> PathLine:
    """The line through one path's rows (each row's median seconds at its mean context), and the bound that governs
    it."""
    ran = [row for row in rows if row.decode_seconds]
    line = fit_line(
        [sum(row.decode_contexts) / len(row.decode_contexts) for row in ran],
        [1 / row.decode_rate for row in ran if row.decode_rate],
    )
    per_token = error = None
    if line is not None and peaks is not None:
        per_token = line.bytes_per_token(peaks.bandwidth)
        error = None if line.slope_error is None else line.slope_error * peaks.bandwidth
    return PathLine(
        path.name,
        line,
        per_token,
        error,
        cache_bytes_per_token(config, path.layout, path.cache_type),
        flops_per_cache_byte(config, path),
        governing([(row.context, row.decode_bound) for row in ran if row.decode_bound]),
    )
