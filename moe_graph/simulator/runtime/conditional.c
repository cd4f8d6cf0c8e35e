/* Conditional tasks: a graph of tasks that a replay of its parent runs only if a word of device memory is not 0. */
#define _GNU_SOURCE
#include "capture.h"

#include <stdlib.h>

/* The body of a condition is a model of its own, whose parent it goes with. */
typedef struct sim_condition {
    uint64_t *word; /* memory of the device that launches of the parent write */
    uint64_t initial;
    bool is_reset; /* to `initial` at each replay */
    sim_model *parent, *body;
    struct sim_condition *next;
} sim_condition;

enum { ASSIGN_DEFAULT = 1, TYPE_IF = 0 };

typedef struct {
    void *handle;
    int32_t type;
    uint32_t size;
    void **models;
} condition_params; /* aclmdlRICondTaskParams */

SIM_API aclError aclrtMalloc(void **pointer, size_t size, int32_t policy);
SIM_API aclError aclrtFree(void *pointer);

/* The lock is held. */
static sim_condition *find(const void *handle)
{
    for (sim_model *model = sim_first_model(); model != NULL; model = model->next)
        for (sim_condition *one = model->conditions; one != NULL; one = one->next)
            if (one == handle)
                return one;
    return NULL;
}

SIM_API aclError aclmdlRICondHandleCreate(void *handle, uint32_t initial, uint32_t flags, void **result)
{
    if (result == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclmdlRICondHandleCreate: handle is null");
    sim_condition *made = calloc(1, sizeof *made);
    void *word = NULL;
    aclError error = made == NULL ? ACL_ERROR_MEMORY_ALLOCATION : aclrtMalloc(&word, sizeof *made->word, 0);
    if (error != ACL_SUCCESS) {
        free(made);
        return error;
    }
    made->word = word;
    *made->word = made->initial = initial;
    made->is_reset = (flags & ASSIGN_DEFAULT) != 0;
    pthread_mutex_lock(&sim_capture_lock);
    sim_model *model = sim_find_model(handle);
    if (model != NULL) {
        made->parent = model;
        made->next = model->conditions;
        model->conditions = made;
        *result = made;
    }
    pthread_mutex_unlock(&sim_capture_lock);
    if (model != NULL)
        return ACL_SUCCESS;
    aclrtFree(word);
    free(made);
    return sim_fail(ACL_ERROR_INVALID_HANDLE, "aclmdlRICondHandleCreate: %p is no model", handle);
}

SIM_API aclError aclmdlRICondHandleGetCondPtr(const void *handle, uint64_t **pointer)
{
    pthread_mutex_lock(&sim_capture_lock);
    const sim_condition *found = find(handle);
    if (found != NULL && pointer != NULL)
        *pointer = found->word;
    pthread_mutex_unlock(&sim_capture_lock);
    if (found == NULL || pointer == NULL)
        return sim_fail(ACL_ERROR_INVALID_HANDLE, "aclmdlRICondHandleGetCondPtr: %p is no condition, or null pointer", handle);
    return ACL_SUCCESS;
}

static aclError run_if(void *data)
{
    const sim_condition *condition = data;
    return *condition->word != 0 ? sim_replay(condition->body, NULL, 0) : ACL_SUCCESS;
}

SIM_API aclError aclmdlRIAddCondTask(condition_params params, aclrtStream stream, uint32_t flags)
{
    (void)flags;
    if (params.type != TYPE_IF || params.size != 1 || params.models == NULL)
        return sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "aclmdlRIAddCondTask: of conditional tasks only an if with one body is modelled");
    pthread_mutex_lock(&sim_capture_lock);
    sim_condition *condition = find(params.handle);
    sim_member *member = sim_find_member(stream);
    aclError error = ACL_SUCCESS;
    if (condition == NULL || condition->body != NULL)
        error = sim_fail(ACL_ERROR_INVALID_HANDLE, "aclmdlRIAddCondTask: %p is no condition, or has a body already", params.handle);
    else if (member == NULL || member->model != condition->parent)
        error = sim_fail(ACL_ERROR_STREAM_NOT_CAPTURED, "aclmdlRIAddCondTask: the stream is not captured into the condition's model");
    else if ((condition->body = sim_new_model()) == NULL)
        error = sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclmdlRIAddCondTask: this machine is out of memory");
    if (error == ACL_SUCCESS) {
        condition->body->parent = condition->parent;
        error = sim_add_task(member, &(sim_launch){"if", run_if, NULL, condition});
        params.models[0] = condition->body;
    }
    pthread_mutex_unlock(&sim_capture_lock);
    return error;
}

SIM_API aclError aclmdlRICaptureToModelRIBegin(aclrtStream stream, void *handle, int32_t mode)
{
    aclError error = sim_check_stream("aclmdlRICaptureToModelRIBegin", stream);
    if (error != ACL_SUCCESS)
        return error;
    pthread_mutex_lock(&sim_capture_lock);
    sim_model *model = sim_find_model(handle);
    if (model == NULL)
        error = sim_fail(ACL_ERROR_INVALID_HANDLE, "aclmdlRICaptureToModelRIBegin: %p is no model", handle);
    else if (model->status != MODEL_EMPTY)
        error = sim_fail(ACL_ERROR_MODEL_CAPTURED, "aclmdlRICaptureToModelRIBegin: model %u has been captured", model->id);
    else
        error = sim_begin("aclmdlRICaptureToModelRIBegin", stream, model, mode);
    pthread_mutex_unlock(&sim_capture_lock);
    return error;
}

void sim_reset_conditions(const sim_model *model)
{
    for (const sim_condition *one = model->conditions; one != NULL; one = one->next)
        if (one->is_reset)
            *one->word = one->initial;
}

bool sim_conditions_are_closed(const sim_model *model)
{
    for (const sim_condition *one = model->conditions; one != NULL; one = one->next)
        if (one->body != NULL && one->body->status == MODEL_CAPTURING)
            return false;
    return true;
}

void sim_drop_conditions(sim_model *model)
{
    while (model->conditions != NULL) {
        sim_condition *one = model->conditions;
        model->conditions = one->next;
        if (one->body != NULL)
            sim_free_model(one->body);
        aclrtFree(one->word);
        free(one);
    }
}
