#version 450
// Matrix-vector product of dequantised rows: y = W x, for one expert or head per batch entry. The form for wide
// subgroups, whose lanes then load consecutive words; see matvec_rows.comp for narrow ones. One subgroup handles ROWS
// rows; a lane takes every subgroup-size-th unit of 32 columns and uses the x it loaded for all rows.
// What else it may make is in matvec_buffers.glsl.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_quad : require
#define LANES_ALONG_ROW

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 8;

#include "matvec_buffers.glsl"
#include "linear_extent.glsl"
#include "unit.glsl"
#include "formats.glsl"
#ifdef ABSORBS
#include "absorbing.glsl"
#endif

const uint ALL_ROWS = ROWS * MATRICES;
float acc[ALL_ROWS]; // the lane's part of each row

// Unit u of the lane's row r, which is row `row` of its tensor.
Unit unit_of(uint r, uint row, uint u) {
    take_row(r, ROWS);
    return unit_of_row(block_at(row, units / UNITS_A_BLOCK), u);
}

// acc += share * W x, of one matrix and its input.
void add_product(uint matrix, uint slot, uint first, float share) {
    uint row_base = (matrix - matrix_first) * rows;
    uint x_base = (x_offset + slot * x_batch) >> 2;
    uint last = live_rows() - 1u, end = live_units();
    for (uint u = gl_SubgroupInvocationID; u < end; u += gl_SubgroupSize) {
        uint xa = column_a(u) >> 2, xb = column_b(u) >> 2; // here: within the loop over runs they cost 16 registers
#ifdef DECODED_AT_ONCE
        Unit w[ALL_ROWS];
        [[unroll]] for (uint r = 0u; r < ALL_ROWS; r++) w[r] = unit_of(r, row_base + min(first + r % ROWS, last), u);
#endif
        // One run after the other: fewer registers than the inputs of both take, so that more waves hide the loads.
        [[unroll]] for (uint run = 0u; run < 2u; run++) {
            vec4 v[4], ones = vec4(0.0);
            [[unroll]] for (uint i = 0u; i < 4u; i++) {
                v[i] = input_at(x_base, (run == 0u ? xa : xb) + i);
                ones += v[i];
            }
            float sum = dot(ones, vec4(1.0));
            [[unroll]] for (uint r = 0u; r < ALL_ROWS; r++) {
#ifdef DECODED_AT_ONCE
                Unit of = w[r];
#else
                Unit of = unit_of(r, row_base + min(first + r % ROWS, last), u);
#endif
                vec4 p = of.q[4u * run] * v[0];
                [[unroll]] for (uint i = 1u; i < 4u; i++) p += of.q[4u * run + i] * v[i];
                acc[r] += share * ((run == 0u ? of.da : of.db) * dot(p, vec4(1.0)) - (run == 0u ? of.ma : of.mb) * sum);
            }
        }
    }
}

void main() {
    uint tile = gl_WorkGroupID.x + gl_WorkGroupID.z * tiles_x, batch = gl_WorkGroupID.y;
    uint first = tile * ROWS;
#ifdef ABSORBS
    if (prepared(batch, tile)) return;
#endif
    if (first >= live_rows()) return;
    [[unroll]] for (uint r = 0u; r < ALL_ROWS; r++) acc[r] = 0.0;
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
    [[unroll]] for (uint r = 0u; r < ALL_ROWS; r++) acc[r] *= scale;
#endif
    uint y_base = y_offset + batch * y_batch;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        float total = subgroupAdd(acc[r]);
#ifdef GATED
        total = gated(total, subgroupAdd(acc[ROWS + r]));
#endif
        if (gl_SubgroupInvocationID == r % gl_SubgroupSize && first + r < live_rows()) {
            uint at = y_base + first + r;
            y[at] = accumulate != 0u ? y[at] + total : total;
        }
    }
#ifdef ROUTES
    route(ROWS);
#endif
}
