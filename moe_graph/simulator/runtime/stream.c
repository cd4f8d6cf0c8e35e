/* Streams. Every task is finished before the call that launches it returns, so a stream is never busy, unless it is slow on
 * purpose: then it counts as busy for a time after each launch, and whoever waits for it waits that long. */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

typedef struct stream {
    int32_t id, device;
    uint32_t priority, flags;
    uint64_t busy_until; /* nanoseconds */
    struct stream *next;
} stream;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static stream *streams;                                                   /* all live ones, for those who wait for a whole device */
static stream default_stream = {.device = -1}; /* what a NULL handle means */

uint64_t sim_now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

static int32_t device_of(const stream *one)
{
    return one->device < 0 ? sim_current_device() : one->device;
}

/* The live stream of a handle, or NULL. The lock is held, here and by all who read or write what a stream holds. */
static stream *find_stream(aclrtStream handle)
{
    if (handle == NULL)
        return &default_stream;
    stream *one = streams;
    while (one != NULL && one != handle)
        one = one->next;
    return one;
}

static aclError no_stream(const char *function, aclrtStream handle)
{
    return sim_fail(ACL_ERROR_INVALID_HANDLE, "%s: %p is not a live stream", function, handle);
}

/* A copy of what a live stream holds. */
static aclError read_stream(const char *function, aclrtStream handle, stream *copy)
{
    pthread_mutex_lock(&lock);
    const stream *found = find_stream(handle);
    if (found != NULL)
        *copy = *found;
    pthread_mutex_unlock(&lock);
    return found != NULL ? ACL_SUCCESS : no_stream(function, handle);
}

/* Make the stream busy from when it is free for this long. False if it is no stream. */
SIM_API bool moe_sim_delay_stream(aclrtStream handle, uint64_t nanoseconds)
{
    pthread_mutex_lock(&lock);
    stream *one = find_stream(handle);
    uint64_t time = sim_now();
    if (one != NULL)
        one->busy_until = (one->busy_until > time ? one->busy_until : time) + nanoseconds;
    pthread_mutex_unlock(&lock);
    return one != NULL;
}

aclError sim_stream_reached(const char *function, aclrtStream handle, uint64_t *nanoseconds, int32_t *device)
{
    stream one;
    aclError error = read_stream(function, handle, &one);
    if (error != ACL_SUCCESS)
        return error;
    uint64_t time = sim_now();
    *nanoseconds = one.busy_until > time ? one.busy_until : time;
    *device = device_of(&one);
    return ACL_SUCCESS;
}

aclError sim_stream_waits(const char *function, aclrtStream handle, uint64_t nanoseconds)
{
    pthread_mutex_lock(&lock);
    stream *one = find_stream(handle);
    if (one != NULL && nanoseconds > one->busy_until)
        one->busy_until = nanoseconds;
    pthread_mutex_unlock(&lock);
    return one != NULL ? ACL_SUCCESS : no_stream(function, handle);
}

aclError sim_wait_until(const char *function, uint64_t then, int32_t timeout)
{
    uint64_t time = sim_now(), limit = timeout < 0 ? UINT64_MAX : time + (uint64_t)timeout * UINT64_C(1000000);
    uint64_t end = then < limit ? then : limit;
    while ((time = sim_now()) < end) {
        struct timespec rest = {(time_t)((end - time) / 1000000000ull), (long)((end - time) % 1000000000ull)};
        nanosleep(&rest, NULL);
    }
    if (end < then)
        return sim_fail(ACL_ERROR_STREAM_SYNC_TIMEOUT, "%s: the stream is still busy after %d ms", function, timeout);
    return ACL_SUCCESS;
}

aclError sim_check_stream(const char *function, aclrtStream handle)
{
    stream copy;
    return read_stream(function, handle, &copy);
}

SIM_API aclError aclrtSetDevice(int32_t device);

