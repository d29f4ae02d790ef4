// ABSORBS: a product with attn_k_b, a head a batch entry, which takes queries into the latent space; and in two batch
// entries more what else attention over one token waits for: its row of the latent cache, and the rotated queries.
#define PARAMS_BINDING 3
#include "params.glsl"
layout(binding = 4) readonly buffer LatentInput { vec2 kv[]; };
layout(binding = 5) readonly buffer LatentNorm { vec2 weight[]; };
#define ROPE_BINDING 6
#include "rope.glsl"
#include "latent_row.glsl"
layout(binding = 7) writeonly buffer Cache { STORED cache[]; }; // [position][ROW_WORDS]
#ifdef REDUNDANT_V
layout(binding = 8) writeonly buffer ValueCache { STORED values[]; }; // [position][ROW_WORDS]
#endif
#include "latent_added.glsl"

vec2 query_pair(uint i) {
    vec4 v = x[i >> 1];
    return (i & 1u) == 0u ? v.xy : v.zw;
}
void put_rotated(uint i, vec2 v) {
    y[2u * i] = v.x;
    y[2u * i + 1u] = v.y;
}
#include "rope_heads.glsl"

// Whether the batch entry is one of the two, which is done then.
bool prepared(uint batch, uint tile) {
    if (batch < heads) return false;
    if (tile == 0u && batch == heads) store_token(0u);
    if (tile == 0u && batch > heads) rotate_queries(0u);
    return true;
}
