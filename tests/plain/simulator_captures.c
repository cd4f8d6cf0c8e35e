/* Drives capture and replay without Python, for the sanitizers: forks and joins, what is refused, task groups, conditions, external events
 * before and after a replay, stale models, and captures in several threads at once. */
#include "sim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(CONDITION)                                                                  \
    do {                                                                                  \
        if (!(CONDITION)) {                                                               \
            fprintf(stderr, "line %d: %s; %s\n", __LINE__, #CONDITION, aclGetRecentErrMsg()); \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

const char *aclGetRecentErrMsg(void);
aclError aclrtSetDevice(int32_t);
aclError aclrtMalloc(void **, size_t, int32_t);
aclError aclrtFree(void *);
aclError aclrtGetMemInfo(int32_t, size_t *, size_t *);
aclError aclrtMemcpy(void *, size_t, const void *, size_t, int32_t);
aclError aclrtMemcpyAsync(void *, size_t, const void *, size_t, int32_t, aclrtStream);
aclError aclrtMemsetAsync(void *, size_t, int32_t, size_t, aclrtStream);
aclError aclrtCreateStream(aclrtStream *);
aclError aclrtDestroyStream(aclrtStream);
aclError aclrtCreateEvent(aclrtEvent *);
aclError aclrtDestroyEvent(aclrtEvent);
aclError aclrtRecordEvent(aclrtEvent, aclrtStream);
aclError aclrtStreamWaitEvent(aclrtStream, aclrtEvent);
aclError aclrtSynchronizeStream(aclrtStream);
aclError aclrtSynchronizeEvent(aclrtEvent);
aclError aclrtSynchronizeDevice(void);
aclError aclrtLaunchHostFunc(aclrtStream, void (*)(void *), void *);
aclError aclrtValueWrite(void *, uint64_t, uint32_t, aclrtStream);
aclError aclrtValueWait(void *, uint64_t, uint32_t, aclrtStream);
aclError aclmdlRICaptureBegin(aclrtStream, int32_t);
aclError aclmdlRICaptureEnd(aclrtStream, void **);
aclError aclmdlRICaptureGetInfo(aclrtStream, int32_t *, void **);
aclError aclmdlRICaptureThreadExchangeMode(int32_t *);
aclError aclmdlRIExecuteAsync(void *, aclrtStream);
aclError aclmdlRIDestroy(void *);
aclError aclmdlRIGetId(const void *, uint32_t *);
aclError aclmdlRIDebugJsonPrint(const void *, const char *, uint32_t);
aclError aclmdlRICaptureTaskGrpBegin(aclrtStream);
aclError aclmdlRICaptureTaskGrpEnd(aclrtStream, void **);
aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream, void *);
aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream);
typedef struct {
    void *handle;
    int32_t type;
    uint32_t size;
    void **models;
} condition_params;
aclError aclmdlRICondHandleCreate(void *, uint32_t, uint32_t, void **);
aclError aclmdlRICondHandleGetCondPtr(const void *, uint64_t **);
aclError aclmdlRIAddCondTask(condition_params, aclrtStream, uint32_t);
aclError aclmdlRICaptureToModelRIBegin(aclrtStream, void *, int32_t);
extern int32_t moe_sim_special_streams;

enum { GLOBAL = 0, RELAXED = 2, DEVICE_TO_DEVICE = 3, SIZE = 64 };

static unsigned char *memory(void)
{
    void *pointer = NULL;
    CHECK(aclrtMalloc(&pointer, SIZE, 0) == ACL_SUCCESS);
    memset(pointer, 0, SIZE);
    return pointer;
}

static aclrtStream stream(void)
{
    aclrtStream made = NULL;
    CHECK(aclrtCreateStream(&made) == ACL_SUCCESS);
    return made;
}

static void add_one(void *value)
{
    ++*(int *)value;
}

static void forks(void)
{
    aclrtStream main_stream = stream(), side = stream();
    aclrtEvent fork_event = NULL, join_event = NULL, outside = NULL;
    unsigned char *a = memory(), *b = memory();
    void *model = NULL;
    int called = 0;
    CHECK(aclrtCreateEvent(&fork_event) == 0 && aclrtCreateEvent(&join_event) == 0 && aclrtCreateEvent(&outside) == 0);
    CHECK(aclrtRecordEvent(outside, main_stream) == ACL_SUCCESS);
    for (int joined = 0; joined < 2; joined++) {
        CHECK(aclmdlRICaptureBegin(main_stream, GLOBAL) == ACL_SUCCESS);
        CHECK(aclmdlRICaptureBegin(main_stream, GLOBAL) == ACL_ERROR_STREAM_CAPTURED);
        CHECK(aclrtMemsetAsync(a, SIZE, 7, SIZE, main_stream) == ACL_SUCCESS);
        CHECK(aclrtRecordEvent(fork_event, main_stream) == ACL_SUCCESS && aclrtStreamWaitEvent(side, fork_event) == ACL_SUCCESS);
        CHECK(aclrtMemcpyAsync(b, SIZE, a, SIZE, DEVICE_TO_DEVICE, side) == ACL_SUCCESS);
        CHECK(aclrtLaunchHostFunc(side, add_one, &called) == ACL_SUCCESS);
        if (joined)
            CHECK(aclrtRecordEvent(join_event, side) == ACL_SUCCESS && aclrtStreamWaitEvent(main_stream, join_event) == ACL_SUCCESS);
        /* What is refused does not end the capture. */
        CHECK(aclrtSynchronizeStream(side) == ACL_ERROR_STREAM_CAPTURED && aclrtDestroyStream(side) == ACL_ERROR_STREAM_CAPTURED);
        CHECK(aclrtSynchronizeEvent(fork_event) == ACL_ERROR_EVENT_CAPTURED);
        CHECK(aclrtSynchronizeDevice() == ACL_ERROR_CAPTURE_MODE_NOT_SUPPORTED);
        CHECK(aclrtMemcpy(b, SIZE, a, SIZE, DEVICE_TO_DEVICE) == ACL_ERROR_CAPTURE_MODE_NOT_SUPPORTED);
        CHECK(aclrtStreamWaitEvent(main_stream, outside) == ACL_ERROR_CAPTURE_DEPENDENCY);
        CHECK(aclmdlRICaptureEnd(side, &model) == ACL_ERROR_CAPTURE_UNMATCHED);
        int32_t mode = RELAXED;
        CHECK(aclmdlRICaptureThreadExchangeMode(&mode) == ACL_SUCCESS && mode == GLOBAL);
        CHECK(aclrtMemcpy(b, SIZE, b, SIZE, DEVICE_TO_DEVICE) == ACL_SUCCESS);
        CHECK(aclmdlRICaptureThreadExchangeMode(&mode) == ACL_SUCCESS && mode == RELAXED);
        CHECK(aclmdlRICaptureEnd(main_stream, &model) == (joined ? ACL_SUCCESS : ACL_ERROR_STREAM_UNJOINED));
        CHECK(moe_sim_special_streams == 0 && called == 0 && b[0] == 0);
    }
    for (int replay = 1; replay <= 3; replay++) {
        b[0] = 0;
        CHECK(aclmdlRIExecuteAsync(model, replay % 2 ? main_stream : NULL) == ACL_SUCCESS && b[0] == 7 && called == replay);
    }
    CHECK(aclmdlRIDebugJsonPrint(model, "/dev/null", 0) == ACL_SUCCESS && aclmdlRIDebugJsonPrint(model, "/no/such", 0) != ACL_SUCCESS);
    CHECK(aclmdlRIDestroy(model) == ACL_SUCCESS && aclmdlRIDestroy(model) == ACL_ERROR_INVALID_HANDLE);
    CHECK(aclmdlRIExecuteAsync(model, NULL) == ACL_ERROR_INVALID_HANDLE);
    CHECK(aclrtDestroyEvent(fork_event) == 0 && aclrtDestroyEvent(join_event) == 0 && aclrtDestroyEvent(outside) == 0);
    CHECK(aclrtDestroyStream(main_stream) == 0 && aclrtDestroyStream(side) == 0 && aclrtFree(a) == 0 && aclrtFree(b) == 0);
}

static void updates(void)
{
    aclrtStream captured = stream(), updating = stream();
    unsigned char *a = memory(), *flag = memory();
    void *model = NULL, *group = NULL, *other = NULL;
    CHECK(aclmdlRICaptureBegin(captured, GLOBAL) == ACL_SUCCESS);
    CHECK(aclrtValueWait(flag, 1, 1, captured) == ACL_SUCCESS && aclrtValueWrite(flag, 0, 0, captured) == ACL_SUCCESS);
    CHECK(aclmdlRICaptureTaskGrpBegin(captured) == ACL_SUCCESS && aclmdlRICaptureTaskGrpBegin(captured) == ACL_ERROR_TASK_GROUP_STATUS);
    CHECK(aclrtMemsetAsync(a, SIZE, 1, SIZE, captured) == ACL_SUCCESS);
    CHECK(aclmdlRICaptureTaskGrpEnd(captured, &group) == ACL_SUCCESS && aclmdlRICaptureTaskGrpEnd(captured, &other) != ACL_SUCCESS);
    CHECK(aclmdlRICaptureTaskUpdateBegin(updating, group) == ACL_ERROR_MODEL_CAPTURED);
    CHECK(aclmdlRICaptureEnd(captured, &model) == ACL_SUCCESS);
    for (int early = 0; early < 2; early++) { /* the replay before the update, or after it */
        a[0] = 0;
        if (early) {
            CHECK(aclmdlRIExecuteAsync(model, captured) == ACL_SUCCESS && a[0] == 0);
            CHECK(aclrtSynchronizeStream(captured) == ACL_ERROR_STREAM_SYNC_TIMEOUT && aclmdlRIDestroy(model) == ACL_ERROR_MODEL_RUNNING);
            CHECK(aclrtMemsetAsync(a, SIZE, 9, SIZE, captured) == ACL_ERROR_STREAM_SYNC_TIMEOUT);
        }
        CHECK(aclmdlRICaptureTaskUpdateBegin(updating, group) == ACL_SUCCESS);
        CHECK(aclmdlRICaptureTaskUpdateBegin(updating, group) == ACL_ERROR_TASK_GROUP_STATUS);
        CHECK(aclrtMemsetAsync(a, SIZE, 5 + early, SIZE, updating) == ACL_SUCCESS && a[0] != 5 + early);
        CHECK(aclrtMemsetAsync(a, SIZE, 6, SIZE, updating) != ACL_SUCCESS); /* one too many */
        CHECK(aclmdlRICaptureTaskUpdateEnd(updating) == ACL_SUCCESS);
        CHECK(aclrtValueWrite(flag, 1, 0, updating) == ACL_SUCCESS);
        if (!early)
            CHECK(aclmdlRIExecuteAsync(model, captured) == ACL_SUCCESS);
        CHECK(a[0] == 5 + early && flag[0] == 0 && aclrtSynchronizeStream(captured) == ACL_SUCCESS);
    }
    CHECK(aclmdlRICaptureTaskUpdateBegin(updating, group) == ACL_SUCCESS && aclmdlRIDestroy(model) == ACL_SUCCESS);
    CHECK(aclrtMemsetAsync(a, SIZE, 6, SIZE, updating) == ACL_ERROR_INVALID_HANDLE);
    CHECK(aclmdlRICaptureTaskUpdateEnd(updating) == ACL_SUCCESS && moe_sim_special_streams == 0);
    CHECK(aclmdlRICaptureTaskUpdateBegin(updating, group) == ACL_ERROR_INVALID_HANDLE);
    CHECK(aclrtDestroyStream(captured) == 0 && aclrtDestroyStream(updating) == 0 && aclrtFree(a) == 0 && aclrtFree(flag) == 0);
}

static void conditions(void)
{
    aclrtStream captured = stream(), inner = stream();
    unsigned char *a = memory(), *flag = memory();
    void *model = NULL, *handle = NULL, *body = NULL, *ended = NULL;
    uint64_t *word = NULL;
    CHECK(aclmdlRICaptureBegin(captured, GLOBAL) == ACL_SUCCESS && aclmdlRICaptureGetInfo(captured, NULL, &model) == ACL_SUCCESS);
    CHECK(aclmdlRICondHandleCreate(model, 0, 1, &handle) == ACL_SUCCESS && aclmdlRICondHandleGetCondPtr(handle, &word) == ACL_SUCCESS);
    CHECK(aclrtMemcpyAsync(word, 8, flag, 1, DEVICE_TO_DEVICE, captured) == ACL_SUCCESS);
    CHECK(aclmdlRIAddCondTask((condition_params){handle, 1, 1, &body}, captured, 0) == ACL_ERROR_FEATURE_NOT_SUPPORTED);
    CHECK(aclmdlRIAddCondTask((condition_params){handle, 0, 1, &body}, captured, 0) == ACL_SUCCESS);
    CHECK(aclmdlRICaptureToModelRIBegin(inner, body, GLOBAL) == ACL_SUCCESS);
    CHECK(aclrtMemsetAsync(a, SIZE, 3, SIZE, inner) == ACL_SUCCESS);
    CHECK(aclmdlRICaptureEnd(inner, &ended) == ACL_SUCCESS && ended == body);
    CHECK(aclmdlRICaptureEnd(captured, &model) == ACL_SUCCESS);
    for (int on = 0; on < 3; on++) {
        flag[0] = on % 2;
        a[0] = 0;
        CHECK(aclmdlRIExecuteAsync(model, NULL) == ACL_SUCCESS && a[0] == (on % 2 ? 3 : 0));
    }
    CHECK(aclmdlRIDestroy(model) == ACL_SUCCESS && aclmdlRIGetId(body, &(uint32_t){0}) != ACL_SUCCESS);
    CHECK(aclrtDestroyStream(captured) == 0 && aclrtDestroyStream(inner) == 0 && aclrtFree(a) == 0 && aclrtFree(flag) == 0);
}

static void *capture_often(void *argument)
{
    (void)argument;
    CHECK(aclrtSetDevice(0) == ACL_SUCCESS);
    aclrtStream own = stream();
    unsigned char *a = memory(), *b = memory();
    for (int round = 0; round < 100; round++) {
        void *model = NULL;
        uint32_t id = 0;
        CHECK(aclmdlRICaptureBegin(own, RELAXED) == ACL_SUCCESS);
        for (int task = 0; task < 70; task++)
            CHECK(aclrtMemsetAsync(a, SIZE, task, SIZE, own) == ACL_SUCCESS);
        CHECK(aclrtMemcpyAsync(b, SIZE, a, SIZE, DEVICE_TO_DEVICE, own) == ACL_SUCCESS);
        CHECK(aclmdlRICaptureEnd(own, &model) == ACL_SUCCESS && aclmdlRIGetId(model, &id) == ACL_SUCCESS && id != 0);
        CHECK(aclmdlRIExecuteAsync(model, own) == ACL_SUCCESS && b[SIZE - 1] == 69 && aclmdlRIDestroy(model) == ACL_SUCCESS);
    }
    CHECK(aclrtDestroyStream(own) == 0 && aclrtFree(a) == 0 && aclrtFree(b) == 0);
    return NULL;
}

int main(void)
{
    pthread_t threads[4];
    size_t free_before = 0, free_after = 0, total = 0;
    CHECK(aclrtSetDevice(0) == ACL_SUCCESS && aclrtGetMemInfo(1, &free_before, &total) == ACL_SUCCESS);
    CHECK(aclmdlRICaptureBegin(NULL, GLOBAL) == ACL_ERROR_INVALID_PARAM);
    forks();
    updates();
    conditions();
    for (size_t i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, capture_often, NULL) == 0);
    for (size_t i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(aclrtGetMemInfo(1, &free_after, &total) == ACL_SUCCESS && free_after == free_before);
    puts("ok");
    return 0;
}
