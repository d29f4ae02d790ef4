// What a token adds to the latent cache: attn_kv_a_mqa's output, its first `latent` entries normed, its last `rope`
// entries rotated, stored in the row of the token's position (latent_row.glsl says how).
// The kernel declares kv[], weight[], cache[] (and values[] with REDUNDANT_V, expanded[] with PER_HEAD) and the push
// constants latent, rope, kv_first, kv_token (elements), n_high and eps.
// Pair i of what the token at `position` adds, of the normed part's inverse root mean square.
vec2 added_pair(uint i, uint token, uint position, float inverse_rms) {
    uint latent_pairs = latent / 2u, rope_pairs = rope / 2u;
    vec2 v = kv[(kv_first + token * kv_token) / 2u + i];
    return i < latent_pairs ? v * inverse_rms * weight[i] : rope_pair(v, position, i - latent_pairs, rope_pairs, n_high);
}

#ifdef QUANTISED
// `copy`: into the values' own copy.
void put(bool copy, uint at, uint word) {
#ifdef REDUNDANT_V
    if (copy) {
        values[at] = word;
        return;
    }
#endif
    cache[at] = word;
}

// The token's first `width` pairs. A lane makes two blocks, whose scales share a word.
void store_row(bool copy, uint width, uint row, uint token, uint position, float inverse_rms) {
    uint base = row * ROW_WORDS(width);
    for (uint two = gl_SubgroupInvocationID; 2u * two < BLOCKS(width); two += gl_SubgroupSize) {
        vec2 scales = vec2(0.0);
        [[unroll]] for (uint k = 0u; k < 2u; k++) {
            uint block = 2u * two + k;
            if (block < BLOCKS(width)) {
                vec2 v[BLOCK_PAIRS];
                [[unroll]] for (uint i = 0u; i < BLOCK_PAIRS; i++) {
                    uint pair = block * BLOCK_PAIRS + i;
                    v[i] = pair < width ? added_pair(pair, token, position, inverse_rms) : vec2(0.0);
                }
                uint words[BLOCK_WORDS];
                scales[k] = quantised_block(v, words);
                [[unroll]] for (uint w = 0u; w < BLOCK_WORDS; w++) put(copy, base + block * BLOCK_WORDS + w, words[w]);
            }
        }
        put(copy, base + BLOCKS(width) * BLOCK_WORDS + two, packHalf2x16(scales));
    }
}
#endif

void store_token(uint token) {
    uint latent_pairs = latent / 2u, pairs = latent_pairs + rope / 2u;
    uint source = (kv_first + token * kv_token) / 2u, position = n_past + token, row = position;
#ifdef SHARD
    if (position < first || position >= last) return;
    row -= first;
#endif
    float squares = 0.0;
    for (uint i = gl_SubgroupInvocationID; i < latent_pairs; i += gl_SubgroupSize) squares += dot(kv[source + i], kv[source + i]);
    float inverse_rms = inversesqrt(subgroupAdd(squares) / float(latent) + eps);
#ifdef QUANTISED
    store_row(false, pairs, row, token, position, inverse_rms);
#ifdef REDUNDANT_V
    store_row(true, latent_pairs, row, token, position, inverse_rms);
#endif
#else
    for (uint i = gl_SubgroupInvocationID; i < pairs; i += gl_SubgroupSize) {
        vec2 v = added_pair(i, token, position, inverse_rms);
#ifdef PER_HEAD
        expanded[token * pairs + i] = v;
#else
        cache[row * pairs + i] = packed_pair(v);
#endif
#ifdef REDUNDANT_V
        if (i < latent_pairs) values[row * latent_pairs + i] = packed_pair(v);
#endif
    }
#endif
}
