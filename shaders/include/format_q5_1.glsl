// Q5_1 (ggml block_q5_1, 24 bytes for 32 weights, kept as in the file: f16 d, f16 m, 32 fifth bits, 16 bytes of
// nibbles), w = d * q + m. Low nibbles are columns 0..15, high nibbles 16..31; fifth bit i belongs to column i.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint high = word(g * 6u + 1u);
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(g * 6u + 2u + i);
        r.q[i] = unsigned_fields((w & 0x0F0F0F0Fu) | spread_bits(high >> (4u * i), 4), 0, 8);
        r.q[4u + i] = unsigned_fields(((w >> 4) & 0x0F0F0F0Fu) | spread_bits(high >> (16u + 4u * i), 4), 0, 8);
    }
    vec2 d = unpackHalf2x16(word(g * 6u));
    r.da = d.x; r.ma = -d.y;
    r.db = r.da; r.mb = r.ma;
    return r;
}
