// Q4_K (ggml block_q4_K, 144 bytes for 256 weights, kept as in the file): f16 d and dmin, 12 bytes of scales and
// minima, 128 bytes of nibbles. w = d * scale * q - dmin * minimum.
#include "scales_six_bits.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = (g >> 3) * 36u;
    uint at = block + 4u + (g & 7u) * 4u;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(at + i);
        r.q[i] = unsigned_fields(w, 0, 4);
        r.q[4u + i] = unsigned_fields(w, 4, 4);
    }
    vec4 scales = chunk_scales(shared_words(block, block + 1u, block + 2u, block + 3u), (g >> 1) & 3u);
    r.da = scales.x; r.ma = scales.y; r.db = scales.z; r.mb = scales.w;
    return r;
}