SIM_API aclError aclrtCreateStreamWithConfig(aclrtStream *handle, uint32_t priority, uint32_t flags)
{
    static int32_t last_id;
    if (handle == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtCreateStream: stream is null");
    /* torch_npu sets no device by itself since CANN 8.3, and makes streams before one is set: the runtime takes the first device. */
    if (sim_current_device() < 0) {
        aclError error = aclrtSetDevice(0);
        if (error != ACL_SUCCESS)
            return error;
    }
    stream *made = malloc(sizeof *made);
    if (made == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtCreateStream: this machine is out of memory");
    *made = (stream){.id = __atomic_add_fetch(&last_id, 1, __ATOMIC_RELAXED),
                     .device = sim_current_device(),
                     .priority = priority,
                     .flags = flags};
    pthread_mutex_lock(&lock);
    made->next = streams;
    streams = made;
    pthread_mutex_unlock(&lock);
    *handle = made;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtCreateStream(aclrtStream *handle)
{
    return aclrtCreateStreamWithConfig(handle, 0, 0);
}

SIM_API aclError aclrtDestroyStream(aclrtStream handle)
{
    aclError error = sim_check_not_captured("aclrtDestroyStream", handle);
    if (error != ACL_SUCCESS)
        return error;
    pthread_mutex_lock(&lock);
    stream **link = &streams;
    while (*link != NULL && *link != handle)
        link = &(*link)->next;
    stream *found = *link;
    if (found != NULL)
        *link = found->next;
    pthread_mutex_unlock(&lock);
    if (found == NULL)
        return no_stream("aclrtDestroyStream", handle);
    sim_forget_limits(handle);
    free(found);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtDestroyStreamForce(aclrtStream handle)
{
    return aclrtDestroyStream(handle);
}

SIM_API aclError aclrtStreamQuery(aclrtStream handle, int32_t *status)
{
    enum { COMPLETE = 0, NOT_READY = 1 };
    if (status == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtStreamQuery: status is null");
    stream one;
    aclError error = read_stream("aclrtStreamQuery", handle, &one);
    if (error == ACL_SUCCESS)
        error = sim_check_not_captured("aclrtStreamQuery", handle);
    if (error == ACL_SUCCESS)
        *status = one.busy_until <= sim_now() ? COMPLETE : NOT_READY;
    return error;
}

int32_t sim_stream_id(aclrtStream handle)
{
    pthread_mutex_lock(&lock);
    const stream *one = find_stream(handle);
    int32_t id = one != NULL ? one->id : -1;
    pthread_mutex_unlock(&lock);
    return id;
}

SIM_API aclError aclrtStreamGetId(aclrtStream handle, int32_t *id)
{
    stream one;
    aclError error = read_stream("aclrtStreamGetId", handle, &one);
    if (error != ACL_SUCCESS)
        return error;
    if (id == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtStreamGetId: streamId is null");
    *id = one.id; /* 0 is the default stream's */
    return ACL_SUCCESS;
}

static aclError synchronize_stream(const char *function, aclrtStream handle, int32_t timeout)
{
    stream one;
    aclError error = read_stream(function, handle, &one);
    if (error == ACL_SUCCESS)
        error = sim_check_not_captured(function, handle);
    if (error == ACL_SUCCESS)
        error = sim_check_not_waiting(function, handle);
    if (error == ACL_SUCCESS)
        error = sim_wait_until(function, one.busy_until, timeout);
    return error != ACL_SUCCESS ? error : sim_pending_error(function, device_of(&one));
}

SIM_API aclError aclrtSynchronizeStream(aclrtStream handle)
{
    return synchronize_stream("aclrtSynchronizeStream", handle, -1);
}

SIM_API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t timeout)
{
    return synchronize_stream("aclrtSynchronizeStreamWithTimeout", handle, timeout);
}

static int32_t (*finish_communication)(void);

/* What a wait for the device waits for, too: 0, or an error that moe_sim_python_failed has described. NULL: nothing. */
SIM_API void moe_sim_before_device_wait(int32_t (*function)(void))
{
    __atomic_store_n(&finish_communication, function, __ATOMIC_RELEASE);
}

static aclError synchronize_device(const char *function, int32_t timeout)
{
    int32_t device = sim_current_device();
    aclError error = sim_check_permitted(function);
    if (error == ACL_SUCCESS)
        error = sim_check_none_waiting(function, device);
    if (error != ACL_SUCCESS)
        return error;
    int32_t (*finish)(void) = __atomic_load_n(&finish_communication, __ATOMIC_ACQUIRE);
    if (finish != NULL && finish() != 0)
        return ACL_ERROR_INTERNAL;
    pthread_mutex_lock(&lock);
    uint64_t last = default_stream.busy_until;
    for (const stream *one = streams; one != NULL; one = one->next)
        if (one->device == device && one->busy_until > last)
            last = one->busy_until;
    pthread_mutex_unlock(&lock);
    error = sim_wait_until(function, last, timeout);
    return error != ACL_SUCCESS ? error : sim_pending_error(function, device);
}

SIM_API aclError aclrtSynchronizeDevice(void)
{
    return synchronize_device("aclrtSynchronizeDevice", -1);
}

SIM_API aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout)
{
    return synchronize_device("aclrtSynchronizeDeviceWithTimeout", timeout);
}
