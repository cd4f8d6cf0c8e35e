/* Devices, contexts, products and versions. */
#define _GNU_SOURCE
#include "sim.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define CANN_VERSION "9.2.0" /* the newest one that torch_npu 2.13 asks for */
#define MAX_DEVICES 64

/* Core counts and L2 are the nominal ones of the product; nothing is timed by them. */
static const sim_product PRODUCTS[] = {
    {SIM_A2, "A2", "Ascend910B1", 24, 48, 192ll << 20, 2201},
    {SIM_A3, "A3", "Ascend910_9391", 24, 48, 192ll << 20, 2201},
    {SIM_950, "950", "Ascend950PR_9599", 32, 64, 128ll << 20, 3510},
};

/* A context per device; CANN calls it the primary one. */
typedef struct {
    bool active;
} context;

static context contexts[MAX_DEVICES];
static _Thread_local int32_t current_device = -1;

const sim_product *sim_current_product(void)
{
    const char *alias = getenv("MOE_GRAPH_SIM_SOC");
    if (alias == NULL || alias[0] == '\0')
        return &PRODUCTS[0];
    for (size_t i = 0; i < sizeof PRODUCTS / sizeof *PRODUCTS; i++)
        if (strcmp(alias, PRODUCTS[i].alias) == 0)
            return &PRODUCTS[i];
    sim_fail(ACL_ERROR_INVALID_PARAM, "MOE_GRAPH_SIM_SOC must be A2, A3 or 950, got \"%s\"", alias);
    return NULL;
}

/* Devices of the machine. */
static int32_t all_devices(void)
{
    const char *text = getenv("MOE_GRAPH_SIM_DEVICES");
    if (text == NULL || text[0] == '\0')
        return 1;
    char *end = NULL;
    errno = 0;
    long count = strtol(text, &end, 10);
    if (errno != 0 || *end != '\0' || count < 1 || count > MAX_DEVICES) {
        sim_fail(ACL_ERROR_INVALID_PARAM, "MOE_GRAPH_SIM_DEVICES must be a number from 1 to %d, got \"%s\"", MAX_DEVICES, text);
        return 0;
    }
    return (int32_t)count;
}

/* The devices that ASCEND_RT_VISIBLE_DEVICES leaves, as a list of their numbers on the machine: up to the first that does not exist or is
 * no number, and none if the list does not ascend, as torch_npu knows of the runtime. Read at each call: a program may set it after the
 * import. */
static int32_t visible_devices(int32_t numbers[MAX_DEVICES])
{
    int32_t all = all_devices(), count = 0;
    const char *text = getenv("ASCEND_RT_VISIBLE_DEVICES");
    if (text == NULL) {
        for (; count < all; count++)
            numbers[count] = count;
        return count;
    }
    while (*text >= '0' && *text <= '9') {
        char *end = NULL;
        errno = 0;
        long number = strtol(text, &end, 10);
        if (count > 0 && number <= numbers[count - 1])
            return 0;
        if (errno != 0 || number >= all)
            break;
        numbers[count++] = (int32_t)number;
        if (*end != ',')
            break;
        text = end + 1;
    }
    return count;
}

int32_t sim_device_count(void)
{
    int32_t numbers[MAX_DEVICES];
    return visible_devices(numbers);
}

int32_t sim_current_device(void)
{
    return current_device;
}

aclError sim_check_device(const char *function, int32_t device)
{
    int32_t count = sim_device_count();
    if (device >= 0 && device < count)
        return ACL_SUCCESS;
    const char *visible = getenv("ASCEND_RT_VISIBLE_DEVICES");
    if (visible != NULL)
        return sim_fail(ACL_ERROR_INVALID_DEVICE, "%s: device %d does not exist, there are %d (ASCEND_RT_VISIBLE_DEVICES=%s of %d devices, "
                        "MOE_GRAPH_SIM_DEVICES)", function, device, count, visible, all_devices());
    if (count == 0)
        return ACL_ERROR_INVALID_DEVICE;
    return sim_fail(ACL_ERROR_INVALID_DEVICE, "%s: device %d does not exist, there are %d (MOE_GRAPH_SIM_DEVICES; moe-graph run --devices N gives more)", function, device,
                    count);
}

static aclError null_argument(const char *function, const char *argument)
{
    return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: %s is null", function, argument);
}

static const char *cann_version(void);

/* ---- life of the runtime ---- */

SIM_API aclError aclInit(const char *configuration)
{
    (void)configuration;
    if (sim_current_product() == NULL || all_devices() == 0 || cann_version() == NULL)
        return ACL_ERROR_INVALID_PARAM;
    return ACL_SUCCESS;
}

SIM_API aclError aclFinalize(void)
{
    return ACL_SUCCESS;
}

/* ---- devices and contexts ---- */

