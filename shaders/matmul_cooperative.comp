#version 450
// Products of a chunk as those of matmul_halves.comp, by cooperative matrices (halves_product.glsl): for devices that
// multiply 16 x 16 x 16 halves in a subgroup at once. SPV_KHR_cooperative_matrix wants Vulkan's memory model.
#pragma use_vulkan_memory_model
#extension GL_GOOGLE_include_directive : require
#define COOPERATIVE
#include "halves_product.glsl"
