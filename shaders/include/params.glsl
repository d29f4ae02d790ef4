// What changes from replay to replay, written by the host: cache entries before this chunk, tokens in it, their ids.
layout(binding = PARAMS_BINDING) readonly buffer Params {
    uint n_past;
    uint n_tokens;
    uint token_ids[];
};
