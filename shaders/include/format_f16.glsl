// F16 (GGML_TYPE_F16, IEEE 754 half precision), w = q: 16 words a unit, two columns a word, the lower half first; rows
// padded with zeros to whole units.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        uint at = g * 16u + i * 2u;
        r.q[i] = vec4(unpackHalf2x16(word(at)), unpackHalf2x16(word(at + 1u)));
    }
    r.da = 1.0; r.ma = 0.0; r.db = 1.0; r.mb = 0.0;
    return r;
}
