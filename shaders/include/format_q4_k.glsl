// Q4_K (ggml block_q4_K, 144 bytes for 256 weights, kept as in the file): f16 d and dmin, 12 bytes of 6-bit scales and
// minima, 128 bytes of nibbles in four chunks of 32; a chunk's low nibbles are sub-block 2c, its high ones 2c + 1.
// w = d * scale * q - dmin * minimum. A unit is half a chunk: 16 columns of each of the two sub-blocks.
uint column_a(uint u) { return (u >> 3) * 256u + ((u & 6u) << 5) + ((u & 1u) << 4); }
uint column_b(uint u) { return column_a(u) + 32u; }
Unit load_unit(uint g) {
    Unit r;
    uint block = (g >> 3) * 36u;
    uint chunk = (g >> 1) & 3u;
    uint at = block + 4u + (g & 7u) * 4u;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = word(at + i);
        r.q[i] = bytes_low_nibbles(w);
        r.q[4u + i] = bytes_high_nibbles(w);
    }
    uvec4 head = shared_words(block, block + 1u, block + 2u, block + 3u);
    // Sub-blocks 0..3 keep six bits in bytes 0..3 (scale) and 4..7 (minimum); sub-blocks 4..7 keep their low four
    // bits in bytes 8..11 and their high two in the top of bytes 0..7.
    uint shift = (chunk & 1u) * 16u;
    uint s0 = head.y >> shift, s1 = head.z >> shift, s2 = head.w >> shift;
    bool low = chunk < 2u;
    uint scales = low ? s0 & 0x3F3Fu : (s2 & 0x0F0Fu) | ((s0 >> 2) & 0x3030u);
    uint minima = low ? s1 & 0x3F3Fu : ((s2 >> 4) & 0x0F0Fu) | ((s1 >> 2) & 0x3030u);
    vec2 d = unpackHalf2x16(head.x);
    r.da = d.x * float(int(scales & 255u)); r.ma = d.y * float(int(minima & 255u));
    r.db = d.x * float(int((scales >> 8) & 255u)); r.mb = d.y * float(int((minima >> 8) & 255u));
    return r;
}
