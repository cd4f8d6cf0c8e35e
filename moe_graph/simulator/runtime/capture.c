/* Capture: a stream's launches are recorded into a graph of tasks (aclmdlRI) instead of being run. The errors are CANN's, by number
 * (rt_error_codes.h). As there, what is refused during a capture does not end it. */
#define _GNU_SOURCE
#include "capture.h"

#include <stdlib.h>
#include <string.h>

enum { STATUS_NONE = 0, STATUS_ACTIVE = 1 };

pthread_mutex_t sim_capture_lock = PTHREAD_MUTEX_INITIALIZER;
static sim_model *models;   /* all live ones */
static uint32_t last_id;
static uint32_t *dead; /* ids that Python is to be told of */
static size_t dead_count, dead_capacity;

sim_model *sim_find_model(const void *handle)
{
    sim_model *one = models;
    while (one != NULL && one != handle)
        one = one->next;
    return one;
}

sim_model *sim_first_model(void)
{
    return models;
}

uint64_t sim_count_tasks(uint32_t id)
{
    const sim_model *one = models;
    while (one != NULL && one->id != id)
        one = one->next;
    return one != NULL ? one->task_count : 0;
}

sim_model *sim_new_model(void)
{
    sim_model *made = calloc(1, sizeof *made);
    if (made == NULL)
        return NULL;
    made->id = ++last_id;
    made->device = sim_current_device();
    made->next = models;
    models = made;
    return made;
}

void sim_free_model(sim_model *model)
{
    sim_leave(model);
    for (sim_model **link = &models; *link != NULL; link = &(*link)->next)
        if (*link == model) {
            *link = model->next;
            break;
        }
    sim_end_updates(model);
    sim_drop_conditions(model);
    sim_drop_tasks(model);
    if (dead_count == dead_capacity) {
        size_t capacity = dead_capacity ? 2 * dead_capacity : 16;
        uint32_t *grown = realloc(dead, capacity * sizeof *grown);
        if (grown != NULL) {
            dead = grown;
            dead_capacity = capacity;
        }
    }
    if (dead_count < dead_capacity)
        dead[dead_count++] = model->id;
    free(model);
}

/* Without the lock, as Python may do anything. */
void sim_tell_destroyed(void)
{
    for (bool more = true; more;) {
        pthread_mutex_lock(&sim_capture_lock);
        more = dead_count != 0;
        uint32_t id = more ? dead[--dead_count] : 0;
        pthread_mutex_unlock(&sim_capture_lock);
        if (more)
            sim_tell_python_destroyed(id);
    }
}

