/* How many cores of each kind launches may use: of a device, and less than that for a stream. What is set is kept and handed out; the
 * host has no such cores, so that no launch becomes slower by it. */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdlib.h>

#define MAX_DEVICES 64

enum { CUBE = 0, VECTOR = 1, KINDS = 2 };

typedef struct limit {
    aclrtStream stream;
    uint32_t cores[KINDS]; /* 0: not limited */
    struct limit *next;
} limit;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t device_limits[MAX_DEVICES][KINDS];
static limit *stream_limits;
static _Thread_local aclrtStream used_here; /* the stream whose limits this thread's launches go by; NULL: the device's */

static limit *find(aclrtStream stream)
{
    limit *one = stream_limits;
    while (one != NULL && one->stream != stream)
        one = one->next;
    return one;
}

static aclError check(const char *function, int32_t kind, const void *value)
{
    if (sim_current_product() == NULL || value == NULL || kind < 0 || kind >= KINDS)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: no resource %d, or null value", function, kind);
    return ACL_SUCCESS;
}

static uint32_t whole(int32_t kind)
{
    const sim_product *product = sim_current_product();
    return (uint32_t)(kind == CUBE ? product->cube_cores : product->vector_cores);
}

static aclError check_limit(const char *function, int32_t kind, uint32_t value)
{
    aclError error = check(function, kind, &value);
    if (error == ACL_SUCCESS && (value == 0 || value > whole(kind)))
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: from 1 to %u %s cores, got %u", function, whole(kind),
                        kind == CUBE ? "cube" : "vector", value);
    return error;
}

/* The lock is held. */
static uint32_t of_device(int32_t device, int32_t kind)
{
    uint32_t set = device >= 0 && device < MAX_DEVICES ? device_limits[device][kind] : 0;
    return set != 0 ? set : whole(kind);
}

static uint32_t of_stream(aclrtStream stream, int32_t kind)
{
    pthread_mutex_lock(&lock);
    const limit *found = find(stream);
    uint32_t cores = found != NULL && found->cores[kind] != 0 ? found->cores[kind] : of_device(sim_current_device(), kind);
    pthread_mutex_unlock(&lock);
    return cores;
}

SIM_API aclError aclrtGetDeviceResLimit(int32_t device, int32_t kind, uint32_t *value)
{
    aclError error = sim_check_device("aclrtGetDeviceResLimit", device);
    if (error == ACL_SUCCESS)
        error = check("aclrtGetDeviceResLimit", kind, value);
    if (error != ACL_SUCCESS)
        return error;
    pthread_mutex_lock(&lock);
    *value = of_device(device, kind);
    pthread_mutex_unlock(&lock);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSetDeviceResLimit(int32_t device, int32_t kind, uint32_t value)
{
    aclError error = sim_check_device("aclrtSetDeviceResLimit", device);
    if (error == ACL_SUCCESS)
        error = check_limit("aclrtSetDeviceResLimit", kind, value);
    if (error != ACL_SUCCESS)
        return error;
    pthread_mutex_lock(&lock);
    device_limits[device][kind] = value;
    pthread_mutex_unlock(&lock);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtResetDeviceResLimit(int32_t device)
{
    aclError error = sim_check_device("aclrtResetDeviceResLimit", device);
    if (error != ACL_SUCCESS)
        return error;
    pthread_mutex_lock(&lock);
    device_limits[device][CUBE] = device_limits[device][VECTOR] = 0;
    pthread_mutex_unlock(&lock);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtGetStreamResLimit(aclrtStream stream, int32_t kind, uint32_t *value)
{
    aclError error = sim_check_stream("aclrtGetStreamResLimit", stream);
    if (error == ACL_SUCCESS)
        error = check("aclrtGetStreamResLimit", kind, value);
    if (error == ACL_SUCCESS)
        *value = of_stream(stream, kind);
    return error;
}

SIM_API aclError aclrtSetStreamResLimit(aclrtStream stream, int32_t kind, uint32_t value)
{
    aclError error = sim_check_stream("aclrtSetStreamResLimit", stream);
    if (error == ACL_SUCCESS)
        error = check_limit("aclrtSetStreamResLimit", kind, value);
    if (error != ACL_SUCCESS)
        return error;
    pthread_mutex_lock(&lock);
    limit *found = find(stream);
    if (found == NULL && (found = calloc(1, sizeof *found)) != NULL) {
        found->stream = stream;
        found->next = stream_limits;
        stream_limits = found;
    }
    if (found != NULL)
        found->cores[kind] = value;
    pthread_mutex_unlock(&lock);
    return found != NULL ? ACL_SUCCESS : sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtSetStreamResLimit: this machine is out of memory");
}

void sim_forget_limits(aclrtStream stream)
{
    pthread_mutex_lock(&lock);
    for (limit **link = &stream_limits; *link != NULL; link = &(*link)->next)
        if ((*link)->stream == stream) {
            limit *found = *link;
            *link = found->next;
            free(found);
            break;
        }
    pthread_mutex_unlock(&lock);
    if (used_here == stream)
        used_here = NULL;
}

SIM_API aclError aclrtResetStreamResLimit(aclrtStream stream)
{
    aclError error = sim_check_stream("aclrtResetStreamResLimit", stream);
    if (error == ACL_SUCCESS)
        sim_forget_limits(stream);
    return error;
}

SIM_API aclError aclrtUseStreamResInCurrentThread(aclrtStream stream)
{
    aclError error = sim_check_stream("aclrtUseStreamResInCurrentThread", stream);
    if (error == ACL_SUCCESS)
        used_here = stream;
    return error;
}

SIM_API aclError aclrtUnuseStreamResInCurrentThread(aclrtStream stream)
{
    aclError error = sim_check_stream("aclrtUnuseStreamResInCurrentThread", stream);
    if (error == ACL_SUCCESS && used_here == stream)
        used_here = NULL;
    return error;
}

SIM_API aclError aclrtGetResInCurrentThread(int32_t kind, uint32_t *value)
{
    aclError error = check("aclrtGetResInCurrentThread", kind, value);
    if (error == ACL_SUCCESS)
        *value = of_stream(used_here, kind);
    return error;
}
