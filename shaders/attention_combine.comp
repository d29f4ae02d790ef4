#version 450
// Joins the splits of one token's and head's attention: outputs weighted by exp(their maximum - the greatest), over the joint sum.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Parts { vec4 parts[]; };  // [token * head][split][latent], not normalised; unset where the sum is 0
layout(binding = 1) readonly buffer Stats { vec2 stats[]; };  // [token * head][split]: maximum, sum
layout(binding = 2) writeonly buffer Output { vec4 outp[]; }; // [token * head][latent]

layout(push_constant) uniform Push {
    uint latent; // elements
    uint splits;
};

void main() {
    uint row = gl_WorkGroupID.x, quads = latent / 4u;
    float top = -1e30;
    for (uint s = 0u; s < splits; s++) top = max(top, stats[row * splits + s].x);
    float sum = 0.0;
    for (uint s = 0u; s < splits; s++) sum += stats[row * splits + s].y * exp(stats[row * splits + s].x - top);
    for (uint i = gl_SubgroupInvocationID; i < quads; i += gl_SubgroupSize) {
        vec4 total = vec4(0.0);
        for (uint s = 0u; s < splits; s++) {
            vec2 of = stats[row * splits + s];
            uint set = row * splits + (of.y > 0.0 ? s : 0u); // the first split has the first position, which all tokens see
            total += exp(of.x - top) * parts[set * quads + i];
        }
        outp[row * quads + i] = total / sum;
    }
}
