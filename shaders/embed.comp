#version 450
// Rows of the embedding for a chunk's token ids, or of any matrix: one subgroup a token, a lane every subgroup-size-th unit.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_quad : require
#define LANES_ALONG_ROW

layout(local_size_x_id = 0) in;
layout(binding = 1) writeonly buffer Output { vec4 x[]; };
#define PARAMS_BINDING 2
#include "params.glsl"

layout(push_constant) uniform Push {
    uint units;      // units of 32 columns in a row
    uint scale_base; // word where a format's separate scales begin
    uint row_first;  // vocabulary rows [row_first, row_end) lie in this buffer
    uint row_end;
    uint width;      // elements of one output row
    uint across;     // tokens from one y of the grid to the next, where x is too short for all
};

#include "weights.glsl"
#include "unit.glsl"
#include "formats.glsl"

void main() {
    uint token = gl_WorkGroupID.y * across + gl_WorkGroupID.x;
    if (token >= n_tokens) return;
    uint row = token_ids[token];
    if (row < row_first || row >= row_end) return;
    for (uint u = gl_SubgroupInvocationID; u < units; u += gl_SubgroupSize) {
        Unit w = unit_of_row(block_at(row - row_first, units / UNITS_A_BLOCK), u);
        uint a = (token * width + column_a(u)) >> 2, b = (token * width + column_b(u)) >> 2;
        [[unroll]] for (uint i = 0u; i < 4u; i++) {
            if (column_a(u) + 4u * i < width) x[a + i] = w.da * w.q[i] - w.ma;
            if (column_b(u) + 4u * i < width) x[b + i] = w.db * w.q[4u + i] - w.mb;
        }
    }
}
