/* The layer as the loader sees it: negotiation, instances, devices, and which functions are replaced. */
#include "layer.h"

#include <stdlib.h>
#include <string.h>

typedef struct message {
    struct message *next;
    char text[];
} message;

static pthread_mutex_t lists = PTHREAD_MUTEX_INITIALIZER; /* the three lists below */
static instance *instances;
static companion_device *devices;
static message *first_message, **message_end = &first_message;
static bool collect_messages;
static _Thread_local companion_device *last_device;

/* Dispatchable handles of one instance, or of one device, begin with the same pointer, which the loader put there. */
static bool same_dispatch(const void *a, const void *b) { return *(void *const *)a == *(void *const *)b; }

static instance *instance_of(const void *dispatchable) {
    pthread_mutex_lock(&lists);
    instance *i = instances;
    while (i && !same_dispatch(i->handle, dispatchable)) i = i->next_instance;
    pthread_mutex_unlock(&lists);
    return i;
}

companion_device *device_of(const void *dispatchable) {
    pthread_mutex_lock(&lists);
    companion_device *d = devices;
    while (d && !same_dispatch(d->handle, dispatchable)) d = d->next_device;
    pthread_mutex_unlock(&lists);
    return d;
}

/* ---- validation messages ------------------------------------------------------------------------------------------*/

void companion_collect_messages(bool collect) { collect_messages = collect; }

static VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                 VkDebugUtilsMessageTypeFlagsEXT types,
                                                 const VkDebugUtilsMessengerCallbackDataEXT *data, void *user) {
    (void)severity, (void)types, (void)user;
    size_t length = strlen(data->pMessage);
    message *m = malloc(sizeof *m + length + 1);
    if (!m) return VK_FALSE;
    m->next = NULL;
    memcpy(m->text, data->pMessage, length + 1);
    pthread_mutex_lock(&lists);
    *message_end = m;
    message_end = &m->next;
    pthread_mutex_unlock(&lists);
    return VK_FALSE;
}

uint64_t companion_take_message(char *text, uint64_t size) {
    pthread_mutex_lock(&lists);
    message *m = first_message;
    if (m) {
        first_message = m->next;
        if (!first_message) message_end = &first_message;
    }
    pthread_mutex_unlock(&lists);
    if (!m) return 0;
    uint64_t length = strlen(m->text);
    if (size) {
        strncpy(text, m->text, size - 1);
        text[size - 1] = '\0';
    }
    free(m);
    return length;
}

static const VkDebugUtilsMessengerCreateInfoEXT MESSENGER = {
    .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
    .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
    .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT,
    .pfnUserCallback = on_message,
};

/* ---- instances ----------------------------------------------------------------------------------------------------*/

/* The loader's link to the next layer, in the chain behind a create-info. */
static void *find_link(const void *chain, VkStructureType type) {
    for (VkBaseOutStructure *s = (VkBaseOutStructure *)chain; s; s = s->pNext) {
        if (s->sType == type && ((VkLayerInstanceCreateInfo *)s)->function == VK_LAYER_LINK_INFO) return s;
    }
    return NULL;
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_CreateInstance(const VkInstanceCreateInfo *info,
                                                           const VkAllocationCallbacks *allocator,
                                                           VkInstance *handle) {
    VkLayerInstanceCreateInfo *link = find_link(info->pNext, VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO);
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    PFN_vkCreateInstance create = (PFN_vkCreateInstance)proc(NULL, "vkCreateInstance");
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;

    /* Kompute asks for Vulkan 1.1; what 1.2 and 1.3 brought would then be out of reach. */
    VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO};
    if (info->pApplicationInfo) application = *info->pApplicationInfo;
    if (application.apiVersion < VK_API_VERSION_1_3) application.apiVersion = VK_API_VERSION_1_3;
    VkInstanceCreateInfo copy = *info;
    copy.pApplicationInfo = &application;
    const char **names = calloc(info->enabledExtensionCount + 1, sizeof *names);
    instance *i = calloc(1, sizeof *i);
    if (!names || !i) {
        free(names), free(i);
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    }
    for (uint32_t n = 0; n < info->enabledExtensionCount; n++) names[n] = info->ppEnabledExtensionNames[n];
    if (collect_messages) names[copy.enabledExtensionCount++] = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
    copy.ppEnabledExtensionNames = names;
    VkResult r = create(&copy, allocator, handle);
    free(names);
    if (r != VK_SUCCESS) {
        free(i);
        return r;
    }
    i->handle = *handle;
    i->api_version = application.apiVersion;
    i->get_proc_addr = proc;
#define X(name) i->next.name = (PFN_vk##name)proc(*handle, "vk" #name);
    INSTANCE_FUNCTIONS(X)
#undef X
    if (collect_messages && i->next.CreateDebugUtilsMessengerEXT) {
        i->next.CreateDebugUtilsMessengerEXT(*handle, &MESSENGER, NULL, &i->messenger);
    }
    pthread_mutex_lock(&lists);
    i->next_instance = instances;
    instances = i;
    pthread_mutex_unlock(&lists);
    return r;
}

