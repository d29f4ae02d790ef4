#version 450
// Products of a chunk as those of matmul.comp, in packed halves (halves_product.glsl): for devices with 16-bit arithmetic.
#extension GL_GOOGLE_include_directive : require
#include "halves_product.glsl"
