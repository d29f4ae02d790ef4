// IQ1_M (ggml block_iq1_m, 56 bytes for 256 weights, kept as in the file: for each 8 weights a byte of codebook entry
// and a nibble of three high bits of the entry and a sign of delta; then 16 scales of three bits, twelve bits in each
// of four half words, whose top nibbles are an f16 d), w = d * (2 * scale + 1) * (q +- 1/8), one scale for 16 columns.
// On the device the codebook, 1024 words, stands before the blocks.
#include "columns_in_order.glsl"
#include "ternary_codebook.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = 1024u + (g >> 3) * 14u, group = g & 7u;
    uint entries = word(block + group), high = word(block + 8u + (group >> 1)) >> (16u * (group & 1u));
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint nibble = high >> (4u * i);
        float delta = (nibble & 8u) == 0u ? 0.125 : -0.125;
        int eight = ternary_entry((entries >> (8u * i) & 255u) | (nibble & 7u) << 8);
        r.q[2u * i] = ternary_fields(eight, 0) + delta;
        r.q[2u * i + 1u] = ternary_fields(eight, 8) + delta;
    }
    uint s0 = word(block + 12u), s1 = word(block + 13u);
    float d = unpackHalf2x16(s0 >> 12 & 0xFu | s0 >> 24 & 0xF0u | s1 >> 4 & 0xF00u | s1 >> 16 & 0xF000u).x;
    uint scales = (group < 4u ? s0 : s1) >> (16u * (group >> 1 & 1u) + 6u * (group & 1u));
    r.da = d * float(int((scales & 7u) << 1 | 1u)); r.ma = 0.0;
    r.db = d * float(int((scales & 56u) >> 2 | 1u)); r.mb = 0.0;
    return r;
}
