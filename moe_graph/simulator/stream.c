/* Streams and events. Every task is finished before the call that launches it returns, so a stream is never busy. */
#define _GNU_SOURCE
#include "sim.h"

#include <stdlib.h>
#include <time.h>

#define STREAM_MARK 0x53545245414d2131ull
#define EVENT_MARK 0x4556454e54212131ull

typedef struct {
    uint64_t mark;
    int32_t id, device;
    uint32_t priority, flags;
} stream;

typedef struct {
    uint64_t mark;
    uint64_t nanoseconds; /* of the last record; 0 before the first */
    uint32_t flags;
} event;

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
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
    *made = (stream){STREAM_MARK, __atomic_add_fetch(&last_id, 1, __ATOMIC_RELAXED), sim_current_device(), priority, flags};
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
    enum { COMPLETE = 0 };
    if (status == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtStreamQuery: status is null");
    *status = COMPLETE;
    return sim_check_stream("aclrtStreamQuery", handle);
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

SIM_API aclError aclrtSynchronizeStream(aclrtStream handle)
{
    return sim_check_stream("aclrtSynchronizeStream", handle);
}

SIM_API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t timeout)
{
    (void)timeout;
    return sim_check_stream("aclrtSynchronizeStreamWithTimeout", handle);
}

SIM_API aclError aclrtSynchronizeDevice(void)
{
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout)
{
    (void)timeout;
    return ACL_SUCCESS;
}

/* Nothing is ever pending on the stream, so a host function runs at once, in the caller's thread. */
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
    *made = (event){EVENT_MARK, 0, flags};
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
    if (error == ACL_SUCCESS)
        ((event *)handle)->nanoseconds = now();
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
    return error != ACL_SUCCESS ? error : sim_check_stream("aclrtStreamWaitEvent", waiting);
}

SIM_API aclError aclrtSynchronizeEvent(aclrtEvent handle)
{
    return check_event("aclrtSynchronizeEvent", handle);
}

SIM_API aclError aclrtQueryEventStatus(aclrtEvent handle, int32_t *status)
{
    enum { RECORDED_COMPLETE = 1 };
    if (status == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtQueryEventStatus: status is null");
    *status = RECORDED_COMPLETE;
    return check_event("aclrtQueryEventStatus", handle);
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
