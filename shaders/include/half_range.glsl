// Numbers stored as halves, where some may be beyond the largest: these are stored as it, so that scratch holds nothing infinite,
// and the buffer TooLarge at TOO_LARGE_BINDING says 1 after one of them.
layout(binding = TOO_LARGE_BINDING) writeonly buffer TooLarge { uint too_large; };

const float LARGEST_HALF = 65504.0;

void check_half(float magnitude) {
    if (magnitude > LARGEST_HALF) too_large = 1u;
}

uint pack_halves(vec2 v) {
    return packHalf2x16(clamp(v, vec2(-LARGEST_HALF), vec2(LARGEST_HALF)));
}
