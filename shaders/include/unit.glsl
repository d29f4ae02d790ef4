// A unit is 32 weights of one row: two runs of 16 consecutive columns that each share one scale and minimum,
// w = d * q - m. Every format file defines, over the weight words word(i):
//   Unit load_unit(uint g)   unit g of the buffer (row * units_per_row + unit of the row)
//   uint column_a(uint u), column_b(uint u)   first column of each run of unit u of a row
// d, q and d * q are exact in f32, so that w is rounded once at most. m is 0 where zero is in the middle of the quants:
// then quants are signed, and an infinite d gives the infinities it should.
#ifdef PACKED_QUANTS
#define QUADS int // four signed bytes, for integer dot products
#else
#define QUADS vec4
#endif
struct Unit {
    QUADS q[8]; // quants, four each: q[0..3] run a, q[4..7] run b
    float da, ma, db, mb;
};

// A format whose units share words of their block, or that is read by pieces, defines instead, with UNITS_A_BLOCK,
//   Head load_head(uint block)                      what the units of a block of the buffer share
//   Unit load_unit(Head head, uint block, uint i)   unit i of that block
struct Head {
    uvec4 words;
    float d;
};
// With DECODED_AT_ONCE, which suits most of those whose lanes exchange words, matvec loads whole units; otherwise each run
// of a unit when its inputs are there, with fewer registers (results/performance-log.md).

// PACKED_QUANTS, of formats whose quants come from the two functions below alone (SMALL_INTEGERS in
// model/block_formats.py), takes these facts besides: SIGNED_BITS of its signed quants; UNITS_A_STEP 2 where runs a of
// units 2i and 2i + 1 make 32 columns from a multiple of 32 on, and runs b others, else a unit's two runs do;
// SCALES_OF_16 where such 32 columns have two scales and minima, else one.

// Fields of `bits` bits that begin at bit `at` of each of four bytes.
#ifdef PACKED_QUANTS
// Signed ones stay at the top of their byte, where the sign is: 2^(8 - bits) times themselves (QUANT in formats.glsl).
int signed_fields(uint w, int at, int bits) {
    return bits == 8 ? int(w) : int((w << (8 - at - bits)) & (0x01010101u * (256u - (256u >> bits))));
}
int unsigned_fields(uint w, int at, int bits) {
    return bits == 8 ? int(w) : int((w >> at) & (0x01010101u * ((1u << bits) - 1u)));
}
#else
vec4 signed_fields(uint w, int at, int bits) {
    int s = int(w);
    return vec4(bitfieldExtract(s, at, bits), bitfieldExtract(s, at + 8, bits),
                bitfieldExtract(s, at + 16, bits), bitfieldExtract(s, at + 24, bits));
}
// IN_PLACE, of formats that define PLACED: bytes are masked but not moved, so that field i is 2^(8i + at) times its
// value, or the value itself at the top of the word. place_scales makes them equal, multiplied into the inputs, exactly
// down to 2^-102 (normal numbers end at 2^-126). Runs a lie at bit 0 of their bytes, runs b at bit PLACED_B. MIDDLE, of
// those whose quants are signed otherwise: what is to be taken from each quant.
#ifdef IN_PLACE
vec4 place_scales(int at) {
    vec4 scales = vec4(1.0, 1.0 / 256.0, 1.0 / 65536.0, 1.0 / 16777216.0) / float(1 << at);
    return at > 0 ? vec4(scales.xyz, 1.0) : scales;
}
#endif
// Converted as signed: CPUs before AVX-512 convert only those in one instruction.
vec4 unsigned_fields(uint w, int at, int bits) {
#ifdef IN_PLACE
    uint field = ((1u << bits) - 1u) << at;
    return vec4(ivec4(w & field, w & field << 8, w & field << 16, at > 0 ? w >> (24 + at) : w & field << 24));
#endif
    uint m = (w >> at) & (0x01010101u * ((1u << bits) - 1u));
    return vec4(ivec4(m & 255u, (m >> 8) & 255u, (m >> 16) & 255u, m >> 24));
}
#endif

// Bits 0..3 spread over bit `to` of four bytes.
uint spread_bits(uint bits, int to) {
    return (bits & 1u) << to | (bits & 2u) << to + 7 | (bits & 4u) << to + 14 | (bits & 8u) << to + 21;
}

// Four bytes of 1..127, negated where bits 0..3 say so.
uint negate_bytes(uint w, uint bits) {
    uint ones = spread_bits(bits, 0);
    return (w ^ ((ones << 8) - ones)) + ones;
}

// Eight sign bits of which the file keeps seven: their number is even.
uint even_signs(uint seven) { return seven | uint(bitCount(seven)) << 7; }

#ifndef INTERLEAVED
// Half-precision number i of a region of packed halves that starts at word `base`.
float packed_half(uint base, uint i) {
    vec2 pair = unpackHalf2x16(word(base + (i >> 1)));
    return (i & 1u) == 0u ? pair.x : pair.y;
}

// Byte i of a region that starts at word `base`.
uint packed_byte(uint base, uint i) { return word(base + (i >> 2)) >> (8u * (i & 3u)) & 255u; }

// Four words of which every lane of a quad needs all, when the quad's lanes share a block (LANES_ALONG_ROW): each lane
// loads one and the quad exchanges them, one load in place of four.
uvec4 shared_words(uint a, uint b, uint c, uint d) {
#ifdef LANES_ALONG_ROW
    uint i = gl_SubgroupInvocationID & 3u;
    uint mine = word(i == 0u ? a : i == 1u ? b : i == 2u ? c : d);
    return uvec4(subgroupQuadBroadcast(mine, 0u), subgroupQuadBroadcast(mine, 1u),
                 subgroupQuadBroadcast(mine, 2u), subgroupQuadBroadcast(mine, 3u));
#else
    return uvec4(word(a), word(b), word(c), word(d));
#endif
}
#endif
