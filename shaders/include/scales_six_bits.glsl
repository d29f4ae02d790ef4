// What Q4_K and Q5_K share: eight sub-blocks of 32 columns, whose six-bit scales and minima are packed in 12 bytes, and
// nibbles in four chunks of 32 bytes; a chunk's low nibbles are sub-block 2c, its high ones 2c + 1. A unit is half a
// chunk: 16 columns of each of the two sub-blocks.
uint column_a(uint u) { return (u >> 3) * 256u + ((u & 6u) << 5) + ((u & 1u) << 4); }
uint column_b(uint u) { return column_a(u) + 32u; }
#define UNITS_A_STEP 2u

#define UNITS_A_BLOCK 8u
#ifdef IN_PLACE
#define PLACED
#endif

// A block's first piece: f16 d and dmin, then the 12 bytes.
Head load_head(uint block) { return Head(shared_piece(block, 0u), 0.0); }

// A chunk's scales and minima. Sub-blocks 0..3 keep six bits in bytes 0..3 (scale) and 4..7 (minimum); sub-blocks 4..7
// keep their low four bits in bytes 8..11 and their high two in the top of bytes 0..7.
Unit scaled_unit(uvec4 head, uint chunk) {
    uint shift = (chunk & 1u) * 16u;
    uint s0 = head.y >> shift, s1 = head.z >> shift, s2 = head.w >> shift;
    bool low = chunk < 2u;
    uint scales = low ? s0 & 0x3F3Fu : (s2 & 0x0F0Fu) | ((s0 >> 2) & 0x3030u);
    uint minima = low ? s1 & 0x3F3Fu : ((s2 >> 4) & 0x0F0Fu) | ((s1 >> 2) & 0x3030u);
    vec4 factors = vec4(ivec4(scales & 255u, minima & 255u, scales >> 8, minima >> 8));
    vec4 scaled = unpackHalf2x16(head.x).xyxy * factors;
    Unit r;
    r.da = scaled.x; r.ma = scaled.y; r.db = scaled.z; r.mb = scaled.w;
    return r;
}
