#version 450
// What a token adds to the latent cache: attn_kv_a_mqa's output, its first LATENT entries normed, its last ROPE entries
// rotated, stored in the row of the token's position (cache_pair.glsl says as what).
// REDUNDANT_V: a second copy of the normed part, as runtimes keep it whose attention wants a V of its own.
// SHARD: the buffers hold only the positions from `first` to `last`, and other tokens are left alone.
// PER_HEAD: no cache here; normed part and rotated key go to f32 scratch, from which each head's K and V are expanded.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Input { vec2 kv[]; };
layout(binding = 1) readonly buffer Weight { vec2 weight[]; };
#define ROPE_BINDING 2
#include "rope.glsl"
#define PARAMS_BINDING 3
#include "params.glsl"
#include "cache_pair.glsl"
#ifdef PER_HEAD
layout(binding = 4) writeonly buffer Scratch { vec2 expanded[]; }; // [token][latent + rope]
#else
layout(binding = 4) writeonly buffer Cache { PAIR cache[]; };      // [position][(latent + rope) / 2]
#endif
#ifdef REDUNDANT_V
layout(binding = 5) writeonly buffer ValueCache { PAIR values[]; }; // [position][latent / 2]
#endif

layout(push_constant) uniform Push {
    uint latent; // elements
    uint rope;   // elements
    uint n_high; // rows of the rope tables' coarse part
    float eps;
#ifdef SHARD
    uint first; // position of the buffers' first row
    uint last;  // one past their last
#endif
};

void main() {
    uint token = gl_WorkGroupID.x;
    if (token >= n_tokens) return;
    uint latent_pairs = latent / 2u, rope_pairs = rope / 2u, pairs = latent_pairs + rope_pairs;
    uint source = token * pairs, position = n_past + token, row = position;
#ifdef SHARD
    if (position < first || position >= last) return;
    row -= first;
#endif
    float squares = 0.0;
    for (uint i = gl_SubgroupInvocationID; i < latent_pairs; i += gl_SubgroupSize) squares += dot(kv[source + i], kv[source + i]);
    float scale = inversesqrt(subgroupAdd(squares) / float(latent) + eps);
    for (uint i = gl_SubgroupInvocationID; i < pairs; i += gl_SubgroupSize) {
        vec2 v = i < latent_pairs ? kv[source + i] * scale * weight[i]
                                  : rope_pair(kv[source + i], position, i - latent_pairs, rope_pairs, n_high);
#ifdef PER_HEAD
        expanded[token * pairs + i] = v;
#else
        cache[row * pairs + i] = packed_pair(v);
#endif
#ifdef REDUNDANT_V
        if (i < latent_pairs) values[row * latent_pairs + i] = packed_pair(v);
#endif
    }
}
