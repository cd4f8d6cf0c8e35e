/* Which streams are captured at the moment, which events tie them together, and what is forbidden meanwhile.
 *
 * A stream joins a capture by waiting for an event that was recorded on a captured one; all must have come back to the first stream
 * when the capture ends. That is kept by vector clocks: each captured stream and each event know how many steps of every stream of the
 * capture come before them.
 */
#define _GNU_SOURCE
#include "capture.h"

#include <stdlib.h>
#include <string.h>

/* An event that was recorded on a captured stream. */
typedef struct mark {
    aclrtEvent event;
    sim_model *model;
    uint32_t clock[SIM_MAX_CAPTURED_STREAMS];
    struct mark *next;
} mark;

static sim_member *members; /* all captured streams */
static mark *marks;
static int captures; /* how many: nothing is looked up while there are none */
static _Thread_local int32_t thread_mode = SIM_MODE_GLOBAL;

static bool idle(void)
{
    return __atomic_load_n(&captures, __ATOMIC_ACQUIRE) == 0;
}

sim_member *sim_find_member(aclrtStream stream)
{
    sim_member *one = members;
    while (one != NULL && one->stream != stream)
        one = one->next;
    return one;
}

static mark *find_mark(aclrtEvent event)
{
    mark *one = marks;
    while (one != NULL && one->event != event)
        one = one->next;
    return one;
}

/* The streams and events of a capture are free again. */
void sim_leave(const sim_model *model)
{
    for (sim_member **link = &members; *link != NULL;) {
        sim_member *one = *link;
        if (one->model == model) {
            *link = one->next;
            free(one);
            sim_count_special(-1);
            __atomic_sub_fetch(&captures, 1, __ATOMIC_RELEASE);
        } else {
            link = &one->next;
        }
    }
    for (mark **link = &marks; *link != NULL;) {
        mark *one = *link;
        if (one->model == model) {
            *link = one->next;
            free(one);
        } else {
            link = &one->next;
        }
    }
}

/* Add a stream to the capture. NULL, with a message, where it cannot be. */
sim_member *sim_join(const char *function, aclrtStream stream, sim_model *model)
{
    sim_member *made = NULL;
    if (model->stream_count == SIM_MAX_CAPTURED_STREAMS)
        sim_fail(ACL_ERROR_INTERNAL, "%s: at most %d streams in one capture", function, SIM_MAX_CAPTURED_STREAMS);
    else if ((made = calloc(1, sizeof *made)) == NULL)
        sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "%s: this machine is out of memory", function);
    if (made == NULL)
        return NULL;
    made->stream = stream;
    made->model = model;
    made->index = (uint32_t)model->stream_count;
    made->clock[made->index] = 1; /* a stream that has only joined must come back, too */
    model->stream_ids[model->stream_count++] = sim_stream_id(stream);
    made->next = members;
    members = made;
    sim_count_special(1);
    __atomic_add_fetch(&captures, 1, __ATOMIC_RELEASE);
    return made;
}

/* Whether the capture may end as it stands. The lock is held. */
aclError sim_check_whole(const sim_model *model, const sim_member *origin)
{
    if (!sim_conditions_are_closed(model))
        return sim_fail(ACL_ERROR_SUB_GRAPH_CAPTURING, "aclmdlRICaptureEnd: the body of a condition is captured still");
    for (const sim_member *one = members; one != NULL; one = one->next) {
        if (one->model != model)
            continue;
        if (one->group != NULL)
            return sim_fail(ACL_ERROR_TASK_GROUP_STATUS, "aclmdlRICaptureEnd: a task group is open on stream %d", sim_stream_id(one->stream));
        if (one != origin && one->clock[one->index] > origin->clock[one->index])
            return sim_fail(ACL_ERROR_STREAM_UNJOINED,
                            "aclmdlRICaptureEnd: stream %d has joined the capture of stream %d and has not come back to it: that stream must "
                            "wait for an event recorded after the last launch",
                            sim_stream_id(one->stream), sim_stream_id(origin->stream));
    }
    return ACL_SUCCESS;
}

SIM_API aclError aclmdlRICaptureThreadExchangeMode(int32_t *mode)
{
    if (mode == NULL || *mode < SIM_MODE_GLOBAL || *mode > SIM_MODE_RELAXED)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclmdlRICaptureThreadExchangeMode: mode is null or not 0, 1 or 2");
    int32_t before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return ACL_SUCCESS;
}

/* ---- what others ask ---- */

bool sim_is_captured(aclrtStream stream)
{
    if (idle())
        return false;
    pthread_mutex_lock(&sim_capture_lock);
    bool found = sim_find_member(stream) != NULL;
    pthread_mutex_unlock(&sim_capture_lock);
    return found;
}

aclError sim_check_not_captured(const char *function, aclrtStream stream)
{
    if (!sim_is_captured(stream))
        return ACL_SUCCESS;
    return sim_fail(ACL_ERROR_STREAM_CAPTURED, "%s: stream %d is captured, its launches are recorded, not run: the host cannot wait for it",
                    function, sim_stream_id(stream));
}

aclError sim_check_permitted(const char *function)
{
    if (idle() || thread_mode == SIM_MODE_RELAXED)
        return ACL_SUCCESS;
    pthread_mutex_lock(&sim_capture_lock);
    bool forbidden = false;
    for (const sim_member *one = members; one != NULL && !forbidden; one = one->next) {
        bool own = pthread_equal(one->model->thread, pthread_self());
        forbidden = (one->model->mode == SIM_MODE_GLOBAL && (own || thread_mode == SIM_MODE_GLOBAL)) ||
                    (one->model->mode == SIM_MODE_THREAD_LOCAL && own);
    }
    pthread_mutex_unlock(&sim_capture_lock);
    if (!forbidden)
        return ACL_SUCCESS;
    return sim_fail(ACL_ERROR_CAPTURE_MODE_NOT_SUPPORTED, "%s: not while a stream is captured, unless the capture's mode is relaxed", function);
}

