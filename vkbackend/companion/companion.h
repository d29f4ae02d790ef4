/* The companion layer's public functions, called from Python through ctypes (vkbackend/companion/__init__.py).
 *
 * The library is an explicit Vulkan layer between Kompute and whatever lies below it (validation, then the driver). It
 * adds what Kompute leaves out: device features, barriers that order dependent dispatches, a bounded wait, accounting
 * and errors. A companion_device belongs to one VkDevice and dies with it.
 *
 * Requests ("the next ...") speak of what the calling program records next on that device, so one thread at a time may
 * record on a device. Everything else may be called from any thread. Times are nanoseconds, sizes bytes.
 */
#ifndef LATENTVK_COMPANION_H
#define LATENTVK_COMPANION_H

#include <stdbool.h>
#include <stdint.h>

#define COMPANION_API __attribute__((visibility("default")))
#define COMPANION_INTERFACE 2 /* raised when a function below changes */

typedef struct companion_device companion_device;

/* COMPANION_INTERFACE of this build. */
COMPANION_API uint32_t companion_interface(void);

/* ---- before a device is created ----------------------------------------------------------------------------------*/

/* For instances created from now on: whether validation messages are collected. They need VK_EXT_debug_utils. */
COMPANION_API void companion_collect_messages(bool collect);

/* For devices created from now on: features that stay off, names with commas between them ("" for none). */
COMPANION_API void companion_leave_out(const char *features);

/* The device that this thread created last, once; NULL when the layer was not loaded for it. */
COMPANION_API companion_device *companion_take_device(void);

/* ---- what the device is -------------------------------------------------------------------------------------------*/

/* VK_MAKE_API_VERSION of what may be used: the lower of the instance's and the device's. */
COMPANION_API uint32_t companion_api_version(const companion_device *device);

/* Name of feature `index`, NULL past the last. */
COMPANION_API const char *companion_feature_name(uint32_t index);
COMPANION_API bool companion_feature_supported(const companion_device *device, uint32_t index);
COMPANION_API bool companion_feature_enabled(const companion_device *device, uint32_t index);

/* Smallest and largest subgroup that may be required of a compute pipeline; 0, 0 where none may. */
COMPANION_API void companion_subgroup_sizes(const companion_device *device, uint32_t *smallest, uint32_t *largest);

/* ---- recording ----------------------------------------------------------------------------------------------------*/

/* The next dispatch needs no barrier before it. Without this call every dispatch gets one. */
COMPANION_API void companion_overlap(companion_device *device);

/* The next dispatch covers the box of `count` workgroups whose ids start at `base` (x, y, z), in place of its own. */
COMPANION_API void companion_dispatch_box(companion_device *device, const uint32_t base[3], const uint32_t count[3]);

/* Subgroup size of the pipelines created from now on, with full subgroups where the device can promise them; 0 leaves
 * the choice to the driver. */
COMPANION_API void companion_require_subgroup_size(companion_device *device, uint32_t size);

/* Bindings of what is created from now on, bit i for binding i, that are uniform texel buffers of 16 bytes a texel
 * (VK_FORMAT_R32G32B32A32_UINT) where Kompute says storage buffer. */
COMPANION_API void companion_texel_bindings(companion_device *device, uint32_t bindings);

/* VkMemoryPropertyFlags that the next allocations should have beside those that Kompute asks for. */
COMPANION_API void companion_prefer_memory(companion_device *device, uint32_t flags);

/* ---- running ------------------------------------------------------------------------------------------------------*/

/* Wait at most `timeout` for everything submitted. Returns a VkResult: VK_SUCCESS with `elapsed`, the time from the
 * oldest submission to completion; VK_TIMEOUT, and the wait can be repeated; or the error of a submission. */
COMPANION_API int32_t companion_wait(companion_device *device, uint64_t timeout, uint64_t *elapsed);

/* Treat the device as lost although work may still run on it: objects that the work may use are leaked, not freed. */
COMPANION_API void companion_abandon(companion_device *device);

COMPANION_API bool companion_lost(const companion_device *device);
COMPANION_API bool companion_abandoned(const companion_device *device);

/* ---- errors -------------------------------------------------------------------------------------------------------*/

/* The first failed call since the last one taken: its VkResult, 0 when none failed; `call` gets its static name. While
 * an error is not taken, further calls that create or submit fail with it and reach no driver. */
COMPANION_API int32_t companion_take_error(companion_device *device, const char **call);

/* Everything created between companion_begin_creating and companion_end_creating is destroyed again when `keep` is
 * false. Pairs nest. */
COMPANION_API void companion_begin_creating(companion_device *device);
COMPANION_API void companion_end_creating(companion_device *device, bool keep);

/* ---- accounting ---------------------------------------------------------------------------------------------------*/

typedef struct companion_heap {
    uint64_t size;
    uint64_t budget;      /* VK_EXT_memory_budget; without it `size` */
    uint64_t usage;       /* VK_EXT_memory_budget; without it `live` */
    uint64_t live;        /* allocated by this device */
    uint64_t peak;        /* the most that `live` was */
    uint64_t allocations; /* live ones, a count */
    uint64_t failures;    /* allocations that failed, a count */
    uint32_t flags;       /* VkMemoryHeapFlags */
} companion_heap;

/* Heap `index`; false past the last. */
COMPANION_API bool companion_heap_use(companion_device *device, uint32_t index, companion_heap *heap);

/* Name and live count of object type `index`; NULL past the last. Shared pipelines count once. */
COMPANION_API const char *companion_object_name(uint32_t index);
COMPANION_API uint64_t companion_object_count(companion_device *device, uint32_t index);

/* Devices of this process that exist. */
COMPANION_API uint64_t companion_live_devices(void);

/* Pipelines that were created, and those that were handed out again for identical create-infos. */
COMPANION_API void companion_pipeline_counts(const companion_device *device, uint64_t *created, uint64_t *shared);

/* Oldest validation message not yet taken: its length without the NUL, 0 when there is none. At most `size` - 1 bytes
 * are copied. */
COMPANION_API uint64_t companion_take_message(char *text, uint64_t size);

/* ---- for tests ----------------------------------------------------------------------------------------------------*/

/* The `n`-th fallible call from now returns the VkResult `result` and is not made; n = 0 turns it off. */
COMPANION_API void companion_fail_call(companion_device *device, uint64_t n, int32_t result);
COMPANION_API uint64_t companion_fallible_calls(const companion_device *device);

/* The same for the next device that is created. */
COMPANION_API void companion_fail_call_of_next_device(uint64_t n, int32_t result);

/* An artificially slow device: a submission takes at least this long for each of its workgroups. */
COMPANION_API void companion_slow_down(companion_device *device, uint64_t per_workgroup);

/* Whether identical create-infos share a pipeline (they do unless told otherwise), to measure what that is worth. */
COMPANION_API void companion_share_pipelines(companion_device *device, bool share);

/* The next wait reports VK_ERROR_DEVICE_LOST, and so does every call after it. */
COMPANION_API void companion_lose(companion_device *device);

#endif
