/* Streams and events. Every task is finished before the call that launches it returns, so a stream is never busy, unless it is slow on
 * purpose: then it counts as busy for a time after each launch, and whoever waits for it waits that long. */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define STREAM_MARK 0x53545245414d2131ull
#define EVENT_MARK 0x4556454e54212131ull

typedef struct stream {
    uint64_t mark;
    int32_t id, device;
    uint32_t priority, flags;
    uint64_t busy_until; /* nanoseconds */
    struct stream *next;
} stream;

typedef struct {
    uint64_t mark;
    uint64_t nanoseconds; /* when the last record is reached on its stream; 0 before the first */
    int32_t device;       /* of that stream */
    uint32_t flags;
} event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static stream *streams;                                                   /* all live ones, for those who wait for a whole device */
static stream default_stream = {.mark = STREAM_MARK, .device = -1}; /* what a NULL handle means */

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

static stream *resolve(aclrtStream handle)
{
    return handle == NULL ? &default_stream : handle;
}

static int32_t device_of(const stream *one)
{
    return one->device < 0 ? sim_current_device() : one->device;
}

static uint64_t busy_until(const stream *one)
{
    return __atomic_load_n(&one->busy_until, __ATOMIC_ACQUIRE);
}

/* Make the stream busy from when it is free for this long. False if it is no stream. */
SIM_API bool moe_sim_delay_stream(aclrtStream handle, uint64_t nanoseconds)
{
    stream *one = resolve(handle);
    if (one->mark != STREAM_MARK)
        return false;
    pthread_mutex_lock(&lock);
    uint64_t from = busy_until(one), time = now();
    __atomic_store_n(&one->busy_until, (from > time ? from : time) + nanoseconds, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
    return true;
}

/* Sleep until then, at most `timeout` milliseconds (negative: as long as it takes). */
static aclError wait_until(const char *function, uint64_t then, int32_t timeout)
{
    uint64_t time = now(), limit = timeout < 0 ? UINT64_MAX : time + (uint64_t)timeout * UINT64_C(1000000);
    uint64_t end = then < limit ? then : limit;
    while ((time = now()) < end) {
        struct timespec rest = {(time_t)((end - time) / 1000000000ull), (long)((end - time) % 1000000000ull)};
        nanosleep(&rest, NULL);
    }
    if (end < then)
        return sim_fail(ACL_ERROR_STREAM_SYNC_TIMEOUT, "%s: the stream is still busy after %d ms", function, timeout);
    return ACL_SUCCESS;
}

aclError sim_check_stream(const char *function, aclrtStream handle)
{
    if (handle == NULL || ((stream *)handle)->mark == STREAM_MARK)
        return ACL_SUCCESS;
    return sim_fail(ACL_ERROR_INVALID_HANDLE, "%s: %p is not a live stream", function, handle);
}

static aclError check_event(const char *function, aclrtEvent handle)
{
    if (handle != NULL && ((event *)handle)->mark == EVENT_MARK)
        return ACL_SUCCESS;
    return sim_fail(ACL_ERROR_INVALID_HANDLE, "%s: %p is not a live event", function, handle);
}

/* ---- streams ---- */

SIM_API aclError aclrtCreateStreamWithConfig(aclrtStream *handle, uint32_t priority, uint32_t flags)
{
    static int32_t last_id;
    if (handle == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtCreateStream: stream is null");
    if (sim_current_device() < 0)
        return sim_fail(ACL_ERROR_CONTEXT_NULL, "aclrtCreateStream: this thread has set no device");
    stream *made = malloc(sizeof *made);
    if (made == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtCreateStream: this machine is out of memory");
    *made = (stream){.mark = STREAM_MARK,
                     .id = __atomic_add_fetch(&last_id, 1, __ATOMIC_RELAXED),
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
    if (handle == NULL || ((stream *)handle)->mark != STREAM_MARK)
        return sim_fail(ACL_ERROR_INVALID_HANDLE, "aclrtDestroyStream: %p is not a live stream", handle);
    pthread_mutex_lock(&lock);
    stream **link = &streams;
    while (*link != handle)
        link = &(*link)->next;
    *link = (*link)->next;
    pthread_mutex_unlock(&lock);
    ((stream *)handle)->mark = 0;
    free(handle);
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
    aclError error = sim_check_stream("aclrtStreamQuery", handle);
    if (error == ACL_SUCCESS)
        *status = busy_until(resolve(handle)) <= now() ? COMPLETE : NOT_READY;
    return error;
}

SIM_API aclError aclrtStreamGetId(aclrtStream handle, int32_t *id)
{
    aclError error = sim_check_stream("aclrtStreamGetId", handle);
    if (error != ACL_SUCCESS)
        return error;
    if (id == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtStreamGetId: streamId is null");
    *id = handle == NULL ? 0 : ((stream *)handle)->id;
    return ACL_SUCCESS;
}

static aclError synchronize_stream(const char *function, aclrtStream handle, int32_t timeout)
{
    aclError error = sim_check_stream(function, handle);
    if (error == ACL_SUCCESS)
        error = wait_until(function, busy_until(resolve(handle)), timeout);
    return error != ACL_SUCCESS ? error : sim_pending_error(function, device_of(resolve(handle)));
}

SIM_API aclError aclrtSynchronizeStream(aclrtStream handle)
{
    return synchronize_stream("aclrtSynchronizeStream", handle, -1);
}

SIM_API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t timeout)
{
    return synchronize_stream("aclrtSynchronizeStreamWithTimeout", handle, timeout);
}

static aclError synchronize_device(const char *function, int32_t timeout)
{
    int32_t device = sim_current_device();
    uint64_t last = busy_until(&default_stream);
    pthread_mutex_lock(&lock);
    for (const stream *one = streams; one != NULL; one = one->next)
        if (one->device == device && busy_until(one) > last)
            last = busy_until(one);
    pthread_mutex_unlock(&lock);
    aclError error = wait_until(function, last, timeout);
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

/* Launches are finished when they return, so a host function runs at once, in the caller's thread. */
SIM_API aclError aclrtLaunchHostFunc(aclrtStream handle, void (*function)(void *), void *argument)
{
    aclError error = sim_check_stream("aclrtLaunchHostFunc", handle);
    if (error != ACL_SUCCESS)
        return error;
    if (function == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtLaunchHostFunc: fn is null");
    function(argument);
    return ACL_SUCCESS;
}

/* Graph capture is not modelled (beginning one fails), so no stream is ever capturing. */
SIM_API aclError aclmdlRICaptureGetInfo(aclrtStream handle, int32_t *status, void **model)
{
    enum { NOT_CAPTURING = 0 };
    if (status != NULL)
        *status = NOT_CAPTURING;
    if (model != NULL)
        *model = NULL;
    return sim_check_stream("aclmdlRICaptureGetInfo", handle);
}

/* ---- events ---- */

static aclError create_event(aclrtEvent *handle, uint32_t flags)
{
    if (handle == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtCreateEvent: event is null");
    event *made = malloc(sizeof *made);
    if (made == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtCreateEvent: this machine is out of memory");
    *made = (event){EVENT_MARK, 0, -1, flags};
    *handle = made;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtCreateEvent(aclrtEvent *handle)
{
    return create_event(handle, 0);
}

SIM_API aclError aclrtCreateEventWithFlag(aclrtEvent *handle, uint32_t flags)
{
    return create_event(handle, flags);
}

SIM_API aclError aclrtCreateEventExWithFlag(aclrtEvent *handle, uint32_t flags)
{
    return create_event(handle, flags);
}

SIM_API aclError aclrtDestroyEvent(aclrtEvent handle)
{
    aclError error = check_event("aclrtDestroyEvent", handle);
    if (error != ACL_SUCCESS)
        return error;
    ((event *)handle)->mark = 0;
    free(handle);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream on)
{
    aclError error = check_event("aclrtRecordEvent", handle);
    if (error == ACL_SUCCESS)
        error = sim_check_stream("aclrtRecordEvent", on);
    if (error == ACL_SUCCESS) {
        uint64_t time = now(), busy = busy_until(resolve(on));
        ((event *)handle)->nanoseconds = busy > time ? busy : time;
        ((event *)handle)->device = device_of(resolve(on));
    }
    return error;
}

SIM_API aclError aclrtResetEvent(aclrtEvent handle, aclrtStream on)
{
    aclError error = check_event("aclrtResetEvent", handle);
    return error != ACL_SUCCESS ? error : sim_check_stream("aclrtResetEvent", on);
}

SIM_API aclError aclrtStreamWaitEvent(aclrtStream waiting, aclrtEvent handle)
{
    aclError error = check_event("aclrtStreamWaitEvent", handle);
    if (error == ACL_SUCCESS)
        error = sim_check_stream("aclrtStreamWaitEvent", waiting);
    if (error == ACL_SUCCESS) {
        stream *one = resolve(waiting);
        pthread_mutex_lock(&lock);
        if (((event *)handle)->nanoseconds > busy_until(one))
            __atomic_store_n(&one->busy_until, ((event *)handle)->nanoseconds, __ATOMIC_RELEASE);
        pthread_mutex_unlock(&lock);
    }
    return error;
}

SIM_API aclError aclrtSynchronizeEvent(aclrtEvent handle)
{
    aclError error = check_event("aclrtSynchronizeEvent", handle);
    if (error == ACL_SUCCESS)
        error = wait_until("aclrtSynchronizeEvent", ((event *)handle)->nanoseconds, -1);
    return error != ACL_SUCCESS ? error : sim_pending_error("aclrtSynchronizeEvent", ((event *)handle)->device);
}

SIM_API aclError aclrtQueryEventStatus(aclrtEvent handle, int32_t *status)
{
    enum { NOT_READY = 0, RECORDED_COMPLETE = 1 };
    if (status == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtQueryEventStatus: status is null");
    aclError error = check_event("aclrtQueryEventStatus", handle);
    if (error == ACL_SUCCESS)
        *status = ((event *)handle)->nanoseconds <= now() ? RECORDED_COMPLETE : NOT_READY;
    return error;
}

SIM_API aclError aclrtQueryEventWaitStatus(aclrtEvent handle, int32_t *status)
{
    enum { WAIT_COMPLETE = 0 };
    if (status == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtQueryEventWaitStatus: status is null");
    *status = WAIT_COMPLETE;
    return check_event("aclrtQueryEventWaitStatus", handle);
}

/* torch_npu also looks for these two under an older spelling. */
SIM_API aclError aclQueryEventRecordedStatus(aclrtEvent handle, int32_t *status)
{
    return aclrtQueryEventStatus(handle, status);
}

SIM_API aclError aclQueryEventWaitStatus(aclrtEvent handle, int32_t *status)
{
    return aclrtQueryEventWaitStatus(handle, status);
}

SIM_API aclError aclrtEventElapsedTime(float *milliseconds, aclrtEvent start, aclrtEvent end)
{
    if (milliseconds == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtEventElapsedTime: ms is null");
    aclError error = check_event("aclrtEventElapsedTime", start);
    if (error == ACL_SUCCESS)
        error = check_event("aclrtEventElapsedTime", end);
    if (error != ACL_SUCCESS)
        return error;
    uint64_t from = ((event *)start)->nanoseconds, to = ((event *)end)->nanoseconds;
    if (from == 0 || to == 0)
        return sim_fail(ACL_ERROR_EVENT_TIMESTAMP_INVALID, "aclrtEventElapsedTime: the %s event was never recorded",
                        from == 0 ? "start" : "end");
    *milliseconds = (float)((double)((int64_t)to - (int64_t)from) / 1e6);
    return ACL_SUCCESS;
}
