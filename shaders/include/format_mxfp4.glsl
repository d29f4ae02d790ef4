// MXFP4 (ggml block_mxfp4: one byte e, 16 bytes of nibbles), w = 2^(e - 128) * value of q, where four bits are a sign
// and 0, 1, 2, 3, 4, 6, 8 or 12 (E2M1, doubled). Low nibbles are columns 0..15, high ones 16..31.
// On the device: 4 words a block; from word `scale_base` on all e, bytes.
#include "columns_in_order.glsl"
// The values of the low nibbles of four bytes, signed bytes.
uint doubled_e2m1(uint w) {
    uint b0 = w & 0x01010101u, b1 = (w >> 1) & 0x01010101u, b2 = (w >> 2) & 0x01010101u;
    uint magnitude = (b0 & ~b2) | ((b1 & ~b2) | (b2 & b0 & ~b1)) << 1 | (b2 & (b0 | ~b1)) << 2 | (b2 & b1) << 3;
    uint ones = (w >> 3) & (b0 | b1 | b2); // a negated zero would carry into the next byte
    return (magnitude ^ ((ones << 8) - ones)) + ones;
}
Unit load_unit(uint g) {
    Unit r;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(g * 4u + i);
        r.q[i] = signed_fields(doubled_e2m1(w), 0, 8);
        r.q[4u + i] = signed_fields(doubled_e2m1(w >> 4), 0, 8);
    }
    uint e = packed_byte(scale_base, g);
    r.da = uintBitsToFloat(e < 2u ? 0x00200000u << e : (e - 1u) << 23); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
