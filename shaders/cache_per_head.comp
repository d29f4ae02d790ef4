#version 450
// MHA fallback: stores a chunk's K [head][position][nope + rope, padded to key_row] and transposed V [head][v][position], as
// packed halves or, with CACHE_F32, as floats. Every head gets its own copy of the rotated key part, as a runtime without MLA keeps it.
// Two positions share a word of the transposed V; one invocation handles all of a chunk's tokens of its (head, v), so no write is lost.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer KeyNope { vec2 k_nope[]; };   // [token][head][nope]
layout(binding = 1) readonly buffer Latent { vec2 latent_rope[]; }; // [token][latent + rope]
layout(binding = 2) readonly buffer Value { float v_new[]; };     // [token][head][v]
#define PARAMS_BINDING 3
#include "params.glsl"
#include "latent_row.glsl"
layout(binding = 4) writeonly buffer KeyCache { STORED k_cache[]; };
#ifdef CACHE_F32
layout(binding = 5) buffer ValueCache { float v_cache[]; };
#else
layout(binding = 5) buffer ValueCache { uint v_cache[]; };
#endif

layout(push_constant) uniform Push {
    uint head_first; // of the heads whose caches these buffers hold
    uint heads;      // of the model
    uint nope;
    uint rope;
    uint v_dim;
    uint latent;
    uint n_ctx; // positions that the caches hold, even
    uint key_row; // elements from key to key
};

void main() {
    uint here = gl_WorkGroupID.x, head = head_first + here;
    uint key_pairs = (nope + rope) / 2u, nope_pairs = nope / 2u, rope_pairs = rope / 2u, latent_pairs = latent / 2u;
    for (uint token = 0u; token < n_tokens; token++) {
        uint row = (here * n_ctx + n_past + token) * (key_row / 2u);
        for (uint i = gl_SubgroupInvocationID; i < key_pairs; i += gl_SubgroupSize) {
            vec2 k = i < nope_pairs ? k_nope[(token * heads + head) * nope_pairs + i]
                                    : latent_rope[token * (latent_pairs + rope_pairs) + latent_pairs + i - nope_pairs];
            k_cache[row + i] = packed_pair(k);
        }
    }
    for (uint d = gl_SubgroupInvocationID; d < v_dim; d += gl_SubgroupSize) {
        for (uint token = 0u; token < n_tokens; token++) {
            uint at = (here * v_dim + d) * n_ctx + n_past + token;
            float value = v_new[(token * heads + head) * v_dim + d];
#ifdef CACHE_F32
            v_cache[at] = value;
#else
            uint bits = packHalf2x16(vec2(value, 0.0)), pair = v_cache[at / 2u];
            v_cache[at / 2u] = (at & 1u) == 0u ? (pair & 0xFFFF0000u) | bits : (pair & 0x0000FFFFu) | bits << 16;
#endif
        }
    }
}
