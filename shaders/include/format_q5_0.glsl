// Q5_0 (ggml block_q5_0, 22 bytes for 32 weights: f16 d, 32 fifth bits, 16 bytes of nibbles), w = d * (q - 16).
// Low nibbles are columns 0..15, high nibbles 16..31; fifth bit i belongs to column i.
// On the device: 5 words a block (fifth bits, then nibbles); from word `scale_base` on all d, packed halves.
#define SIGNED_BITS 5
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint high = ~word(g * 5u); // q - 16 in five bits, signed
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(g * 5u + 1u + i);
        r.q[i] = signed_fields((w & 0x0F0F0F0Fu) | spread_bits(high >> (4u * i), 4), 0, SIGNED_BITS);
        r.q[4u + i] = signed_fields(((w >> 4) & 0x0F0F0F0Fu) | spread_bits(high >> (16u + 4u * i), 4), 0, SIGNED_BITS);
    }
    r.da = packed_half(scale_base, g); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
