// IQ2_XS (ggml block_iq2_xs: f16 d; for each 8 of 256 weights a nine-bit codebook entry and seven sign bits; for each
// 16 a nibble of scale), w = d * (2 * scale + 1) / 8 * q.
// On the device: the codebook, 512 entries of 8 bytes; 18 words a block (entries, scales); from word `scale_base` on
// all d, packed halves.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = 1024u + (g >> 3) * 18u;
    uint words[2] = {word(block + (g & 7u) * 2u), word(block + (g & 7u) * 2u + 1u)};
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint packed = words[i >> 1] >> (16u * (i & 1u));
        uint entry = (packed & 511u) * 2u;
        uint negative = even_signs(packed >> 9 & 127u);
        r.q[2u * i] = signed_fields(negate_bytes(word(entry), negative), 0, 8);
        r.q[2u * i + 1u] = signed_fields(negate_bytes(word(entry + 1u), negative >> 4), 0, 8);
    }
    uint scales = packed_byte(block + 16u, g & 7u);
    float d = packed_half(scale_base, g >> 3);
    r.da = d * (float(int(scales & 15u)) * 0.25 + 0.125); r.ma = 0.0;
    r.db = d * (float(int(scales >> 4)) * 0.25 + 0.125); r.mb = 0.0;
    return r;
}
