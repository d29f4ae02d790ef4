// The values of MXFP4 and NVFP4 (ggml kvalues_mxfp4): a sign and 0, 1, 2, 3, 4, 6, 8 or 12, which is E2M1, doubled.
// Those of eight nibbles, as signed bytes: x of the low nibble of each byte, y of the high.
uvec2 doubled_e2m1(uint w) {
    uint index = w & 0x77777777u, high = (w >> 2) & 0x11111111u;
    uint more = index & (high | high << 1); // from 4 on they rise by 2 ...
    uint magnitudes = index + more + ((more & more >> 1) << 1); // ... and by 4 at the last
    // A negated zero would carry into the next byte.
    uint negative = (w >> 3) & (index | index >> 1 | high) & 0x11111111u;
    uvec2 m = uvec2(magnitudes, magnitudes >> 4) & 0x0F0F0F0Fu, ones = uvec2(negative, negative >> 4) & 0x01010101u;
    return (m ^ ((ones << 8) - ones)) + ones;
}
