#version 450
// Matrix-vector product of dequantised rows: y = W x, for one expert or head per batch entry. The form for wide
// subgroups, whose lanes then load consecutive words; see matvec_rows.comp for narrow ones. One subgroup handles ROWS
// rows; a lane takes every subgroup-size-th unit of 32 columns and uses the x it loaded for all rows.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_quad : require
#define LANES_ALONG_ROW

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 8;

layout(binding = 1) readonly buffer Input { vec4 x[]; };
layout(binding = 2) buffer Output { float y[]; };
#ifdef CHOSEN
layout(binding = 3) readonly buffer Experts { uint expert_of[]; };
#endif
#if defined(ROWS_FROM_CACHE) || defined(UNITS_FROM_CACHE)
#define PARAMS_BINDING 3
#include "params.glsl"
#endif

#include "linear_push.glsl"
#include "linear_extent.glsl"

#include "weights.glsl"
#include "unit.glsl"
#include "formats.glsl"

void main() {
    uint tile = gl_WorkGroupID.x + gl_WorkGroupID.z * tiles_x;
    uint batch = gl_WorkGroupID.y;
#ifdef CHOSEN
    uint matrix = expert_of[batch];
#else
    uint matrix = batch;
#endif
    uint first = tile * ROWS;
    if (first >= live_rows() || matrix < matrix_first || matrix >= matrix_end) return;
    uint lane = gl_SubgroupInvocationID;
    uint row_base = (matrix - matrix_first) * rows;
    uint x_base = (x_offset + batch * x_batch) >> 2;

    float acc[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; r++) acc[r] = 0.0;
    uint last = live_rows() - 1u, end = live_units();
    for (uint u = lane; u < end; u += gl_SubgroupSize) {
        uint xa = x_base + (column_a(u) >> 2), xb = x_base + (column_b(u) >> 2);
#ifdef DECODED_AT_ONCE
        Unit w[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; r++)
            w[r] = unit_of_row(block_at(row_base + min(first + r, last), units / UNITS_A_BLOCK), u);
#endif
        // One run after the other: fewer registers than the inputs of both take, so that more waves hide the loads.
        [[unroll]] for (uint run = 0u; run < 2u; run++) {
            vec4 v[4], ones = vec4(0.0);
            [[unroll]] for (uint i = 0u; i < 4u; i++) { v[i] = x[(run == 0u ? xa : xb) + i]; ones += v[i]; }
            float sum = dot(ones, vec4(1.0));
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
#ifdef DECODED_AT_ONCE
                Unit of = w[r];
#else
                Unit of = unit_of_row(block_at(row_base + min(first + r, last), units / UNITS_A_BLOCK), u);
#endif
                vec4 p = of.q[4u * run] * v[0];
                [[unroll]] for (uint i = 1u; i < 4u; i++) p += of.q[4u * run + i] * v[i];
                acc[r] += (run == 0u ? of.da : of.db) * dot(p, vec4(1.0)) - (run == 0u ? of.ma : of.mb) * sum;
            }
        }
    }
    uint y_base = y_offset + batch * y_batch;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        float total = subgroupAdd(acc[r]);
        if (lane == r % gl_SubgroupSize && first + r <= last) {
            uint at = y_base + first + r;
            y[at] = accumulate != 0u ? y[at] + total : total;
        }
    }
}
