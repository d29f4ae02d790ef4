// Q6_K (ggml block_q6_K: 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, f16 d, for 256 weights),
// w = d * scale * (q - 32), one scale for 16 columns. In each half of 128 columns, low nibbles of byte 32c + l are
// column 32c + l and high nibbles column 64 + 32c + l; bit pairs of byte l serve columns l, 32 + l, 64 + l, 96 + l.
// On the device: 52 words a block (nibbles, bit pairs, scales); from word `scale_base` on all d, packed halves.
uint column_a(uint u) { return (u >> 3) * 256u + ((u & 4u) << 5) + ((u & 2u) << 4) + ((u & 1u) << 4); }
uint column_b(uint u) { return column_a(u) + 64u; }
Unit load_unit(uint g) {
    Unit r;
    uint block = (g >> 3) * 52u;
    uint half128 = (g >> 2) & 1u, chunk = (g >> 1) & 1u, side = g & 1u;
    uint low = block + (g & 7u) * 4u;
    uint high = block + 32u + half128 * 8u + side * 4u;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(low + i);
        uint pairs = (word(high + i) ^ 0xAAAAAAAAu) >> (2u * chunk); // q - 32 in six bits, signed
        r.q[i] = signed_fields((w & 0x0F0F0F0Fu) | (pairs & 0x03030303u) << 4, 0, 6);
        r.q[4u + i] = signed_fields(((w >> 4) & 0x0F0F0F0Fu) | (pairs & 0x30303030u), 0, 6);
    }
    // A quad covers one half: its four units need that half's two words of scales and the block's d.
    uint at = block + 48u + half128 * 2u, halves = scale_base + (g >> 4);
    uvec4 head = shared_words(at, at + 1u, halves, halves);
    int shift = int(chunk * 2u + side) * 8;
    float d = unpackHalf2x16(head.z)[(g >> 3) & 1u];
    r.da = d * float(bitfieldExtract(int(head.x), shift, 8)); r.ma = 0.0;
    r.db = d * float(bitfieldExtract(int(head.y), shift, 8)); r.mb = 0.0;
    return r;
}
