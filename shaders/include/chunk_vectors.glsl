// Where a chunk's product has its vectors. Plain: batch entry m is a matrix, with inputs of its own or shared ones.
// ROUTED: it is an expert, whose tokens come from the list that group_by_expert made.
// After params.glsl and linear_push.glsl; elements are counted.
#ifdef ROUTED
layout(binding = 4) readonly buffer Counts { uint pair_count[]; };
layout(binding = 5) readonly buffer Pairs { uint pair_of[]; }; // [expert][capacity]: token * experts_used + slot
layout(constant_id = 3) const uint CAPACITY = 1;               // tokens of a chunk, the longest list
layout(constant_id = 4) const uint X_DIVISOR = 1;              // pairs that share one input vector

uint vectors_of(uint matrix) { return pair_count[matrix]; }
uint input_of(uint matrix, uint i) { return x_offset + pair_of[matrix * CAPACITY + i] / X_DIVISOR * x_token; }
uint output_of(uint matrix, uint i) { return y_offset + pair_of[matrix * CAPACITY + i] * y_token; }
#else
uint vectors_of(uint matrix) { return n_tokens; }
uint input_of(uint matrix, uint i) { return x_offset + matrix * x_batch + i * x_token; }
uint output_of(uint matrix, uint i) { return y_offset + matrix * y_batch + i * y_token; }
#endif
