/* What a capture has recorded, and its replay: the tasks run one after another in the order in which they were recorded, which agrees
 * with the order on each stream and across forks and joins. Tasks of Python (operators) are run by Python, as many as follow each other
 * at once. */
#define _GNU_SOURCE
#include "capture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the tasks of Python: the launch's data is their number in the list that Python keeps for the model ---- */

static struct {
    void (*captured)(uint32_t model);  /* a capture is about to end well */
    int32_t (*begin)(uint32_t model);  /* a replay begins; 0, or an error that moe_sim_python_failed has described */
    int32_t (*run)(uint32_t model, uint64_t first, uint64_t count);
    void (*destroyed)(uint32_t model);
} python;

SIM_API void moe_sim_set_python(void (*captured)(uint32_t), int32_t (*begin)(uint32_t), int32_t (*run)(uint32_t, uint64_t, uint64_t),
                                void (*destroyed)(uint32_t))
{
    python.captured = captured;
    python.begin = begin;
    python.run = run;
    python.destroyed = destroyed;
}

/* Called after each task that is none of Python, with the task's data; NULL: nobody watches. 0, or an error that moe_sim_python_failed
 * has described. */
typedef int32_t (*native_watcher)(uint32_t model, const char *name, const void *data);
static native_watcher watcher;

SIM_API void moe_sim_watch_native(native_watcher function)
{
    __atomic_store_n(&watcher, function, __ATOMIC_RELEASE);
}

/* For a callback of Python: keep the message of its error. */
SIM_API void moe_sim_python_failed(const char *message)
{
    sim_fail(ACL_ERROR_INTERNAL, "%s", message);
}

void sim_tell_captured(uint32_t model)
{
    if (python.captured != NULL)
        python.captured(model);
}

void sim_tell_python_destroyed(uint32_t model)
{
    if (python.destroyed != NULL)
        python.destroyed(model);
}

/* Python reads it before each launch. */
SIM_API int32_t moe_sim_special_streams;

void sim_count_special(int change)
{
    __atomic_add_fetch(&moe_sim_special_streams, change, __ATOMIC_ACQ_REL);
}

bool sim_is_special(void)
{
    return __atomic_load_n(&moe_sim_special_streams, __ATOMIC_ACQUIRE) != 0;
}

static aclError run_python(void *data)
{
    (void)data;
    return sim_fail(ACL_ERROR_INTERNAL, "a task of Python outside of a replay");
}

/* ---- recording ---- */

aclError sim_add_task(sim_member *member, const sim_launch *launch)
{
    sim_model *model = member->model;
    if (model->task_count == model->task_capacity) {
        size_t capacity = model->task_capacity ? 2 * model->task_capacity : 64;
        sim_task *grown = realloc(model->tasks, capacity * sizeof *grown);
        if (grown == NULL)
            return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "%s: this machine has no memory left to capture it", launch->name);
        model->tasks = grown;
        model->task_capacity = capacity;
    }
    model->tasks[model->task_count++] = (sim_task){*launch, member->index, member->group};
    member->clock[member->index]++;
    if (member->group != NULL)
        member->group->count++;
    return ACL_SUCCESS;
}

static void drop_launch(const sim_launch *launch)
{
    if (launch->drop != NULL)
        launch->drop(launch->data);
}

void sim_drop_tasks(sim_model *model)
{
    for (size_t i = 0; i < model->task_count; i++)
        drop_launch(&model->tasks[i].launch);
    free(model->tasks);
    while (model->groups != NULL) {
        sim_group *next = model->groups->next;
        free(model->groups);
        model->groups = next;
    }
}

typedef struct {
    uint32_t model;    /* 0: the stream is not captured, nothing was recorded */
    uint32_t replaces; /* 1: the task takes the place of the one with this number */
    uint64_t number;
} python_task;

typedef struct {
    uint64_t number;
    char name[];
} python_data;

