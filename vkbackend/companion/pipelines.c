/* Shader modules, layouts and pipelines: identical create-infos share one pipeline.
 *
 * Kompute makes a module, two layouts, a pipeline cache and a pipeline for every algorithm, though the layers of a model
 * differ only in their buffers. Layouts that are defined alike are compatible (Vulkan 1.3, "Pipeline Layout
 * Compatibility"), so a pipeline serves algorithms that each have layouts of their own.
 */
#include <stdlib.h>
#include <string.h>

#include "layer.h"

#define CREATE(type, Name, kind, create)                                                                                    \
    static VKAPI_ATTR VkResult VKAPI_CALL layer_Create##Name(VkDevice device, const Vk##Name##CreateInfo *info,        \
                                                             const VkAllocationCallbacks *allocator, type *made) {     \
        companion_device *d = device_of(device);                                                                       \
        VkResult r = may_call(d, "vkCreate" #Name);                                                                    \
        if (r == VK_SUCCESS) r = called(d, "vkCreate" #Name, create(device, info, allocator, made));                    \
        if (r != VK_SUCCESS) return r;                                                                                 \
        pthread_mutex_lock(&d->lock);                                                                                  \
        object *o = remember(d, kind, HANDLE(*made), 0);                                                               \
        o->content = content_of_##Name(d, info);                                                                       \
        pthread_mutex_unlock(&d->lock);                                                                                \
        return r;                                                                                                      \
    }

#define DESTROY(type, Name, kind)                                                                                      \
    static VKAPI_ATTR void VKAPI_CALL layer_Destroy##Name(VkDevice device, type handle,                                \
                                                          const VkAllocationCallbacks *allocator) {                    \
        companion_device *d = device_of(device);                                                                       \
        bool safe = may_destroy(d);                                                                                    \
        pthread_mutex_lock(&d->lock);                                                                                  \
        bool known = forget(d, kind, HANDLE(handle));                                                                  \
        pthread_mutex_unlock(&d->lock);                                                                                \
        if (known && safe) d->next.Destroy##Name(device, handle, allocator);                                           \
    }

static uint32_t interned(companion_device *d, bytes *b) {
    uint32_t id = intern(d, b->data, b->size);
    free(b->data);
    return id;
}

static uint32_t content_of_ShaderModule(companion_device *d, const VkShaderModuleCreateInfo *info) {
    return intern(d, info->pCode, info->codeSize);
}

static uint32_t content_of_DescriptorSetLayout(companion_device *d, const VkDescriptorSetLayoutCreateInfo *info) {
    bytes key = {0};
    append(&key, &info->flags, sizeof info->flags);
    for (uint32_t i = 0; i < info->bindingCount; i++) {
        const VkDescriptorSetLayoutBinding *b = &info->pBindings[i];
        const uint32_t fields[] = {b->binding, (uint32_t)b->descriptorType, b->descriptorCount, b->stageFlags,
                                   holds_texels(d, b->binding)};
        append(&key, fields, sizeof fields);
    }
    return interned(d, &key);
}

static uint32_t content_of_PipelineLayout(companion_device *d, const VkPipelineLayoutCreateInfo *info) {
    bytes key = {0};
    for (uint32_t i = 0; i < info->setLayoutCount; i++) {
        const object *o = find(d, OBJECT_DESCRIPTOR_SET_LAYOUT, HANDLE(info->pSetLayouts[i]));
        uint32_t content_id = o ? o->content : 0;
        append(&key, &content_id, sizeof content_id);
    }
    append(&key, info->pPushConstantRanges, info->pushConstantRangeCount * sizeof *info->pPushConstantRanges);
    return interned(d, &key);
}

static uint32_t content_of_PipelineCache(companion_device *d, const VkPipelineCacheCreateInfo *info) {
    (void)d, (void)info;
    return 0;
}

static uint32_t content_of_DescriptorPool(companion_device *d, const VkDescriptorPoolCreateInfo *info) {
    (void)d, (void)info;
    return 0;
}

CREATE(VkShaderModule, ShaderModule, OBJECT_SHADER_MODULE, d->next.CreateShaderModule)
CREATE(VkDescriptorSetLayout, DescriptorSetLayout, OBJECT_DESCRIPTOR_SET_LAYOUT, create_layout_with_texels)
CREATE(VkPipelineLayout, PipelineLayout, OBJECT_PIPELINE_LAYOUT, d->next.CreatePipelineLayout)
CREATE(VkPipelineCache, PipelineCache, OBJECT_PIPELINE_CACHE, d->next.CreatePipelineCache)
CREATE(VkDescriptorPool, DescriptorPool, OBJECT_DESCRIPTOR_POOL, create_pool_with_texels)
DESTROY(VkShaderModule, ShaderModule, OBJECT_SHADER_MODULE)
DESTROY(VkDescriptorSetLayout, DescriptorSetLayout, OBJECT_DESCRIPTOR_SET_LAYOUT)
DESTROY(VkPipelineLayout, PipelineLayout, OBJECT_PIPELINE_LAYOUT)
DESTROY(VkPipelineCache, PipelineCache, OBJECT_PIPELINE_CACHE)
DESTROY(VkDescriptorPool, DescriptorPool, OBJECT_DESCRIPTOR_POOL)

static VKAPI_ATTR VkResult VKAPI_CALL layer_AllocateDescriptorSets(VkDevice device,
                                                                   const VkDescriptorSetAllocateInfo *info,
                                                                   VkDescriptorSet *sets) {
    companion_device *d = device_of(device);
    VkResult r = may_call(d, "vkAllocateDescriptorSets");
    if (r != VK_SUCCESS) return r;
    return called(d, "vkAllocateDescriptorSets", d->next.AllocateDescriptorSets(device, info, sets));
}

static VKAPI_ATTR void VKAPI_CALL layer_UpdateDescriptorSets(VkDevice device, uint32_t write_count,
                                                             const VkWriteDescriptorSet *writes, uint32_t copy_count,
                                                             const VkCopyDescriptorSet *copies) {
    companion_device *d = device_of(device);
    if (d->error == VK_SUCCESS) update_sets_with_texels(device, write_count, writes, copy_count, copies);
}

/* ---- pipelines ----------------------------------------------------------------------------------------------------*/

/* What the pipeline is made of, as one interned content; 0 where it has parts that are not looked into. */
static uint32_t content_of_pipeline(companion_device *d, const VkComputePipelineCreateInfo *info, uint32_t subgroup) {
    const object *module = find(d, OBJECT_SHADER_MODULE, HANDLE(info->stage.module));
    const object *layout = find(d, OBJECT_PIPELINE_LAYOUT, HANDLE(info->layout));
    if (d->share_nothing || info->pNext || info->stage.pNext || info->basePipelineHandle || !module || !layout) return 0;
    bytes key = {0};
    const uint32_t fields[] = {module->content, layout->content, info->flags, info->stage.flags, subgroup};
    append(&key, fields, sizeof fields);
    append(&key, info->stage.pName, strlen(info->stage.pName) + 1);
    const VkSpecializationInfo *spec = info->stage.pSpecializationInfo;
    if (spec) {
        append(&key, &spec->mapEntryCount, sizeof spec->mapEntryCount);
        append(&key, spec->pMapEntries, spec->mapEntryCount * sizeof *spec->pMapEntries);
        append(&key, spec->pData, spec->dataSize);
    }
    return interned(d, &key);
}

static VkResult create_pipeline(companion_device *d, VkPipelineCache cache, const VkComputePipelineCreateInfo *info,
                                const VkAllocationCallbacks *allocator, VkPipeline *pipeline) {
    uint32_t subgroup = d->subgroup_size;
    pthread_mutex_lock(&d->lock);
    uint32_t content_id = content_of_pipeline(d, info, subgroup);
    object *same = content_id ? find_content(d, OBJECT_PIPELINE, content_id) : NULL;
    if (same) {
        same->uses++;
        d->pipelines_shared++;
        *pipeline = (VkPipeline)(uintptr_t)same->handle;
        note_created(d, OBJECT_PIPELINE, same->handle);
    }
    pthread_mutex_unlock(&d->lock);
    if (same) return VK_SUCCESS;

    VkComputePipelineCreateInfo copy = *info;
    copy.flags |= VK_PIPELINE_CREATE_DISPATCH_BASE_BIT; /* any launch may be cut into pieces of its grid */
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size = {
        VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO, (void *)copy.stage.pNext, subgroup};
    if (subgroup) {
        copy.stage.pNext = &size;
        if (d->full_subgroups) copy.stage.flags |= VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
    }
    VkResult r = called(d, "vkCreateComputePipelines",
                        d->next.CreateComputePipelines(d->handle, cache, 1, &copy, allocator, pipeline));
    if (r != VK_SUCCESS) return r;
    pthread_mutex_lock(&d->lock);
    object *o = remember(d, OBJECT_PIPELINE, HANDLE(*pipeline), 0);
    o->content = content_id;
    o->uses = 1;
    d->pipelines_created++;
    pthread_mutex_unlock(&d->lock);
    return r;
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_CreateComputePipelines(VkDevice device, VkPipelineCache cache,
                                                                   uint32_t count,
                                                                   const VkComputePipelineCreateInfo *infos,
                                                                   const VkAllocationCallbacks *allocator,
                                                                   VkPipeline *pipelines) {
    companion_device *d = device_of(device);
    memset(pipelines, 0, count * sizeof *pipelines);
    VkResult r = may_call(d, "vkCreateComputePipelines");
    for (uint32_t i = 0; i < count && r == VK_SUCCESS; i++) {
        r = create_pipeline(d, cache, &infos[i], allocator, &pipelines[i]);
    }
    return r;
}

static VKAPI_ATTR void VKAPI_CALL layer_DestroyPipeline(VkDevice device, VkPipeline pipeline,
                                                        const VkAllocationCallbacks *allocator) {
    companion_device *d = device_of(device);
    bool safe = may_destroy(d), last = false;
    pthread_mutex_lock(&d->lock);
    object *o = find(d, OBJECT_PIPELINE, HANDLE(pipeline));
    if (o && --o->uses > 0) {
        note_destroyed(d, OBJECT_PIPELINE, HANDLE(pipeline));
    } else if (o) {
        last = forget(d, OBJECT_PIPELINE, HANDLE(pipeline));
    }
    pthread_mutex_unlock(&d->lock);
    if (last && safe) d->next.DestroyPipeline(device, pipeline, allocator);
}

PFN_vkVoidFunction pipeline_function(const char *name) {
    static const function functions[] = {
        FUNCTION(CreateShaderModule),        FUNCTION(DestroyShaderModule),   FUNCTION(CreateDescriptorSetLayout),
        FUNCTION(DestroyDescriptorSetLayout), FUNCTION(CreatePipelineLayout), FUNCTION(DestroyPipelineLayout),
        FUNCTION(CreatePipelineCache),       FUNCTION(DestroyPipelineCache),  FUNCTION(CreateDescriptorPool),
        FUNCTION(DestroyDescriptorPool),     FUNCTION(AllocateDescriptorSets), FUNCTION(UpdateDescriptorSets),
        FUNCTION(CreateComputePipelines),    FUNCTION(DestroyPipeline),
    };
    return lookup(functions, COUNT(functions), name);
}

void companion_require_subgroup_size(companion_device *d, uint32_t size) { d->subgroup_size = size; }

void companion_share_pipelines(companion_device *d, bool share) { d->share_nothing = !share; }

void companion_pipeline_counts(const companion_device *d, uint64_t *created, uint64_t *shared) {
    *created = d->pipelines_created;
    *shared = d->pipelines_shared;
}
