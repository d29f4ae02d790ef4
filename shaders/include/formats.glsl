// The weight format that a kernel is compiled for, chosen by one macro.
#if defined(FORMAT_F32)
#include "format_f32.glsl"
#elif defined(FORMAT_F16)
#include "format_f16.glsl"
#elif defined(FORMAT_Q8_0)
#include "format_q8_0.glsl"
#elif defined(FORMAT_Q5_0)
#include "format_q5_0.glsl"
#elif defined(FORMAT_Q4_K)
#include "format_q4_k.glsl"
#elif defined(FORMAT_Q6_K)
#include "format_q6_k.glsl"
#else
#error "no weight format chosen: define FORMAT_F32, FORMAT_F16, FORMAT_Q8_0, FORMAT_Q5_0, FORMAT_Q4_K or FORMAT_Q6_K"
#endif
