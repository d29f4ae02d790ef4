// IQ2_S (ggml block_iq2_s: f16 d; for each 8 of 256 weights a byte of codebook entry, eight sign bits and two high bits
// of the entry; for each 16 a nibble of scale), w = d * (2 * scale + 1) / 8 * q.
// On the device: the codebook, 1024 entries of 8 bytes; 20 words a block (entries, signs, high bits, scales); from word
// `scale_base` on all d, packed halves.
#include "columns_in_order.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = 2048u + (g >> 3) * 20u, group = g & 7u;
    uint entries = word(block + group), negative = word(block + 8u + group), high = packed_byte(block + 16u, group);
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint entry = ((entries >> (8u * i) & 255u) | (high >> (2u * i) & 3u) << 8) * 2u;
        r.q[2u * i] = signed_fields(negate_bytes(word(entry), negative >> (8u * i)), 0, 8);
        r.q[2u * i + 1u] = signed_fields(negate_bytes(word(entry + 1u), negative >> (8u * i + 4u)), 0, 8);
    }
    uint scales = packed_byte(block + 18u, group);
    float d = packed_half(scale_base, g >> 3);
    r.da = d * (float(int(scales & 15u)) * 0.25 + 0.125); r.ma = 0.0;
    r.db = d * (float(int(scales >> 4)) * 0.25 + 0.125); r.mb = 0.0;
    return r;
}
