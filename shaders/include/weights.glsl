// A weight tensor's buffer, binding 0, and where the blocks of its rows lie. A format reads it by words, word(i), or, where
// its blocks are whole pieces of 16 bytes, by pieces (pieces.glsl).
// INTERLEAVED: pieces of eight successive rows lie side by side. A narrow subgroup, a row a lane, then reads 128 bytes that
// follow one another. It reads them as texels, which CPU drivers load whole, where they load from a storage buffer lane
// by lane and word by word.
#ifdef INTERLEAVED
layout(binding = 0) uniform usamplerBuffer weights;
const uint NEXT_BLOCK = 8u; // from a block of a row to the next one
uint block_at(uint row, uint blocks) { return (row >> 3) * blocks * 8u + (row & 7u); } // the first of `blocks` of a row
#else
layout(binding = 0) readonly buffer Weights { uint weights[]; };
uint word(uint i) { return weights[i]; }
const uint NEXT_BLOCK = 1u;
uint block_at(uint row, uint blocks) { return row * blocks; }
#endif
