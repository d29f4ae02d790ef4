/* Command buffers: barriers, boxes of dispatches, resets of query pools.
 *
 * Kompute's own barriers order transfers before dispatches and nothing between two dispatches; they are dropped. Every
 * command gets one full memory barrier before it, except a dispatch for which the program declared companion_overlap():
 * forgetting a request costs time, never a wrong result.
 */
#include "layer.h"

#define READ_WRITE (VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT)
#define COPY (VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT)

static VKAPI_ATTR VkResult VKAPI_CALL layer_CreateCommandPool(VkDevice device, const VkCommandPoolCreateInfo *info,
                                                              const VkAllocationCallbacks *allocator,
                                                              VkCommandPool *pool) {
    companion_device *d = device_of(device);
    VkResult r = may_call(d, "vkCreateCommandPool");
    if (r == VK_SUCCESS) r = called(d, "vkCreateCommandPool", d->next.CreateCommandPool(device, info, allocator, pool));
    if (r != VK_SUCCESS) return r;
    pthread_mutex_lock(&d->lock);
    remember(d, OBJECT_COMMAND_POOL, HANDLE(*pool), 0);
    pthread_mutex_unlock(&d->lock);
    return r;
}

/* One buffer of `pool` that is still in the table, or NULL. */
static VkCommandBuffer buffer_of(companion_device *d, VkCommandPool pool) {
    for (size_t i = 0; i < d->bucket_count; i++) {
        for (const object *o = d->buckets[i]; o; o = o->next) {
            if (o->kind == OBJECT_COMMAND_BUFFER && o->parent == HANDLE(pool)) {
                return (VkCommandBuffer)(uintptr_t)o->handle;
            }
        }
    }
    return NULL;
}

static VKAPI_ATTR void VKAPI_CALL layer_DestroyCommandPool(VkDevice device, VkCommandPool pool,
                                                           const VkAllocationCallbacks *allocator) {
    companion_device *d = device_of(device);
    bool safe = may_destroy(d);
    pthread_mutex_lock(&d->lock);
    bool known = forget(d, OBJECT_COMMAND_POOL, HANDLE(pool));
    if (known && d->live[OBJECT_COMMAND_BUFFER] > d->live[OBJECT_COMMAND_POOL]) {
        VkCommandBuffer left;
        while ((left = buffer_of(d, pool))) forget(d, OBJECT_COMMAND_BUFFER, HANDLE(left));
    }
    pthread_mutex_unlock(&d->lock);
    if (known && safe) d->next.DestroyCommandPool(device, pool, allocator);
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_AllocateCommandBuffers(VkDevice device,
                                                                   const VkCommandBufferAllocateInfo *info,
                                                                   VkCommandBuffer *buffers) {
    companion_device *d = device_of(device);
    VkResult r = may_call(d, "vkAllocateCommandBuffers");
    if (r == VK_SUCCESS) {
        r = called(d, "vkAllocateCommandBuffers", d->next.AllocateCommandBuffers(device, info, buffers));
    }
    if (r != VK_SUCCESS) return r;
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < info->commandBufferCount; i++) {
        remember(d, OBJECT_COMMAND_BUFFER, HANDLE(buffers[i]), HANDLE(info->commandPool));
    }
    pthread_mutex_unlock(&d->lock);
    return r;
}

static VKAPI_ATTR void VKAPI_CALL layer_FreeCommandBuffers(VkDevice device, VkCommandPool pool, uint32_t count,
                                                           const VkCommandBuffer *buffers) {
    companion_device *d = device_of(device);
    bool safe = may_destroy(d);
    for (uint32_t i = 0; i < count; i++) {
        pthread_mutex_lock(&d->lock);
        bool known = forget(d, OBJECT_COMMAND_BUFFER, HANDLE(buffers[i]));
        pthread_mutex_unlock(&d->lock);
        if (known && safe) d->next.FreeCommandBuffers(device, pool, 1, &buffers[i]);
    }
}

