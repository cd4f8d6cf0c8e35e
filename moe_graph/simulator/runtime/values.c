/* Words of device memory that a stream writes, and that another waits for: external events, by which the host tells a replay that the
 * update of a task has been done.
 *
 * Nothing runs in the background here. A replay that comes to a wait whose value is not there stops, and goes on in the write that brings
 * the value. What else is launched on its stream meanwhile could not keep its place behind the replay, and is refused.
 */
#define _GNU_SOURCE
#include "capture.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    void *address;
    uint64_t value;
    uint32_t flag;
} word;

/* A replay that waits. */
typedef struct suspended {
    sim_model *model;
    aclrtStream stream;
    int32_t device;
    size_t next_task;
    word awaited;
    struct suspended *next;
} suspended;

static suspended *all; /* under sim_capture_lock */

static aclError write_word(void *data)
{
    const word *one = data;
    aclError error = sim_check_device_range("aclrtValueWrite", one->address, sizeof one->value);
    if (error == ACL_SUCCESS)
        __atomic_store_n((uint64_t *)one->address, one->value, __ATOMIC_RELEASE);
    return error;
}

static bool is_there(const word *one)
{
    enum { GREATER_OR_EQUAL = 0, EQUAL = 1, AND = 2, NOR = 3 };
    uint64_t found = __atomic_load_n((const uint64_t *)one->address, __ATOMIC_ACQUIRE);
    switch (one->flag) {
    case GREATER_OR_EQUAL: return (int64_t)(found - one->value) >= 0;
    case EQUAL: return found == one->value;
    case AND: return (found & one->value) != 0;
    default: return ~(found | one->value) != 0;
    }
}

static aclError wait_word(void *data)
{
    const word *one = data;
    aclError error = sim_check_device_range("aclrtValueWait", one->address, sizeof one->value);
    if (error != ACL_SUCCESS || is_there(one))
        return error;
    return sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "aclrtValueWait: an external event is waited for that has not been recorded; outside of "
                                                     "a captured graph that is not modelled");
}

bool sim_must_wait(const sim_launch *launch)
{
    return launch->run == wait_word && !is_there(launch->data);
}

aclError sim_suspend(sim_model *model, aclrtStream stream, size_t next, const sim_launch *launch)
{
    if (model->parent != NULL)
        return sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "a replay waits for an external event in the body of a condition: not modelled");
    suspended *made = malloc(sizeof *made);
    if (made == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "this machine has no memory left to suspend a replay");
    pthread_mutex_lock(&sim_capture_lock);
    *made = (suspended){model, stream, sim_current_device(), next, *(const word *)launch->data, all};
    all = made;
    model->suspended++;
    sim_count_special(1);
    pthread_mutex_unlock(&sim_capture_lock);
    return ACL_SUCCESS;
}

/* Go on with the replays whose value is there. */
static aclError resume(void)
{
    for (;;) {
        pthread_mutex_lock(&sim_capture_lock);
        suspended **link = &all;
        while (*link != NULL && !is_there(&(*link)->awaited))
            link = &(*link)->next;
        suspended *found = *link;
        if (found != NULL) {
            *link = found->next;
            found->model->suspended--;
            found->model->running++;
            sim_count_special(-1);
        }
        pthread_mutex_unlock(&sim_capture_lock);
        if (found == NULL)
            return ACL_SUCCESS;
        aclError error = sim_replay(found->model, found->stream, found->next_task);
        pthread_mutex_lock(&sim_capture_lock);
        found->model->running--;
        pthread_mutex_unlock(&sim_capture_lock);
        free(found);
        if (error != ACL_SUCCESS)
            return error;
    }
}

static aclError launch(const char *name, aclError (*run)(void *), void *address, uint64_t value, uint32_t flag, aclrtStream stream)
{
    aclError error = sim_check_stream(name, stream);
    if (error == ACL_SUCCESS)
        error = sim_check_device_range(name, address, sizeof value);
    if (error != ACL_SUCCESS)
        return error;
    word *made = malloc(sizeof *made);
    if (made == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "%s: this machine is out of memory", name);
    *made = (word){address, value, flag};
    return sim_run_or_take(stream, &(sim_launch){name, run, free, made});
}

SIM_API aclError aclrtValueWrite(void *address, uint64_t value, uint32_t flag, aclrtStream stream)
{
    aclError error = launch("aclrtValueWrite", write_word, address, value, flag, stream);
    return error != ACL_SUCCESS ? error : resume();
}

SIM_API aclError aclrtValueWait(void *address, uint64_t value, uint32_t flag, aclrtStream stream)
{
    return launch("aclrtValueWait", wait_word, address, value, flag, stream);
}

static const char EXPLANATION[] = "%s: a replay on stream %d waits for an external event that has not been recorded: record it (as "
                                  "NPUGraph.update does) before anything else is done on the stream";

aclError sim_check_not_waiting(const char *function, aclrtStream stream)
{
    pthread_mutex_lock(&sim_capture_lock);
    const suspended *one = all;
    while (one != NULL && one->stream != stream)
        one = one->next;
    pthread_mutex_unlock(&sim_capture_lock);
    return one == NULL ? ACL_SUCCESS : sim_fail(ACL_ERROR_STREAM_SYNC_TIMEOUT, EXPLANATION, function, sim_stream_id(stream));
}

aclError sim_check_none_waiting(const char *function, int32_t device)
{
    pthread_mutex_lock(&sim_capture_lock);
    const suspended *one = all;
    while (one != NULL && one->device != device)
        one = one->next;
    aclrtStream stream = one != NULL ? one->stream : NULL;
    pthread_mutex_unlock(&sim_capture_lock);
    return one == NULL ? ACL_SUCCESS : sim_fail(ACL_ERROR_STREAM_SYNC_TIMEOUT, EXPLANATION, function, sim_stream_id(stream));
}
