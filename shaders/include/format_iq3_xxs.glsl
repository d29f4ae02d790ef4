// IQ3_XXS (ggml block_iq3_xxs: f16 d; for each 4 of 256 weights a byte of codebook entry; for each 32 a word of four
// times seven sign bits and four bits of scale), w = d * (2 * scale + 1) / 4 * q.
// On the device: the codebook, 256 entries of 4 bytes; 24 words a block (entries, words); from word `scale_base` on all
// d, packed halves.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = 256u + (g >> 3) * 24u, group = g & 7u;
    uint signs = word(block + 16u + group);
    uint entries[2] = {word(block + group * 2u), word(block + group * 2u + 1u)};
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint pair = entries[i >> 1] >> (16u * (i & 1u));
        uint negative = even_signs(signs >> (7u * i) & 127u);
        r.q[2u * i] = signed_fields(negate_bytes(word(pair & 255u), negative), 0, 8);
        r.q[2u * i + 1u] = signed_fields(negate_bytes(word(pair >> 8 & 255u), negative >> 4), 0, 8);
    }
    r.da = packed_half(scale_base, g >> 3) * (float(int(signs >> 28)) * 0.5 + 0.25); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