aclError sim_take(aclrtStream stream, const sim_launch *launch, bool *taken)
{
    *taken = false;
    if (!sim_is_special())
        return ACL_SUCCESS;
    aclError error = sim_update_task(stream, launch, taken);
    if (error == ACL_SUCCESS && !*taken)
        error = sim_check_not_waiting(launch->name, stream);
    if (error != ACL_SUCCESS || *taken || idle())
        return error;
    pthread_mutex_lock(&sim_capture_lock);
    sim_member *member = sim_find_member(stream);
    if (member != NULL) {
        error = sim_add_task(member, launch);
        *taken = error == ACL_SUCCESS;
    }
    pthread_mutex_unlock(&sim_capture_lock);
    return error;
}

/* For Python. */
SIM_API int32_t moe_sim_stream_state(aclrtStream stream)
{
    enum { ORDINARY = 0, CAPTURED = 1, UPDATING = 2, WAITING = 3 };
    if (!sim_is_special())
        return ORDINARY;
    if (sim_is_captured(stream))
        return CAPTURED;
    if (sim_is_updating(stream))
        return UPDATING;
    return sim_check_not_waiting("launch", stream) == ACL_SUCCESS ? ORDINARY : WAITING;
}

aclError sim_run_or_take(aclrtStream stream, const sim_launch *launch)
{
    bool taken;
    aclError error = sim_take(stream, launch, &taken);
    if (taken)
        return ACL_SUCCESS;
    if (error == ACL_SUCCESS)
        error = launch->run(launch->data);
    if (launch->drop != NULL)
        launch->drop(launch->data);
    return error;
}

aclError sim_launch_executor(const char *name, aclError (*run)(void *), void *executor, aclrtStream stream)
{
    if (executor == NULL)
        return sim_fail(ACLNN_ERROR_NULLPTR, "%s: executor is null", name);
    aclError error = sim_check_stream(name, stream);
    if (error == ACL_SUCCESS)
        error = sim_run_or_take(stream, &(sim_launch){name, run, free, executor});
    else
        free(executor);
    if (error != ACL_SUCCESS)
        sim_take_lock_back();
    return error;
}

/* ---- events of a capture ---- */

aclError sim_capture_record(aclrtStream stream, aclrtEvent event, bool *taken)
{
    *taken = false;
    if (idle())
        return ACL_SUCCESS;
    pthread_mutex_lock(&sim_capture_lock);
    sim_member *member = sim_find_member(stream);
    mark *found = find_mark(event);
    aclError error = ACL_SUCCESS;
    if (member == NULL && found != NULL) {
        /* Recorded anew outside of the capture: it is an event like any other again. */
        found->event = NULL;
    } else if (member != NULL) {
        if (found == NULL && (found = calloc(1, sizeof *found)) != NULL) {
            found->next = marks;
            marks = found;
        }
        if (found == NULL) {
            error = sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtRecordEvent: this machine is out of memory");
        } else {
            found->event = event;
            found->model = member->model;
            memcpy(found->clock, member->clock, sizeof found->clock);
            *taken = true;
        }
    }
    pthread_mutex_unlock(&sim_capture_lock);
    return error;
}

aclError sim_capture_wait(aclrtStream stream, aclrtEvent event, bool *taken)
{
    *taken = false;
    if (idle())
        return ACL_SUCCESS;
    pthread_mutex_lock(&sim_capture_lock);
    sim_member *member = sim_find_member(stream);
    const mark *found = find_mark(event);
    aclError error = ACL_SUCCESS;
    if (found == NULL && member != NULL) {
        error = sim_fail(ACL_ERROR_CAPTURE_DEPENDENCY,
                         "aclrtStreamWaitEvent: stream %d is captured and cannot wait for an event that was not recorded in the capture",
                         sim_stream_id(stream));
    } else if (found != NULL && member != NULL && member->model != found->model) {
        error = sim_fail(ACL_ERROR_CAPTURE_CONFLICT, "aclrtStreamWaitEvent: stream %d and the event are of two captures",
                         sim_stream_id(stream));
    } else if (found != NULL) {
        if (member == NULL && (member = sim_join("aclrtStreamWaitEvent", stream, found->model)) == NULL)
            error = ACL_ERROR_MEMORY_ALLOCATION;
        for (size_t i = 0; member != NULL && i < SIM_MAX_CAPTURED_STREAMS; i++)
            if (found->clock[i] > member->clock[i])
                member->clock[i] = found->clock[i];
        if (member != NULL)
            member->clock[member->index]++;
        *taken = error == ACL_SUCCESS;
    }
    pthread_mutex_unlock(&sim_capture_lock);
    return error;
}

aclError sim_check_event_not_captured(const char *function, aclrtEvent event)
{
    if (idle())
        return ACL_SUCCESS;
    pthread_mutex_lock(&sim_capture_lock);
    bool found = find_mark(event) != NULL;
    pthread_mutex_unlock(&sim_capture_lock);
    return found ? sim_fail(ACL_ERROR_EVENT_CAPTURED, "%s: the event was recorded in a capture, the host cannot ask for it", function)
                 : ACL_SUCCESS;
}

void sim_forget_event(aclrtEvent event)
{
    if (idle())
        return;
    pthread_mutex_lock(&sim_capture_lock);
    mark *found = find_mark(event);
    if (found != NULL)
        found->event = NULL;
    pthread_mutex_unlock(&sim_capture_lock);
}
