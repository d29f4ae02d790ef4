// Integer dot products of four signed bytes, packed in a word: OpSDot of SPV_KHR_integer_dot_product, by number, for
// glslang knows GL_EXT_integer_dot_product from version 14 on only. Devices have them as shaderIntegerDotProduct.
#extension GL_EXT_spirv_intrinsics : require
// 6019 DotProduct, 6018 DotProductInput4x8BitPacked, 4450 OpSDot; format 0: PackedVectorFormat4x8Bit.
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6019, 6018], id = 4450)
int packed_dot(int a, int b, spirv_literal int format);
