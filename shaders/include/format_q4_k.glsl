// Q4_K (ggml block_q4_K, 144 bytes for 256 weights, kept as in the file): f16 d and dmin, 12 bytes of scales and
// minima, 128 bytes of nibbles. w = d * scale * q - dmin * minimum; scales_six_bits.glsl has their order.
#define PIECES 9u
#include "pieces.glsl"
#define DECODED_AT_ONCE
#define PLACED_B 4
#include "scales_six_bits.glsl"
Unit load_unit(Head head, uint block, uint i) {
    Unit r = scaled_unit(head.words, i >> 1);
    uvec4 nibbles = piece(block, 1u + i);
    [[unroll]] for (uint k = 0u; k < 4u; k++) {
        r.q[k] = unsigned_fields(nibbles[k], 0, 4);
        r.q[4u + k] = unsigned_fields(nibbles[k], 4, 4);
    }
    return r;
}
