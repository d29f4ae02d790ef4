// What changes from replay to replay: cache entries before this chunk, tokens in it, their ids. The host writes it, and the
// greedy choice (argmax.comp) for the token that follows.
#ifndef PARAMS_ACCESS
#define PARAMS_ACCESS readonly
#endif
layout(binding = PARAMS_BINDING) PARAMS_ACCESS buffer Params {
    uint n_past;
    uint n_tokens;
    uint token_ids[];
};
