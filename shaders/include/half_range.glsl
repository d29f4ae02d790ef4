// Numbers stored as halves, where some may be beyond the largest, or none: these are stored as it, so that scratch holds
// nothing infinite, and the buffer TooLarge at TOO_LARGE_BINDING says 1 after one of them.
#include "magnitudes.glsl"
layout(binding = TOO_LARGE_BINDING) writeonly buffer TooLarge { uint too_large; };

const uint LARGEST_HALF = 0x477FE000u; // 65504 as f32

void check_half(uint magnitude) {
    if (magnitude > LARGEST_HALF) too_large = 1u;
}

uint pack_halves(vec2 v) {
    uvec2 sign = floatBitsToUint(v) & 0x80000000u;
    return packHalf2x16(uintBitsToFloat(sign | min(magnitudes(v), uvec2(LARGEST_HALF))));
}
