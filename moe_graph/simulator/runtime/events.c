/* Events: moments on streams. */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct event {
    bool live;
    uint64_t nanoseconds; /* when the last record is reached on its stream; 0 before the first */
    int32_t device;       /* of that stream */
    uint32_t flags;
    struct event *next_free;
} event;

/* Events live in blocks that are never given back, so that a stale or wild handle is told from a live one without reading it. */
#define BLOCK_EVENTS 1024
#define EVENT_BETWEEN_PROCESSES 0x40u /* ACL_EVENT_IPC */
typedef struct event_block {
    event events[BLOCK_EVENTS];
    struct event_block *next;
} event_block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static event_block *event_blocks;
static event *free_events;

/* The live event of a handle, or NULL. The lock is held. */
static event *find_event(aclrtEvent handle)
{
    for (event_block *block = event_blocks; block != NULL; block = block->next) {
        uintptr_t distance = (uintptr_t)handle - (uintptr_t)block->events;
        if (distance < sizeof block->events)
            return distance % sizeof(event) == 0 && ((event *)handle)->live ? handle : NULL;
    }
    return NULL;
}

static aclError no_event(const char *function, aclrtEvent handle)
{
    return sim_fail(ACL_ERROR_INVALID_HANDLE, "%s: %p is not a live event", function, handle);
}

/* A copy of what a live event holds. */
static aclError read_event(const char *function, aclrtEvent handle, event *copy)
{
    pthread_mutex_lock(&lock);
    const event *found = find_event(handle);
    if (found != NULL)
        *copy = *found;
    pthread_mutex_unlock(&lock);
    return found != NULL ? ACL_SUCCESS : no_event(function, handle);
}

static aclError check_event(const char *function, aclrtEvent handle)
{
    event copy;
    return read_event(function, handle, &copy);
}

/* The lock is held. Nothing is added where there is no memory left. */
static void add_event_block(void)
{
    event_block *block = calloc(1, sizeof *block);
    if (block == NULL)
        return;
    block->next = event_blocks;
    event_blocks = block;
    for (size_t i = BLOCK_EVENTS; i-- > 0;) {
        block->events[i].next_free = free_events;
        free_events = &block->events[i];
    }
}

static aclError create_event(aclrtEvent *handle, uint32_t flags)
{
    if (handle == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtCreateEvent: event is null");
    if (flags & EVENT_BETWEEN_PROCESSES)
        return sim_fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "aclrtCreateEvent: events between processes are not modelled");
    pthread_mutex_lock(&lock);
    if (free_events == NULL)
        add_event_block();
    event *made = free_events;
    if (made != NULL) {
        free_events = made->next_free;
        *made = (event){.live = true, .device = -1, .flags = flags};
    }
    pthread_mutex_unlock(&lock);
    if (made == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtCreateEvent: this machine is out of memory");
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
    sim_forget_event(handle);
    pthread_mutex_lock(&lock);
    event *found = find_event(handle);
    if (found != NULL) {
        *found = (event){.next_free = free_events};
        free_events = found;
    }
    pthread_mutex_unlock(&lock);
    return found != NULL ? ACL_SUCCESS : no_event("aclrtDestroyEvent", handle);
}

SIM_API aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream on)
{
    bool taken = false;
    aclError error = check_event("aclrtRecordEvent", handle);
    if (error == ACL_SUCCESS)
        error = sim_capture_record(on, handle, &taken);
    if (error != ACL_SUCCESS || taken)
        return error;
    uint64_t nanoseconds = 0;
    int32_t device = -1;
    error = sim_stream_reached("aclrtRecordEvent", on, &nanoseconds, &device);
    if (error != ACL_SUCCESS)
        return error;
    pthread_mutex_lock(&lock);
    event *marked = find_event(handle);
    if (marked != NULL) {
        marked->nanoseconds = nanoseconds;
        marked->device = device;
    }
    pthread_mutex_unlock(&lock);
    return marked != NULL ? ACL_SUCCESS : no_event("aclrtRecordEvent", handle);
}

SIM_API aclError aclrtResetEvent(aclrtEvent handle, aclrtStream on)
{
    aclError error = check_event("aclrtResetEvent", handle);
    return error != ACL_SUCCESS ? error : sim_check_stream("aclrtResetEvent", on);
}

SIM_API aclError aclrtStreamWaitEvent(aclrtStream waiting, aclrtEvent handle)
{
    bool taken = false;
    aclError error = check_event("aclrtStreamWaitEvent", handle);
    if (error == ACL_SUCCESS)
        error = sim_check_stream("aclrtStreamWaitEvent", waiting);
    if (error == ACL_SUCCESS)
        error = sim_capture_wait(waiting, handle, &taken);
    if (error != ACL_SUCCESS || taken)
        return error;
    event awaited;
    error = read_event("aclrtStreamWaitEvent", handle, &awaited);
    return error != ACL_SUCCESS ? error : sim_stream_waits("aclrtStreamWaitEvent", waiting, awaited.nanoseconds);
}

SIM_API aclError aclrtSynchronizeEvent(aclrtEvent handle)
{
    event awaited;
    aclError error = read_event("aclrtSynchronizeEvent", handle, &awaited);
    if (error == ACL_SUCCESS)
        error = sim_check_event_not_captured("aclrtSynchronizeEvent", handle);
    if (error == ACL_SUCCESS)
        error = sim_wait_until("aclrtSynchronizeEvent", awaited.nanoseconds, -1);
    return error != ACL_SUCCESS ? error : sim_pending_error("aclrtSynchronizeEvent", awaited.device);
}

SIM_API aclError aclrtQueryEventStatus(aclrtEvent handle, int32_t *status)
{
    enum { NOT_READY = 0, RECORDED_COMPLETE = 1 };
    if (status == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtQueryEventStatus: status is null");
    event asked;
    aclError error = read_event("aclrtQueryEventStatus", handle, &asked);
    if (error == ACL_SUCCESS)
        error = sim_check_event_not_captured("aclrtQueryEventStatus", handle);
    if (error == ACL_SUCCESS)
        *status = asked.nanoseconds <= sim_now() ? RECORDED_COMPLETE : NOT_READY;
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
    event first, last;
    aclError error = read_event("aclrtEventElapsedTime", start, &first);
    if (error == ACL_SUCCESS)
        error = read_event("aclrtEventElapsedTime", end, &last);
    if (error != ACL_SUCCESS)
        return error;
    uint64_t from = first.nanoseconds, to = last.nanoseconds;
    if (from == 0 || to == 0)
        return sim_fail(ACL_ERROR_EVENT_TIMESTAMP_INVALID, "aclrtEventElapsedTime: the %s event was never recorded",
                        from == 0 ? "start" : "end");
    *milliseconds = (float)((double)((int64_t)to - (int64_t)from) / 1e6);
    return ACL_SUCCESS;
}

/* Microseconds of the host's clock at which the event's last record was reached. */
SIM_API aclError aclrtEventGetTimestamp(aclrtEvent handle, uint64_t *timestamp)
{
    if (timestamp == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtEventGetTimestamp: timestamp is null");
    event one;
    aclError error = read_event("aclrtEventGetTimestamp", handle, &one);
    if (error == ACL_SUCCESS && one.nanoseconds == 0)
        return sim_fail(ACL_ERROR_EVENT_TIMESTAMP_INVALID, "aclrtEventGetTimestamp: the event was never recorded");
    if (error == ACL_SUCCESS)
        *timestamp = one.nanoseconds / 1000;
    return error;
}
