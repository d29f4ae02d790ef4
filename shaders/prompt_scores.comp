#version 450
// Scores of a prompt chunk's queries with the keys of a tile of positions: scores[head][token][position] = scale * q . k.
// One subgroup makes POSITIONS * subgroup-size positions by TOKENS tokens of one head. A lane holds eight numbers of its
// own keys at once; the tokens' numbers are loaded once by the subgroup, a vec4 a lane, and shared by shuffles. Blocks
// that no token of theirs sees are skipped; what of a block is hidden is for prompt_values.comp to leave out.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint POSITIONS = 8;
layout(constant_id = 2) const uint TOKENS = 16; // even, and a divisor or a multiple of half the subgroup's size

layout(binding = 0) readonly buffer Query { vec4 q[]; };            // [token][head][key]
layout(binding = 1) readonly buffer Keys { uvec4 keys[]; };         // [head][position][key], halves
layout(binding = 2) writeonly buffer Scores { float scores[]; };    // [head][token][capacity of a tile]
#define PARAMS_BINDING 3
#include "params.glsl"
layout(binding = 4) readonly buffer Tile { uint tile_first, tile_count; };
#include "array_loop.glsl"

layout(push_constant) uniform Push {
    uint quads;       // vec4s of a query
    uint q_token;     // vec4s between the queries of two tokens
    uint q_head;      // and of two heads
    uint key_row;     // eights between two keys
    uint key_head;    // eights between two heads' keys; 0 where they share them
    uint chunk;       // capacity in tokens
    uint tile;        // capacity in positions
    float scale;
};

// Lanes 2 i and 2 i + 1 load the halves of token i's eight numbers, of as many tokens at once as there are such lanes.
const uint PAIRS = gl_WorkGroupSize.x / 2u, AT_ONCE = TOKENS < PAIRS ? TOKENS : PAIRS, LOADS = TOKENS / AT_ONCE;

void main() {
    uint first = gl_WorkGroupID.x * POSITIONS * gl_SubgroupSize, first_token = gl_WorkGroupID.y * TOKENS, head = gl_WorkGroupID.z;
    uint last_token = min(first_token + TOKENS, n_tokens) - 1u;
    if (first >= tile_count || first_token >= n_tokens || tile_first + first > n_past + last_token) return;
    uint lane = gl_SubgroupInvocationID;

    uint base[POSITIONS];
    [[unroll]] for (uint r = 0u; r < POSITIONS; r++)
        base[r] = head * key_head + min(first + r * gl_SubgroupSize + lane, tile_count - 1u) * key_row;
    uint from[LOADS];
    [[unroll]] for (uint i = 0u; i < LOADS; i++) {
        uint token = min(first_token + i * AT_ONCE + lane / 2u % AT_ONCE, last_token);
        from[i] = token * q_token + head * q_head;
    }

    float sum[POSITIONS * TOKENS];
    ARRAY_LOOP for (uint i = 0u; i < POSITIONS * TOKENS; i++) sum[i] = 0.0;
    [[dont_unroll]] for (uint u = 0u; 2u * u < quads; u++) {
        uint quad = min(2u * u + (lane & 1u), quads - 1u); // a key's last eight may end in zeros
        vec4 low[POSITIONS], high[POSITIONS];
        [[unroll]] for (uint r = 0u; r < POSITIONS; r++) {
            uvec4 stored = keys[base[r] + u];
            low[r] = vec4(unpackHalf2x16(stored.x), unpackHalf2x16(stored.y));
            high[r] = vec4(unpackHalf2x16(stored.z), unpackHalf2x16(stored.w));
        }
        [[unroll]] for (uint i = 0u; i < LOADS; i++) {
            vec4 mine = q[from[i] + quad];
            [[unroll]] for (uint t = 0u; t < AT_ONCE; t++) {
                vec4 q_low = subgroupShuffle(mine, 2u * t), q_high = subgroupShuffle(mine, 2u * t + 1u);
                [[unroll]] for (uint r = 0u; r < POSITIONS; r++) {
                    vec4 p = low[r] * q_low + high[r] * q_high;
                    sum[r * TOKENS + i * AT_ONCE + t] += (p.x + p.y) + (p.z + p.w);
                }
            }
        }
    }
    [[unroll]] for (uint r = 0u; r < POSITIONS; r++) {
        uint position = first + r * gl_SubgroupSize + lane;
        ARRAY_LOOP for (uint t = 0u; t < TOKENS; t++)
            if (position < tile_count && first_token + t < n_tokens)
                scores[(head * chunk + first_token + t) * tile + position] = scale * sum[r * TOKENS + t];
    }
}
