// Push constants shared by the matrix-vector and matrix-matrix kernels. Offsets and strides in elements.
layout(push_constant) uniform Push {
    uint rows;         // output rows of one matrix
    uint units;        // units of 32 columns in a row
    uint scale_base;   // word where a format's separate scales begin
    uint matrix_first; // matrices [matrix_first, matrix_end) of the tensor lie in this buffer
    uint matrix_end;
    uint x_offset;     // of the first input vector
    uint x_batch;      // between the inputs of two batch entries; 0 when they share one
    uint x_token;      // between the inputs of two tokens
    uint y_offset;
    uint y_batch;
    uint y_token;
    uint accumulate;   // 1: add to what is there (the residual stream)
#ifdef LANES_ALONG_ROW
    uint tiles_x;      // of the grid, whose z goes on where x ends
#endif
#ifdef SUMMED
    uint slots;        // experts whose products are summed
#endif
#ifdef ABSORBS
    uint latent;       // elements, as those that follow
    uint rope;
    uint kv_first;     // where the token's latent and key part begin
    uint kv_token;
    uint n_high;       // rows of the rope tables' coarse part
    float eps;         // of the latent's norm
    uint heads;
    uint q_head;       // of one head's query
    uint q_rope;       // element of it where the rope part begins
    uint out_head;     // the same of the output
    uint out_rope;
#endif
#ifdef NORMED
    float eps;         // of the input's norm
#endif
#ifdef ROUTES
#include "choice_push.glsl"
#endif
};
