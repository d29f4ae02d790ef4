// BF16 (ggml_bf16_t: the upper half of an f32), w = q: 16 words a unit, two columns a word, the lower half first; rows
// padded with zeros to whole units.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        uint w = word(g * 16u + i * 2u), next = word(g * 16u + i * 2u + 1u);
        r.q[i] = uintBitsToFloat(uvec4(w << 16, w & 0xFFFF0000u, next << 16, next & 0xFFFF0000u));
    }
    r.da = 1.0; r.ma = 0.0; r.db = 1.0; r.mb = 0.0;
    return r;
}
