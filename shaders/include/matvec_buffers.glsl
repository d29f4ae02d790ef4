// What a product of one token is bound to, in both its forms (matvec.comp, matvec_rows.comp), and what it makes.
//   CHOSEN: batch entry k is the slot of the token's k-th chosen expert.
//   SUMMED: as CHOSEN, with all slots in one batch entry: y += sum over slots of share * W[expert of slot] x[slot].
//   GATED: y = silu(W x) * (V x), where V's buffer is laid out as W's.
//   NORMED: x stands for its RMS norm. A product is linear, so x is multiplied by the norm's weights where it is loaded
//   and the sums by the inverse root mean square, which every subgroup finds by the way since it loads all of x.
//   ROUTES: the last workgroup to finish takes y for a token's router logits and chooses its experts.
//   ABSORBS: absorbing.glsl.
layout(binding = 1) readonly buffer Input { vec4 x[]; };
#ifdef ROUTES
layout(binding = 2) coherent buffer Output { float y[]; };
#else
layout(binding = 2) buffer Output { float y[]; };
#endif
#ifdef CHOSEN
layout(binding = 3) readonly buffer Experts { uint expert_of[]; };
#define AFTER_EXPERTS 4
#else
#define AFTER_EXPERTS 3
#endif
#ifdef SUMMED
layout(binding = AFTER_EXPERTS) readonly buffer Shares { float share_of[]; };
#endif
#ifdef GATED
#define UP_BINDING AFTER_EXPERTS
#define AFTER_UP (AFTER_EXPERTS + 1)
#define MATRICES 2u
#else
#define AFTER_UP AFTER_EXPERTS
#define MATRICES 1u
#endif
#include "weights.glsl"
#if defined(ROWS_FROM_CACHE) || defined(UNITS_FROM_CACHE)
#define PARAMS_BINDING 3
#include "params.glsl"
#endif
#include "linear_push.glsl"

#ifdef NORMED
layout(binding = AFTER_UP) readonly buffer Norm { vec4 norm[]; };
float squares = 0.0; // of the inputs that the lane loaded
#define AFTER_NORM (AFTER_UP + 1)
#else
#define AFTER_NORM AFTER_UP
#endif

#ifdef ROUTES
float logit_at(uint expert) { return y[y_offset + expert]; }
#define CHOICE_CONSTANT 2
#define CHOICE_BINDING AFTER_NORM
#include "expert_choice.glsl"
#define ARRIVALS_BINDING (AFTER_NORM + 3)
#include "last_workgroup.glsl"

// Choose, in the last of the workgroups of `rows_each` rows.
void route(uint rows_each) {
    if (is_last((rows + rows_each - 1u) / rows_each)) choose(rows, 0u);
}
#endif

// Row r of a lane is one of V where rows of W, ROWS of them, are behind it.
void take_row(uint r, uint rows_of_w) {
#ifdef GATED
    from_up = r >= rows_of_w;
#endif
}

// The matrix of batch entry or slot number `slot`.
uint matrix_of(uint slot) {
#ifdef CHOSEN
    return expert_of[slot];
#else
    return slot;
#endif
}

// What a gated product makes of a row's two sums.
float gated(float gate, float up) { return gate / (1.0 + exp(-gate)) * up; }

// Columns 4 * quad to 4 * quad + 3 of the input that begins at vec4 number `base`.
vec4 input_at(uint base, uint quad) {
    vec4 v = x[base + quad];
#ifdef NORMED
#ifdef LANES_ALONG_ROW
    squares += dot(v, v);
#else
    squares += gl_SubgroupInvocationID < 8u ? dot(v, v) : 0.0; // each eight lanes load the same
#endif
    v *= norm[quad];
#endif
    return v;
}

#ifdef NORMED
// What remains of the norm for the sums; each column was loaded by one lane.
float input_scale() { return inversesqrt(subgroupAdd(squares) / float(units * 32u) + eps); }
#endif
