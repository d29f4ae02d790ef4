// Two neighbouring numbers of a latent cache's row as its buffer holds them: packed halves, or with CACHE_F32 two floats.
#ifdef CACHE_F32
#define PAIR vec2
vec2 packed_pair(vec2 v) { return v; }
vec2 unpacked_pair(vec2 stored) { return stored; }
#else
#define PAIR uint
uint packed_pair(vec2 v) { return packHalf2x16(v); }
vec2 unpacked_pair(uint stored) { return unpackHalf2x16(stored); }
#endif
