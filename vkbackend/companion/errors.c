/* Failed calls. Kompute ignores the results of about half of its calls and goes on with null handles, so the first
 * failure is kept, and until it is taken no further call reaches the driver.
 */
#include "layer.h"

static VkResult fail(companion_device *d, const char *call, VkResult result) {
    if (result == VK_ERROR_DEVICE_LOST) d->lost = true;
    if (d->error == VK_SUCCESS) {
        d->error = result;
        d->error_call = call;
    }
    return result;
}

VkResult may_call(companion_device *d, const char *call) {
    if (d->error != VK_SUCCESS) return d->error;
    if (d->lost) return fail(d, call, VK_ERROR_DEVICE_LOST);
    d->fallible_calls++;
    if (d->fail_in && --d->fail_in == 0) return fail(d, call, d->fail_with);
    return VK_SUCCESS;
}

VkResult called(companion_device *d, const char *call, VkResult result) {
    return result < 0 ? fail(d, call, result) : result;
}

int32_t companion_take_error(companion_device *d, const char **call) {
    VkResult result = d->error;
    *call = d->error_call;
    d->error = VK_SUCCESS;
    d->error_call = NULL;
    return result;
}

bool companion_lost(const companion_device *d) { return d->lost; }
bool companion_abandoned(const companion_device *d) { return d->abandoned; }

void companion_fail_call(companion_device *d, uint64_t n, int32_t result) {
    d->fail_in = n;
    d->fail_with = (VkResult)result;
}

static uint64_t next_fail_in;
static VkResult next_fail_with;

void companion_fail_call_of_next_device(uint64_t n, int32_t result) {
    next_fail_in = n;
    next_fail_with = (VkResult)result;
}

void plan_failure(companion_device *d) {
    companion_fail_call(d, next_fail_in, next_fail_with);
    next_fail_in = 0;
}

uint64_t companion_fallible_calls(const companion_device *d) { return d->fallible_calls; }