SIM_API aclError aclrtGetDeviceCount(uint32_t *count)
{
    if (count == NULL)
        return null_argument("aclrtGetDeviceCount", "count");
    *count = (uint32_t)sim_device_count();
    return all_devices() == 0 ? ACL_ERROR_INVALID_PARAM : ACL_SUCCESS;
}

/* The driver's own count, of the machine: torch_npu applies ASCEND_RT_VISIBLE_DEVICES to it itself. */
SIM_API int32_t drvGetDevNum(uint32_t *count)
{
    if (count == NULL)
        return null_argument("drvGetDevNum", "num_dev");
    *count = (uint32_t)all_devices();
    return *count == 0 ? ACL_ERROR_INVALID_PARAM : 0;
}

SIM_API aclError aclrtSetDevice(int32_t device)
{
    aclError error = sim_check_device("aclrtSetDevice", device);
    if (error != ACL_SUCCESS)
        return error;
    current_device = device;
    __atomic_store_n(&contexts[device].active, true, __ATOMIC_RELEASE);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtGetDevice(int32_t *device)
{
    if (device == NULL)
        return null_argument("aclrtGetDevice", "device");
    if (current_device < 0)
        return sim_fail(ACL_ERROR_CONTEXT_NULL, "aclrtGetDevice: this thread has set no device");
    *device = current_device;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtResetDevice(int32_t device)
{
    aclError error = sim_check_device("aclrtResetDevice", device);
    if (error != ACL_SUCCESS)
        return error;
    __atomic_store_n(&contexts[device].active, false, __ATOMIC_RELEASE);
    if (current_device == device)
        current_device = -1;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtGetCurrentContext(aclrtContext *result)
{
    if (result == NULL)
        return null_argument("aclrtGetCurrentContext", "context");
    if (current_device < 0)
        return sim_fail(ACL_ERROR_CONTEXT_NULL, "aclrtGetCurrentContext: this thread has set no device");
    *result = &contexts[current_device];
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSetCurrentContext(aclrtContext handle)
{
    uintptr_t distance = (uintptr_t)handle - (uintptr_t)contexts;
    if (distance >= sizeof contexts || distance % sizeof *contexts != 0)
        return sim_fail(ACL_ERROR_INVALID_HANDLE, "aclrtSetCurrentContext: %p is not a context", handle);
    return aclrtSetDevice((int32_t)(distance / sizeof *contexts));
}

SIM_API aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active)
{
    aclError error = sim_check_device("aclrtGetPrimaryCtxState", device);
    if (error != ACL_SUCCESS)
        return error;
    if (flags != NULL)
        *flags = 0;
    if (active != NULL)
        *active = __atomic_load_n(&contexts[device].active, __ATOMIC_ACQUIRE);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtGetLogicDevIdByUserDevId(const int32_t user, int32_t *const logical)
{
    aclError error = sim_check_device("aclrtGetLogicDevIdByUserDevId", user);
    if (error == ACL_SUCCESS && logical != NULL)
        *logical = user;
    return error;
}

/* Memory of every device is host memory, so any two devices reach each other. */
SIM_API aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer)
{
    aclError error = sim_check_device("aclrtDeviceCanAccessPeer", device);
    if (error == ACL_SUCCESS)
        error = sim_check_device("aclrtDeviceCanAccessPeer", peer);
    if (error == ACL_SUCCESS && can == NULL)
        return null_argument("aclrtDeviceCanAccessPeer", "canAccessPeer");
    if (error == ACL_SUCCESS)
        *can = device != peer;
    return error;
}

SIM_API aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags)
{
    (void)flags;
    return sim_check_device("aclrtDeviceEnablePeerAccess", peer);
}

/* ---- what a device is ---- */

SIM_API const char *aclrtGetSocName(void)
{
    const sim_product *product = sim_current_product();
    return product == NULL ? NULL : product->soc_name;
}

SIM_API aclError aclrtGetMemInfo(int32_t attribute, size_t *free_bytes, size_t *total_bytes);

SIM_API aclError aclrtGetDeviceInfo(uint32_t device, int32_t attribute, int64_t *value)
{
    enum { AICPU = 1, AICORE = 101, CUBE = 102, VECTOR = 201, MEMORY = 301, L2 = 302, PHYSICAL_CHIP = 402, VIRTUAL = 501, ARCH = 601 };
    const sim_product *product = sim_current_product();
    aclError error = sim_check_device("aclrtGetDeviceInfo", (int32_t)device);
    if (error != ACL_SUCCESS || product == NULL)
        return error != ACL_SUCCESS ? error : ACL_ERROR_INVALID_PARAM;
    if (value == NULL)
        return null_argument("aclrtGetDeviceInfo", "value");
    size_t free_bytes = 0, total_bytes = 0;
    switch (attribute) {
    case AICPU: *value = 0; return ACL_SUCCESS;
    case AICORE:
    case CUBE: *value = product->cube_cores; return ACL_SUCCESS;
    case VECTOR: *value = product->vector_cores; return ACL_SUCCESS;
    case MEMORY:
        error = aclrtGetMemInfo(1, &free_bytes, &total_bytes);
        *value = (int64_t)total_bytes;
        return error;
    case L2: *value = product->l2_bytes; return ACL_SUCCESS;
    case PHYSICAL_CHIP: {
        int32_t numbers[MAX_DEVICES];
        visible_devices(numbers);
        *value = numbers[device];
        return ACL_SUCCESS;
    }
    case VIRTUAL: *value = 0; return ACL_SUCCESS;
    case ARCH: *value = product->npu_arch; return ACL_SUCCESS;
    default: return sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "aclrtGetDeviceInfo: attribute %d is not modelled", attribute);
    }
}

SIM_API aclError aclGetDeviceCapability(uint32_t device, int32_t capability, int64_t *value)
{
    static const int32_t attribute[] = {101, 201, 302}; /* AI cores, vector cores, L2 */
    if (capability < 0 || capability > 2)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclGetDeviceCapability: no capability %d", capability);
    return aclrtGetDeviceInfo(device, attribute[capability], value);
}

SIM_API aclError aclrtDeviceGetUuid(int32_t device, char *uuid)
{
    aclError error = sim_check_device("aclrtDeviceGetUuid", device);
    if (error != ACL_SUCCESS)
        return error;
    if (uuid == NULL)
        return null_argument("aclrtDeviceGetUuid", "uuid");
    memset(uuid, 0, 16);
    memcpy(uuid, "simulated", 9);
    uuid[15] = (char)device;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtDeviceGetBareTgid(int32_t *pid)
{
    if (pid == NULL)
        return null_argument("aclrtDeviceGetBareTgid", "pid");
    *pid = (int32_t)getpid();
    return ACL_SUCCESS;
}

/* ---- versions ---- */

typedef struct {
    char version[128], major[64], minor[64], release[64], patch[64], reserved[128];
} package_version;

/* MOE_GRAPH_SIM_CANN, like 8.5.0 or 8.3.RC1; read at each call, torch_npu keeps what it was told first. NULL, with a message, if it is none. */
static const char *cann_version(void)
{
    const char *text = getenv("MOE_GRAPH_SIM_CANN");
    if (text == NULL || text[0] == '\0')
        return CANN_VERSION;
    int major = 0, minor = 0, read = 0;
    if (strlen(text) < 64 && sscanf(text, "%2d.%2d.%n", &major, &minor, &read) == 2 && read > 0 &&
        strspn(text + read, "0123456789RCalphbet.") == strlen(text + read) && text[read] != '\0')
        return text;
    sim_fail(ACL_ERROR_INVALID_PARAM, "MOE_GRAPH_SIM_CANN must be a version of CANN like %s or 8.3.RC1, got \"%s\"", CANN_VERSION, text);
    return NULL;
}

/* The package's version, in its parts where they are numbers. */
SIM_API aclError aclsysGetCANNVersion(int32_t package, package_version *version)
{
    (void)package;
    if (version == NULL)
        return null_argument("aclsysGetCANNVersion", "version");
    memset(version, 0, sizeof *version);
    const char *text = cann_version();
    if (text == NULL)
        return ACL_ERROR_INVALID_PARAM;
    strcpy(version->version, text);
    sscanf(text, "%63[^.].%63[^.].%63[^.].%63s", version->major, version->minor, version->release, version->patch);
    return ACL_SUCCESS;
}

SIM_API aclError aclsysGetVersionStr(char *package, char *version)
{
    if (package == NULL || version == NULL)
        return null_argument("aclsysGetVersionStr", package == NULL ? "pkgName" : "versionStr");
    const char *text = cann_version();
    if (text == NULL)
        return ACL_ERROR_INVALID_PARAM;
    strcpy(version, text);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtGetVersion(int32_t *major, int32_t *minor, int32_t *patch)
{
    if (major == NULL || minor == NULL || patch == NULL)
        return null_argument("aclrtGetVersion", "an output");
    *major = 1;
    *minor = 0;
    *patch = 0;
    return ACL_SUCCESS;
}

/* What CANN can do on every product modelled here: INF and NaN are kept, bf16 is there, operators need no compilation. */
static const int32_t CANN_ATTRIBUTES[] = {0, 1};

SIM_API aclError aclGetCannAttributeList(const int32_t **list, size_t *count)
{
    if (list == NULL || count == NULL)
        return null_argument("aclGetCannAttributeList", list == NULL ? "cannAttrList" : "num");
    *list = CANN_ATTRIBUTES;
    *count = sizeof CANN_ATTRIBUTES / sizeof *CANN_ATTRIBUTES;
    return ACL_SUCCESS;
}

SIM_API aclError aclGetCannAttribute(int32_t attribute, int32_t *value)
{
    if (value == NULL)
        return null_argument("aclGetCannAttribute", "value");
    *value = attribute == 0 || attribute == 1;
    return ACL_SUCCESS;
}
