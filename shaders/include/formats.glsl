// The weight format that a kernel is compiled for, chosen by one macro.
#if defined(FORMAT_F32)
#include "format_f32.glsl"
#elif defined(FORMAT_F16)
#include "format_f16.glsl"
#elif defined(FORMAT_BF16)
#include "format_bf16.glsl"
#elif defined(FORMAT_Q4_0)
#include "format_q4_0.glsl"
#elif defined(FORMAT_Q4_1)
#include "format_q4_1.glsl"
#elif defined(FORMAT_Q5_0)
#include "format_q5_0.glsl"
#elif defined(FORMAT_Q5_1)
#include "format_q5_1.glsl"
#elif defined(FORMAT_Q8_0)
#include "format_q8_0.glsl"
#elif defined(FORMAT_Q2_K)
#include "format_q2_k.glsl"
#elif defined(FORMAT_Q3_K)
#include "format_q3_k.glsl"
#elif defined(FORMAT_Q4_K)
#include "format_q4_k.glsl"
#elif defined(FORMAT_Q5_K)
#include "format_q5_k.glsl"
#elif defined(FORMAT_Q6_K)
#include "format_q6_k.glsl"
#elif defined(FORMAT_IQ4_NL)
#include "format_iq4_nl.glsl"
#elif defined(FORMAT_IQ4_XS)
#include "format_iq4_xs.glsl"
#elif defined(FORMAT_MXFP4)
#include "format_mxfp4.glsl"
#elif defined(FORMAT_NVFP4)
#include "format_nvfp4.glsl"
#elif defined(FORMAT_IQ1_S)
#include "format_iq1_s.glsl"
#elif defined(FORMAT_IQ1_M)
#include "format_iq1_m.glsl"
#elif defined(FORMAT_IQ2_XXS)
#include "format_iq2_xxs.glsl"
#elif defined(FORMAT_IQ2_XS)
#include "format_iq2_xs.glsl"
#elif defined(FORMAT_IQ2_S)
#include "format_iq2_s.glsl"
#elif defined(FORMAT_IQ3_XXS)
#include "format_iq3_xxs.glsl"
#elif defined(FORMAT_IQ3_S)
#include "format_iq3_s.glsl"
#elif defined(FORMAT_TQ1_0)
#include "format_tq1_0.glsl"
#elif defined(FORMAT_TQ2_0)
#include "format_tq2_0.glsl"
#else
#error "no weight format chosen: define FORMAT_ and the name of a type that has a file here, such as FORMAT_Q4_K"
#endif

// Each format in both forms.
#ifdef UNITS_A_BLOCK
Unit load_unit(uint g) {
    uint block = g / UNITS_A_BLOCK;
    return load_unit(load_head(block), block, g % UNITS_A_BLOCK);
}
#else
#define UNITS_A_BLOCK 1u
Head load_head(uint block) { return Head(uvec4(0u), 0.0); }
Unit load_unit(Head head, uint block, uint i) { return load_unit(block); }
#endif

// Unit u of the row whose first block that is.
Unit unit_of_row(uint first_block, uint u) {
    uint block = first_block + u / UNITS_A_BLOCK * NEXT_BLOCK;
    return load_unit(load_head(block), block, u % UNITS_A_BLOCK);
}

#ifdef PACKED_QUANTS
// What a quant of one is, of those that stay at the top of their byte (unit.glsl).
#ifdef SIGNED_BITS
const float QUANT = 1.0 / float(1u << (8 - SIGNED_BITS));
#else
const float QUANT = 1.0;
#endif
#ifndef UNITS_A_STEP
#define UNITS_A_STEP 1u
#endif
#endif
