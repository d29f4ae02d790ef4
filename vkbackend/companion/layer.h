/* What the layer's files share: the device's state, the functions below us, the object table. */
#ifndef LATENTVK_LAYER_H
#define LATENTVK_LAYER_H

#include <pthread.h>
#include <stddef.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#include "companion.h"

/* Functions of the next layer that this one calls. */
#define DEVICE_FUNCTIONS(X)                                                                                            \
    X(DestroyDevice) X(AllocateMemory) X(FreeMemory) X(MapMemory) X(UnmapMemory) X(CreateBuffer) X(DestroyBuffer)      \
    X(GetBufferMemoryRequirements) X(BindBufferMemory) X(CreateShaderModule) X(DestroyShaderModule)                    \
    X(CreateDescriptorSetLayout) X(DestroyDescriptorSetLayout) X(CreateDescriptorPool) X(DestroyDescriptorPool)        \
    X(AllocateDescriptorSets) X(UpdateDescriptorSets) X(CreatePipelineLayout) X(DestroyPipelineLayout)                 \
    X(CreatePipelineCache) X(DestroyPipelineCache) X(CreateComputePipelines) X(DestroyPipeline) X(CreateCommandPool)   \
    X(DestroyCommandPool) X(AllocateCommandBuffers) X(FreeCommandBuffers) X(BeginCommandBuffer) X(EndCommandBuffer)    \
    X(CmdBindPipeline) X(CmdBindDescriptorSets) X(CmdPushConstants) X(CmdPipelineBarrier) X(CmdDispatch)               \
    X(CmdDispatchBase) X(CmdCopyBuffer) X(CmdWriteTimestamp) X(CmdResetQueryPool) X(CreateQueryPool)                   \
    X(DestroyQueryPool) X(GetQueryPoolResults) X(CreateFence) X(DestroyFence) X(QueueSubmit) X(WaitForFences) \
    X(CreateBufferView) X(DestroyBufferView)

#define INSTANCE_FUNCTIONS(X)                                                                                          \
    X(DestroyInstance) X(EnumerateDeviceExtensionProperties) X(GetPhysicalDeviceProperties)                            \
    X(GetPhysicalDeviceProperties2) X(GetPhysicalDeviceFeatures2) X(GetPhysicalDeviceMemoryProperties)                 \
    X(GetPhysicalDeviceMemoryProperties2) X(CreateDebugUtilsMessengerEXT) X(DestroyDebugUtilsMessengerEXT)

typedef struct instance {
    struct instance *next_instance;
    VkInstance handle;
    uint32_t api_version;
    PFN_vkGetInstanceProcAddr get_proc_addr;
    struct { /* read at creation: later the loader's own lookup begins at the top of the chain again */
#define X(name) PFN_vk##name name;
        INSTANCE_FUNCTIONS(X)
#undef X
    } next;
    VkDebugUtilsMessengerEXT messenger;
} instance;

typedef enum object_kind {
    OBJECT_BUFFER,
    OBJECT_MEMORY,
    OBJECT_SHADER_MODULE,
    OBJECT_DESCRIPTOR_SET_LAYOUT,
    OBJECT_DESCRIPTOR_POOL,
    OBJECT_PIPELINE_LAYOUT,
    OBJECT_PIPELINE_CACHE,
    OBJECT_PIPELINE,
    OBJECT_COMMAND_POOL,
    OBJECT_COMMAND_BUFFER,
    OBJECT_QUERY_POOL,
    OBJECT_FENCE,
    OBJECT_BUFFER_VIEW, /* only counted: it lives and ends with its buffer */
    OBJECT_KINDS
} object_kind;

typedef struct object {
    struct object *next; /* in its bucket */
    uint64_t handle;
    object_kind kind;
    uint32_t content;    /* modules, layouts, pipelines: what they were created from, see intern() */
    uint32_t heap;       /* memory */
    uint32_t queries;    /* query pool: how many */
    uint64_t size;       /* memory, buffer */
    uint64_t view;       /* buffer: its texels, once a binding asked for them; ends with the buffer */
    uint64_t uses;       /* pipeline: how often it was handed out */
    uint64_t parent;     /* command buffer: its pool */
    uint64_t workgroups; /* command buffer: dispatched by what is recorded in it */
    bool started;        /* command buffer: it holds a command */
    bool copied;         /* command buffer: it holds a copy */
} object;

typedef struct submission {
    VkFence fence;
    uint64_t submitted; /* CLOCK_MONOTONIC */
    uint64_t workgroups;
    bool fence_destroyed; /* by Kompute, which does not wait */
} submission;

typedef struct box {
    uint32_t base[3], count[3]; /* workgroups */
} box;

typedef struct created {
    object_kind kind;
    uint64_t handle;
} created;

typedef struct content { /* interned bytes */
    uint64_t hash;
    size_t size;
    void *bytes;
} content;

#define MAX_FEATURES 24

