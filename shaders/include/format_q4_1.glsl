// Q4_1 (ggml block_q4_1, 20 bytes for 32 weights, kept as in the file: f16 d, f16 m, 16 bytes of nibbles),
// w = d * q + m.
// Low nibbles are columns 0..15, high ones 16..31.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(g * 5u + 1u + i);
        r.q[i] = unsigned_fields(w, 0, 4);
        r.q[4u + i] = unsigned_fields(w, 4, 4);
    }
    vec2 d = unpackHalf2x16(word(g * 5u));
    r.da = d.x; r.ma = -d.y;
    r.db = r.da; r.mb = r.ma;
    return r;
}
