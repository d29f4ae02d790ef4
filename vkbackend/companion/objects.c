/* What exists on a device: a hash table of live objects, a journal of what is being created, and interned contents.
 *
 * The table answers "how many are left" for leak tests and holds what later calls need to know of a handle. The journal
 * undoes a half-made Kompute object. Interning gives equal byte strings one number, so that "identical create-info" is
 * a comparison of numbers.
 */
#include <stdlib.h>
#include <string.h>

#include "layer.h"

static const char *const NAMES[OBJECT_KINDS] = {
    "buffer",         "memory",          "shader_module",  "descriptor_set_layout", "descriptor_pool",
    "pipeline_layout", "pipeline_cache", "pipeline",       "command_pool",          "command_buffer",
    "query_pool",     "fence",           "buffer_view",
};

/* Running out of host memory for a few bytes of bookkeeping is not survivable. */
static void *grown(void *array, size_t *capacity, size_t needed, size_t item) {
    if (needed <= *capacity) return array;
    size_t wanted = *capacity ? *capacity * 2 : 64;
    while (wanted < needed) wanted *= 2;
    array = realloc(array, wanted * item);
    if (!array) abort();
    *capacity = wanted;
    return array;
}

void append(bytes *b, const void *data, size_t size) {
    b->data = grown(b->data, &b->capacity, b->size + size, 1);
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
}

static size_t bucket_of(const companion_device *d, object_kind kind, uint64_t handle) {
    uint64_t hash = (handle ^ (uint64_t)kind << 56) * 0x9E3779B97F4A7C15u; /* Fibonacci hashing */
    return (size_t)(hash >> 32) & (d->bucket_count - 1);
}

static void grow_buckets(companion_device *d) {
    if (d->object_count < d->bucket_count) return;
    object **old = d->buckets;
    size_t count = d->bucket_count;
    d->bucket_count = count ? count * 2 : 1024;
    d->buckets = calloc(d->bucket_count, sizeof *d->buckets);
    if (!d->buckets) abort();
    for (size_t i = 0; i < count; i++) {
        for (object *o = old[i], *next; o; o = next) {
            next = o->next;
            object **bucket = &d->buckets[bucket_of(d, o->kind, o->handle)];
            o->next = *bucket;
            *bucket = o;
        }
    }
    free(old);
}

object *find(companion_device *d, object_kind kind, uint64_t handle) {
    object *o = d->bucket_count ? d->buckets[bucket_of(d, kind, handle)] : NULL;
    while (o && (o->handle != handle || o->kind != kind)) o = o->next;
    return o;
}

object *find_content(companion_device *d, object_kind kind, uint32_t content_id) {
    for (size_t i = 0; i < d->bucket_count; i++) {
        for (object *o = d->buckets[i]; o; o = o->next) {
            if (o->kind == kind && o->content == content_id) return o;
        }
    }
    return NULL;
}

void note_created(companion_device *d, object_kind kind, uint64_t handle) {
    if (d->mark_count == 0) return;
    d->journal = grown(d->journal, &d->journal_capacity, d->journal_size + 1, sizeof *d->journal);
    d->journal[d->journal_size++] = (created){kind, handle};
}

void note_destroyed(companion_device *d, object_kind kind, uint64_t handle) {
    for (size_t i = d->journal_size; i-- > 0;) {
        if (d->journal[i].handle != handle || d->journal[i].kind != kind) continue;
        memmove(&d->journal[i], &d->journal[i + 1], (--d->journal_size - i) * sizeof *d->journal);
        return;
    }
}

object *remember(companion_device *d, object_kind kind, uint64_t handle, uint64_t parent) {
    grow_buckets(d);
    object *o = calloc(1, sizeof *o);
    if (!o) abort();
    o->kind = kind;
    o->handle = handle;
    o->parent = parent;
    object **bucket = &d->buckets[bucket_of(d, kind, handle)];
    o->next = *bucket;
    *bucket = o;
    d->object_count++;
    d->live[kind]++;
    note_created(d, kind, handle);
    return o;
}

bool forget(companion_device *d, object_kind kind, uint64_t handle) {
    object **place = d->bucket_count ? &d->buckets[bucket_of(d, kind, handle)] : NULL;
    while (place && *place && ((*place)->handle != handle || (*place)->kind != kind)) place = &(*place)->next;
    if (!place || !*place) return false;
    object *o = *place;
    *place = o->next;
    free(o);
    d->object_count--;
    d->live[kind]--;
    note_destroyed(d, kind, handle);
    return true;
}

