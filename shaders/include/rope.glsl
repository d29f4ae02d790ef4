// Rotation of rope pair i at a position, from two small tables by the addition theorem: Vulkan leaves sin and cos
// of large arguments undefined in precision. tables[]: (cos, sin) for 256 * a * theta_i, a < n_high, then for b * theta_i, b < 256.
layout(binding = ROPE_BINDING) readonly buffer RopeTables { vec2 rope_tables[]; };

vec2 rope_pair(vec2 v, uint position, uint i, uint pairs, uint n_high) {
    vec2 high = rope_tables[(position >> 8) * pairs + i];
    vec2 low = rope_tables[(n_high + (position & 255u)) * pairs + i];
    float c = high.x * low.x - high.y * low.y;
    float s = high.y * low.x + high.x * low.y;
    return vec2(v.x * c - v.y * s, v.x * s + v.y * c);
}
