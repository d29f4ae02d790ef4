/* Device features: Kompute enables none, so what is useful and supported is enabled here, and what is on is reported. */
#include <stdlib.h>
#include <string.h>

#include "layer.h"

/* VK_KHR_cooperative_matrix is younger than some distributions' headers; values from the Vulkan registry. */
#define COOPERATIVE_MATRIX_FEATURES ((VkStructureType)1000506000)
typedef struct cooperative_matrix_features {
    VkStructureType sType;
    void *pNext;
    VkBool32 cooperativeMatrix;
    VkBool32 cooperativeMatrixRobustBufferAccess;
} cooperative_matrix_features;

/* Vulkan wants each feature struct at most once in a chain, so the structs are listed apart from the flags in them. */
struct feature_chain {
    VkPhysicalDeviceFeatures2 core;
    VkPhysicalDevice16BitStorageFeatures storage16;
    VkPhysicalDevice8BitStorageFeatures storage8;
    VkPhysicalDeviceShaderFloat16Int8Features float16_int8;
    VkPhysicalDeviceShaderIntegerDotProductFeatures dot_product;
    VkPhysicalDeviceSubgroupSizeControlFeatures subgroup_size;
    VkPhysicalDeviceSynchronization2Features synchronization2;
    VkPhysicalDeviceMaintenance4Features maintenance4;
    VkPhysicalDeviceBufferDeviceAddressFeatures device_address;
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR executable;
    VkPhysicalDeviceVulkanMemoryModelFeatures memory_model; /* which cooperative matrices need */
    cooperative_matrix_features cooperative_matrix;
    const char **extensions;
};

typedef struct part { /* one struct of the chain, with the extension that brings it below a core version */
    size_t offset;
    VkStructureType type;
    const char *extension;
    uint32_t core; /* 0: in no core version */
} part;

#define PART(member, type, extension, core) {offsetof(struct feature_chain, member), type, extension, core}
static const part PARTS[] = {
    PART(storage16, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES, "VK_KHR_16bit_storage", VK_API_VERSION_1_1),
    PART(storage8, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES, "VK_KHR_8bit_storage", VK_API_VERSION_1_2),
    PART(float16_int8, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES, "VK_KHR_shader_float16_int8",
         VK_API_VERSION_1_2),
    PART(dot_product, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES,
         "VK_KHR_shader_integer_dot_product", VK_API_VERSION_1_3),
    PART(subgroup_size, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES,
         "VK_EXT_subgroup_size_control", VK_API_VERSION_1_3),
    PART(synchronization2, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SYNCHRONIZATION_2_FEATURES, "VK_KHR_synchronization2",
         VK_API_VERSION_1_3),
    PART(maintenance4, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_FEATURES, "VK_KHR_maintenance4",
         VK_API_VERSION_1_3),
    PART(device_address, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES,
         "VK_KHR_buffer_device_address", VK_API_VERSION_1_2),
    PART(executable, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR,
         "VK_KHR_pipeline_executable_properties", 0),
    PART(memory_model, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES, "VK_KHR_vulkan_memory_model",
         VK_API_VERSION_1_2),
    PART(cooperative_matrix, COOPERATIVE_MATRIX_FEATURES, "VK_KHR_cooperative_matrix", 0),
};

typedef struct flag {
    const char *name;
    size_t offset;
} flag;

#define CORE(member) {#member, offsetof(struct feature_chain, core.features.member)}
#define FLAG(part, member) {#member, offsetof(struct feature_chain, part.member)}
static const flag FLAGS[] = {
    CORE(shaderInt16),
    CORE(shaderInt64),
    FLAG(storage16, storageBuffer16BitAccess),
    FLAG(storage8, storageBuffer8BitAccess),
    FLAG(float16_int8, shaderFloat16),
    FLAG(float16_int8, shaderInt8),
    FLAG(dot_product, shaderIntegerDotProduct),
    FLAG(subgroup_size, subgroupSizeControl),
    FLAG(subgroup_size, computeFullSubgroups),
    FLAG(synchronization2, synchronization2),
    FLAG(maintenance4, maintenance4),
    FLAG(device_address, bufferDeviceAddress),
    FLAG(executable, pipelineExecutableInfo),
    FLAG(memory_model, vulkanMemoryModel),
    FLAG(cooperative_matrix, cooperativeMatrix),
};
#define MEMORY_BUDGET COUNT(FLAGS) /* an extension without a feature struct, listed last */
_Static_assert(COUNT(FLAGS) < MAX_FEATURES, "companion_device has too few places");

static char left_out[512];

void companion_leave_out(const char *features) {
    strncpy(left_out, features, sizeof left_out - 1);
    left_out[sizeof left_out - 1] = '\0';
}

static bool is_left_out(const char *name) {
    size_t length = strlen(name);
    for (const char *at = left_out; (at = strstr(at, name)); at += length) {
        bool starts = at == left_out || at[-1] == ',';
        if (starts && (at[length] == '\0' || at[length] == ',')) return true;
    }
    return false;
}

const char *companion_feature_name(uint32_t index) {
    return index < COUNT(FLAGS) ? FLAGS[index].name : index == MEMORY_BUDGET ? "memoryBudget" : NULL;
}
bool companion_feature_supported(const companion_device *d, uint32_t i) { return i <= MEMORY_BUDGET && d->supported[i]; }
bool companion_feature_enabled(const companion_device *d, uint32_t i) { return i <= MEMORY_BUDGET && d->enabled[i]; }

