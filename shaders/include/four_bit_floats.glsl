// The values of MXFP4 and NVFP4 (ggml kvalues_mxfp4): a sign and 0, 1, 2, 3, 4, 6, 8 or 12, which is E2M1, doubled.
// Those of the low nibbles of four bytes, as signed bytes.
uint doubled_e2m1(uint w) {
    uint b0 = w & 0x01010101u, b1 = (w >> 1) & 0x01010101u, b2 = (w >> 2) & 0x01010101u;
    uint magnitude = (b0 & ~b2) | ((b1 & ~b2) | (b2 & b0 & ~b1)) << 1 | (b2 & (b0 | ~b1)) << 2 | (b2 & b1) << 3;
    uint ones = (w >> 3) & (b0 | b1 | b2); // a negated zero would carry into the next byte
    return (magnitude ^ ((ones << 8) - ones)) + ones;
}
