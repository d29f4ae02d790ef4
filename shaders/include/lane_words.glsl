// A latent row's value spread over the lanes so that a lane's words are neighbours, one load: the word and the pair of the
// row that its i-th pair is, whether it has one, and a word of the same block.
uint row_word(uint i) { return gl_SubgroupInvocationID * (LATENT_PAIRS / PAIRS_A_WORD) + i / PAIRS_A_WORD; }
uint row_pair(uint i) { return gl_SubgroupInvocationID * LATENT_PAIRS + i; }
bool held(uint i) { return LATENT / 2u == LATENT_PAIRS * gl_WorkGroupSize.x || row_pair(i) < LATENT / 2u; }

// The same one for all of a lane's words where they lie in one block.
uint scale_word(uint i) {
#ifdef QUANTISED
    if (BLOCK_PAIRS % LATENT_PAIRS == 0u) return row_word(0u);
#endif
    return row_word(i);
}