/* Record a task of Python with the number that comes next, or with that of the task that it replaces in an update. */
SIM_API aclError moe_sim_record(aclrtStream stream, const char *name, python_task *result)
{
    *result = (python_task){0};
    size_t length = strlen(name) + 1;
    python_data *data = malloc(sizeof *data + length);
    if (data == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "%s: this machine has no memory left to capture it", name);
    memcpy(data->name, name, length);
    data->number = UINT64_MAX;
    bool taken;
    aclError error = sim_take(stream, &(sim_launch){data->name, run_python, free, data}, &taken);
    if (!taken)
        free(data);
    if (!taken || error != ACL_SUCCESS)
        return error;
    pthread_mutex_lock(&sim_capture_lock);
    const sim_member *member = sim_find_member(stream);
    if (data->number != UINT64_MAX) { /* sim_update_task has given it that of the task it replaces */
        result->replaces = 1;
        result->model = sim_updated_model(stream);
    } else if (member != NULL) {
        result->model = member->model->id;
        data->number = member->model->python_count++;
    }
    result->number = data->number;
    pthread_mutex_unlock(&sim_capture_lock);
    return ACL_SUCCESS;
}

bool sim_is_python(const sim_launch *launch)
{
    return launch->run == run_python;
}

void sim_keep_number(const sim_launch *before, const sim_launch *after)
{
    ((python_data *)after->data)->number = ((const python_data *)before->data)->number;
}

/* ---- replay ---- */

static uint64_t number_of(const sim_task *task)
{
    return ((const python_data *)task->launch.data)->number;
}

aclError sim_replay(sim_model *model, aclrtStream stream, size_t from)
{
    if (from == 0) {
        sim_reset_conditions(model);
        if (model->python_count != 0 && python.begin == NULL)
            return sim_fail(ACL_ERROR_INTERNAL, "aclmdlRIExecuteAsync: Python has ended");
        if (python.begin != NULL && python.begin(model->id) != 0)
            return ACL_ERROR_INTERNAL;
    }
    for (size_t i = from; i < model->task_count;) {
        const sim_task *task = &model->tasks[i];
        if (sim_must_wait(&task->launch))
            return sim_suspend(model, stream, i, &task->launch);
        i++;
        if (!sim_is_python(&task->launch)) {
            aclError error = task->launch.run(task->launch.data);
            if (error != ACL_SUCCESS)
                return error;
            native_watcher watch = __atomic_load_n(&watcher, __ATOMIC_ACQUIRE);
            if (watch != NULL && watch(model->id, task->launch.name, task->launch.data) != 0)
                return ACL_ERROR_INTERNAL;
            continue;
        }
        uint64_t first = number_of(task), count = 1;
        while (i < model->task_count && sim_is_python(&model->tasks[i].launch) && number_of(&model->tasks[i]) == first + count) {
            count++;
            i++;
        }
        if (python.run(model->id, first, count) != 0)
            return ACL_ERROR_INTERNAL;
    }
    return ACL_SUCCESS;
}

SIM_API aclError aclmdlRIExecuteAsync(void *handle, aclrtStream stream)
{
    aclError error = sim_check_stream("aclmdlRIExecuteAsync", stream);
    if (error == ACL_SUCCESS)
        error = sim_check_not_waiting("aclmdlRIExecuteAsync", stream);
    if (error != ACL_SUCCESS)
        return error;
    if (sim_is_captured(stream))
        return sim_fail(ACL_ERROR_STREAM_CAPTURED, "aclmdlRIExecuteAsync: stream %d is captured, a graph cannot be replayed into another",
                        sim_stream_id(stream));
    pthread_mutex_lock(&sim_capture_lock);
    sim_model *model = sim_find_model(handle);
    if (model == NULL)
        error = sim_fail(ACL_ERROR_INVALID_HANDLE, "aclmdlRIExecuteAsync: %p is no model", handle);
    else if (model->status == MODEL_CAPTURING)
        error = sim_fail(ACL_ERROR_MODEL_CAPTURED, "aclmdlRIExecuteAsync: model %u is captured still", model->id);
    else
        model->running++;
    pthread_mutex_unlock(&sim_capture_lock);
    if (error != ACL_SUCCESS)
        return error;
    error = sim_replay(model, stream, 0);
    pthread_mutex_lock(&sim_capture_lock);
    model->running--;
    pthread_mutex_unlock(&sim_capture_lock);
    return error;
}

