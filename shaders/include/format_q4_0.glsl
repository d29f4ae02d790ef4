// Q4_0 (ggml block_q4_0, 18 bytes for 32 weights: f16 d, 16 bytes of nibbles), w = d * (q - 8). Low nibbles are columns
// 0..15, high ones 16..31.
// On the device: 4 words a block; from word `scale_base` on all d, packed halves. INTERLEAVED: pieces.glsl.
#define SIGNED_BITS 4
#include "columns_in_order.glsl"
#define PIECES 1u
#define SCALE_APART
#include "pieces.glsl"
Unit load_unit(uint g) {
    Unit r;
    r.da = scale_apart(g); r.ma = 0.0;
    uvec4 nibbles = piece(g, 0u);
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint w = nibbles[i] ^ 0x88888888u; // q - 8 in four bits, signed
        r.q[i] = signed_fields(w, 0, SIGNED_BITS);
        r.q[4u + i] = signed_fields(w, 4, SIGNED_BITS);
    }
    r.db = r.da; r.mb = 0.0;
    return r;
}
