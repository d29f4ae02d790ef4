/* Submissions, fences and the wait. Kompute's own wait has no deadline, holds the GIL and ignores what it is told, so
 * here it returns at once; companion_wait() waits instead.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "layer.h"

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void sleep_for(uint64_t nanoseconds) {
    struct timespec t = {(time_t)(nanoseconds / 1000000000u), (long)(nanoseconds % 1000000000u)};
    nanosleep(&t, NULL);
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_QueueSubmit(VkQueue queue, uint32_t count, const VkSubmitInfo *infos,
                                                        VkFence fence) {
    companion_device *d = device_of(queue);
    submission s = {.fence = fence, .submitted = now()};
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t j = 0; j < infos[i].commandBufferCount; j++) {
            const object *o = find(d, OBJECT_COMMAND_BUFFER, HANDLE(infos[i].pCommandBuffers[j]));
            if (o) s.workgroups += o->workgroups;
        }
    }
    pthread_mutex_unlock(&d->lock);
    VkResult r = may_call(d, "vkQueueSubmit");
    if (r == VK_SUCCESS) r = called(d, "vkQueueSubmit", d->next.QueueSubmit(queue, count, infos, fence));
    if (r != VK_SUCCESS) return r; /* Kompute ignores it; companion_wait() returns it */
    pthread_mutex_lock(&d->lock);
    if (d->submission_count == d->submission_capacity) {
        d->submission_capacity = d->submission_capacity ? 2 * d->submission_capacity : 16;
        d->submissions = realloc(d->submissions, d->submission_capacity * sizeof *d->submissions);
        if (!d->submissions) abort();
    }
    d->submissions[d->submission_count++] = s;
    pthread_mutex_unlock(&d->lock);
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_WaitForFences(VkDevice device, uint32_t count, const VkFence *fences,
                                                          VkBool32 all, uint64_t timeout) {
    (void)device, (void)count, (void)fences, (void)all, (void)timeout;
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_CreateFence(VkDevice device, const VkFenceCreateInfo *info,
                                                        const VkAllocationCallbacks *allocator, VkFence *fence) {
    companion_device *d = device_of(device);
    VkResult r = may_call(d, "vkCreateFence");
    if (r == VK_SUCCESS) r = called(d, "vkCreateFence", d->next.CreateFence(device, info, allocator, fence));
    if (r != VK_SUCCESS) return r;
    pthread_mutex_lock(&d->lock);
    remember(d, OBJECT_FENCE, HANDLE(*fence), 0);
    pthread_mutex_unlock(&d->lock);
    return r;
}

static void destroy_fence(companion_device *d, VkFence fence) {
    pthread_mutex_lock(&d->lock);
    bool known = forget(d, OBJECT_FENCE, HANDLE(fence));
    pthread_mutex_unlock(&d->lock);
    if (known && !d->abandoned) d->next.DestroyFence(d->handle, fence, NULL);
}

static VKAPI_ATTR void VKAPI_CALL layer_DestroyFence(VkDevice device, VkFence fence,
                                                     const VkAllocationCallbacks *allocator) {
    companion_device *d = device_of(device);
    (void)allocator;
    pthread_mutex_lock(&d->lock);
    for (size_t i = 0; i < d->submission_count; i++) {
        if (d->submissions[i].fence == fence) {
            d->submissions[i].fence_destroyed = true;
            pthread_mutex_unlock(&d->lock);
            return;
        }
    }
    pthread_mutex_unlock(&d->lock);
    destroy_fence(d, fence);
}

/* Wait for one submission, and as long again as the artificially slow device of a test would take. */
static VkResult wait_for(companion_device *d, const submission *s, uint64_t deadline) {
    uint64_t at = now();
    VkResult r = d->next.WaitForFences(d->handle, 1, &s->fence, VK_TRUE, deadline > at ? deadline - at : 0);
    uint64_t slow_end = s->submitted + d->slow_down * s->workgroups;
    at = now();
    if (r != VK_SUCCESS || slow_end <= at) return r;
    if (slow_end > deadline) {
        if (deadline > at) sleep_for(deadline - at);
        return VK_TIMEOUT;
    }
    sleep_for(slow_end - at);
    return VK_SUCCESS;
}

int32_t companion_wait(companion_device *d, uint64_t timeout, uint64_t *elapsed) {
    uint64_t began = now(), deadline = began + timeout < began ? UINT64_MAX : began + timeout;
    uint64_t oldest = 0;
    *elapsed = 0;
    while (true) {
        pthread_mutex_lock(&d->lock);
        bool waiting = d->submission_count > 0;
        submission s = waiting ? d->submissions[0] : (submission){0};
        pthread_mutex_unlock(&d->lock);
        if (!waiting) break;
        VkResult r = wait_for(d, &s, deadline);
        if (r == VK_TIMEOUT) return r;
        if (oldest == 0) oldest = s.submitted;
        *elapsed = now() - oldest;
        pthread_mutex_lock(&d->lock);
        s = d->submissions[0]; /* Kompute may have destroyed the fence meanwhile */
        memmove(d->submissions, d->submissions + 1, --d->submission_count * sizeof *d->submissions);
        pthread_mutex_unlock(&d->lock);
        if (s.fence_destroyed) destroy_fence(d, s.fence);
        if (r != VK_SUCCESS) called(d, "vkWaitForFences", r);
        if (d->lose_next) called(d, "vkWaitForFences", VK_ERROR_DEVICE_LOST);
    }
    if (d->lose_next && !d->lost) called(d, "vkWaitForFences", VK_ERROR_DEVICE_LOST);
    return d->error;
}

void companion_abandon(companion_device *d) { d->lost = d->abandoned = true; }

bool may_destroy(companion_device *d) {
    uint64_t elapsed;
    if (d->abandoned) return false;
    if (d->submission_count && companion_wait(d, 60000000000u, &elapsed) == VK_TIMEOUT) companion_abandon(d);
    return !d->abandoned;
}

/* ---- timestamps ---------------------------------------------------------------------------------------------------*/

static VKAPI_ATTR VkResult VKAPI_CALL layer_CreateQueryPool(VkDevice device, const VkQueryPoolCreateInfo *info,
                                                            const VkAllocationCallbacks *allocator, VkQueryPool *pool) {
    companion_device *d = device_of(device);
    VkResult r = may_call(d, "vkCreateQueryPool");
    if (r == VK_SUCCESS) r = called(d, "vkCreateQueryPool", d->next.CreateQueryPool(device, info, allocator, pool));
    if (r != VK_SUCCESS) return r;
    pthread_mutex_lock(&d->lock);
    remember(d, OBJECT_QUERY_POOL, HANDLE(*pool), 0)->queries = info->queryCount;
    pthread_mutex_unlock(&d->lock);
    return r;
}

static VKAPI_ATTR void VKAPI_CALL layer_DestroyQueryPool(VkDevice device, VkQueryPool pool,
                                                         const VkAllocationCallbacks *allocator) {
    companion_device *d = device_of(device);
    bool safe = may_destroy(d);
    pthread_mutex_lock(&d->lock);
    bool known = forget(d, OBJECT_QUERY_POOL, HANDLE(pool));
    pthread_mutex_unlock(&d->lock);
    if (known && safe) d->next.DestroyQueryPool(device, pool, allocator);
}

/* Without VK_QUERY_RESULT_WAIT_BIT: companion_wait() was before, and after a reset of the queue it would never end. */
static VKAPI_ATTR VkResult VKAPI_CALL layer_GetQueryPoolResults(VkDevice device, VkQueryPool pool, uint32_t first,
                                                                uint32_t count, size_t size, void *data,
                                                                VkDeviceSize stride, VkQueryResultFlags flags) {
    companion_device *d = device_of(device);
    VkResult r = may_call(d, "vkGetQueryPoolResults");
    if (r != VK_SUCCESS) return r;
    flags &= ~(VkQueryResultFlags)VK_QUERY_RESULT_WAIT_BIT;
    r = d->next.GetQueryPoolResults(device, pool, first, count, size, data, stride, flags);
    return called(d, "vkGetQueryPoolResults", r == VK_NOT_READY ? VK_ERROR_DEVICE_LOST : r);
}

PFN_vkVoidFunction queue_function(const char *name) {
    static const function functions[] = {
        FUNCTION(QueueSubmit),     FUNCTION(WaitForFences),    FUNCTION(CreateFence),         FUNCTION(DestroyFence),
        FUNCTION(CreateQueryPool), FUNCTION(DestroyQueryPool), FUNCTION(GetQueryPoolResults),
    };
    return lookup(functions, COUNT(functions), name);
}

void companion_slow_down(companion_device *d, uint64_t per_workgroup) { d->slow_down = per_workgroup; }

void companion_lose(companion_device *d) { d->lose_next = true; }
