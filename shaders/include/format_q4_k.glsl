// Q4_K (ggml block_q4_K, 144 bytes for 256 weights, kept as in the file): f16 d and dmin, 12 bytes of scales and
// minima, 128 bytes of nibbles. w = d * scale * q - dmin * minimum; scales_six_bits.glsl has their order.
#include "scales_six_bits.glsl"
uvec4 load_head(uint block) { return head_at(block * 36u); }
Unit load_unit(uvec4 head, uint block, uint i) {
    Unit r = scaled_unit(head, i >> 1);
    uint at = block * 36u + 4u + i * 4u;
    [[unroll]] for (uint k = 0u; k < 4u; k++) {
        uint w = word(at + k);
        r.q[k] = unsigned_fields(w, 0, 4);
        r.q[4u + k] = unsigned_fields(w, 4, 4);
    }
    return r;
}