aclError sim_begin(const char *function, aclrtStream stream, sim_model *model, int32_t mode)
{
    if (mode < SIM_MODE_GLOBAL || mode > SIM_MODE_RELAXED)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: mode must be 0 (global), 1 (thread local) or 2 (relaxed), got %d", function, mode);
    if (stream == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: the default stream cannot be captured", function);
    if (sim_find_member(stream) != NULL)
        return sim_fail(ACL_ERROR_STREAM_CAPTURED, "%s: stream %d is captured already", function, sim_stream_id(stream));
    if (sim_join(function, stream, model) == NULL)
        return ACL_ERROR_MEMORY_ALLOCATION;
    model->origin = stream;
    model->mode = mode;
    model->thread = pthread_self();
    model->status = MODEL_CAPTURING;
    return ACL_SUCCESS;
}

static void (*before_capture)(void);

/* Called once, when the next capture is about to begin. */
SIM_API void moe_sim_before_capture(void (*function)(void))
{
    __atomic_store_n(&before_capture, function, __ATOMIC_RELEASE);
}

SIM_API aclError aclmdlRICaptureBegin(aclrtStream stream, int32_t mode)
{
    aclError error = sim_check_stream("aclmdlRICaptureBegin", stream);
    if (error != ACL_SUCCESS)
        return error;
    void (*call)(void) = __atomic_exchange_n(&before_capture, NULL, __ATOMIC_ACQ_REL);
    if (call != NULL)
        call();
    pthread_mutex_lock(&sim_capture_lock);
    sim_model *model = sim_new_model();
    if (model == NULL)
        error = sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclmdlRICaptureBegin: this machine is out of memory");
    else if ((error = sim_begin("aclmdlRICaptureBegin", stream, model, mode)) != ACL_SUCCESS)
        sim_free_model(model);
    pthread_mutex_unlock(&sim_capture_lock);
    sim_tell_destroyed();
    return error;
}

SIM_API aclError aclmdlRICaptureGetInfo(aclrtStream stream, int32_t *status, void **model)
{
    sim_model *found = NULL;
    if (sim_is_captured(stream)) {
        pthread_mutex_lock(&sim_capture_lock);
        const sim_member *member = sim_find_member(stream);
        found = member != NULL ? member->model : NULL;
        pthread_mutex_unlock(&sim_capture_lock);
    }
    if (status != NULL)
        *status = found != NULL ? STATUS_ACTIVE : STATUS_NONE;
    if (model != NULL)
        *model = found;
    return sim_check_stream("aclmdlRICaptureGetInfo", stream);
}

static uint32_t id_of_capture(aclrtStream stream)
{
    pthread_mutex_lock(&sim_capture_lock);
    const sim_member *member = sim_find_member(stream);
    uint32_t id = member != NULL ? member->model->id : 0;
    pthread_mutex_unlock(&sim_capture_lock);
    return id;
}

SIM_API aclError aclmdlRICaptureEnd(aclrtStream stream, void **result)
{
    if (result == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclmdlRICaptureEnd: modelRI is null");
    *result = NULL;
    aclError error = sim_check_stream("aclmdlRICaptureEnd", stream);
    if (error != ACL_SUCCESS)
        return error;
    uint32_t id = id_of_capture(stream);
    if (id != 0)
        sim_tell_captured(id); /* while the stream is captured still: the generators' offsets are those of the capture */
    pthread_mutex_lock(&sim_capture_lock);
    const sim_member *origin = sim_find_member(stream);
    sim_model *model = origin != NULL ? origin->model : NULL;
    if (origin == NULL) {
        error = sim_fail(ACL_ERROR_STREAM_NOT_CAPTURED, "aclmdlRICaptureEnd: stream %d is not captured", sim_stream_id(stream));
    } else if (model->origin != stream) {
        error = sim_fail(ACL_ERROR_CAPTURE_UNMATCHED, "aclmdlRICaptureEnd: the capture was not begun on stream %d", sim_stream_id(stream));
    } else {
        if (model->mode != SIM_MODE_RELAXED && !pthread_equal(model->thread, pthread_self()))
            error = sim_fail(ACL_ERROR_CAPTURE_WRONG_THREAD, "aclmdlRICaptureEnd: another thread has begun this capture");
        else
            error = sim_check_whole(model, origin);
        if (error == ACL_SUCCESS) {
            sim_leave(model);
            model->status = MODEL_READY;
            *result = model;
        } else if (model->parent != NULL) {
            sim_leave(model); /* the body goes with its parent */
        } else {
            sim_free_model(model);
        }
    }
    pthread_mutex_unlock(&sim_capture_lock);
    sim_tell_destroyed();
    return error;
}

SIM_API aclError aclmdlRIGetId(const void *handle, uint32_t *id)
{
    pthread_mutex_lock(&sim_capture_lock);
    const sim_model *model = sim_find_model(handle);
    if (model != NULL && id != NULL)
        *id = model->id;
    pthread_mutex_unlock(&sim_capture_lock);
    return model != NULL && id != NULL ? ACL_SUCCESS : sim_fail(ACL_ERROR_INVALID_PARAM, "aclmdlRIGetId: %p is no model, or null id", handle);
}

