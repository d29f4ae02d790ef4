// IQ1_S (ggml block_iq1_s: f16 d; for each 8 of 256 weights a byte of codebook entry; for each 32 a half word of four
// times three high bits of the entry, three bits of scale and a sign of delta), w = d * (2 * scale + 1) * (q +- 1/8).
// On the device: the codebook, 1024 words; 12 words a block (entries, half words); from word `scale_base` on all d,
// packed halves.
#include "columns_in_order.glsl"
#include "ternary_codebook.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = 1024u + (g >> 3) * 12u, group = g & 7u;
    uint entries = word(block + group), high = word(block + 8u + (group >> 1)) >> (16u * (group & 1u));
    float delta = (high & 0x8000u) == 0u ? 0.125 : -0.125;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        int eight = ternary_entry((entries >> (8u * i) & 255u) | (high >> (3u * i) & 7u) << 8);
        r.q[2u * i] = ternary_fields(eight, 0) + delta;
        r.q[2u * i + 1u] = ternary_fields(eight, 8) + delta;
    }
    r.da = packed_half(scale_base, g >> 3) * float(int(high >> 11 & 14u | 1u)); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