uint32_t intern(companion_device *d, const void *data, size_t size) {
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a */
    for (size_t i = 0; i < size; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001B3u;
    for (size_t i = 0; i < d->content_count; i++) {
        const content *c = &d->contents[i];
        if (c->hash == hash && c->size == size && memcmp(c->bytes, data, size) == 0) return (uint32_t)i + 1;
    }
    d->contents = grown(d->contents, &d->content_capacity, d->content_count + 1, sizeof *d->contents);
    void *copy = malloc(size ? size : 1);
    if (!copy) abort();
    memcpy(copy, data, size);
    d->contents[d->content_count++] = (content){hash, size, copy};
    return (uint32_t)d->content_count;
}

void forget_everything(companion_device *d) {
    for (size_t i = 0; i < d->bucket_count; i++) {
        for (object *o = d->buckets[i], *next; o; o = next) {
            next = o->next;
            free(o);
        }
    }
    for (size_t i = 0; i < d->content_count; i++) free(d->contents[i].bytes);
    free(d->buckets);
    free(d->contents);
    free(d->journal);
    free(d->marks);
    free(d->submissions);
}

/* ---- what is being created ----------------------------------------------------------------------------------------*/

static void destroy(companion_device *d, created o) {
    VkDevice v = d->handle;
#define DESTROY(kind, function, type)                                                                                  \
    case kind: ((PFN_vk##function)(void *)layer_device_function("vk" #function))(v, (type)(uintptr_t)o.handle, NULL);  \
        break
    switch (o.kind) {
        DESTROY(OBJECT_BUFFER, DestroyBuffer, VkBuffer);
        DESTROY(OBJECT_MEMORY, FreeMemory, VkDeviceMemory);
        DESTROY(OBJECT_SHADER_MODULE, DestroyShaderModule, VkShaderModule);
        DESTROY(OBJECT_DESCRIPTOR_SET_LAYOUT, DestroyDescriptorSetLayout, VkDescriptorSetLayout);
        DESTROY(OBJECT_DESCRIPTOR_POOL, DestroyDescriptorPool, VkDescriptorPool);
        DESTROY(OBJECT_PIPELINE_LAYOUT, DestroyPipelineLayout, VkPipelineLayout);
        DESTROY(OBJECT_PIPELINE_CACHE, DestroyPipelineCache, VkPipelineCache);
        DESTROY(OBJECT_PIPELINE, DestroyPipeline, VkPipeline);
        DESTROY(OBJECT_COMMAND_POOL, DestroyCommandPool, VkCommandPool);
        DESTROY(OBJECT_QUERY_POOL, DestroyQueryPool, VkQueryPool);
        DESTROY(OBJECT_FENCE, DestroyFence, VkFence);
    default: break; /* command buffers die with their pool */
    }
#undef DESTROY
}

void companion_begin_creating(companion_device *d) {
    pthread_mutex_lock(&d->lock);
    d->marks = grown(d->marks, &d->mark_capacity, d->mark_count + 1, sizeof *d->marks);
    d->marks[d->mark_count++] = d->journal_size;
    pthread_mutex_unlock(&d->lock);
}

void companion_end_creating(companion_device *d, bool keep) {
    pthread_mutex_lock(&d->lock);
    size_t mark = d->marks[--d->mark_count];
    bool outermost = d->mark_count == 0;
    while (!keep && d->journal_size > mark) {
        created last = d->journal[--d->journal_size];
        pthread_mutex_unlock(&d->lock); /* the destroying functions take it */
        destroy(d, last);
        pthread_mutex_lock(&d->lock);
    }
    if (outermost) d->journal_size = 0;
    pthread_mutex_unlock(&d->lock);
}

/* ---- counts -------------------------------------------------------------------------------------------------------*/

const char *companion_object_name(uint32_t index) { return index < OBJECT_KINDS ? NAMES[index] : NULL; }

uint64_t companion_object_count(companion_device *d, uint32_t index) {
    pthread_mutex_lock(&d->lock);
    uint64_t count = index < OBJECT_KINDS ? d->live[index] : 0;
    pthread_mutex_unlock(&d->lock);
    return count;
}
