/* Bindings that are uniform texel buffers where Kompute knows storage buffers only.
 *
 * CPU drivers make a load from a storage buffer one lane at a time, with a bounds check for each word; a texel of 16
 * bytes they load whole. companion_texel_bindings() says which bindings of what Kompute creates next are such: their type is
 * exchanged in layouts, pools and writes, and a view of the buffer made at its first such write.
 */
#include <stdlib.h>
#include <string.h>

#include "layer.h"

bool holds_texels(const companion_device *d, uint32_t binding) {
    return binding < 32 && (d->texel_bindings >> binding & 1);
}

VkBufferUsageFlags texel_usage(VkBufferUsageFlags usage) {
    bool storage = usage & VK_BUFFER_USAGE_STORAGE_BUFFER_BIT;
    return storage ? usage | VK_BUFFER_USAGE_UNIFORM_TEXEL_BUFFER_BIT : usage;
}

/* A few descriptors to change; running out of host memory for them is not survivable. */
static void *copied(const void *array, size_t size) {
    void *copy = malloc(size ? size : 1);
    if (!copy) abort();
    if (size) memcpy(copy, array, size);
    return copy;
}

VkResult create_layout_with_texels(VkDevice device, const VkDescriptorSetLayoutCreateInfo *info,
                                   const VkAllocationCallbacks *allocator, VkDescriptorSetLayout *layout) {
    companion_device *d = device_of(device);
    VkDescriptorSetLayoutCreateInfo copy = *info;
    VkDescriptorSetLayoutBinding *bindings = copied(info->pBindings, info->bindingCount * sizeof *bindings);
    for (uint32_t i = 0; i < info->bindingCount; i++) {
        if (!holds_texels(d, bindings[i].binding)) continue;
        bindings[i].descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER;
    }
    copy.pBindings = bindings;
    VkResult r = d->next.CreateDescriptorSetLayout(device, &copy, allocator, layout);
    free(bindings);
    return r;
}

VkResult create_pool_with_texels(VkDevice device, const VkDescriptorPoolCreateInfo *info,
                                 const VkAllocationCallbacks *allocator, VkDescriptorPool *pool) {
    companion_device *d = device_of(device);
    VkDescriptorPoolCreateInfo copy = *info;
    size_t size = info->poolSizeCount * sizeof *info->pPoolSizes;
    VkDescriptorPoolSize *sizes = malloc(size + sizeof *sizes);
    if (!sizes) abort();
    memcpy(sizes, info->pPoolSizes, size);
    uint32_t texels = 0;
    for (uint32_t binding = 0; binding < 32; binding++) texels += holds_texels(d, binding);
    if (texels) {
        sizes[copy.poolSizeCount++] =
            (VkDescriptorPoolSize){VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER, texels * info->maxSets};
    }
    copy.pPoolSizes = sizes;
    VkResult r = d->next.CreateDescriptorPool(device, &copy, allocator, pool);
    free(sizes);
    return r;
}

/* The buffer's texels; VK_NULL_HANDLE after an error, which the device keeps. */
static VkBufferView view_of(companion_device *d, VkBuffer buffer) {
    pthread_mutex_lock(&d->lock);
    object *o = find(d, OBJECT_BUFFER, HANDLE(buffer));
    VkBufferView view = o ? (VkBufferView)(uintptr_t)o->view : VK_NULL_HANDLE;
    uint64_t size = o ? o->size : 0;
    pthread_mutex_unlock(&d->lock);
    if (view || may_call(d, "vkCreateBufferView") != VK_SUCCESS) return view;
    VkBufferViewCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_VIEW_CREATE_INFO,
        .buffer = buffer,
        .format = VK_FORMAT_R32G32B32A32_UINT,
        .range = size / 16 * 16, /* whole texels */
    };
    if (called(d, "vkCreateBufferView", d->next.CreateBufferView(d->handle, &info, NULL, &view)) != VK_SUCCESS)
        return VK_NULL_HANDLE;
    pthread_mutex_lock(&d->lock);
    o = find(d, OBJECT_BUFFER, HANDLE(buffer));
    if (o) o->view = HANDLE(view);
    d->live[OBJECT_BUFFER_VIEW]++;
    pthread_mutex_unlock(&d->lock);
    return view;
}

void update_sets_with_texels(VkDevice device, uint32_t write_count, const VkWriteDescriptorSet *writes,
                             uint32_t copy_count, const VkCopyDescriptorSet *copies) {
    companion_device *d = device_of(device);
    VkWriteDescriptorSet *changed = copied(writes, write_count * sizeof *writes);
    VkBufferView *views = malloc((write_count + 1) * sizeof *views);
    if (!views) abort();
    bool complete = true;
    for (uint32_t i = 0; i < write_count && complete; i++) {
        if (!holds_texels(d, writes[i].dstBinding)) continue;
        views[i] = view_of(d, writes[i].pBufferInfo->buffer);
        complete = views[i] != VK_NULL_HANDLE;
        changed[i].descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER;
        changed[i].pTexelBufferView = &views[i];
    }
    if (complete) d->next.UpdateDescriptorSets(device, write_count, changed, copy_count, copies);
    free(views);
    free(changed);
}

void companion_texel_bindings(companion_device *d, uint32_t bindings) { d->texel_bindings = bindings; }
