// Inputs as quantize_inputs.comp leaves them: a token's blocks of 32 columns one after the other, three pieces of 16 bytes
// each: 16 signed bytes, 16 more, and the floats (d, sum of the first 16 columns, sum of the others, 0), x = d * q.
// What a subgroup multiplies with is alike for all its lanes, and a GPU takes it by scalar loads. TEXELS, for narrow
// subgroups on CPUs: every lane fetches another block, and they share them.
#ifdef TEXELS
layout(binding = 1) uniform usamplerBuffer x;
uvec4 input_piece(uint i) { return texelFetch(x, int(i)); }
#else
layout(binding = 1) restrict readonly buffer Input { uvec4 x[]; };
uvec4 input_piece(uint i) { return x[i]; }
#endif

const uint INPUT_PIECES = 3u;

struct Inputs { // 32 columns of one token
    ivec4 low, high;
    float d, sum_low, sum_high;
};

// The block that begins at that piece.
Inputs load_inputs(uint first) {
    vec4 floats = uintBitsToFloat(input_piece(first + 2u));
    return Inputs(ivec4(input_piece(first)), ivec4(input_piece(first + 1u)), floats.x, floats.y, floats.z);
}

// A lane's, for all.
Inputs shared_inputs(Inputs mine, uint lane) {
    return Inputs(subgroupShuffle(mine.low, lane), subgroupShuffle(mine.high, lane), subgroupShuffle(mine.d, lane),
                  subgroupShuffle(mine.sum_low, lane), subgroupShuffle(mine.sum_high, lane));
}
