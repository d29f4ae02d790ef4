// ARRAY_LOOP goes over an array that a lane keeps to itself. Unrolled, the array lives in registers, as a GPU needs it.
// ARRAYS_IN_MEMORY is for CPU drivers, whose compiler takes tens of seconds over hundreds of values that live through a loop:
// a loop that indexes the array keeps it in memory, their first cache.
#ifdef ARRAYS_IN_MEMORY
#define ARRAY_LOOP [[dont_unroll]]
#else
#define ARRAY_LOOP [[unroll]]
#endif
