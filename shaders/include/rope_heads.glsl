// Rotates the rope part of every head's query of a token, from q[token][head] to its place in out[token][head]. The
// kernel defines query_pair(i) and put_rotated(i, v), pair i of all, and declares the push constants used here.
void rotate_queries(uint token) {
    uint pairs = rope / 2u;
    for (uint i = gl_SubgroupInvocationID; i < heads * pairs; i += gl_SubgroupSize) {
        uint head = i / pairs, pair = i % pairs;
        uint row = token * heads + head;
        vec2 v = query_pair((row * q_head + q_rope) / 2u + pair);
        put_rotated((row * out_head + out_rope) / 2u + pair, rope_pair(v, n_past + token, pair, pairs, n_high));
    }
}
