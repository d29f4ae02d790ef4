// Blocks of PIECES pieces of 16 bytes. SCALE_APART: each has an f16 scale besides.
// INTERLEAVED: the blocks of eight rows are the eight scales, then piece by piece those of all rows, in the order in which
// load_unit reads them: a processor that fetches ahead does so only along rising addresses.
#ifdef INTERLEAVED
#ifdef SCALE_APART
#define SCALE_TEXELS 1u
#else
#define SCALE_TEXELS 0u
#endif
int texel_of(uint block, uint i) { return int((block >> 3) * (PIECES * 8u + SCALE_TEXELS) + i); }
uvec4 piece(uint block, uint i) { return texel(texel_of(block, SCALE_TEXELS + i * 8u + (block & 7u))); }
float scale_apart(uint block) {
    uvec4 eight = texel(texel_of(block, 0u));
    return unpackHalf2x16(eight[(block & 7u) >> 1])[block & 1u];
}
#else
uvec4 piece(uint block, uint i) {
    uint at = (block * PIECES + i) * 4u;
    return uvec4(word(at), word(at + 1u), word(at + 2u), word(at + 3u));
}
float scale_apart(uint block) { return packed_half(scale_base, block); }
#endif

// A piece that the lanes of a quad share as in shared_words.
uvec4 shared_piece(uint block, uint i) {
#if defined(LANES_ALONG_ROW) && !defined(INTERLEAVED)
    uint at = (block * PIECES + i) * 4u;
    return shared_words(at, at + 1u, at + 2u, at + 3u);
#else
    return piece(block, i);
#endif
}
