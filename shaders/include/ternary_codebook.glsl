// The codebook of IQ1_S and IQ1_M: 2048 entries of eight weights, two signed bits each, two entries a word.
int ternary_entry(uint entry) { return int(word(entry >> 1) >> (16u * (entry & 1u))); }
vec4 ternary_fields(int bits, int at) {
    return vec4(bitfieldExtract(bits, at, 2), bitfieldExtract(bits, at + 2, 2),
                bitfieldExtract(bits, at + 4, 2), bitfieldExtract(bits, at + 6, 2));
}
