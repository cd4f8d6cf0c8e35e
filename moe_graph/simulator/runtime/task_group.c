/* Task groups: tasks of a captured graph that are replaced between replays, by launching the same ones anew on another stream. */
#define _GNU_SOURCE
#include "capture.h"

#include <stdlib.h>
#include <string.h>

/* A stream that updates a group: its next launch takes the place of the next task. */
typedef struct update {
    aclrtStream stream;
    sim_group *group;
    size_t next_task; /* of the model */
    size_t done;
    struct update *next;
} update;

static update *updates;
static int count; /* nothing is looked up while there are none */

static update *find(aclrtStream stream)
{
    update *one = updates;
    while (one != NULL && one->stream != stream)
        one = one->next;
    return one;
}

/* The group of a handle, in any live model. The lock is held. */
static sim_group *find_group(const void *handle)
{
    for (sim_model *model = sim_first_model(); model != NULL; model = model->next)
        for (sim_group *one = model->groups; one != NULL; one = one->next)
            if (one == handle)
                return one;
    return NULL;
}

SIM_API aclError aclmdlRICaptureTaskGrpBegin(aclrtStream stream)
{
    pthread_mutex_lock(&sim_capture_lock);
    sim_member *member = sim_find_member(stream);
    aclError error = ACL_SUCCESS;
    sim_group *made = NULL;
    if (member == NULL)
        error = sim_fail(ACL_ERROR_STREAM_NOT_CAPTURED, "aclmdlRICaptureTaskGrpBegin: the stream is not captured");
    else if (member->group != NULL)
        error = sim_fail(ACL_ERROR_TASK_GROUP_STATUS, "aclmdlRICaptureTaskGrpBegin: a task group is open on this stream already");
    else if ((made = calloc(1, sizeof *made)) == NULL)
        error = sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclmdlRICaptureTaskGrpBegin: this machine is out of memory");
    if (made != NULL) {
        made->model = member->model;
        made->first = member->model->task_count;
        made->next = member->model->groups;
        member->model->groups = made;
        member->group = made;
    }
    pthread_mutex_unlock(&sim_capture_lock);
    return error;
}

