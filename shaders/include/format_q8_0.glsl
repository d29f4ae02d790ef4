// Q8_0 (ggml block_q8_0, 34 bytes for 32 weights: f16 d, 32 signed bytes), w = d * q.
// On the device: all quants, 8 words a block; from word `scale_base` on all d, packed halves. INTERLEAVED: pieces.glsl.
#include "columns_in_order.glsl"
#define PIECES 2u
#define SCALE_APART
#include "pieces.glsl"
Unit load_unit(uint g) {
    Unit r;
    r.da = scale_apart(g); r.ma = 0.0;
    uvec4 low = piece(g, 0u), high = piece(g, 1u);
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        r.q[i] = signed_fields(low[i], 0, 8);
        r.q[4u + i] = signed_fields(high[i], 0, 8);
    }
    r.db = r.da; r.mb = 0.0;
    return r;
}