/* ---- recording ----------------------------------------------------------------------------------------------------*/

/* The command buffer's record, NULL where recording would only follow a failed call. */
static object *recording(companion_device *d, VkCommandBuffer buffer) {
    if (d->error != VK_SUCCESS || d->lost) return NULL;
    pthread_mutex_lock(&d->lock);
    object *o = find(d, OBJECT_COMMAND_BUFFER, HANDLE(buffer));
    pthread_mutex_unlock(&d->lock);
    return o;
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_BeginCommandBuffer(VkCommandBuffer buffer,
                                                               const VkCommandBufferBeginInfo *info) {
    companion_device *d = device_of(buffer);
    VkResult r = may_call(d, "vkBeginCommandBuffer");
    object *o = recording(d, buffer);
    if (r != VK_SUCCESS || !o) return r;
    o->started = o->copied = false;
    o->workgroups = 0;
    return called(d, "vkBeginCommandBuffer", d->next.BeginCommandBuffer(buffer, info));
}

static void barrier(companion_device *d, VkCommandBuffer buffer, object *o, VkPipelineStageFlags to,
                    VkAccessFlags access) {
    /* What ran before this command buffer may have been a copy; inside it that is known. */
    bool copies = !o->started || o->copied;
    VkMemoryBarrier memory = {
        VK_STRUCTURE_TYPE_MEMORY_BARRIER, NULL,
        VK_ACCESS_SHADER_WRITE_BIT | (copies ? VK_ACCESS_TRANSFER_WRITE_BIT : 0), access};
    VkPipelineStageFlags from = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | (copies ? VK_PIPELINE_STAGE_TRANSFER_BIT : 0);
    d->next.CmdPipelineBarrier(buffer, from, to, 0, 1, &memory, 0, NULL, 0, NULL);
    o->started = true;
}

/* Results are for the host to read once the fence is signalled. */
static VKAPI_ATTR VkResult VKAPI_CALL layer_EndCommandBuffer(VkCommandBuffer buffer) {
    companion_device *d = device_of(buffer);
    object *o = recording(d, buffer);
    VkResult r = may_call(d, "vkEndCommandBuffer");
    if (r != VK_SUCCESS || !o) return r;
    if (o->started) barrier(d, buffer, o, VK_PIPELINE_STAGE_HOST_BIT, VK_ACCESS_HOST_READ_BIT);
    return called(d, "vkEndCommandBuffer", d->next.EndCommandBuffer(buffer));
}

static VKAPI_ATTR void VKAPI_CALL layer_CmdPipelineBarrier(VkCommandBuffer buffer, VkPipelineStageFlags from,
                                                           VkPipelineStageFlags to, VkDependencyFlags flags,
                                                           uint32_t memory_count, const VkMemoryBarrier *memory,
                                                           uint32_t buffer_count, const VkBufferMemoryBarrier *buffers,
                                                           uint32_t image_count, const VkImageMemoryBarrier *images) {
    (void)buffer, (void)from, (void)to, (void)flags, (void)memory_count, (void)memory, (void)buffer_count;
    (void)buffers, (void)image_count, (void)images;
}

static VKAPI_ATTR void VKAPI_CALL layer_CmdDispatch(VkCommandBuffer buffer, uint32_t x, uint32_t y, uint32_t z) {
    companion_device *d = device_of(buffer);
    object *o = recording(d, buffer);
    const box whole = {{0, 0, 0}, {x, y, z}}, piece = d->next_is_box ? d->next_box : whole;
    bool overlap = d->overlap;
    d->overlap = d->next_is_box = false;
    if (!o) return;
    if (!o->started || !overlap) barrier(d, buffer, o, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, READ_WRITE);
    const uint32_t *base = piece.base, *count = piece.count;
    o->workgroups += (uint64_t)count[0] * count[1] * count[2];
    if (base[0] | base[1] | base[2]) {
        d->next.CmdDispatchBase(buffer, base[0], base[1], base[2], count[0], count[1], count[2]);
    } else {
        d->next.CmdDispatch(buffer, count[0], count[1], count[2]);
    }
}

static VKAPI_ATTR void VKAPI_CALL layer_CmdCopyBuffer(VkCommandBuffer buffer, VkBuffer source, VkBuffer target,
                                                      uint32_t count, const VkBufferCopy *regions) {
    companion_device *d = device_of(buffer);
    object *o = recording(d, buffer);
    if (!o) return;
    barrier(d, buffer, o, VK_PIPELINE_STAGE_TRANSFER_BIT, COPY);
    o->copied = true;
    d->next.CmdCopyBuffer(buffer, source, target, count, regions);
}

static VKAPI_ATTR void VKAPI_CALL layer_CmdBindPipeline(VkCommandBuffer buffer, VkPipelineBindPoint point,
                                                        VkPipeline pipeline) {
    companion_device *d = device_of(buffer);
    if (recording(d, buffer)) d->next.CmdBindPipeline(buffer, point, pipeline);
}

static VKAPI_ATTR void VKAPI_CALL layer_CmdBindDescriptorSets(VkCommandBuffer buffer, VkPipelineBindPoint point,
                                                              VkPipelineLayout layout, uint32_t first, uint32_t count,
                                                              const VkDescriptorSet *sets, uint32_t offset_count,
                                                              const uint32_t *offsets) {
    companion_device *d = device_of(buffer);
    if (recording(d, buffer)) {
        d->next.CmdBindDescriptorSets(buffer, point, layout, first, count, sets, offset_count, offsets);
    }
}

static VKAPI_ATTR void VKAPI_CALL layer_CmdPushConstants(VkCommandBuffer buffer, VkPipelineLayout layout,
                                                         VkShaderStageFlags stages, uint32_t offset, uint32_t size,
                                                         const void *values) {
    companion_device *d = device_of(buffer);
    if (recording(d, buffer)) d->next.CmdPushConstants(buffer, layout, stages, offset, size, values);
}

/* Kompute writes query 0 first, never resets the pool, and does not stop at its end. */
static VKAPI_ATTR void VKAPI_CALL layer_CmdWriteTimestamp(VkCommandBuffer buffer, VkPipelineStageFlagBits stage,
                                                          VkQueryPool pool, uint32_t query) {
    companion_device *d = device_of(buffer);
    if (!recording(d, buffer)) return;
    pthread_mutex_lock(&d->lock);
    const object *o = find(d, OBJECT_QUERY_POOL, HANDLE(pool));
    uint32_t queries = o ? o->queries : 0;
    pthread_mutex_unlock(&d->lock);
    if (query >= queries) return;
    if (query == 0) d->next.CmdResetQueryPool(buffer, pool, 0, queries);
    d->next.CmdWriteTimestamp(buffer, stage, pool, query);
}

PFN_vkVoidFunction command_function(const char *name) {
    static const function functions[] = {
        FUNCTION(CreateCommandPool),      FUNCTION(DestroyCommandPool), FUNCTION(AllocateCommandBuffers),
        FUNCTION(FreeCommandBuffers),     FUNCTION(BeginCommandBuffer), FUNCTION(EndCommandBuffer),
        FUNCTION(CmdPipelineBarrier),     FUNCTION(CmdDispatch),        FUNCTION(CmdCopyBuffer),
        FUNCTION(CmdBindPipeline),        FUNCTION(CmdBindDescriptorSets),
        FUNCTION(CmdPushConstants),       FUNCTION(CmdWriteTimestamp),
    };
    return lookup(functions, COUNT(functions), name);
}

void companion_overlap(companion_device *d) { d->overlap = true; }

void companion_dispatch_box(companion_device *d, const uint32_t base[3], const uint32_t count[3]) {
    for (int i = 0; i < 3; i++) {
        d->next_box.base[i] = base[i];
        d->next_box.count[i] = count[i];
    }
    d->next_is_box = true;
}
