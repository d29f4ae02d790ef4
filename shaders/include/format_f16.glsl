// F16: 16 words a unit, two columns a word.
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
