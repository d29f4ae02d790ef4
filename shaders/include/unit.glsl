// A unit is 32 weights of one row: two runs of 16 consecutive columns that each share one scale and minimum,
// w = d * q - m. Every format file defines, over the weight words word(i):
//   Unit load_unit(uint g)   unit g of the buffer (row * units_per_row + unit of the row)
//   uint column_a(uint u), column_b(uint u)   first column of each run of unit u of a row
struct Unit {
    vec4 q[8]; // quants as floats: q[0..3] run a, q[4..7] run b
    float da, ma, db, mb;
};

// Small unsigned fields are converted as signed: CPUs before AVX-512 convert only those in one instruction.
vec4 bytes_low_nibbles(uint w) { return vec4(ivec4(w & 15u, (w >> 8) & 15u, (w >> 16) & 15u, (w >> 24) & 15u)); }
vec4 bytes_high_nibbles(uint w) { return vec4(ivec4((w >> 4) & 15u, (w >> 12) & 15u, (w >> 20) & 15u, w >> 28)); }
vec4 bytes_signed(uint w) {
    int s = int(w);
    return vec4(bitfieldExtract(s, 0, 8), bitfieldExtract(s, 8, 8), bitfieldExtract(s, 16, 8), s >> 24);
}

// Half-precision number i of a region of packed halves that starts at word `base`.
float packed_half(uint base, uint i) {
    vec2 pair = unpackHalf2x16(word(base + (i >> 1)));
    return (i & 1u) == 0u ? pair.x : pair.y;
}

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