static bool offers(const VkExtensionProperties *all, uint32_t count, const char *name) {
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(all[i].extensionName, name) == 0) return true;
    }
    return false;
}

static VkBool32 *flag_in(feature_chain *c, size_t index) { return (VkBool32 *)((char *)c + FLAGS[index].offset); }

/* Link the parts that this device has behind the core struct. */
static void link_parts(feature_chain *c, const companion_device *d, const VkExtensionProperties *all, uint32_t count) {
    VkBaseOutStructure *last = (VkBaseOutStructure *)&c->core;
    c->core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    for (size_t i = 0; i < COUNT(PARTS); i++) {
        bool core = PARTS[i].core && d->api_version >= PARTS[i].core;
        if (!core && !offers(all, count, PARTS[i].extension)) continue;
        VkBaseOutStructure *s = (VkBaseOutStructure *)((char *)c + PARTS[i].offset);
        s->sType = PARTS[i].type;
        s->pNext = NULL;
        last->pNext = s;
        last = s;
    }
}

static void add_extension(VkDeviceCreateInfo *create, const char **names, const char *extension) {
    for (uint32_t i = 0; i < create->enabledExtensionCount; i++) {
        if (strcmp(names[i], extension) == 0) return;
    }
    names[create->enabledExtensionCount++] = extension;
}

static void read_limits(companion_device *d, const instance *i) {
    VkPhysicalDeviceSubgroupSizeControlProperties sizes = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &sizes};
    i->next.GetPhysicalDeviceProperties2(d->physical, &properties);
    if (sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT) {
        d->smallest_subgroup = sizes.minSubgroupSize;
        d->largest_subgroup = sizes.maxSubgroupSize;
    }
}

/* Fills `create`, a copy of what the application wants, with the features to enable; NULL when memory runs out. */
feature_chain *feature_chain_for(companion_device *d, const instance *i, const VkDeviceCreateInfo *wanted,
                                 VkDeviceCreateInfo *create) {
    uint32_t count = 0;
    i->next.EnumerateDeviceExtensionProperties(d->physical, NULL, &count, NULL);
    VkExtensionProperties *all = calloc(count + 1, sizeof *all);
    feature_chain *c = calloc(1, sizeof *c), *offered = calloc(1, sizeof *offered);
    const char **names = calloc(wanted->enabledExtensionCount + COUNT(PARTS) + 1, sizeof *names);
    *create = *wanted;
    if (!all || !c || !offered || !names) {
        free(all), free(c), free(offered), free(names);
        return NULL;
    }
    i->next.EnumerateDeviceExtensionProperties(d->physical, NULL, &count, all);
    c->extensions = names;
    link_parts(offered, d, all, count);
    i->next.GetPhysicalDeviceFeatures2(d->physical, &offered->core);
    link_parts(c, d, all, count);
    /* With the memory model alone, atomics could not have the device's scope, which GLSL gives them. */
    if (!offered->memory_model.vulkanMemoryModelDeviceScope) offered->memory_model.vulkanMemoryModel = VK_FALSE;
    for (size_t f = 0; f < COUNT(FLAGS); f++) {
        d->supported[f] = *flag_in(offered, f);
        d->enabled[f] = d->supported[f] && !is_left_out(FLAGS[f].name);
        *flag_in(c, f) = d->enabled[f];
        if (d->enabled[f] && strcmp(FLAGS[f].name, "computeFullSubgroups") == 0) d->full_subgroups = true;
        if (d->enabled[f] && strcmp(FLAGS[f].name, "subgroupSizeControl") == 0) read_limits(d, i);
    }
    c->memory_model.vulkanMemoryModelDeviceScope = c->memory_model.vulkanMemoryModel;

    for (uint32_t n = 0; n < wanted->enabledExtensionCount; n++) names[n] = wanted->ppEnabledExtensionNames[n];
    /* A struct of which nothing is on is taken out again: some layers below reject structs younger than they are. */
    VkBaseOutStructure *last = (VkBaseOutStructure *)&c->core;
    for (size_t p = 0; p < COUNT(PARTS); p++) {
        VkBaseOutStructure *s = (VkBaseOutStructure *)((char *)c + PARTS[p].offset);
        size_t end = p + 1 < COUNT(PARTS) ? PARTS[p + 1].offset : offsetof(struct feature_chain, extensions);
        bool on = false;
        for (size_t f = 0; f < COUNT(FLAGS); f++) {
            on |= d->enabled[f] && FLAGS[f].offset > PARTS[p].offset && FLAGS[f].offset < end;
        }
        if (!on) continue;
        if (!PARTS[p].core || d->api_version < PARTS[p].core) add_extension(create, names, PARTS[p].extension);
        last->pNext = s;
        last = s;
    }
    last->pNext = NULL;
    d->supported[MEMORY_BUDGET] = offers(all, count, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    d->enabled[MEMORY_BUDGET] = d->memory_budget = d->supported[MEMORY_BUDGET] && !is_left_out("memoryBudget");
    if (d->memory_budget) add_extension(create, names, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);

    create->ppEnabledExtensionNames = names;
    create->pEnabledFeatures = NULL;
    last->pNext = (void *)wanted->pNext;
    create->pNext = &c->core;
    free(all);
    free(offered);
    return c;
}

void feature_chain_free(feature_chain *c) {
    free(c->extensions);
    free(c);
}

uint32_t companion_api_version(const companion_device *d) { return d->api_version; }

void companion_subgroup_sizes(const companion_device *d, uint32_t *smallest, uint32_t *largest) {
    *smallest = d->smallest_subgroup;
    *largest = d->largest_subgroup;
}
