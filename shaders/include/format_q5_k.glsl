// Q5_K (ggml block_q5_K, 176 bytes for 256 weights, kept as in the file): f16 d and dmin, 12 bytes of scales and
// minima, 32 bytes of fifth bits (bit j of byte l: sub-block j, column l), 128 bytes of nibbles.
// w = d * scale * q - dmin * minimum.
#include "scales_six_bits.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = (g >> 3) * 44u;
    uint chunk = (g >> 1) & 3u;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(block + 12u + (g & 7u) * 4u + i);
        uint fifth = word(block + 4u + (g & 1u) * 4u + i) >> (2u * chunk);
        r.q[i] = unsigned_fields((w & 0x0F0F0F0Fu) | (fifth & 0x01010101u) << 4, 0, 8);
        r.q[4u + i] = unsigned_fields(((w >> 4) & 0x0F0F0F0Fu) | (fifth & 0x02020202u) << 3, 0, 8);
    }
    vec4 scales = chunk_scales(shared_words(block, block + 1u, block + 2u, block + 3u), chunk);
    r.da = scales.x; r.ma = scales.y; r.db = scales.z; r.mb = scales.w;
    return r;
}
