// IQ2_XXS (ggml block_iq2_xxs: f16 d, and for each 32 of 256 weights two words: four codebook entries of eight weights,
// a byte each; four times seven sign bits and four bits of scale), w = d * (2 * scale + 1) / 8 * q.
// On the device: the codebook, 256 entries of 8 bytes; 16 words a block; from word `scale_base` on all d, packed
// halves.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint entries = word(512u + g * 2u), signs = word(512u + g * 2u + 1u);
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint entry = (entries >> (8u * i) & 255u) * 2u;
        uint negative = even_signs(signs >> (7u * i) & 127u);
        r.q[2u * i] = signed_fields(negate_bytes(word(entry), negative), 0, 8);
        r.q[2u * i + 1u] = signed_fields(negate_bytes(word(entry + 1u), negative >> 4), 0, 8);
    }
    r.da = packed_half(scale_base, g >> 3) * (float(int(signs >> 28)) * 0.25 + 0.125); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
