#version 450
// Matrix-vector product of dequantised rows, y = W x, in the form for narrow subgroups: a lane takes rows of its own, so
// that nothing is summed across lanes. Every lane needs every input; each loads another vec4 of a unit's 32 and
// broadcasts it, since CPU drivers make a load one lane at a time; a lane's rows share it. See matvec.comp for wide
// subgroups.
// One subgroup makes ROWS * subgroup-size rows. CHOSEN: batch entry k is the slot of the token's k-th chosen expert.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_ballot : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 2;

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

float sum_of(vec4 v) { return (v.x + v.y) + (v.z + v.w); }

void main() {
    uint batch = gl_WorkGroupID.z;
#ifdef CHOSEN
    uint matrix = expert_of[batch];
#else
    uint matrix = batch;
#endif
    uint first = gl_WorkGroupID.x * ROWS * gl_SubgroupSize;
    if (first >= live_rows() || matrix < matrix_first || matrix >= matrix_end) return;
    uint lane = gl_SubgroupInvocationID, part = lane & 7u;
    uint last = live_rows() - 1u, end = live_units(), x_base = (x_offset + batch * x_batch) >> 2;

    uint row_block[ROWS];
    float total[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        uint row = (matrix - matrix_first) * rows + min(first + r * gl_SubgroupSize + lane, last);
        row_block[r] = block_at(row, units / UNITS_A_BLOCK);
        total[r] = 0.0;
    }
    for (uint b = 0u; b * UNITS_A_BLOCK < end; b++) {
        Head head[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; r++) head[r] = load_head(row_block[r] + b * NEXT_BLOCK);
        for (uint i = 0u; i < UNITS_A_BLOCK; i++) {
            uint u = b * UNITS_A_BLOCK + i;
            vec4 mine = x[x_base + (part < 4u ? column_a(u) : column_b(u)) / 4u + (part & 3u)];
            float ones = sum_of(mine);
            float ones_a = (subgroupBroadcast(ones, 0) + subgroupBroadcast(ones, 1)) +
                           (subgroupBroadcast(ones, 2) + subgroupBroadcast(ones, 3));
            float ones_b = (subgroupBroadcast(ones, 4) + subgroupBroadcast(ones, 5)) +
                           (subgroupBroadcast(ones, 6) + subgroupBroadcast(ones, 7));
            // A broadcast's source lane must be a constant in SPIR-V 1.3.
            vec4 xs[8] = vec4[](subgroupBroadcast(mine, 0), subgroupBroadcast(mine, 1), subgroupBroadcast(mine, 2),
                                subgroupBroadcast(mine, 3), subgroupBroadcast(mine, 4), subgroupBroadcast(mine, 5),
                                subgroupBroadcast(mine, 6), subgroupBroadcast(mine, 7));
            // One row after the other, so that only one row's quants are kept in registers.
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                Unit w = load_unit(head[r], row_block[r] + b * NEXT_BLOCK, i);
                vec4 run_a = w.q[0] * xs[0], run_b = w.q[4] * xs[4];
                [[unroll]] for (uint k = 1u; k < 4u; k++) {
                    run_a += w.q[k] * xs[k];
                    run_b += w.q[4u + k] * xs[4u + k];
                }
                total[r] += (w.da * sum_of(run_a) - w.ma * ones_a) + (w.db * sum_of(run_b) - w.mb * ones_b);
            }
        }
    }
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        uint row = first + r * gl_SubgroupSize + lane;
        if (row <= last) {
            uint at = y_offset + batch * y_batch + row;
            y[at] = accumulate != 0u ? y[at] + total[r] : total[r];
        }
    }
}
