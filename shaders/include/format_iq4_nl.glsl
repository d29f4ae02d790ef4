// IQ4_NL (ggml block_iq4_nl, 18 bytes for 32 weights: f16 d, 16 bytes of nibbles), w = d * value of q. Low nibbles are
// columns 0..15, high ones 16..31. On the device: 4 words a block; from word `scale_base` on all d, packed halves.
#include "columns_in_order.glsl"
#include "nonlinear_four_bits.glsl"
Unit load_unit(uint g) {
    Unit r;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(g * 4u + i) ^ 0x88888888u;
        r.q[i] = nonlinear(signed_fields(w, 0, 4));
        r.q[4u + i] = nonlinear(signed_fields(w, 4, 4));
    }
    r.da = packed_half(scale_base, g); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
