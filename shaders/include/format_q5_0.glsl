// Q5_0 (ggml block_q5_0: f16 d, 32 fifth bits, 16 bytes of nibbles), w = d * (q - 16).
// Low nibbles are columns 0..15, high nibbles 16..31; fifth bit i belongs to column i.
// On the device: 5 words a block (fifth bits, then nibbles); from word `scale_base` on all d, packed halves.
uint column_a(uint u) { return u * 32u; }
uint column_b(uint u) { return u * 32u + 16u; }
// Bits 0..3 spread over bit 4 of four bytes.
uint fifth_bits(uint bits) { return (bits & 1u) << 4 | (bits & 2u) << 11 | (bits & 4u) << 18 | (bits & 8u) << 25; }
Unit load_unit(uint g) {
    Unit r;
    uint high = word(g * 5u);
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(g * 5u + 1u + i);
        r.q[i] = bytes_signed((w & 0x0F0F0F0Fu) | fifth_bits(high >> (4u * i)));
        r.q[4u + i] = bytes_signed(((w >> 4) & 0x0F0F0F0Fu) | fifth_bits(high >> (16u + 4u * i)));
    }
    r.da = packed_half(scale_base, g); r.ma = 16.0 * r.da;
    r.db = r.da; r.mb = r.ma;
    return r;
}
