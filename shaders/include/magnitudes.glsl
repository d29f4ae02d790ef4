// Magnitudes by their bits, as which they are ordered, infinities too, and a NaN is the largest.
uvec2 magnitudes(vec2 v) { return floatBitsToUint(v) & 0x7FFFFFFFu; }
uvec4 magnitudes(vec4 v) { return floatBitsToUint(v) & 0x7FFFFFFFu; }
