// Q8_0 (ggml block_q8_0, 34 bytes for 32 weights: f16 d, 32 signed bytes), w = d * q.
// On the device: all quants, 8 words a block; from word `scale_base` on all d, packed halves.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    [[unroll]] for (uint i = 0u; i < 8u; i++) r.q[i] = signed_fields(word(g * 8u + i), 0, 8);
    r.da = packed_half(scale_base, g); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
