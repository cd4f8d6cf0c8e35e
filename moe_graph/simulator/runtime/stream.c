/* Streams and events. Every task is finished before the call that launches it returns, so a stream is never busy, unless it is slow on
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
static stream *streams;                                                   /* all live ones, for those who wait for a whole device */
static stream default_stream = {.device = -1}; /* what a NULL handle means */
static event_block *event_blocks;
static event *free_events;

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

static int32_t device_of(const stream *one)
{
    return one->device < 0 ? sim_current_device() : one->device;
}

/* The live stream of a handle, or NULL. The lock is held, here and by all who read or write what a stream or an event holds. */
static stream *find_stream(aclrtStream handle)
{
    if (handle == NULL)
        return &default_stream;
    stream *one = streams;
    while (one != NULL && one != handle)
        one = one->next;
    return one;
}

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

static aclError no_stream(const char *function, aclrtStream handle)
{
    return sim_fail(ACL_ERROR_INVALID_HANDLE, "%s: %p is not a live stream", function, handle);
}

static aclError no_event(const char *function, aclrtEvent handle)
{
    return sim_fail(ACL_ERROR_INVALID_HANDLE, "%s: %p is not a live event", function, handle);
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

/* Make the stream busy from when it is free for this long. False if it is no stream. */
SIM_API bool moe_sim_delay_stream(aclrtStream handle, uint64_t nanoseconds)
{
    pthread_mutex_lock(&lock);
    stream *one = find_stream(handle);
    uint64_t time = now();
    if (one != NULL)
        one->busy_until = (one->busy_until > time ? one->busy_until : time) + nanoseconds;
    pthread_mutex_unlock(&lock);
    return one != NULL;
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
    stream copy;
    return read_stream(function, handle, &copy);
}

static aclError check_event(const char *function, aclrtEvent handle)
{
    event copy;
    return read_event(function, handle, &copy);
}

/* ---- streams ---- */

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
        *status = one.busy_until <= now() ? COMPLETE : NOT_READY;
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
        error = wait_until(function, one.busy_until, timeout);
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

static aclError synchronize_device(const char *function, int32_t timeout)
{
    int32_t device = sim_current_device();
    aclError error = sim_check_permitted(function);
    if (error == ACL_SUCCESS)
        error = sim_check_none_waiting(function, device);
    if (error != ACL_SUCCESS)
        return error;
    pthread_mutex_lock(&lock);
    uint64_t last = default_stream.busy_until;
    for (const stream *one = streams; one != NULL; one = one->next)
        if (one->device == device && one->busy_until > last)
            last = one->busy_until;
    pthread_mutex_unlock(&lock);
    error = wait_until(function, last, timeout);
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

/* ---- events ---- */

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
        return sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "aclrtCreateEvent: events between processes are not modelled");
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
    pthread_mutex_lock(&lock);
    event *marked = find_event(handle);
    const stream *one = find_stream(on);
    if (marked != NULL && one != NULL) {
        uint64_t time = now();
        marked->nanoseconds = one->busy_until > time ? one->busy_until : time;
        marked->device = device_of(one);
    }
    pthread_mutex_unlock(&lock);
    if (marked == NULL)
        return no_event("aclrtRecordEvent", handle);
    return one != NULL ? ACL_SUCCESS : no_stream("aclrtRecordEvent", on);
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
    pthread_mutex_lock(&lock);
    const event *awaited = find_event(handle);
    stream *one = find_stream(waiting);
    if (awaited != NULL && one != NULL && awaited->nanoseconds > one->busy_until)
        one->busy_until = awaited->nanoseconds;
    pthread_mutex_unlock(&lock);
    if (awaited == NULL)
        return no_event("aclrtStreamWaitEvent", handle);
    return one != NULL ? ACL_SUCCESS : no_stream("aclrtStreamWaitEvent", waiting);
}

SIM_API aclError aclrtSynchronizeEvent(aclrtEvent handle)
{
    event awaited;
    aclError error = read_event("aclrtSynchronizeEvent", handle, &awaited);
    if (error == ACL_SUCCESS)
        error = sim_check_event_not_captured("aclrtSynchronizeEvent", handle);
    if (error == ACL_SUCCESS)
        error = wait_until("aclrtSynchronizeEvent", awaited.nanoseconds, -1);
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
        *status = asked.nanoseconds <= now() ? RECORDED_COMPLETE : NOT_READY;
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
