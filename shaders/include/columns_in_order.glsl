// A unit's 32 columns follow each other.
uint column_a(uint u) { return u * 32u; }
uint column_b(uint u) { return u * 32u + 16u; }
