// Q2_K (ggml block_q2_K, 84 bytes for 256 weights, kept as in the file: 16 bytes of a four-bit scale and minimum, 64 of
// two-bit quants, f16 d and dmin), w = d * scale * q - dmin * minimum, one scale and minimum for 16 columns. Their
// order is in columns_two_bits.glsl.
#define SCALES_OF_16
#include "columns_two_bits.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = (g >> 3) * 21u;
    uint half128 = (g >> 2) & 1u, pair = (g >> 1) & 1u, side = g & 1u;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(block + 4u + half128 * 8u + side * 4u + i) >> (4u * pair);
        r.q[i] = unsigned_fields(w, 0, 2);
        r.q[4u + i] = unsigned_fields(w, 2, 2);
    }
    // A quad covers one half: its four units need that half's two words of scales, and d.
    uint at = block + half128 * 2u;
    uvec4 head = shared_words(at, at + 1u, block + 20u, block + 20u);
    uint scales = (pair == 0u ? head.x : head.y) >> (8u * side);
    vec2 d = unpackHalf2x16(head.z);
    r.da = d.x * float(int(scales & 15u)); r.ma = d.y * float(int((scales >> 4) & 15u));
    r.db = d.x * float(int((scales >> 16) & 15u)); r.mb = d.y * float(int((scales >> 20) & 15u));
    return r;
}
