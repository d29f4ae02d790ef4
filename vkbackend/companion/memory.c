/* Buffers and memory: which memory type serves a request, and what each heap holds. */
#include "layer.h"

#define HOST (VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT)

static VKAPI_ATTR VkResult VKAPI_CALL layer_CreateBuffer(VkDevice device, const VkBufferCreateInfo *info,
                                                         const VkAllocationCallbacks *allocator, VkBuffer *buffer) {
    companion_device *d = device_of(device);
    VkBufferCreateInfo copy = *info;
    copy.usage = texel_usage(info->usage);
    VkResult r = may_call(d, "vkCreateBuffer");
    if (r == VK_SUCCESS) r = called(d, "vkCreateBuffer", d->next.CreateBuffer(device, &copy, allocator, buffer));
    if (r != VK_SUCCESS) return r;
    pthread_mutex_lock(&d->lock);
    remember(d, OBJECT_BUFFER, HANDLE(*buffer), 0)->size = info->size;
    pthread_mutex_unlock(&d->lock);
    return r;
}

static VKAPI_ATTR void VKAPI_CALL layer_DestroyBuffer(VkDevice device, VkBuffer buffer,
                                                      const VkAllocationCallbacks *allocator) {
    companion_device *d = device_of(device);
    bool safe = may_destroy(d);
    pthread_mutex_lock(&d->lock);
    const object *o = find(d, OBJECT_BUFFER, HANDLE(buffer));
    VkBufferView view = o ? (VkBufferView)(uintptr_t)o->view : VK_NULL_HANDLE;
    bool known = forget(d, OBJECT_BUFFER, HANDLE(buffer));
    if (view) d->live[OBJECT_BUFFER_VIEW]--;
    pthread_mutex_unlock(&d->lock);
    if (known && safe && view) d->next.DestroyBufferView(device, view, allocator);
    if (known && safe) d->next.DestroyBuffer(device, buffer, allocator);
}

static VKAPI_ATTR void VKAPI_CALL layer_GetBufferMemoryRequirements(VkDevice device, VkBuffer buffer,
                                                                    VkMemoryRequirements *requirements) {
    companion_device *d = device_of(device);
    if (d->error != VK_SUCCESS) { /* the buffer may not exist; Kompute looks for a type and goes on to allocate */
        *requirements = (VkMemoryRequirements){4, 4, UINT32_MAX};
        return;
    }
    d->next.GetBufferMemoryRequirements(device, buffer, requirements);
    d->memory_type_bits = requirements->memoryTypeBits;
}

static uint32_t count_bits(uint32_t flags) { return (uint32_t)__builtin_popcount(flags); }

/* Memory types that can take the place of `chosen`, those with most of the preferred properties first. Kompute asks for
 * host-visible and coherent memory, or for device-local memory, and takes the first type that has it. */
