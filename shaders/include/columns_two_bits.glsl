// Two-bit quants in the order of Q2_K: in each half of 128 columns, bits 2s and 2s + 1 of byte l are column 32s + l. A
// unit takes sixteen bytes (side) and two of the four s (pair): both its runs come from the same four words.
uint column_a(uint u) { return (u >> 2) * 128u + ((u & 2u) << 5) + ((u & 1u) << 4); }
uint column_b(uint u) { return column_a(u) + 32u; }
#define UNITS_A_STEP 2u
