// Products of a tile of weights with a tile of inputs, both halves in shared memory, summed in f32 over units of 32 columns.
// The tile is rows of 32 halves, ROWS of weights and behind them TOKENS of inputs, PITCH pieces of 16 bytes apart: with
// one piece of padding eight rows begin in different banks. It is one subgroup's, and so are all barriers here.
//   void clear_sums()       before the first unit
//   void add_unit()         what the tile holds is multiplied and added
//   void stage_sums(uint g) the sums of tokens 16 g to 16 g + 15 replace the tile, f32, [token][row], STAGED pieces a token
// COOPERATIVE: matrices of 16 x 16 x 16 (VK_KHR_cooperative_matrix) at subgroup scope; ROWS and TOKENS are multiples of 16.
// Else each lane makes some rows by some tokens in packed halves: of a unit the even columns are summed in one half, the
// odd ones in another, 16 terms each, and both are added to the f32.
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require

const uint PITCH = 5u, STAGED = ROWS / 4u + 1u;
shared uvec4 tile[(ROWS + TOKENS) * PITCH];

#ifdef COOPERATIVE
#extension GL_EXT_spirv_intrinsics : require
// SPV_KHR_cooperative_matrix by its numbers, for compilers that do not know GL_KHR_cooperative_matrix. The first operand of
// a type is the width of its elements, in whose place vkbackend/cooperative.py puts the type; operands with a name become
// constants of the module.
const uint HALF = 16u, FLOAT = 32u, SIDE = 16u, SUBGROUP = gl_ScopeSubgroup, OF_A = 0u, OF_B = 1u, OF_SUM = 2u;
#define MATRIX(width, use) \
    spirv_type(extensions = ["SPV_KHR_cooperative_matrix"], capabilities = [6022], id = 4456, \
               width, SUBGROUP, SIDE, SIDE, use)
#define MatrixA MATRIX(HALF, OF_A)
#define MatrixB MATRIX(HALF, OF_B)
#define Sums MATRIX(FLOAT, OF_SUM)
// The last operands of loads are NonPrivatePointer and MakePointerVisible, of stores MakePointerAvailable, with the scope,
// as the compiler adds them to all other accesses of shared memory.
#define SEEN 0x30u, SUBGROUP
#define SHOWN 0x28u, SUBGROUP
#define MEMORY spirv_by_reference uvec4 first
#define ORDER uint by_column, uint pitch, spirv_literal uint access, uint scope
spirv_instruction(id = 4457) MatrixA load_a(MEMORY, ORDER);
spirv_instruction(id = 4457) MatrixB load_b(MEMORY, ORDER);
spirv_instruction(id = 4457) Sums load_sums(MEMORY, ORDER);
spirv_instruction(id = 4458) void store_sums(MEMORY, Sums sums, ORDER);
spirv_instruction(id = 4459) Sums multiply_add(MatrixA a, MatrixB b, Sums sums);

const uint DOWN = ROWS / SIDE, ACROSS = TOKENS / SIDE;
Sums sums[DOWN * ACROSS];

void clear_sums() {
    for (uint i = gl_SubgroupInvocationID; i < SIDE * PITCH; i += gl_SubgroupSize) tile[i] = uvec4(0u);
    subgroupBarrier();
    Sums none = load_sums(tile[0], 0u, PITCH, SEEN);
    [[unroll]] for (uint i = 0u; i < DOWN * ACROSS; i++) sums[i] = none;
    subgroupBarrier();
}

void add_unit() {
    [[unroll]] for (uint run = 0u; run < 2u; run++) { // 16 columns, two pieces
        MatrixB b[ACROSS];
        [[unroll]] for (uint t = 0u; t < ACROSS; t++)
            b[t] = load_b(tile[(ROWS + SIDE * t) * PITCH + 2u * run], 1u, PITCH, SEEN);
        [[unroll]] for (uint r = 0u; r < DOWN; r++) {
            MatrixA a = load_a(tile[SIDE * r * PITCH + 2u * run], 0u, PITCH, SEEN);
            [[unroll]] for (uint t = 0u; t < ACROSS; t++) sums[r * ACROSS + t] = multiply_add(a, b[t], sums[r * ACROSS + t]);
        }
    }
}

void stage_sums(uint g) {
    [[unroll]] for (uint t = 0u; t < ACROSS; t++) {
        if (t == g) {
            [[unroll]] for (uint r = 0u; r < DOWN; r++)
                store_sums(tile[SIDE * r / 4u], sums[r * ACROSS + t], 1u, STAGED, SHOWN);
        }
    }
}
#else
// Lanes stand ABREAST beside each other over the tokens, the others over the rows, so that a lane's loads serve many sums.
const uint ABREAST = gl_WorkGroupSize.x < 32u ? 2u : 4u, ROW_STEP = gl_WorkGroupSize.x / ABREAST;
const uint DOWN = ROWS / ROW_STEP, ACROSS = TOKENS / ABREAST;
float sums[DOWN * ACROSS];

void clear_sums() {
    ARRAY_LOOP for (uint i = 0u; i < DOWN * ACROSS; i++) sums[i] = 0.0;
}

void add_unit() {
    uint row = gl_SubgroupInvocationID / ABREAST, token = gl_SubgroupInvocationID % ABREAST;
    f16vec2 part[DOWN * ACROSS];
    ARRAY_LOOP for (uint i = 0u; i < DOWN * ACROSS; i++) part[i] = f16vec2(0.0);
    [[dont_unroll]] for (uint piece = 0u; piece < 4u; piece++) {
        uvec4 w[DOWN];
        [[unroll]] for (uint r = 0u; r < DOWN; r++) w[r] = tile[(r * ROW_STEP + row) * PITCH + piece];
        ARRAY_LOOP for (uint t = 0u; t < ACROSS; t++) {
            uvec4 x = tile[(ROWS + t * ABREAST + token) * PITCH + piece];
            [[unroll]] for (uint r = 0u; r < DOWN; r++) {
                [[unroll]] for (uint k = 0u; k < 4u; k++)
                    part[r * ACROSS + t] = fma(unpackFloat2x16(w[r][k]), unpackFloat2x16(x[k]), part[r * ACROSS + t]);
            }
        }
    }
    ARRAY_LOOP for (uint i = 0u; i < DOWN * ACROSS; i++) sums[i] += float(part[i].x) + float(part[i].y);
}

void stage_sums(uint g) {
    uint row = gl_SubgroupInvocationID / ABREAST, token = gl_SubgroupInvocationID % ABREAST;
    ARRAY_LOOP for (uint t = 0u; t < ACROSS; t++) {
        if (t * ABREAST / 16u == g) {
            uint at = (t * ABREAST + token - 16u * g) * STAGED;
            [[unroll]] for (uint r = 0u; r < DOWN; r++) {
                uint i = r * ROW_STEP + row;
                tile[at + i / 4u][i & 3u] = floatBitsToUint(sums[r * ACROSS + t]);
            }
        }
    }
}
#endif
