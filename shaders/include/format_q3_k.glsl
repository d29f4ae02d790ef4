// Q3_K (ggml block_q3_K: 32 bytes of third bits, 64 of two-bit quants, 12 of six-bit scales, f16 d, for 256 weights),
// w = d * (scale - 32) * (q - 4), one scale for 16 columns. Bit j of third-bit byte l is column 32j + l. Scale j keeps
// its low four bits in nibble j / 8 of byte j % 8, and its high two in bits 2(j / 4) of byte 8 + j % 4.
// On the device: 27 words a block; from word `scale_base` on all d, packed halves.
#define SCALES_OF_16
#define SIGNED_BITS 3
#define DECODED_AT_ONCE
#include "columns_two_bits.glsl"
Unit load_unit(uint g) {
    Unit r;
    uint block = (g >> 3) * 27u;
    uint half128 = (g >> 2) & 1u, pair = (g >> 1) & 1u, side = g & 1u;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(block + 8u + half128 * 8u + side * 4u + i) >> (4u * pair);
        uint third = ~word(block + side * 4u + i) >> (4u * half128 + 2u * pair); // q - 4 in three bits, signed
        r.q[i] = signed_fields((w & 0x03030303u) | (third & 0x01010101u) << 2, 0, SIGNED_BITS);
        r.q[4u + i] = signed_fields(((w >> 2) & 0x03030303u) | (third & 0x02020202u) << 1, 0, SIGNED_BITS);
    }
    uint halves = scale_base + (g >> 4);
    uvec4 head = shared_words(block + 24u, block + 25u, block + 26u, halves);
    uint low = (pair == 0u ? head.x : head.y) >> (4u * half128) & 0x0F0F0F0Fu;
    uint high = head.z >> (4u * half128 + 2u * pair) & 0x03030303u;
    int scales = int((low | high << 4) ^ 0x20202020u);
    float d = unpackHalf2x16(head.w)[(g >> 3) & 1u];
    int shift = int(side) * 8;
    r.da = d * float(bitfieldExtract(scales, shift, 6)); r.ma = 0.0;
    r.db = d * float(bitfieldExtract(scales, shift + 16, 6)); r.mb = 0.0;
    return r;
}