struct companion_device {
    companion_device *next_device;
    VkDevice handle;
    VkPhysicalDevice physical;
    PFN_vkGetDeviceProcAddr get_proc_addr;
    PFN_vkGetPhysicalDeviceMemoryProperties2 memory_properties2; /* of the instance's */
    struct {
#define X(name) PFN_vk##name name;
        DEVICE_FUNCTIONS(X)
#undef X
    } next;
    pthread_mutex_t lock; /* objects, journal, contents, submissions, heaps */

    uint32_t api_version;
    bool supported[MAX_FEATURES], enabled[MAX_FEATURES];
    bool full_subgroups, memory_budget;
    uint32_t smallest_subgroup, largest_subgroup;
    VkPhysicalDeviceMemoryProperties memory;

    object **buckets;
    size_t bucket_count, object_count;
    uint64_t live[OBJECT_KINDS];
    created *journal;
    size_t journal_size, journal_capacity;
    size_t *marks;
    size_t mark_count, mark_capacity;
    content *contents;
    size_t content_count, content_capacity;
    uint64_t pipelines_created, pipelines_shared;
    struct {
        uint64_t live, peak, allocations, failures;
    } heaps[VK_MAX_MEMORY_HEAPS];

    /* Requests, see companion.h */
    bool overlap;
    bool next_is_box;
    box next_box;
    uint32_t subgroup_size;
    VkMemoryPropertyFlags prefer;
    uint32_t texel_bindings;
    uint32_t memory_type_bits; /* of the buffer that memory is allocated for next */

    submission *submissions;
    size_t submission_count, submission_capacity;
    VkResult error;
    const char *error_call;
    bool lost, abandoned;

    uint64_t fallible_calls, fail_in, slow_down;
    VkResult fail_with;
    bool lose_next, share_nothing;
};

/* layer.c: dispatchable handles of one device begin with the same pointer, which the loader put there. */
companion_device *device_of(const void *dispatchable);

/* errors.c: each fallible call is `if ((r = may_call(d, "vkX"))) return r; return called(d, "vkX", next(...));` */
VkResult may_call(companion_device *d, const char *call);
VkResult called(companion_device *d, const char *call, VkResult result);
void plan_failure(companion_device *d); /* what companion_fail_call_of_next_device() asked for */

/* objects.c. remember() also notes the object in the journal while something is being created. */
object *remember(companion_device *d, object_kind kind, uint64_t handle, uint64_t parent);
object *find(companion_device *d, object_kind kind, uint64_t handle);
bool forget(companion_device *d, object_kind kind, uint64_t handle); /* false: unknown, or already gone */
void note_created(companion_device *d, object_kind kind, uint64_t handle);
void note_destroyed(companion_device *d, object_kind kind, uint64_t handle);
object *find_content(companion_device *d, object_kind kind, uint32_t content_id);
uint32_t intern(companion_device *d, const void *bytes, size_t size);
void forget_everything(companion_device *d);

/* layer.c: the function that this layer replaces `name` by; NULL where it does not. */
PFN_vkVoidFunction layer_device_function(const char *name);

/* texels.c: bindings that are texel buffers where Kompute knows storage buffers only. The first three stand for the
 * functions of the next layer. */
VkResult create_layout_with_texels(VkDevice device, const VkDescriptorSetLayoutCreateInfo *info,
                                   const VkAllocationCallbacks *allocator, VkDescriptorSetLayout *layout);
VkResult create_pool_with_texels(VkDevice device, const VkDescriptorPoolCreateInfo *info,
                                 const VkAllocationCallbacks *allocator, VkDescriptorPool *pool);
void update_sets_with_texels(VkDevice device, uint32_t write_count, const VkWriteDescriptorSet *writes,
                             uint32_t copy_count, const VkCopyDescriptorSet *copies);
bool holds_texels(const companion_device *d, uint32_t binding);
VkBufferUsageFlags texel_usage(VkBufferUsageFlags usage); /* of a buffer that may be bound so later */

/* queue.c: nothing is destroyed under the device's hands. */
bool may_destroy(companion_device *d);

/* features.c */
typedef struct feature_chain feature_chain;
feature_chain *feature_chain_for(companion_device *d, const instance *i, const VkDeviceCreateInfo *wanted,
                                 VkDeviceCreateInfo *create);
void feature_chain_free(feature_chain *chain);

/* A growing byte string, what contents are interned from. */
typedef struct bytes {
    unsigned char *data;
    size_t size, capacity;
} bytes;
void append(bytes *b, const void *data, size_t size);

/* One per file: the functions that the layer replaces. */
PFN_vkVoidFunction memory_function(const char *name);
PFN_vkVoidFunction pipeline_function(const char *name);
PFN_vkVoidFunction command_function(const char *name);
PFN_vkVoidFunction queue_function(const char *name);

typedef struct function {
    const char *name;
    PFN_vkVoidFunction address;
} function;
PFN_vkVoidFunction lookup(const function *functions, size_t count, const char *name);
#define FUNCTION(name) {"vk" #name, (PFN_vkVoidFunction)layer_##name}
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
/* Non-dispatchable handles are pointers or 64-bit numbers, as the platform has it. */
#define HANDLE(h) ((uint64_t)(uintptr_t)(h))

#endif
