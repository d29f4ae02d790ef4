// MXFP4 (ggml block_mxfp4, 17 bytes for 32 weights: one byte e, 16 bytes of nibbles), w = 2^(e - 128) * value of q. Low
// nibbles are columns 0..15, high ones 16..31. On the device: 4 words a block; from word `scale_base` on all e, bytes.
#include "columns_in_order.glsl"
#include "four_bit_floats.glsl"
Unit load_unit(uint g) {
    Unit r;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uvec2 values = doubled_e2m1(word(g * 4u + i));
        r.q[i] = signed_fields(values.x, 0, 8);
        r.q[4u + i] = signed_fields(values.y, 0, 8);
    }
    uint e = packed_byte(scale_base, g);
    r.da = uintBitsToFloat(e < 2u ? 0x00200000u << e : (e - 1u) << 23); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
