// TQ2_0 (ggml block_tq2_0: 64 bytes of two-bit quants, f16 d, for 256 weights), w = d * (q - 1). Columns are in the
// order of Q2_K (columns_two_bits.glsl).
// On the device: 16 words a block; from word `scale_base` on all d, packed halves.
#include "columns_two_bits.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint half128 = (g >> 2) & 1u, pair = (g >> 1) & 1u, side = g & 1u;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word((g >> 3) * 16u + half128 * 8u + side * 4u + i) >> (4u * pair);
        r.q[i] = unsigned_fields(w, 0, 2) - 1.0;
        r.q[4u + i] = unsigned_fields(w, 2, 2) - 1.0;
    }
    r.da = packed_half(scale_base, g >> 3); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
