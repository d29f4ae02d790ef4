// Q5_K (ggml block_q5_K, 176 bytes for 256 weights, kept as in the file): f16 d and dmin, 12 bytes of scales and
// minima, 32 bytes of fifth bits (bit j of byte l: sub-block j, column l), 128 bytes of nibbles.
// w = d * scale * q - dmin * minimum; scales_six_bits.glsl has their order.
#define PIECES 11u
#include "pieces.glsl"
#define PLACED_B 0
#include "scales_six_bits.glsl"
Unit load_unit(Head head, uint block, uint i) {
    uint chunk = i >> 1;
    Unit r = scaled_unit(head.words, chunk);
    uvec4 fifths = piece(block, 1u + (i & 1u)), nibbles = piece(block, 3u + i);
    [[unroll]] for (uint k = 0u; k < 4u; k++) {
        uint w = nibbles[k], fifth = fifths[k] >> (2u * chunk);
        r.q[k] = unsigned_fields((w & 0x0F0F0F0Fu) | (fifth & 0x01010101u) << 4, 0, 8);
        r.q[4u + k] = unsigned_fields(((w >> 4) & 0x0F0F0F0Fu) | (fifth & 0x02020202u) << 3, 0, 8);
    }
    return r;
}