static uint32_t candidates(const companion_device *d, uint32_t chosen, uint32_t order[VK_MAX_MEMORY_TYPES]) {
    const VkMemoryType *types = d->memory.memoryTypes;
    VkMemoryPropertyFlags needed = (types[chosen].propertyFlags & HOST) == HOST ? HOST : VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
    VkMemoryPropertyFlags special = VK_MEMORY_PROPERTY_LAZILY_ALLOCATED_BIT | VK_MEMORY_PROPERTY_PROTECTED_BIT |
                                    VK_MEMORY_PROPERTY_DEVICE_COHERENT_BIT_AMD;
    uint32_t count = 0;
    order[count++] = chosen;
    for (uint32_t i = 0; i < d->memory.memoryTypeCount; i++) {
        VkMemoryPropertyFlags flags = types[i].propertyFlags;
        if (i == chosen || !(d->memory_type_bits >> i & 1) || (flags & needed) != needed || flags & special) continue;
        uint32_t place = count++;
        while (place > 0 && count_bits(flags & d->prefer) > count_bits(types[order[place - 1]].propertyFlags & d->prefer)) {
            order[place] = order[place - 1];
            place--;
        }
        order[place] = i;
    }
    return count;
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_AllocateMemory(VkDevice device, const VkMemoryAllocateInfo *info,
                                                           const VkAllocationCallbacks *allocator,
                                                           VkDeviceMemory *memory) {
    companion_device *d = device_of(device);
    uint32_t order[VK_MAX_MEMORY_TYPES];
    uint32_t count = candidates(d, info->memoryTypeIndex, order), heap = 0;
    VkResult r = may_call(d, "vkAllocateMemory");
    if (r == VK_SUCCESS) {
        /* A full heap is no failure while another one serves. */
        for (uint32_t i = 0; i < count; i++) {
            VkMemoryAllocateInfo copy = *info;
            copy.memoryTypeIndex = order[i];
            heap = d->memory.memoryTypes[order[i]].heapIndex;
            r = d->next.AllocateMemory(device, &copy, allocator, memory);
            if (r != VK_ERROR_OUT_OF_DEVICE_MEMORY) break;
        }
        r = called(d, "vkAllocateMemory", r);
    } else {
        heap = d->memory.memoryTypes[order[0]].heapIndex;
    }
    pthread_mutex_lock(&d->lock);
    if (r != VK_SUCCESS) {
        d->heaps[heap].failures++;
    } else {
        object *o = remember(d, OBJECT_MEMORY, HANDLE(*memory), 0);
        o->heap = heap;
        o->size = info->allocationSize;
        d->heaps[heap].allocations++;
        d->heaps[heap].live += o->size;
        if (d->heaps[heap].live > d->heaps[heap].peak) d->heaps[heap].peak = d->heaps[heap].live;
    }
    pthread_mutex_unlock(&d->lock);
    return r;
}

static VKAPI_ATTR void VKAPI_CALL layer_FreeMemory(VkDevice device, VkDeviceMemory memory,
                                                   const VkAllocationCallbacks *allocator) {
    companion_device *d = device_of(device);
    bool safe = may_destroy(d);
    pthread_mutex_lock(&d->lock);
    object *o = find(d, OBJECT_MEMORY, HANDLE(memory));
    bool known = o != NULL;
    if (known) {
        d->heaps[o->heap].allocations--;
        d->heaps[o->heap].live -= o->size;
        forget(d, OBJECT_MEMORY, HANDLE(memory));
    }
    pthread_mutex_unlock(&d->lock);
    if (known && safe) d->next.FreeMemory(device, memory, allocator);
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_BindBufferMemory(VkDevice device, VkBuffer buffer, VkDeviceMemory memory,
                                                             VkDeviceSize offset) {
    companion_device *d = device_of(device);
    VkResult r = may_call(d, "vkBindBufferMemory");
    if (r != VK_SUCCESS) return r;
    return called(d, "vkBindBufferMemory", d->next.BindBufferMemory(device, buffer, memory, offset));
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_MapMemory(VkDevice device, VkDeviceMemory memory, VkDeviceSize offset,
                                                      VkDeviceSize size, VkMemoryMapFlags flags, void **data) {
    companion_device *d = device_of(device);
    VkResult r = may_call(d, "vkMapMemory");
    if (r != VK_SUCCESS) return r;
    return called(d, "vkMapMemory", d->next.MapMemory(device, memory, offset, size, flags, data));
}

static VKAPI_ATTR void VKAPI_CALL layer_UnmapMemory(VkDevice device, VkDeviceMemory memory) {
    companion_device *d = device_of(device);
    pthread_mutex_lock(&d->lock);
    bool known = find(d, OBJECT_MEMORY, HANDLE(memory)) != NULL;
    pthread_mutex_unlock(&d->lock);
    if (known && may_destroy(d)) d->next.UnmapMemory(device, memory);
}

/* Kompute flushes sizes that are no multiple of nonCoherentAtomSize; its memory is coherent and needs no flush. */
static VKAPI_ATTR VkResult VKAPI_CALL layer_FlushMappedMemoryRanges(VkDevice device, uint32_t count,
                                                                    const VkMappedMemoryRange *ranges) {
    (void)device, (void)count, (void)ranges;
    return VK_SUCCESS;
}

PFN_vkVoidFunction memory_function(const char *name) {
    static const function functions[] = {
        FUNCTION(CreateBuffer),     FUNCTION(DestroyBuffer), FUNCTION(GetBufferMemoryRequirements),
        FUNCTION(AllocateMemory),   FUNCTION(FreeMemory),    FUNCTION(BindBufferMemory),
        FUNCTION(MapMemory),        FUNCTION(UnmapMemory),   FUNCTION(FlushMappedMemoryRanges),
    };
    return lookup(functions, COUNT(functions), name);
}

void companion_prefer_memory(companion_device *d, uint32_t flags) { d->prefer = flags; }

bool companion_heap_use(companion_device *d, uint32_t index, companion_heap *heap) {
    if (index >= d->memory.memoryHeapCount) return false;
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    if (d->memory_budget) { /* never on a device without heaps: Mesa 25's null device crashes on the question */
        VkPhysicalDeviceMemoryProperties2 properties = {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2, &budget, {0}};
        d->memory_properties2(d->physical, &properties);
    }
    pthread_mutex_lock(&d->lock);
    heap->size = d->memory.memoryHeaps[index].size;
    heap->flags = d->memory.memoryHeaps[index].flags;
    heap->live = d->heaps[index].live;
    heap->peak = d->heaps[index].peak;
    heap->allocations = d->heaps[index].allocations;
    heap->failures = d->heaps[index].failures;
    heap->budget = d->memory_budget ? budget.heapBudget[index] : heap->size;
    heap->usage = d->memory_budget ? budget.heapUsage[index] : heap->live;
    pthread_mutex_unlock(&d->lock);
    return true;
}
