// Q6_K (ggml block_q6_K: 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, f16 d, for 256 weights),
// w = d * scale * (q - 32), one scale for 16 columns. In each half of 128 columns, low nibbles of byte 32c + l are
// column 32c + l and high nibbles column 64 + 32c + l; bit pairs of byte l serve columns l, 32 + l, 64 + l, 96 + l.
// On the device: 52 words a block (nibbles, bit pairs, scales); from word `scale_base` on all d, packed
// halves. INTERLEAVED: pieces.glsl, in the order below.
uint column_a(uint u) { return (u >> 3) * 256u + ((u & 4u) << 5) + ((u & 2u) << 4) + ((u & 1u) << 4); }
uint column_b(uint u) { return column_a(u) + 64u; }
#define UNITS_A_STEP 2u
#define SCALES_OF_16
#define SIGNED_BITS 6
#define DECODED_AT_ONCE
#define PIECES 13u
#define SCALE_APART
#include "pieces.glsl"
#ifdef IN_PLACE
#define PLACED
#define PLACED_B 0
#define MIDDLE 32.0
#endif

// The unit of those words: of the high ones the bit pairs of `chunk`, and two scales.
Unit six_bit_unit(uvec4 low, uvec4 high, uint chunk, float d, int scale_a, int scale_b) {
    Unit r;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
#ifdef PLACED
        uint pairs = high[i] >> (2u * chunk), top = 0xF0F0F0F0u; // of which unsigned_fields keeps two bits each
        r.q[i] = unsigned_fields((low[i] & ~top) | ((pairs << 4) & top), 0, 6);
        r.q[4u + i] = unsigned_fields(((low[i] >> 4) & ~top) | (pairs & top), 0, 6);
#else
        uint pairs = (high[i] ^ 0xAAAAAAAAu) >> (2u * chunk); // q - 32 in six bits, signed
        r.q[i] = signed_fields((low[i] & 0x0F0F0F0Fu) | (pairs & 0x03030303u) << 4, 0, SIGNED_BITS);
        r.q[4u + i] = signed_fields(((low[i] >> 4) & 0x0F0F0F0Fu) | (pairs & 0x30303030u), 0, SIGNED_BITS);
#endif
    }
    r.da = d * float(scale_a); r.ma = 0.0;
    r.db = d * float(scale_b); r.mb = 0.0;
    return r;
}

#ifdef INTERLEAVED
// Order of the pieces: scales; of each half low 0, high 0, low 1, high 1, low 2, low 3.
#define UNITS_A_BLOCK 8u
Head load_head(uint block) { return Head(piece(block, 0u), scale_apart(block)); }
Unit load_unit(Head head, uint block, uint i) {
    uint half128 = i >> 2, chunk = (i >> 1) & 1u, side = i & 1u, first = 1u + half128 * 6u;
    ivec2 both = ivec2(half128 == 0u ? head.words.xy : head.words.zw);
    ivec2 scales = bitfieldExtract(both, int(chunk * 2u + side) * 8, 8);
    uvec4 low = piece(block, first + (chunk == 0u ? 2u * side : 4u + side)), high = piece(block, first + 2u * side + 1u);
    return six_bit_unit(low, high, chunk, head.d, scales.x, scales.y);
}
#else
Unit load_unit(uint g) {
    uint block = g >> 3, half128 = (g >> 2) & 1u, chunk = (g >> 1) & 1u, side = g & 1u;
    // A quad covers one half: its four units need that half's two words of scales and the block's d.
    uint at = block * (PIECES * 4u) + 48u + half128 * 2u, halves = scale_base + (g >> 4);
    uvec4 head = shared_words(at, at + 1u, halves, halves);
    float d = unpackHalf2x16(head.z)[block & 1u];
    ivec2 scales = bitfieldExtract(ivec2(head.xy), int(chunk * 2u + side) * 8, 8);
    uvec4 low = piece(block, g & 7u), high = piece(block, 8u + half128 * 2u + side);
    return six_bit_unit(low, high, chunk, d, scales.x, scales.y);
}
#endif
