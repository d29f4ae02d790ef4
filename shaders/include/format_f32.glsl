// F32 (GGML_TYPE_F32, IEEE 754 single precision), w = q: 32 words a unit, a column a word; rows padded with zeros to
// whole units.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        uint at = g * 32u + i * 4u;
        r.q[i] = uintBitsToFloat(uvec4(word(at), word(at + 1u), word(at + 2u), word(at + 3u)));
    }
    r.da = 1.0; r.ma = 0.0; r.db = 1.0; r.mb = 0.0;
    return r;
}
