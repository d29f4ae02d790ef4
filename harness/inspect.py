"""``latentvk inspect``: what a model is and costs in memory, by arithmetic; only ``--measure`` opens a device."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from math import prod
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import options
from harness.subject import Subject, add_preset, get_subject
from harness.units import bytes_text
from model.config import ModelConfig, expected_tensors
from model.layout import (
    CACHE_TYPES,
    PATHS,
    active_fraction,
    active_parameters,
    active_weight_bytes,
    cache_bytes,
    cache_bytes_per_token,
    cache_elements_per_token_layer,
    max_context,
    tensor_bytes,
    total_parameters,
    weight_bytes,
)
from vkbackend.errors import LatentvkError, printable

HELP = "show a model's shape, parameters, weight bytes and cache bytes; needs no device (but for --measure)"
EXAMPLE = "latentvk inspect --preset glm-4.7-flash --context 200192 --memory 96GiB"

TYPES_IN_USE = [name for name in CACHE_TYPES if name != "f32"]  # f32 is for checks
LAYOUT_WORDS = {"mla": "latent, V-less", "mla-v": "latent with a V copy", "mha": "K and V per head"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    add = parser.add_argument
    add_preset(parser)
    add("--context", type=options.positive_int, metavar="N", help="tokens (default: the trained length)")
    add("--measure", action="store_true", help="allocate each path's f16 cache on the device and count the bytes there")
    options.add_memory(parser)
    add("--memory", type=options.size_bytes, metavar="SIZE", help="such as 96GiB: adds the largest context that fits")


def run(args: argparse.Namespace) -> int:
    subject = get_subject(args)
    facts = describe(subject, args.context, args.memory)
    if args.measure:
        measure(subject.config, facts, args)
    options.emit_json(args, facts)
    if not options.json_to_stdout(args):
        _print(subject, facts, Console())
    return 0


def describe(subject: Subject, context: int | None, memory: int | None) -> dict[str, Any]:
    """Everything the command knows, as JSON-ready values; sizes in bytes. ``context`` None: the trained length."""
    config = subject.config
    n_ctx = context or config.n_ctx_train
    weights = weight_bytes(config, subject.types)
    return {
        "source": subject.source,
        "config": asdict(config),
        "supported": subject.unsupported is None,
        "unsupported": subject.unsupported,
        "parameters": {"total": total_parameters(config), "active": active_parameters(config)},
        "weights": {
            "estimated_from_mix": subject.mix,
            "bytes": weights,
            "active_bytes": active_weight_bytes(config, subject.types),
            "by_type": _by_type(subject),
        },
        "context": n_ctx,
        "memory": memory,
        "cache": [
            {
                "path": path.name,
                "layout": path.layout.value,
                "type": cache_type,
                "elements_per_token_layer": cache_elements_per_token_layer(config, path.layout),
                "bytes_per_token": cache_bytes_per_token(config, path.layout, cache_type),
                "bytes": cache_bytes(config, path.layout, cache_type, n_ctx),
                "max_context": None
                if memory is None
                else max_context(config, path.layout, cache_type, memory - weights),
            }
            for path in PATHS.values()
            for cache_type in TYPES_IN_USE
        ],
    }


def measure(config: ModelConfig, facts: dict[str, Any], args: argparse.Namespace) -> None:
    """Add to ``facts`` what each path's f16 cache takes of the device's memory when it is allocated.

    Its row gets ``allocated_bytes``, counted where Vulkan allocates, or None and, as ``not_allocated``, why.
    """
    from model.cache import Cache, cache_capacity
    from vkbackend.device import open_device

    device = open_device(args.device, memory_fraction=args.memory_fraction)
    try:
        facts["device"] = device.info.name
        for row in facts["cache"]:
            if row["type"] != "f16":
                continue
            path, room = PATHS[row["path"]], device.memory.room()
            needed = cache_bytes(config, path.layout, path.cache_type, cache_capacity(facts["context"]))
            row["allocated_bytes"] = row["not_allocated"] = None
            if needed > room.nbytes:
                row["not_allocated"] = f"needs {needed} bytes, {room.nbytes} left {room.limit}"
                continue
            try:
                cache = Cache(device, config, path, facts["context"])
            except LatentvkError as error:
                row["not_allocated"] = str(error)
                continue
            row["allocated_bytes"] = cache.nbytes
            cache.free()
    finally:
        device.close()


def _by_type(subject: Subject) -> dict[str, dict[str, int]]:
    """Type name -> number of tensors, parameters, bytes and bytes read per token; the largest first."""
    sums: dict[str, dict[str, int]] = {}
    for name, shape in expected_tensors(subject.config).items():
        kind = subject.types[name]
        size = tensor_bytes(shape, kind)
        row = sums.setdefault(kind.name, {"tensors": 0, "parameters": 0, "bytes": 0, "active_bytes": 0})
        row["tensors"] += 1
        row["parameters"] += prod(shape)
        row["bytes"] += size
        row["active_bytes"] += int(size * active_fraction(subject.config, name))
    return dict(sorted(sums.items(), key=lambda item: -item[1]["bytes"]))


def _print(subject: Subject, facts: dict[str, Any], console: Console) -> None:
    console.print(Text.assemble((subject.config.name, "bold"), f" ({printable(subject.source)})"), highlight=False)
    if subject.unsupported is not None:
        console.print(f"not runnable yet: {subject.unsupported}", highlight=False, markup=False)
    console.print(_shape_table(subject.config), _weight_table(facts), _cache_table(facts))


def _shape_table(c: ModelConfig) -> Table:
    queries = f"compressed to {c.q_lora}" if c.q_lora else "not compressed"
    rope = f"theta {c.rope_theta:,.0f}" + (f", YaRN x{c.yarn.factor:g} from {c.yarn.n_ctx_orig:,}" if c.yarn else "")
    groups = f", best {c.n_group_used} of {c.n_group} groups" if c.n_group > 1 else ""
    norm = ", renormalised" if c.norm_topk else ""
    bias = ", selection bias" if c.expert_bias else ""
    forms = [("joint attn_kv_b", not c.split_kv_b), ("fused ffn_gate_up_exps", c.fused_gate_up)]
    forms += [("output tied to the embedding", c.tied_output), (f"{c.n_padding} rows without a token", c.n_padding > 0)]
    experts = f"{c.n_expert_used} of {c.n_expert} and {c.n_expert_shared} shared, {c.n_ff_exp:,} wide"
    mixture = c.n_dense < c.n_layer
    rows = {
        "layers": f"{c.n_layer}: {c.n_dense} dense, {c.n_layer - c.n_dense} mixture"
        + (f", {c.n_nextn} MTP not run" * (c.n_nextn > 0)),
        "width, vocabulary": f"{c.n_embd:,}, {c.n_vocab:,}",
        "attention": f"{c.n_head} heads of {c.qk_nope}+{c.qk_rope} key, {c.v_head} value; queries {queries}",
        "latent": f"{c.kv_lora}+{c.qk_rope} = {c.latent_dim}; score scale {c.attn_scale:.6g}",
        "dense feed-forward": f"{c.n_ff:,}",
        "experts": experts if mixture else "none",
        "routing": f"{c.gating}{bias}{groups}{norm}, scaled by {c.expert_scale:.6g}" if mixture else "none",
        "rope, trained context": f"{rope}; {c.n_ctx_train:,}",
        "stored": ", ".join(name for name, applies in forms if applies),
    }
    table = Table(title="Shape", title_justify="left", box=SIMPLE_HEAD, show_header=False)
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    return table


def _weight_table(facts: dict[str, Any]) -> Table:
    weights, parameters = facts["weights"], facts["parameters"]
    mix = weights["estimated_from_mix"]
    title = "Weights" + (f" (estimated: no file, mix {mix})" if mix else "")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_footer=True)
    total = (
        "all",
        f"{sum(row['tensors'] for row in weights['by_type'].values()):,}",
        _count(parameters["total"]),
    )
    table.add_column("type", total[0])
    for header, footer in (
        ("tensors", total[1]),
        ("parameters", total[2]),
        ("bytes", bytes_text(weights["bytes"])),
        ("read per token", bytes_text(weights["active_bytes"])),
    ):
        table.add_column(header, footer, justify="right")
    for kind, row in weights["by_type"].items():
        table.add_row(
            kind,
            f"{row['tensors']:,}",
            _count(row["parameters"]),
            bytes_text(row["bytes"]),
            bytes_text(row["active_bytes"]),
        )
    table.caption = (
        f"{_count(parameters['active'])} parameters work on a token: the layers, their used experts, the output"
    )
    table.caption_justify = "left"
    return table


def _cache_table(facts: dict[str, Any]) -> Table:
    table = Table(title="Cache", title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    memory = facts["memory"]
    table.add_column("path", no_wrap=True)
    table.add_column("type", no_wrap=True)
    headers = ["elements", "bytes/token", "ratio", f"MiB at {facts['context']:,}"]
    measured = "device" in facts
    if measured:
        headers.append("allocated")
    if memory is not None:
        headers.append(f"fits {bytes_text(memory)}")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    base = facts["cache"][0]["bytes_per_token"]
    for index, row in enumerate(facts["cache"]):
        first = index % len(TYPES_IN_USE) == 0
        if first and index:
            table.add_section()
        table.add_row(
            row["path"] if first else "",
            row["type"],
            f"{row['elements_per_token_layer']:,}" if first else "",
            f"{row['bytes_per_token']:,}",
            f"{row['bytes_per_token'] / base:.2f}",
            f"{row['bytes'] / 2**20:,.2f}",
            *([_allocated(row)] if measured else []),
            *([] if memory is None else [f"{row['max_context']:,}"]),
        )
    lines = [f"{name}: {words}" for name, words in LAYOUT_WORDS.items()]
    table.caption = "; ".join(lines) + ". Elements are per token and layer."
    if memory is not None:
        weights = bytes_text(facts["weights"]["bytes"])
        table.caption += f" Fits: tokens beside {weights} of weights, nothing set aside for the system."
    if measured:
        table.caption += f" Allocated: MiB counted on {facts['device']}, in whole units of 32 tokens."
        for row in facts["cache"]:
            if row.get("not_allocated"):
                table.caption += f" {row['path']} was not allocated: {row['not_allocated']}."
    table.caption_justify = "left"
    return table


def _allocated(row: dict[str, Any]) -> str:
    found = row.get("allocated_bytes")
    return "" if found is None else f"{found / 2**20:,.2f}"


def _count(n: int) -> str:
    return f"{n / 1e9:.2f} G" if n >= 10**8 else f"{n / 1e6:.2f} M"