SIM_API aclError aclmdlRIDestroy(void *handle)
{
    pthread_mutex_lock(&sim_capture_lock);
    sim_model *model = sim_find_model(handle);
    aclError error = ACL_SUCCESS;
    if (model == NULL) {
        error = sim_fail(ACL_ERROR_INVALID_HANDLE, "aclmdlRIDestroy: %p is no model", handle);
    } else if (model->running != 0 || model->suspended != 0) {
        error = sim_fail(ACL_ERROR_MODEL_RUNNING, "aclmdlRIDestroy: model %u is replayed at this moment", model->id);
    } else {
        sim_free_model(model);
    }
    pthread_mutex_unlock(&sim_capture_lock);
    sim_tell_destroyed();
    return error;
}

/* ---- description ---- */

static void write_text(FILE *file, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            fputc('\\', file);
        fputc((unsigned char)*text < ' ' ? ' ' : *text, file);
    }
}

static void write_events(FILE *file, const sim_model *model, bool *first)
{
    for (size_t i = 0; i < model->task_count; i++) {
        const sim_task *task = &model->tasks[i];
        int32_t stream = model->stream_ids[task->stream];
        fputs(*first ? "" : ",\n", file);
        *first = false;
        fputs(" {\"name\": \"", file);
        write_text(file, task->launch.name);
        fprintf(file, "\", \"ph\": \"X\", \"pid\": \"model%u\", \"tid\": \"stream%d\", \"ts\": %zu, \"dur\": 1, \"args\": {\"Model Id\": %u, "
                      "\"Stream Id\": %d, \"Task Id\": %zu, \"Task Type\": \"%s\"}}",
                model->id, stream, i, model->id, stream, i, sim_is_python(&task->launch) ? "KERNEL_AICORE" : "OTHER");
    }
}

/* The tasks as events of a Chrome trace: a row for each stream, in the order of recording (times are positions). */
SIM_API aclError aclmdlRIDebugJsonPrint(const void *handle, const char *path, uint32_t flags)
{
    (void)flags;
    if (path == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclmdlRIDebugJsonPrint: path is null");
    FILE *file = fopen(path, "w");
    if (file == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclmdlRIDebugJsonPrint: %s cannot be written", path);
    pthread_mutex_lock(&sim_capture_lock);
    const sim_model *model = sim_find_model(handle);
    bool first = true;
    fputs("[\n", file);
    if (model != NULL)
        write_events(file, model, &first);
    fputs("\n]\n", file);
    pthread_mutex_unlock(&sim_capture_lock);
    bool written = fclose(file) == 0;
    if (model == NULL)
        return sim_fail(ACL_ERROR_INVALID_HANDLE, "aclmdlRIDebugJsonPrint: %p is no model", handle);
    return written ? ACL_SUCCESS : sim_fail(ACL_ERROR_INTERNAL, "aclmdlRIDebugJsonPrint: %s cannot be written", path);
}

SIM_API aclError aclmdlRIDebugPrint(const void *handle)
{
    pthread_mutex_lock(&sim_capture_lock);
    const sim_model *model = sim_find_model(handle);
    for (size_t i = 0; model != NULL && i < model->task_count; i++)
        fprintf(stderr, "model %u, task %zu, stream %d: %s\n", model->id, i, model->stream_ids[model->tasks[i].stream],
                model->tasks[i].launch.name);
    pthread_mutex_unlock(&sim_capture_lock);
    return model != NULL ? ACL_SUCCESS : sim_fail(ACL_ERROR_INVALID_HANDLE, "aclmdlRIDebugPrint: %p is no model", handle);
}

/* How many tasks the model with this id has; 0 if there is none. */
SIM_API uint64_t moe_sim_task_count(uint32_t id)
{
    pthread_mutex_lock(&sim_capture_lock);
    uint64_t count = sim_count_tasks(id);
    pthread_mutex_unlock(&sim_capture_lock);
    return count;
}