static VKAPI_ATTR void VKAPI_CALL layer_DestroyInstance(VkInstance handle, const VkAllocationCallbacks *allocator) {
    instance *i = handle ? instance_of(handle) : NULL;
    if (!i) return;
    pthread_mutex_lock(&lists);
    instance **place = &instances;
    while (*place != i) place = &(*place)->next_instance;
    *place = i->next_instance;
    pthread_mutex_unlock(&lists);
    if (i->messenger) i->next.DestroyDebugUtilsMessengerEXT(handle, i->messenger, NULL);
    i->next.DestroyInstance(handle, allocator);
    free(i);
}

/* ---- devices ------------------------------------------------------------------------------------------------------*/

static VKAPI_ATTR VkResult VKAPI_CALL layer_CreateDevice(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                         const VkAllocationCallbacks *allocator, VkDevice *handle) {
    instance *i = instance_of(physical);
    VkLayerDeviceCreateInfo *link = find_link(info->pNext, VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO);
    companion_device *d = i && link ? calloc(1, sizeof *d) : NULL;
    if (!d) return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    d->get_proc_addr = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;

    VkPhysicalDeviceProperties properties;
    i->next.GetPhysicalDeviceProperties(physical, &properties);
    i->next.GetPhysicalDeviceMemoryProperties(physical, &d->memory);
    d->memory_properties2 = i->next.GetPhysicalDeviceMemoryProperties2;
    d->physical = physical;
    d->api_version = properties.apiVersion < i->api_version ? properties.apiVersion : i->api_version;

    VkDeviceCreateInfo create;
    feature_chain *chain = feature_chain_for(d, i, info, &create);
    VkResult r = VK_ERROR_OUT_OF_HOST_MEMORY;
    if (chain) {
        r = ((PFN_vkCreateDevice)proc(i->handle, "vkCreateDevice"))(physical, &create, allocator, handle);
        feature_chain_free(chain);
    }
    if (r != VK_SUCCESS) {
        free(d);
        return r;
    }
    d->handle = *handle;
    pthread_mutex_init(&d->lock, NULL);
#define X(name) d->next.name = (PFN_vk##name)d->get_proc_addr(*handle, "vk" #name);
    DEVICE_FUNCTIONS(X)
#undef X
    pthread_mutex_lock(&lists);
    d->next_device = devices;
    devices = d;
    pthread_mutex_unlock(&lists);
    last_device = d;
    plan_failure(d);
    return r;
}

static VKAPI_ATTR void VKAPI_CALL layer_DestroyDevice(VkDevice handle, const VkAllocationCallbacks *allocator) {
    companion_device *d = handle ? device_of(handle) : NULL;
    if (!d) return;
    bool safe = may_destroy(d);
    pthread_mutex_lock(&lists);
    companion_device **place = &devices;
    while (*place != d) place = &(*place)->next_device;
    *place = d->next_device;
    pthread_mutex_unlock(&lists);
    if (last_device == d) last_device = NULL;
    if (safe) d->next.DestroyDevice(handle, allocator);
    forget_everything(d);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

companion_device *companion_take_device(void) {
    companion_device *d = last_device;
    last_device = NULL;
    return d;
}

uint64_t companion_live_devices(void) {
    uint64_t count = 0;
    pthread_mutex_lock(&lists);
    for (const companion_device *d = devices; d; d = d->next_device) count++;
    pthread_mutex_unlock(&lists);
    return count;
}

uint32_t companion_interface(void) { return COMPANION_INTERFACE; }

/* ---- names --------------------------------------------------------------------------------------------------------*/

PFN_vkVoidFunction lookup(const function *functions, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(functions[i].name, name) == 0) return functions[i].address;
    }
    return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL layer_GetDeviceProcAddr(VkDevice device, const char *name);
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL layer_GetInstanceProcAddr(VkInstance handle, const char *name);

PFN_vkVoidFunction layer_device_function(const char *name) {
    static const function functions[] = {FUNCTION(GetDeviceProcAddr), FUNCTION(DestroyDevice)};
    PFN_vkVoidFunction found = lookup(functions, COUNT(functions), name);
    if (!found) found = memory_function(name);
    if (!found) found = pipeline_function(name);
    if (!found) found = command_function(name);
    return found ? found : queue_function(name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL layer_GetDeviceProcAddr(VkDevice device, const char *name) {
    PFN_vkVoidFunction found = layer_device_function(name);
    return found ? found : device_of(device)->get_proc_addr(device, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL layer_GetInstanceProcAddr(VkInstance handle, const char *name) {
    static const function functions[] = {FUNCTION(GetInstanceProcAddr), FUNCTION(CreateInstance),
                                         FUNCTION(DestroyInstance), FUNCTION(CreateDevice)};
    PFN_vkVoidFunction found = lookup(functions, COUNT(functions), name);
    if (!found) found = layer_device_function(name);
    if (found || !handle) return found;
    const instance *i = instance_of(handle);
    return i ? i->get_proc_addr(handle, name) : NULL;
}

COMPANION_API VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *wanted) {
    if (wanted->loaderLayerInterfaceVersion < 2) return VK_ERROR_INITIALIZATION_FAILED;
    wanted->loaderLayerInterfaceVersion = 2;
    wanted->pfnGetInstanceProcAddr = layer_GetInstanceProcAddr;
    wanted->pfnGetDeviceProcAddr = layer_GetDeviceProcAddr;
    wanted->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
