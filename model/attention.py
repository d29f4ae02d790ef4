"""Attention of one layer as launches, for every path: absorbed over the latent cache, or per-head MHA fallback.

Letters: T tokens of the chunk, H heads, R kv_lora, N qk_nope, P qk_rope, V v_head. The mathematics is DeepSeek-V2's
(2024, section 2.1); model/reference/attention.py has it in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from model import kernels
from model.attention_shape import AttentionShape
from model.cache import LatentShard, LayerCache
from model.config import ModelConfig
from model.layout import whole_units
from model.linear import Norm, Source, View, absorbing_linear, can_fold, linear
from model.norm import normed
from model.plan import JOINED
from model.scratch import Scratch, compressed_width
from model.weights import Weight
from vkbackend.buffer import Buffer
from vkbackend.program import Program


@dataclass(frozen=True)
class AttentionBlock:
    """Everything one layer's attention touches; ``emit`` appends its launches to a program."""

    config: ModelConfig
    weights: Mapping[str, Weight]
    vectors: Mapping[str, Buffer]
    cache: LayerCache
    n_ctx: int
    token_shape: AttentionShape
    chunk_shape: AttentionShape

    def emit(self, program: Program, scratch: Scratch, tokens: int) -> None:
        """x += attention(norm(x)) for ``tokens`` (1, or the chunk's capacity)."""
        if self.cache.latent:
            self.emit_before(program, scratch, tokens)
            self._latent(program, scratch, tokens)
            self.emit_after(program, scratch, tokens)
        elif self.cache.keys_per_head is not None and self.cache.values_per_head is not None:
            self._queries_and_latent(program, scratch, tokens)
            self._per_head(program, scratch, tokens, self.cache.keys_per_head, self.cache.values_per_head)
            self.emit_output(program, scratch, tokens)

    def emit_before(self, program: Program, scratch: Scratch, tokens: int) -> None:
        """Latent paths: the tokens' rows to the cache, their absorbed queries to ``q_latent``."""
        self._queries_and_latent(program, scratch, tokens)
        self._absorbed(program, scratch, tokens)

    def emit_before_expanded(self, program: Program, scratch: Scratch, tokens: int) -> None:
        """Latent paths: a chunk's rows to the cache, its queries' rope part rotated in ``q``."""
        c = self.config
        self._queries_and_latent(program, scratch, tokens)
        self._store_rows(program, scratch, tokens)
        self._rope_query(program, scratch, tokens, "q", c.key_dim, c.qk_nope)

    def emit_after(self, program: Program, scratch: Scratch, tokens: int) -> None:
        """Latent paths: x += output(``latent_out``)."""
        c = self.config
        out = View(scratch["latent_out"], batch=c.kv_lora, token=c.n_head * c.kv_lora)
        self._linear(program, scratch, tokens, "attn_v_b", out, self._heads_view(scratch))
        self.emit_output(program, scratch, tokens)

    def emit_output(self, program: Program, scratch: Scratch, tokens: int) -> None:
        """x += output(``heads``)."""
        c = self.config
        heads = View(scratch["heads"], token=c.n_head * c.v_head)
        self._linear(
            program, scratch, tokens, "attn_output", heads, View(scratch["x"], token=c.n_embd), accumulate=True
        )

    def _linear(
        self,
        program: Program,
        scratch: Scratch,
        tokens: int,
        name: str,
        x: View,
        y: View,
        accumulate: bool = False,
        norm: Norm | None = None,
    ) -> None:
        weight = self.weights[name]
        linear(program, weight, x, y, tokens=tokens, params=scratch["params"], accumulate=accumulate, norm=norm)

    def _normed(
        self,
        program: Program,
        scratch: Scratch,
        tokens: int,
        x: View,
        width: int,
        name: str,
        target: str,
        follow: Iterable[str],
    ) -> Source:
        """Vectors of ``width`` numbers through a norm: by a launch of its own, or in the products that ``follow``."""
        norm = Norm(self.vectors[name], self.config.rms_eps)
        folds = can_fold(*(self.weights[product] for product in follow))
        return normed(program, scratch, tokens, x, norm, scratch[target], width, folds)

    def _queries_and_latent(self, program: Program, scratch: Scratch, tokens: int) -> None:
        c, apart = self.config, compressed_width(self.config)
        x, q = View(scratch["x"], token=c.n_embd), View(scratch["q"], token=c.n_head * c.key_dim)
        down = View(scratch["compressed"], token=apart)
        outputs = {"attn_q_a" if c.q_lora else "attn_q": down if c.q_lora else q}
        outputs["attn_kv_a_mqa"] = replace(down, offset=c.q_lora)
        if JOINED in self.weights:
            outputs = {JOINED: down}
        source = self._normed(program, scratch, tokens, x, c.n_embd, "attn_norm", "normed", outputs)
        for name, y in outputs.items():
            self._linear(program, scratch, tokens, name, source.view, y, norm=source.norm)
        if c.q_lora:
            source = self._normed(
                program, scratch, tokens, down, c.q_lora, "attn_q_a_norm", "q_a_normed", ("attn_q_b",)
            )
            self._linear(program, scratch, tokens, "attn_q_b", source.view, q, norm=source.norm)

    def _rope_push(self, scratch: Scratch, out_head: int, out_rope: int) -> dict[str, int | float]:
        c = self.config
        return {
            "heads": c.n_head,
            "rope": c.qk_rope,
            "q_head": c.key_dim,
            "q_rope": c.qk_nope,
            "out_head": out_head,
            "out_rope": out_rope,
            "n_high": scratch.n_high,
        }

    def _rope_query(
        self, program: Program, scratch: Scratch, tokens: int, out: str, out_head: int, out_rope: int
    ) -> None:
        buffers = {name: scratch[name] for name in ("q", "rope_tables", "params")} | {"out": scratch[out]}
        push = self._rope_push(scratch, out_head, out_rope)
        program.launch(kernels.ROPE_QUERY, buffers, (tokens, 1, 1), push=push)

    def _latent_inputs(self, scratch: Scratch) -> tuple[dict[str, Buffer], dict[str, int | float]]:
        """Buffers and push constants by which a token's latent row is made."""
        c = self.config
        buffers = {"kv": scratch["compressed"], "weight": self.vectors["attn_kv_a_norm"]}
        buffers |= {name: scratch[name] for name in ("rope_tables", "params")}
        push = {"latent": c.kv_lora, "rope": c.qk_rope, "n_high": scratch.n_high, "eps": float(c.rms_eps)}
        return buffers, push | {"kv_first": c.q_lora, "kv_token": compressed_width(c)}

    def _absorbed(self, program: Program, scratch: Scratch, tokens: int) -> None:
        """The tokens' latent rows in the cache, and their queries as attention over it wants them: in one launch where
        one token's row lies in the only shard."""
        c, shards = self.config, self.cache.latent
        nope = View(scratch["q"], batch=c.key_dim, token=c.n_head * c.key_dim)
        absorbed = View(scratch["q_latent"], batch=c.latent_dim, token=c.n_head * c.latent_dim)
        if tokens == 1 and len(shards) == len(self.weights["attn_k_b"].shards) == 1:
            buffers, push = self._latent_inputs(scratch)
            push |= self._rope_push(scratch, c.latent_dim, c.kv_lora)
            weight, of = self.weights["attn_k_b"], self.cache.cache_type
            absorbing_linear(program, weight, nope, absorbed, buffers | _stored(shards[0]), push, of)
            return
        self._store_rows(program, scratch, tokens)
        self._rope_query(program, scratch, tokens, "q_latent", c.latent_dim, c.kv_lora)
        self._linear(program, scratch, tokens, "attn_k_b", nope, absorbed)

    def _store_rows(self, program: Program, scratch: Scratch, tokens: int) -> None:
        """The tokens' latent rows to the cache's shards."""
        shards = self.cache.latent
        buffers, push = self._latent_inputs(scratch)
        for shard in shards:
            kernel = kernels.LATENT_CACHE if shard.values is None else kernels.LATENT_CACHE_V
            kernel, here = kernels.for_cache(kernel, self.cache.cache_type), push
            if len(shards) > 1:
                kernel = kernels.for_shard(kernel, kernels.SHARD_PUSH)
                here = push | {"first": shard.first, "last": shard.end}
            program.launch(kernel, buffers | _stored(shard), (tokens, 1, 1), push=here)

    def _latent(self, program: Program, scratch: Scratch, tokens: int) -> None:
        c, shards = self.config, self.cache.latent
        splits = self._shape(tokens).splits
        slots = splits * len(shards)
        for index, shard in enumerate(shards):
            self._attend(program, scratch, tokens, shard, splits, index * splits, slots)
        if slots > 1:
            program.launch(
                kernels.ATTENTION_COMBINE,
                {"parts": scratch["parts"], "stats": scratch["stats"], "out": scratch["latent_out"]},
                (tokens * c.n_head, 1, 1),
                push={"latent": c.kv_lora, "splits": slots},
            )

    def _attend(
        self, program: Program, scratch: Scratch, tokens: int, shard: LatentShard, splits: int, slot: int, slots: int
    ) -> None:
        """Attention over one shard's positions, whose sums go to ``splits`` of a head's ``slots``, from ``slot`` on."""
        c, shape = self.config, self._shape(tokens)
        values = {} if shard.values is None else {"values": shard.values}
        forms = kernels.LATENT_ATTENTION[shape.kernel]
        kernel = kernels.for_cache(forms.with_values if values else forms.plain, self.cache.cache_type)
        push: dict[str, int | float] = {"heads": c.n_head, "scale": c.attn_scale}
        if slots > splits:
            kernel = kernels.for_shard(kernel, kernels.SHARD_SLOTS_PUSH)
            push |= {"first": shard.first, "last": shard.end, "slot_first": slot, "slots": slots}
        program.launch(
            kernels.for_device(kernel, program.device.info.kind),
            {
                "q": scratch["q_latent"],
                "cache": shard.latent,
                "out": scratch["parts" if slots > 1 else "latent_out"],
                "stats": scratch["stats"],
                "params": scratch["params"],
                **values,
            },
            (c.n_head // shape.heads, splits, tokens),
            spec={
                "LATENT": c.kv_lora,
                "ROPE": c.qk_rope,
                "HEADS": shape.heads,
                "TILE": shape.tile,
                "SPLITS": splits,
                "LATENT_PAIRS": shape.latent_pairs,
                "ROPE_PAIRS": shape.rope_pairs,
            },
            push=push,
            deep=True,
        )

    def _shape(self, tokens: int) -> AttentionShape:
        return self.token_shape if tokens == 1 else self.chunk_shape

    def _heads_view(self, scratch: Scratch) -> View:
        c = self.config
        return View(scratch["heads"], batch=c.v_head, token=c.n_head * c.v_head)

    def _per_head(self, program: Program, scratch: Scratch, tokens: int, keys: Weight, values: Weight) -> None:
        c = self.config
        buffers, push = self._latent_inputs(scratch)
        program.launch(kernels.LATENT_EXPAND, buffers | {"cache": scratch["expanded"]}, (tokens, 1, 1), push=push)
        latent = View(scratch["expanded"], token=c.latent_dim)
        k_nope = View(scratch["k_nope"], batch=c.qk_nope, token=c.n_head * c.qk_nope)
        v_new = View(scratch["v_new"], batch=c.v_head, token=c.n_head * c.v_head)
        self._linear(program, scratch, tokens, "attn_k_b_transposed", latent, k_nope)
        self._linear(program, scratch, tokens, "attn_v_b", latent, v_new)
        self._rope_query(program, scratch, tokens, "q", c.key_dim, c.qk_nope)
        for key_shard, value_shard in zip(keys.shards, values.shards, strict=True):
            program.launch(
                kernels.for_cache(kernels.CACHE_PER_HEAD, self.cache.cache_type),
                {
                    "k_nope": scratch["k_nope"],
                    "latent_rope": scratch["expanded"],
                    "v_new": scratch["v_new"],
                    "params": scratch["params"],
                    "k_cache": key_shard.buffer,
                    "v_cache": value_shard.buffer,
                },
                (key_shard.end - key_shard.first, 1, 1),
                push={
                    "head_first": key_shard.first,
                    "heads": c.n_head,
                    "nope": c.qk_nope,
                    "rope": c.qk_rope,
                    "v_dim": c.v_head,
                    "latent": c.kv_lora,
                    "n_ctx": self.n_ctx,
                    "key_row": whole_units(c.key_dim),
                },
            )
        params = scratch["params"]
        scores = View(scratch["scores"], batch=tokens * self.n_ctx, token=self.n_ctx)
        q = View(scratch["q"], batch=c.key_dim, token=c.n_head * c.key_dim)
        linear(program, keys, q, scores, tokens=tokens, params=params, cache_extent="ROWS")
        program.launch(
            kernels.SOFTMAX_CAUSAL,
            {"scores": scratch["scores"], "params": params},
            (tokens, c.n_head, 1),
            push={"capacity": tokens, "n_ctx": self.n_ctx, "scale": c.attn_scale},
            deep=True,
        )
        heads = self._heads_view(scratch)
        linear(program, values, scores, heads, tokens=tokens, params=params, cache_extent="UNITS")


def _stored(shard: LatentShard) -> dict[str, Buffer]:
    """A shard's buffers by the names that kernels write them under."""
    return {"cache": shard.latent} | ({} if shard.values is None else {"values": shard.values})
