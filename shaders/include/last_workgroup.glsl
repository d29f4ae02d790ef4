// For launches of which the last workgroup to finish reads what all of them wrote to coherent buffers. A workgroup is one
// subgroup. Nobody waits for another, so that workgroups may run, and be submitted, in any order and any number at once.
layout(binding = ARRIVALS_BINDING) coherent buffer Arrivals { uint arrivals; }; // 0 between launches

// Whether `of` workgroups have come here, each once, with this one. In uniform control flow.
bool is_last(uint of) {
    subgroupBarrier(); // all lanes' writes
    memoryBarrierBuffer();
    uint before = 0u;
    if (subgroupElect()) before = atomicAdd(arrivals, 1u);
    before = subgroupBroadcastFirst(before);
    if (before + 1u < of) return false;
    if (subgroupElect()) arrivals = 0u;
    memoryBarrierBuffer();
    subgroupBarrier();
    return true;
}
