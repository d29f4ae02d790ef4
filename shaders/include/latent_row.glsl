// How a latent cache keeps a row of numbers, neighbours in pairs: packed halves; with CACHE_F32 floats; with CACHE_Q8_0
// or CACHE_Q4_0 the blocks of 32 of ggml's type of that name (d * q, or d * (q - 8)), the last one padded with zeros: a
// row's quants in order and behind them its scales d, packed halves, up to a whole word. A word of quants holds
// PAIRS_A_WORD pairs.
#if defined(CACHE_Q8_0) || defined(CACHE_Q4_0)
#define QUANTISED
#endif

#if defined(CACHE_Q8_0)
#define PAIRS_A_WORD 2u
#elif defined(CACHE_Q4_0)
#define PAIRS_A_WORD 4u
#else
#define PAIRS_A_WORD 1u
#endif

#ifdef CACHE_F32
#define STORED vec2
vec2 packed_pair(vec2 v) { return v; }
vec2 unpacked_pair(vec2 stored) { return stored; }
#else
#define STORED uint
uint packed_pair(vec2 v) { return packHalf2x16(v); }
vec2 unpacked_pair(uint stored) { return unpackHalf2x16(stored); }
#endif

#ifdef QUANTISED
#define BLOCK_PAIRS 16u
#define BLOCK_WORDS (BLOCK_PAIRS / PAIRS_A_WORD)
#define BLOCKS(pairs) (((pairs) + BLOCK_PAIRS - 1u) / BLOCK_PAIRS)
// Words of a row of so many pairs: quants, then scales.
#define ROW_WORDS(pairs) (BLOCKS(pairs) * BLOCK_WORDS + (BLOCKS(pairs) + 1u) / 2u)

// Pair `sub` of a word of quants: what its block's scale multiplies.
vec2 quant_pair(uint quants, uint sub) {
#ifdef CACHE_Q8_0
    int q = int(quants), at = int(sub) * 16, bits = 8;
#else
    int q = int(quants ^ 0x88888888u), at = int(sub) * 8, bits = 4; // 8 less, as fields with a sign
#endif
    return vec2(bitfieldExtract(q, at, bits), bitfieldExtract(q, at + bits, bits));
}
// Of the row of `pairs` pairs that begins at word `base` of a buffer: the scale of the block that has word number
// `word`; pair `sub` of that word without its scale, and with it.
#define BLOCK_SCALE(buffer, base, pairs, word) \
    unpackHalf2x16(buffer[(base) + BLOCKS(pairs) * BLOCK_WORDS + (word) / (2u * BLOCK_WORDS)])[((word) / BLOCK_WORDS) & 1u]
#define UNSCALED_PAIR(buffer, base, word, sub) quant_pair(buffer[(base) + (word)], sub)
#define STORED_PAIR(buffer, base, pairs, word, sub) \
    (BLOCK_SCALE(buffer, base, pairs, word) * UNSCALED_PAIR(buffer, base, word, sub))

// A block's scale, and its quants as words: as ggml's quantize_row_q8_0_ref and quantize_row_q4_0_ref make them.
float quantised_block(vec2 v[BLOCK_PAIRS], out uint words[BLOCK_WORDS]) {
    float largest = 0.0; // by magnitude, with its sign
    [[unroll]] for (uint i = 0u; i < BLOCK_PAIRS; i++) {
        if (abs(v[i].x) > abs(largest)) largest = v[i].x;
        if (abs(v[i].y) > abs(largest)) largest = v[i].y;
    }
#ifdef CACHE_Q8_0
    float d = abs(largest) / 127.0;
#else
    float d = largest / -8.0;
#endif
    float inverse = d == 0.0 ? 0.0 : 1.0 / d;
    [[unroll]] for (uint w = 0u; w < BLOCK_WORDS; w++) {
        uint quants = 0u;
        [[unroll]] for (uint sub = 0u; sub < PAIRS_A_WORD; sub++) {
            vec2 x = v[w * PAIRS_A_WORD + sub] * inverse;
#ifdef CACHE_Q8_0
            uvec2 q = uvec2(ivec2(sign(x) * floor(abs(x) + 0.5))) & 255u;
            quants |= (q.x | q.y << 8) << (16u * sub);
#else
            uvec2 q = uvec2(min(x + 8.5, vec2(15.0)));
            quants |= (q.x | q.y << 4) << (8u * sub);
#endif
        }
        words[w] = quants;
    }
    return d;
}
#else
#define ROW_WORDS(pairs) (pairs)
#define BLOCK_SCALE(buffer, base, pairs, word) 1.0
#define UNSCALED_PAIR(buffer, base, word, sub) unpacked_pair(buffer[(base) + (word)])
#define STORED_PAIR(buffer, base, pairs, word, sub) UNSCALED_PAIR(buffer, base, word, sub)
#endif
