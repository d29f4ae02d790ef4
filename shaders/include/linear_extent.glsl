// How much of a matrix is live. A cache used as a matrix (per-head K: one row a position; transposed V: one column a
// position) has room for the whole context, of which only the filled part takes part.
uint live_rows() {
#ifdef ROWS_FROM_CACHE
    return n_past + n_tokens;
#else
    return rows;
#endif
}
uint live_units() {
#ifdef UNITS_FROM_CACHE
    return (n_past + n_tokens + 31u) >> 5;
#else
    return units;
#endif
}
