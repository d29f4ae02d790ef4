// 32 numbers in 8 bits: x = d * q with d = max |x| / 127. Below 2^-100 all are zero; an infinity or NaN among them
// makes d one, so that it reaches every result.
#include "magnitudes.glsl"

// What a number is divided by and multiplied with.
struct Step {
    float d, inverse;
};

Step step_of(uint largest) {
    float magnitude = uintBitsToFloat(largest);
    bool zero = magnitude < uintBitsToFloat(27u << 23); // 2^-100; much less, and 127 / magnitude is infinite
    return Step(zero ? 0.0 : magnitude * (1.0 / 127.0), zero ? 0.0 : 127.0 / magnitude);
}

ivec4 quants(vec4 v, Step by) { return ivec4(clamp(roundEven(v * by.inverse), vec4(-127.0), vec4(127.0))); }

uint as_bytes(ivec4 q) { return uint((q.x & 255) | (q.y & 255) << 8 | (q.z & 255) << 16 | q.w << 24); }
