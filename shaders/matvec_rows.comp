#version 450
// Matrix-vector product of dequantised rows, y = W x, in the form for narrow subgroups: a lane takes rows of its own, so
// that nothing is summed across lanes. Every lane needs every input; each loads another vec4 of a unit's 32 and
// broadcasts it, since CPU drivers make a load one lane at a time; a lane's rows share it. See matvec.comp for wide
// subgroups.
// One subgroup makes ROWS * subgroup-size rows. What else it may make is in matvec_buffers.glsl.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_ballot : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 2;

#include "matvec_buffers.glsl"
#include "linear_extent.glsl"
#ifdef INTERLEAVED
#define IN_PLACE // unit.glsl
#endif
#include "unit.glsl"
#include "formats.glsl"
#ifdef ABSORBS
#include "absorbing.glsl"
#endif

float sum_of(vec4 v) { return (v.x + v.y) + (v.z + v.w); }

const uint ALL_ROWS = ROWS * MATRICES;
float total[ALL_ROWS]; // of the lane's rows

// total += share * W x, of one matrix and its input.
void add_product(uint matrix, uint slot, uint first, float share) {
    uint lane = gl_SubgroupInvocationID, part = lane & 7u;
    uint last = live_rows() - 1u, end = live_units(), x_base = (x_offset + slot * x_batch) >> 2;

    uint row_block[ALL_ROWS];
    [[unroll]] for (uint r = 0u; r < ALL_ROWS; r++) {
        uint row = (matrix - matrix_first) * rows + min(first + r % ROWS * gl_SubgroupSize + lane, last);
        row_block[r] = block_at(row, units / UNITS_A_BLOCK);
    }
    for (uint b = 0u; b * UNITS_A_BLOCK < end; b++) {
        Head head[ALL_ROWS];
        [[unroll]] for (uint r = 0u; r < ALL_ROWS; r++) {
            take_row(r, ROWS);
            head[r] = load_head(row_block[r] + b * NEXT_BLOCK);
        }
        for (uint i = 0u; i < UNITS_A_BLOCK; i++) {
            uint u = b * UNITS_A_BLOCK + i;
            vec4 mine = input_at(x_base, (part < 4u ? column_a(u) : column_b(u)) / 4u + (part & 3u));
            float ones = sum_of(mine);
            float ones_a = (subgroupBroadcast(ones, 0) + subgroupBroadcast(ones, 1)) +
                           (subgroupBroadcast(ones, 2) + subgroupBroadcast(ones, 3));
            float ones_b = (subgroupBroadcast(ones, 4) + subgroupBroadcast(ones, 5)) +
                           (subgroupBroadcast(ones, 6) + subgroupBroadcast(ones, 7));
#ifdef PLACED
            mine *= part < 4u ? place_scales(0) : place_scales(PLACED_B);
#endif
            // A broadcast's source lane must be a constant in SPIR-V 1.3.
            vec4 xs[8] = vec4[](subgroupBroadcast(mine, 0), subgroupBroadcast(mine, 1), subgroupBroadcast(mine, 2),
                                subgroupBroadcast(mine, 3), subgroupBroadcast(mine, 4), subgroupBroadcast(mine, 5),
                                subgroupBroadcast(mine, 6), subgroupBroadcast(mine, 7));
            // One row after the other, so that only one row's quants are kept in registers.
            [[unroll]] for (uint r = 0u; r < ALL_ROWS; r++) {
                take_row(r, ROWS);
                Unit w = load_unit(head[r], row_block[r] + b * NEXT_BLOCK, i);
                vec4 run_a = w.q[0] * xs[0], run_b = w.q[4] * xs[4];
                [[unroll]] for (uint k = 1u; k < 4u; k++) {
                    run_a += w.q[k] * xs[k];
                    run_b += w.q[4u + k] * xs[4u + k];
                }
                float sum_a = sum_of(run_a), sum_b = sum_of(run_b);
#ifdef MIDDLE
                sum_a -= MIDDLE * ones_a;
                sum_b -= MIDDLE * ones_b;
#endif
                total[r] += share * ((w.da * sum_a - w.ma * ones_a) + (w.db * sum_b - w.mb * ones_b));
            }
        }
    }
}

void main() {
    uint batch = gl_WorkGroupID.z, first = gl_WorkGroupID.x * ROWS * gl_SubgroupSize;
#ifdef ABSORBS
    if (prepared(batch, gl_WorkGroupID.x)) return;
#endif
    if (first >= live_rows()) return;
    [[unroll]] for (uint r = 0u; r < ALL_ROWS; r++) total[r] = 0.0;
#ifdef SUMMED
    for (uint slot = 0u; slot < slots; slot++) {
        uint matrix = matrix_of(slot);
        if (matrix >= matrix_first && matrix < matrix_end) add_product(matrix, slot, first, share_of[slot]);
    }
#else
    uint matrix = matrix_of(batch);
    if (matrix < matrix_first || matrix >= matrix_end) return;
    add_product(matrix, batch, first, 1.0);
#endif
#ifdef NORMED
    float scale = input_scale();
    [[unroll]] for (uint r = 0u; r < ALL_ROWS; r++) total[r] *= scale;
#endif
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        uint row = first + r * gl_SubgroupSize + gl_SubgroupInvocationID;
#ifdef GATED
        total[r] = gated(total[r], total[ROWS + r]);
#endif
        if (row < live_rows()) {
            uint at = y_offset + batch * y_batch + row;
            y[at] = accumulate != 0u ? y[at] + total[r] : total[r];
        }
    }
#ifdef ROUTES
    route(ROWS * gl_SubgroupSize);
#endif
}
