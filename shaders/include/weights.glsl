// A weight tensor's buffer, binding 0, and where the blocks of its rows lie. A format reads it by words, word(i), or, where
// its blocks are whole pieces of 16 bytes, by pieces (pieces.glsl).
// INTERLEAVED: pieces of eight successive rows lie side by side. A narrow subgroup, a row a lane, then reads 128 bytes that
// follow one another. It reads them as texels, which CPU drivers load whole, where they load from a storage buffer lane
// by lane and word by word.
// GATED: a second tensor, laid out alike, at UP_BINDING; from_up says which is read, a constant wherever one is, once the
// loops over a lane's rows are unrolled.
#ifdef GATED
bool from_up = false;
#endif
#ifdef INTERLEAVED
layout(binding = 0) uniform usamplerBuffer weights;
#ifdef GATED
layout(binding = UP_BINDING) uniform usamplerBuffer up_weights;
uvec4 texel(int i) { return from_up ? texelFetch(up_weights, i) : texelFetch(weights, i); }
#else
uvec4 texel(int i) { return texelFetch(weights, i); }
#endif
const uint NEXT_BLOCK = 8u; // from a block of a row to the next one
uint block_at(uint row, uint blocks) { return (row >> 3) * blocks * 8u + (row & 7u); } // the first of `blocks` of a row
#else
layout(binding = 0) readonly buffer Weights { uint weights[]; };
#ifdef GATED
layout(binding = UP_BINDING) readonly buffer Up { uint up_weights[]; };
uint word(uint i) { return from_up ? up_weights[i] : weights[i]; }
#else
uint word(uint i) { return weights[i]; }
#endif
const uint NEXT_BLOCK = 1u;
uint block_at(uint row, uint blocks) { return row * blocks; }
#endif
