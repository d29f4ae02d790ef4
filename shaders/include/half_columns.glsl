// Rows of halves, the buffer HALVES at HALVES_BINDING, of which each lane takes eight neighbouring columns, with FOURS four;
// a place in it counts by what a lane takes. TEXELS: they are read as texels, which CPU drivers load whole.
#ifdef FOURS
#define QUADS 1u // vec4s of columns that a lane takes
layout(binding = HALVES_BINDING) readonly buffer Halves { uvec2 HALVES[]; };
#else
#define QUADS 2u
#ifdef TEXELS
layout(binding = HALVES_BINDING) uniform usamplerBuffer HALVES;
#else
layout(binding = HALVES_BINDING) readonly buffer Halves { uvec4 HALVES[]; };
#endif
#endif

struct Columns {
    vec4 quad[QUADS];
};

Columns columns_at(uint at) {
    Columns r;
#ifdef FOURS
    uvec2 stored = HALVES[at];
#else
#ifdef TEXELS
    uvec4 stored = texelFetch(HALVES, int(at));
#else
    uvec4 stored = HALVES[at];
#endif
    r.quad[1] = vec4(unpackHalf2x16(stored.z), unpackHalf2x16(stored.w));
#endif
    r.quad[0] = vec4(unpackHalf2x16(stored.x), unpackHalf2x16(stored.y));
    return r;
}
