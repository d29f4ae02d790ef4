// IQ4_XS (ggml block_iq4_xs, 136 bytes for 256 weights, kept as in the file: f16 d, 8 high scale bit pairs, 8 low scale
// nibbles, 128 bytes of nibbles), w = d * (scale - 32) * value of q, one scale for 32 columns. Of a group's 16 bytes,
// low nibbles are columns 0..15 and high ones 16..31.
#include "columns_in_order.glsl"
#include "nonlinear_four_bits.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = (g >> 3) * 34u, group = g & 7u;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(block + 2u + group * 4u + i) ^ 0x88888888u;
        r.q[i] = nonlinear(signed_fields(w, 0, 4));
        r.q[4u + i] = nonlinear(signed_fields(w, 4, 4));
    }
    uint head = word(block), low = word(block + 1u) >> (4u * group) & 15u;
    int scale = int(low | (head >> (16u + 2u * group) & 3u) << 4) - 32;
    r.da = unpackHalf2x16(head).x * float(scale); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
