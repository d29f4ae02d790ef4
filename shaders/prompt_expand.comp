#version 450
// A tile's latent rows expanded to each head's keys and values, in halves: expanded[head][position] = row * weights[head], and
// between both the rotated part of the key, which all heads share, as the row has it.
// One subgroup makes the columns of its lanes (half_columns.glsl) by ROWS positions of one head. A lane holds four
// neighbouring numbers of the positions' rows, shared by shuffles; weights are loaded once for all positions.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 16;

layout(binding = 0) readonly buffer Rows { uvec2 rows[]; }; // [position][row], halves
#define HALVES weights // [head][latent][column], as prompt_weights.comp leaves them
#define HALVES_BINDING 1
#include "half_columns.glsl"
#ifdef FOURS
#define LANES_PART uvec2
#else
#define LANES_PART uvec4
#endif
layout(binding = 2) writeonly buffer Expanded { LANES_PART expanded[]; }; // [head][position][column]
layout(binding = 3) readonly buffer Tile { uint tile_first, tile_count; };
#define TOO_LARGE_BINDING 4
#include "half_range.glsl"
#include "array_loop.glsl"

// Columns count by what a lane takes.
layout(push_constant) uniform Push {
    uint latent;       // numbers of a row that are expanded, a multiple of 4
    uint row;          // fours between two rows
    uint width;        // columns of a position
    uint column_first; // the columns to be made: from
    uint column_end;   // to
    uint copied_first; // the columns that take the rows' numbers behind the latent ones: from
    uint copied_end;   // to
    uint tile;         // capacity in positions
};

LANES_PART packed(Columns v) {
#ifdef FOURS
    return uvec2(pack_halves(v.quad[0].xy), pack_halves(v.quad[0].zw));
#else
    uvec2 low = uvec2(pack_halves(v.quad[0].xy), pack_halves(v.quad[0].zw));
    return uvec4(low, pack_halves(v.quad[1].xy), pack_halves(v.quad[1].zw));
#endif
}

void main() {
    uint first = gl_WorkGroupID.y * ROWS, head = gl_WorkGroupID.z, lane = gl_SubgroupInvocationID;
    if (first >= tile_count) return;
    uint last = min(first + ROWS, tile_count) - 1u;
    uint column = column_first + gl_WorkGroupID.x * gl_SubgroupSize + lane;
    uint weight = head * latent * width + min(column, column_end - 1u);

    Columns acc[ROWS];
    ARRAY_LOOP for (uint t = 0u; t < ROWS; t++)
        [[unroll]] for (uint k = 0u; k < QUADS; k++) acc[t].quad[k] = vec4(0.0);
    uint block = column - lane;
    uint end = block >= copied_first && block + gl_SubgroupSize <= copied_end ? 0u : latent;
    [[dont_unroll]] for (uint from = 0u; from < end; from += 4u * gl_SubgroupSize) {
        vec4 mine[ROWS];
        uint four = min(from / 4u + lane, latent / 4u - 1u);
        [[unroll]] for (uint t = 0u; t < ROWS; t++) {
            uvec2 stored = rows[min(first + t, last) * row + four];
            mine[t] = vec4(unpackHalf2x16(stored.x), unpackHalf2x16(stored.y));
        }
        uint fours = min(gl_SubgroupSize, (latent - from) / 4u);
        [[dont_unroll]] for (uint l = 0u; l < fours; l++) {
            Columns w[4];
            [[unroll]] for (uint i = 0u; i < 4u; i++) w[i] = columns_at(weight + (from + 4u * l + i) * width);
            [[unroll]] for (uint t = 0u; t < ROWS; t++) {
                vec4 p = subgroupShuffle(mine[t], l);
                [[unroll]] for (uint k = 0u; k < QUADS; k++)
                    acc[t].quad[k] += (p.x * w[0].quad[k] + p.y * w[1].quad[k]) + (p.z * w[2].quad[k] + p.w * w[3].quad[k]);
            }
        }
    }

    uvec4 most = uvec4(0u);
    ARRAY_LOOP for (uint t = 0u; t < ROWS; t++)
        [[unroll]] for (uint k = 0u; k < QUADS; k++) most = max(most, magnitudes(acc[t].quad[k]));
    check_half(max(max(most.x, most.y), max(most.z, most.w)));

    if (column >= column_end) return;
    bool copied = column >= copied_first && column < copied_end;
    ARRAY_LOOP for (uint t = 0u; t < ROWS; t++) {
        uint position = first + t, four = position * row + latent / 4u + (column - copied_first) * QUADS;
        if (position <= last) {
            LANES_PART v = packed(acc[t]);
#ifdef FOURS
            if (copied) v = rows[four];
#else
            if (copied) v = uvec4(rows[four], rows[four + 1u]);
#endif
            expanded[(head * tile + position) * width + column] = v;
        }
    }
}
