// NVFP4 (ggml block_nvfp4, 36 bytes for 64 weights, kept as in the file: four bytes of scale, 32 bytes of nibbles),
// w = scale * value of q, one scale for 16 columns. A scale is UE4M3, halved: with e of four bits and m of three,
// 2^(e - 8) * (1 + m / 8), m * 2^-10 for e = 0; byte 127 is zero; the top bit says nothing. Of 16 columns' 8 bytes, low
// nibbles are columns 0..7 and high ones 8..15.
#include "columns_in_order.glsl"
#include "four_bit_floats.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = (g >> 1) * 9u, side = g & 1u;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uvec2 values = doubled_e2m1(word(block + 1u + side * 4u + i));
        uint at = (i & 2u) * 2u + (i & 1u);
        r.q[at] = signed_fields(values.x, 0, 8);
        r.q[at + 2u] = signed_fields(values.y, 0, 8);
    }
    uint scales = word(block) >> (16u * side);
    // A half has the same fields, one more bit of exponent and another bias.
    vec2 d = unpackHalf2x16((scales & 0x7Fu) << 7 | (scales & 0x7F00u) << 15) * 128.0;
    r.da = (scales & 255u) == 127u ? 0.0 : d.x; r.ma = 0.0;
    r.db = (scales >> 8 & 255u) == 127u ? 0.0 : d.y; r.mb = 0.0;
    return r;
}