SIM_API aclError aclmdlRICaptureTaskGrpEnd(aclrtStream stream, void **handle)
{
    if (handle == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclmdlRICaptureTaskGrpEnd: handle is null");
    *handle = NULL;
    pthread_mutex_lock(&sim_capture_lock);
    sim_member *member = sim_find_member(stream);
    aclError error = ACL_SUCCESS;
    if (member == NULL || member->group == NULL) {
        error = sim_fail(ACL_ERROR_TASK_GROUP_STATUS, "aclmdlRICaptureTaskGrpEnd: no task group is open on this stream");
    } else {
        *handle = member->group;
        member->group = NULL;
    }
    pthread_mutex_unlock(&sim_capture_lock);
    return error;
}

SIM_API aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream stream, void *handle)
{
    aclError error = sim_check_stream("aclmdlRICaptureTaskUpdateBegin", stream);
    if (error != ACL_SUCCESS)
        return error;
    update *made = calloc(1, sizeof *made);
    if (made == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclmdlRICaptureTaskUpdateBegin: this machine is out of memory");
    pthread_mutex_lock(&sim_capture_lock);
    sim_group *group = find_group(handle);
    if (group == NULL)
        error = sim_fail(ACL_ERROR_INVALID_HANDLE, "aclmdlRICaptureTaskUpdateBegin: %p is no task group of a live graph", handle);
    else if (group->model->status != MODEL_READY)
        error = sim_fail(ACL_ERROR_MODEL_CAPTURED, "aclmdlRICaptureTaskUpdateBegin: the graph of this task group is captured still");
    else if (group->updating || find(stream) != NULL)
        error = sim_fail(ACL_ERROR_TASK_GROUP_STATUS, "aclmdlRICaptureTaskUpdateBegin: the stream or the task group is in an update already");
    else if (sim_find_member(stream) != NULL)
        error = sim_fail(ACL_ERROR_STREAM_CAPTURED, "aclmdlRICaptureTaskUpdateBegin: the stream is captured");
    if (error == ACL_SUCCESS) {
        group->updating = true;
        *made = (update){stream, group, group->first, 0, updates};
        updates = made;
        sim_count_special(1);
        __atomic_add_fetch(&count, 1, __ATOMIC_RELEASE);
        made = NULL;
    }
    pthread_mutex_unlock(&sim_capture_lock);
    free(made);
    return error;
}

SIM_API aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream stream)
{
    pthread_mutex_lock(&sim_capture_lock);
    update **link = &updates;
    while (*link != NULL && (*link)->stream != stream)
        link = &(*link)->next;
    update *found = *link;
    aclError error = ACL_SUCCESS;
    if (found == NULL) {
        error = sim_fail(ACL_ERROR_TASK_GROUP_STATUS, "aclmdlRICaptureTaskUpdateEnd: the stream is in no update");
    } else {
        if (found->group != NULL) {
            found->group->updating = false;
            if (found->done != found->group->count)
                error = sim_fail(ACL_ERROR_INTERNAL, "aclmdlRICaptureTaskUpdateEnd: %zu of the %zu tasks of the group were launched",
                                 found->done, found->group->count);
        }
        *link = found->next;
        free(found);
        sim_count_special(-1);
        __atomic_sub_fetch(&count, 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&sim_capture_lock);
    return error;
}

/* The same kernel: of an operator of torch the overload may be another ("aten.add.Tensor", "aten.add.out"). */
static bool is_same(const sim_launch *before, const sim_launch *after)
{
    if (sim_is_python(before) != sim_is_python(after))
        return false;
    const char *dot = strrchr(before->name, '.'), *other = strrchr(after->name, '.');
    size_t length = dot != NULL ? (size_t)(dot - before->name) : strlen(before->name);
    return length == (other != NULL ? (size_t)(other - after->name) : strlen(after->name)) &&
           strncmp(before->name, after->name, length) == 0;
}

/* Let the new launch take the place of the next task of the group. The lock is held. */
static aclError replace(update *one, const sim_launch *launch)
{
    sim_group *group = one->group;
    sim_model *model = group->model;
    while (one->next_task < model->task_count && model->tasks[one->next_task].group != group)
        one->next_task++;
    if (one->done == group->count)
        return sim_fail(ACL_ERROR_INTERNAL, "%s: the task group has %zu tasks, this launch is one too many", launch->name, group->count);
    if (model->running != 0)
        return sim_fail(ACL_ERROR_MODEL_RUNNING, "%s: the graph is replayed at this moment", launch->name);
    sim_task *task = &model->tasks[one->next_task];
    if (!is_same(&task->launch, launch))
        return sim_fail(ACL_ERROR_INTERNAL, "%s: the task to replace is another, %s", launch->name, task->launch.name);
    if (sim_is_python(launch))
        sim_keep_number(&task->launch, launch);
    if (task->launch.drop != NULL)
        task->launch.drop(task->launch.data);
    task->launch = *launch;
    one->next_task++;
    one->done++;
    return ACL_SUCCESS;
}

aclError sim_update_task(aclrtStream stream, const sim_launch *launch, bool *taken)
{
    *taken = false;
    if (__atomic_load_n(&count, __ATOMIC_ACQUIRE) == 0)
        return ACL_SUCCESS;
    aclError error = ACL_SUCCESS;
    pthread_mutex_lock(&sim_capture_lock);
    update *one = find(stream);
    if (one != NULL && one->group == NULL)
        error = sim_fail(ACL_ERROR_INVALID_HANDLE, "%s: the graph of the task group has been destroyed", launch->name);
    else if (one != NULL && (error = replace(one, launch)) == ACL_SUCCESS)
        *taken = true;
    pthread_mutex_unlock(&sim_capture_lock);
    return error;
}

uint32_t sim_updated_model(aclrtStream stream)
{
    const update *one = find(stream);
    return one != NULL && one->group != NULL ? one->group->model->id : 0;
}

bool sim_is_updating(aclrtStream stream)
{
    if (__atomic_load_n(&count, __ATOMIC_ACQUIRE) == 0)
        return false;
    pthread_mutex_lock(&sim_capture_lock);
    bool found = find(stream) != NULL;
    pthread_mutex_unlock(&sim_capture_lock);
    return found;
}

void sim_end_updates(const sim_model *model)
{
    for (update *one = updates; one != NULL; one = one->next)
        if (one->group != NULL && one->group->model == model)
            one->group = NULL;
}
