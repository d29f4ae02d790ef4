#version 450
// What each token of a chunk adds to the latent cache (latent_added.glsl).
// REDUNDANT_V: a second copy of the normed part, as runtimes keep it whose attention wants a V of its own.
// SHARD: the buffers hold only the positions from `first` to `last`, and other tokens are left alone.
// PER_HEAD: no cache here; normed part and rotated key go to f32 scratch, from which each head's K and V are expanded.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Input { vec2 kv[]; };
layout(binding = 1) readonly buffer Weight { vec2 weight[]; };
#define ROPE_BINDING 2
#include "rope.glsl"
#define PARAMS_BINDING 3
#include "params.glsl"
#include "latent_row.glsl"
#ifdef PER_HEAD
layout(binding = 4) writeonly buffer Scratch { vec2 expanded[]; }; // [token][latent + rope]
#else
layout(binding = 4) writeonly buffer Cache { STORED cache[]; };    // [position][ROW_WORDS]
#endif
#ifdef REDUNDANT_V
layout(binding = 5) writeonly buffer ValueCache { STORED values[]; }; // [position][ROW_WORDS]
#endif

layout(push_constant) uniform Push {
    uint latent;   // elements
    uint rope;     // elements
    uint kv_first; // element where the first token's input begins
    uint kv_token; // elements between two tokens' inputs
    uint n_high;   // rows of the rope tables' coarse part
    float eps;
#ifdef SHARD
    uint first;    // position of the buffers' first row
    uint last;     // one past their last
#endif
};

#include "latent_added.glsl"

void main() {
    if (gl_WorkGroupID.x < n_tokens) store_token(gl_WorkGroupID.x);
}
