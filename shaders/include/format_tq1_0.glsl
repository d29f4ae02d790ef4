// TQ1_0 (ggml block_tq1_0: 48 bytes of five ternary digits, 4 bytes of four, f16 d, for 256 weights),
// w = d * (digit - 1). A byte b is a fraction of 256: digit n is 3 * (b * 3^n modulo 256) / 256. Digits n of bytes
// 0..31 are columns 32n on, of bytes 32..47 columns 160 + 16n on, of bytes 48..51 columns 240 + 4n on.
// On the device: 13 words a block; from word `scale_base` on all d, packed halves.
#include "columns_in_order.glsl"
// Digits of four bytes, less one; `power` is 3^n.
vec4 digits(uint w, uint power) {
    uint even = ((w & 0x00FF00FFu) * power & 0x00FF00FFu) * 3u;
    uint odd = ((w >> 8 & 0x00FF00FFu) * power & 0x00FF00FFu) * 3u;
    return vec4(ivec4(even >> 8 & 3u, odd >> 8 & 3u, even >> 24, odd >> 24) - 1);
}
uint power_of_three(uint n) { return n == 0u ? 1u : n == 1u ? 3u : n == 2u ? 9u : n == 3u ? 27u : 81u; }
Unit load_unit(uint g) {
    Unit r;
    uint block = (g >> 3) * 13u, group = g & 7u;
    // Groups 0..4 take a digit of bytes 0..31; 5 and 6 two digits of bytes 32..47, 7 their last and bytes 48..51.
    bool first = group < 5u, last = group == 7u;
    uint n = first ? group : 2u * group - 10u;
    uint power_a = power_of_three(n), power_b = power_of_three(first ? n : n + 1u);
    uint a = block + (first ? 0u : 8u), b = block + (first ? 4u : last ? 12u : 8u);
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        r.q[i] = digits(word(a + i), power_a);
        r.q[4u + i] = digits(word(last ? b : b + i), last ? power_of_three(i) : power_b);
    }
    r.da = packed_half(scale_base, g >> 3); r.ma = 0.0;
    r.db = r.da; r.mb = 0.0;
    return r;
}
