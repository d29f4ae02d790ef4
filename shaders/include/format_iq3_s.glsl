// IQ3_S (ggml block_iq3_s: f16 d; for each 4 of 256 weights a byte and a ninth bit of codebook entry; a sign bit for
// each weight; for each 32 a nibble of scale), w = d * (2 * scale + 1) * q.
// On the device: the codebook, 512 entries of 4 bytes; 27 words a block (entries, ninth bits, signs, scales); from word
// `scale_base` on all d, packed halves.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = 512u + (g >> 3) * 27u, group = g & 7u;
    uint entries[2] = {word(block + group * 2u), word(block + group * 2u + 1u)};
    uint ninth = packed_byte(block + 16u, group), negative = word(block + 18u + group);
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        uint entry = (entries[i >> 2] >> (8u * (i & 3u)) & 255u) | (ninth >> i & 1u) << 8;
        r.q[i] = signed_fields(negate_bytes(word(entry), negative >> (4u * i)), 0, 8);
    }
    uint scale = word(block + 26u) >> (4u * group) & 15u;
    r.da = packed_half(scale_base, g >> 3) * float(int(2u * scale + 1u)); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
