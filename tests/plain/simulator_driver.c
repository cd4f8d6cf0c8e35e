/* Drives the simulated runtime without Python, for valgrind and the sanitizers: aclnnMoeReRouting, memory, copies, streams, events, handles
 * that are stale or wild, all of it from several threads at once, and communicators between these. */
#define _GNU_SOURCE
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

typedef struct executor executor;
const char *aclGetRecentErrMsg(void);
aclError aclrtSetDevice(int32_t);
aclError aclrtMalloc(void **, size_t, int32_t);
aclError aclrtFree(void *);
aclError aclrtMallocHost(void **, size_t);
aclError aclrtFreeHost(void *);
aclError aclrtGetMemInfo(int32_t, size_t *, size_t *);
aclError aclrtMemcpy(void *, size_t, const void *, size_t, int32_t);
aclError aclrtMemset(void *, size_t, int32_t, size_t);
aclError aclrtCreateStream(aclrtStream *);
aclError aclrtDestroyStream(aclrtStream);
aclError aclrtCreateEvent(aclrtEvent *);
aclError aclrtRecordEvent(aclrtEvent, aclrtStream);
aclError aclrtEventElapsedTime(float *, aclrtEvent, aclrtEvent);
aclError aclrtDestroyEvent(aclrtEvent);
aclError aclrtQueryEventStatus(aclrtEvent, int32_t *);
aclError aclrtStreamQuery(aclrtStream, int32_t *);
aclError aclrtStreamWaitEvent(aclrtStream, aclrtEvent);
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream, int32_t);
aclError aclrtSynchronizeEvent(aclrtEvent);
aclError aclrtSynchronizeDevice(void);
bool moe_sim_delay_stream(aclrtStream, uint64_t);
bool moe_sim_set_pending_error(int32_t, aclError, const char *);
bool moe_sim_missed(size_t, const char **, uint64_t *);
aclTensor *aclCreateTensor(const int64_t *, uint64_t, int32_t, const int64_t *, int64_t, int32_t, const int64_t *, uint64_t, void *);
aclError aclDestroyTensor(const aclTensor *);
void *aclCreateTensorList(const aclTensor *const *, uint64_t);
aclError aclDestroyTensorList(const void *);
void *aclCreateIntArray(const int64_t *, uint64_t);
aclError aclDestroyIntArray(const void *);
aclError aclDestroyAclOpExecutor(executor *);
aclError aclnnMoeReRoutingGetWorkspaceSize(const aclTensor *, const aclTensor *, const aclTensor *, int64_t, int64_t, const aclTensor *,
                                           const aclTensor *, const aclTensor *, const aclTensor *, uint64_t *, executor **);
aclError aclnnMoeReRouting(void *, uint64_t, executor *, aclrtStream);

aclError aclrtMemcpyAsync(void *, size_t, const void *, size_t, int32_t, aclrtStream);
int32_t HcclCommInitAll(uint32_t, int32_t *, void **);
int32_t HcclCommDestroy(void *);
int32_t HcclBroadcast(void *, uint64_t, int32_t, uint32_t, void *, aclrtStream);
typedef struct {
    int32_t handle_type, allocation_type, memory_attribute;
    struct {
        uint32_t id;
        int32_t type;
    } where;
    uint64_t reserved;
} physical_property;
aclError aclrtReserveMemAddress(void **, size_t, size_t, void *, uint64_t);
aclError aclrtReleaseMemAddress(void *);
aclError aclrtMallocPhysical(void **, size_t, const physical_property *, uint64_t);
aclError aclrtFreePhysical(void *);
aclError aclrtMapMem(void *, size_t, size_t, void *, uint64_t);
aclError aclrtUnmapMem(void *);

enum { HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2 };
enum { TOKENS = 7, HIDDEN = 3, RANKS = 2, EXPERTS = 3 };

static void *on_device(const void *values, size_t bytes)
{
    void *pointer = NULL;
    CHECK(aclrtMalloc(&pointer, bytes, 0) == ACL_SUCCESS);
    if (values != NULL)
        CHECK(aclrtMemcpy(pointer, bytes, values, bytes, HOST_TO_DEVICE) == ACL_SUCCESS);
    return pointer;
}

static aclTensor *tensor(void *data, int32_t dtype, size_t rank, int64_t a, int64_t b, int64_t row_stride)
{
    int64_t dims[] = {a, b}, strides[] = {rank == 2 ? row_stride : 1, 1}, storage[] = {a * (rank == 2 ? row_stride : 1)};
    return aclCreateTensor(dims, rank, dtype, strides, 0, 2, storage, 1, data);
}

static aclError route(const int32_t *counts, int64_t row_stride, bool scaled, bool launch)
{
    int8_t tokens[TOKENS * 8] = {0};
    float scales[TOKENS];
    for (int i = 0; i < TOKENS; i++) {
        scales[i] = (float)i;
        for (int j = 0; j < HIDDEN; j++)
            tokens[i * row_stride + j] = (int8_t)(10 * i + j);
    }
    void *in[] = {on_device(tokens, (size_t)(TOKENS * row_stride)), on_device(counts, RANKS * EXPERTS * 4), on_device(scales, sizeof scales)};
    void *out[] = {on_device(NULL, TOKENS * HIDDEN), on_device(NULL, TOKENS * 4), on_device(NULL, TOKENS * 4), on_device(NULL, EXPERTS * 4)};
    aclTensor *each[] = {tensor(in[0], ACL_INT8, 2, TOKENS, HIDDEN, row_stride),
                         tensor(in[1], ACL_INT32, 2, RANKS, EXPERTS, EXPERTS),
                         tensor(in[2], ACL_FLOAT, 1, TOKENS, 1, 1),
                         tensor(out[0], ACL_INT8, 2, TOKENS, HIDDEN, HIDDEN),
                         tensor(out[1], ACL_FLOAT, 1, TOKENS, 1, 1),
                         tensor(out[2], ACL_INT32, 1, TOKENS, 1, 1),
                         tensor(out[3], ACL_INT32, 1, EXPERTS, 1, 1)};
    uint64_t workspace = 1;
    executor *call = NULL;
    aclError error = aclnnMoeReRoutingGetWorkspaceSize(each[0], each[1], scaled ? each[2] : NULL, 1, 0, each[3], each[4], each[5], each[6],
                                                       &workspace, &call);
    CHECK(error == ACL_SUCCESS && workspace == 0 && call != NULL);
    for (size_t i = 0; i < 7; i++)
        aclDestroyTensor(each[i]); /* the executor must not need them any more */
    error = launch ? aclnnMoeReRouting(NULL, 0, call, NULL) : aclDestroyAclOpExecutor(call);
    if (error == ACL_SUCCESS && launch) {
        static const int32_t expected[TOKENS] = {0, 3, 4, 1, 2, 5, 6}; /* counts {{1, 2, 0}, {2, 0, 2}} */
        int32_t index[TOKENS], per_expert[EXPERTS];
        int8_t rows[TOKENS * HIDDEN];
        CHECK(aclrtMemcpy(index, sizeof index, out[2], sizeof index, DEVICE_TO_HOST) == ACL_SUCCESS);
        CHECK(aclrtMemcpy(rows, sizeof rows, out[0], sizeof rows, DEVICE_TO_HOST) == ACL_SUCCESS);
        CHECK(aclrtMemcpy(per_expert, sizeof per_expert, out[3], sizeof per_expert, DEVICE_TO_HOST) == ACL_SUCCESS);
        CHECK(memcmp(index, expected, sizeof index) == 0);
        CHECK(per_expert[0] == 3 && per_expert[1] == 2 && per_expert[2] == 2);
        for (int i = 0; i < TOKENS * HIDDEN; i++)
            CHECK(rows[i] == 10 * expected[i / HIDDEN] + i % HIDDEN);
    }
    for (size_t i = 0; i < 3; i++)
        CHECK(aclrtFree(in[i]) == ACL_SUCCESS);
    for (size_t i = 0; i < 4; i++)
        CHECK(aclrtFree(out[i]) == ACL_SUCCESS);
    return error;
}

static void memory(void)
{
    char text[16] = "0123456789abcdef", back[16];
    size_t free_before = 0, free_after = 0, total = 0;
    CHECK(aclrtGetMemInfo(1, &free_before, &total) == ACL_SUCCESS);
    void *pointer = on_device(text, sizeof text);
    CHECK((uintptr_t)pointer % 512 == 0);
    CHECK(aclrtGetMemInfo(1, &free_after, &total) == ACL_SUCCESS && free_before - free_after == 512);
    CHECK(aclrtMemcpy(back, sizeof back, pointer, sizeof back, DEVICE_TO_HOST) == ACL_SUCCESS && memcmp(text, back, sizeof back) == 0);
    CHECK(aclrtMemcpy(back, 8, pointer, 16, DEVICE_TO_HOST) != ACL_SUCCESS);
    CHECK(aclrtMemcpy(pointer, 1024, text, 1024, HOST_TO_DEVICE) != ACL_SUCCESS); /* refused before a byte is read */
    CHECK(aclrtMemcpy(NULL, 16, pointer, 16, DEVICE_TO_HOST) != ACL_SUCCESS);
    CHECK(aclrtMemset(pointer, 16, 0, 32) != ACL_SUCCESS && aclrtMemset(pointer, 16, 7, 16) == ACL_SUCCESS);
    CHECK(aclrtFree((char *)pointer + 512) != ACL_SUCCESS);
    CHECK(aclrtFree(pointer) == ACL_SUCCESS && aclrtFree(pointer) != ACL_SUCCESS);
    CHECK(strstr(aclGetRecentErrMsg(), "not the start of a live device allocation") != NULL && aclGetRecentErrMsg()[0] == '\0');
    CHECK(aclrtMalloc(&pointer, (size_t)1 << 50, 0) == ACL_ERROR_MEMORY_ALLOCATION && aclrtMalloc(&pointer, 0, 0) != ACL_SUCCESS);
    CHECK(aclrtMallocHost(&pointer, 100) == ACL_SUCCESS && aclrtFree(pointer) != ACL_SUCCESS && aclrtFreeHost(pointer) == ACL_SUCCESS);
    void *many[300]; /* the table of allocations grows and is taken apart out of order */
    for (int i = 0; i < 300; i++)
        many[i] = on_device(NULL, (size_t)i + 1);
    for (int i = 0; i < 300; i++)
        CHECK(aclrtFree(many[i * 7 % 300]) == ACL_SUCCESS);
    CHECK(aclrtGetMemInfo(1, &free_after, &total) == ACL_SUCCESS && free_after == free_before);
}

static void streams(void)
{
    aclrtStream stream = NULL;
    aclrtEvent start = NULL, end = NULL;
    float milliseconds = -1;
    CHECK(aclrtCreateStream(&stream) == ACL_SUCCESS);
    CHECK(aclrtCreateEvent(&start) == ACL_SUCCESS && aclrtCreateEvent(&end) == ACL_SUCCESS);
    CHECK(aclrtEventElapsedTime(&milliseconds, start, end) == ACL_ERROR_EVENT_TIMESTAMP_INVALID);
    CHECK(aclrtRecordEvent(start, stream) == ACL_SUCCESS && aclrtRecordEvent(end, stream) == ACL_SUCCESS);
    CHECK(aclrtEventElapsedTime(&milliseconds, start, end) == ACL_SUCCESS && milliseconds >= 0);
    CHECK(aclrtDestroyEvent(start) == ACL_SUCCESS && aclrtDestroyEvent(end) == ACL_SUCCESS && aclrtDestroyStream(stream) == ACL_SUCCESS);
    CHECK(aclrtDestroyStream(NULL) != ACL_SUCCESS && aclrtDestroyEvent(NULL) != ACL_SUCCESS);
}

static void slow_streams(void)
{
    enum { READY = 0, BUSY = 1, RECORDED = 1, TIMEOUT = 507046 };
    aclrtStream slow = NULL, other = NULL;
    aclrtEvent event = NULL;
    int32_t status = -1;
    CHECK(aclrtCreateStream(&slow) == ACL_SUCCESS && aclrtCreateStream(&other) == ACL_SUCCESS);
    CHECK(aclrtCreateEvent(&event) == ACL_SUCCESS);
    CHECK(aclrtStreamQuery(slow, &status) == ACL_SUCCESS && status == READY);
    CHECK(moe_sim_delay_stream(slow, 200 * 1000000) && aclrtStreamQuery(slow, &status) == ACL_SUCCESS && status == BUSY);
    CHECK(aclrtStreamQuery(other, &status) == ACL_SUCCESS && status == READY);
    CHECK(aclrtRecordEvent(event, slow) == ACL_SUCCESS && aclrtStreamWaitEvent(other, event) == ACL_SUCCESS);
    CHECK(aclrtStreamQuery(other, &status) == ACL_SUCCESS && status == BUSY);
    CHECK(aclrtQueryEventStatus(event, &status) == ACL_SUCCESS && status != RECORDED);
    CHECK(aclrtSynchronizeStreamWithTimeout(slow, 1) == TIMEOUT);
    CHECK(aclrtSynchronizeDevice() == ACL_SUCCESS && aclrtSynchronizeEvent(event) == ACL_SUCCESS);
    CHECK(aclrtStreamQuery(other, &status) == ACL_SUCCESS && status == READY);
    CHECK(aclrtQueryEventStatus(event, &status) == ACL_SUCCESS && status == RECORDED);
    CHECK(aclrtDestroyStream(slow) == ACL_SUCCESS && aclrtDestroyStream(other) == ACL_SUCCESS);
    CHECK(aclrtDestroyEvent(event) == ACL_SUCCESS);
}

static void pending_errors(void)
{
    aclrtStream stream = NULL;
    CHECK(aclrtCreateStream(&stream) == ACL_SUCCESS);
    CHECK(moe_sim_set_pending_error(0, 507015, "on purpose") && !moe_sim_set_pending_error(-1, 507015, ""));
    CHECK(aclrtSynchronizeDevice() == 507015 && aclrtSynchronizeStreamWithTimeout(stream, -1) == 507015);
    CHECK(strstr(aclGetRecentErrMsg(), "on purpose") != NULL);
    CHECK(moe_sim_set_pending_error(0, 0, "") && aclrtSynchronizeDevice() == ACL_SUCCESS);
    CHECK(aclrtDestroyStream(stream) == ACL_SUCCESS);
}

int32_t msptiActivityPushExternalCorrelationId(int32_t kind, uint64_t id);
int32_t msptiActivityPopExternalCorrelationId(int32_t kind, uint64_t *last);
int32_t msptiActivityEnable(int32_t kind);
int32_t msptiActivityDisable(int32_t kind);
bool msptiActivityIsEnabled(int32_t kind);
int32_t msptiActivityRegisterCallbacks(void (*)(uint8_t **, size_t *, size_t *), void (*)(uint8_t *, size_t, size_t));
int32_t msptiActivityFlushAll(uint32_t flag);
int32_t msptiActivityGetNextRecord(uint8_t *buffer, size_t size, void **record);
void moe_sim_kernel_ran(const char *name, uint64_t start, uint64_t end, uint32_t device, aclrtStream stream);

static uint8_t activities[2 * (56 + 24) + 8]; /* room for two kernels, each with what ties it to an operator */
static size_t kernels;

static void give(uint8_t **buffer, size_t *size, size_t *records)
{
    *buffer = activities;
    *size = sizeof activities;
    *records = 0;
}

static void read_back(uint8_t *buffer, size_t size, size_t valid)
{
    void *record = NULL;
    CHECK(buffer == activities && size == sizeof activities);
    while (msptiActivityGetNextRecord(buffer, valid, &record) == 0) {
        uint64_t start, external;
        memcpy(&external, (char *)record + 8, 8);
        CHECK(*(int32_t *)record == 8 && external == 7 && msptiActivityGetNextRecord(buffer, valid, &record) == 0);
        memcpy(&start, (char *)record + 4, 8);
        CHECK(*(int32_t *)record == 2 && start == 100 + kernels);
        kernels++;
    }
    CHECK(msptiActivityGetNextRecord(NULL, valid, &record) != 0);
}

static void kernels_for_profilers(void)
{
    CHECK(msptiActivityRegisterCallbacks(NULL, read_back) != 0 && msptiActivityRegisterCallbacks(give, read_back) == 0);
    CHECK(msptiActivityFlushAll(0) == 0 && kernels == 0); /* no buffer was asked for yet */
    CHECK(msptiActivityEnable(2) == 0 && msptiActivityEnable(8) == 0 && msptiActivityPushExternalCorrelationId(2, 7) == 0);
    for (uint64_t i = 0; i < 5; i++)
        moe_sim_kernel_ran(i % 2 ? "mul" : "add", 100 + i, 200 + i, 0, NULL);
    CHECK(kernels == 4 && msptiActivityFlushAll(0) == 0 && kernels == 5);
    CHECK(msptiActivityPopExternalCorrelationId(2, NULL) == 0 && msptiActivityDisable(2) == 0 && msptiActivityDisable(8) == 0);
}

static void profiling(void)
{
    uint64_t last = 0;
    for (uint64_t id = 1; id <= 2000; id++)
        CHECK(msptiActivityPushExternalCorrelationId(2, id) == 0);
    for (uint64_t id = 2000; id >= 1; id--) /* what was pushed too deep is counted, not kept */
        CHECK(msptiActivityPopExternalCorrelationId(2, &last) == 0 && last == (id <= 1024 ? id : 0));
    CHECK(msptiActivityPopExternalCorrelationId(2, &last) != 0);
    CHECK(msptiActivityEnable(2) == 0 && msptiActivityIsEnabled(2) && !msptiActivityIsEnabled(3) && !msptiActivityIsEnabled(64));
    CHECK(msptiActivityDisable(2) == 0 && !msptiActivityIsEnabled(2) && msptiActivityEnable(64) != 0);
}

static void missed(void)
{
    static const char name[] = "aclOfATest";
    const char *found = NULL;
    uint64_t count = 0;
    size_t index = 0;
    sim_not_modelled(name);
    sim_not_modelled(name);
    while (moe_sim_missed(index, &found, &count) && strcmp(found, name) != 0)
        index++;
    CHECK(strcmp(found, name) == 0 && count == 2 && !moe_sim_missed(1024, &found, &count));
}

static void handles(void)
{
    int64_t values[] = {2, 3};
    void *array = aclCreateIntArray(values, 2);
    const aclTensor *members[] = {tensor(NULL, ACL_FLOAT, 2, 2, 3, 3), tensor(NULL, ACL_FLOAT, 1, 2, 1, 1)};
    void *list = aclCreateTensorList(members, 2);
    CHECK(array != NULL && list != NULL && aclDestroyIntArray(array) == ACL_SUCCESS && aclDestroyTensorList(list) == ACL_SUCCESS);
    int64_t too_many[SIM_MAX_DIMS + 1] = {0};
    CHECK(aclCreateTensor(too_many, SIM_MAX_DIMS + 1, ACL_FLOAT, NULL, 0, 2, too_many, 1, NULL) == NULL);
}

static void stale_handles(void)
{
    static char wild[64];
    aclrtStream stream = NULL;
    aclrtEvent event = NULL;
    int32_t status = 0;
    CHECK(aclrtCreateStream(&stream) == ACL_SUCCESS && aclrtDestroyStream(stream) == ACL_SUCCESS);
    CHECK(aclrtCreateEvent(&event) == ACL_SUCCESS && aclrtDestroyEvent(event) == ACL_SUCCESS);
    aclrtStream no_streams[] = {stream, wild};
    aclrtEvent no_events[] = {event, wild, NULL};
    for (size_t i = 0; i < 2; i++) {
        CHECK(aclrtDestroyStream(no_streams[i]) == ACL_ERROR_INVALID_HANDLE);
        CHECK(aclrtStreamQuery(no_streams[i], &status) == ACL_ERROR_INVALID_HANDLE);
        CHECK(aclrtSynchronizeStreamWithTimeout(no_streams[i], 1) == ACL_ERROR_INVALID_HANDLE);
        CHECK(!moe_sim_delay_stream(no_streams[i], 1));
    }
    for (size_t i = 0; i < 3; i++) {
        CHECK(aclrtDestroyEvent(no_events[i]) == ACL_ERROR_INVALID_HANDLE);
        CHECK(aclrtRecordEvent(no_events[i], NULL) == ACL_ERROR_INVALID_HANDLE);
        CHECK(aclrtStreamWaitEvent(NULL, no_events[i]) == ACL_ERROR_INVALID_HANDLE);
        CHECK(aclrtQueryEventStatus(no_events[i], &status) == ACL_ERROR_INVALID_HANDLE);
        CHECK(aclrtSynchronizeEvent(no_events[i]) == ACL_ERROR_INVALID_HANDLE);
    }
}

static void virtual_memory(void)
{
    enum { SIZE = 4 << 20 };
    physical_property device = {.where = {0, 1}}, none = {.where = {0x80000000u, 1}};
    void *range = NULL, *memory = NULL;
    char text[16] = "0123456789abcde";
    CHECK(aclrtMallocPhysical(&memory, SIZE, &none, 0) == ACL_ERROR_FEATURE_NOT_SUPPORTED);
    CHECK(aclrtReserveMemAddress(&range, SIZE, 0, NULL, 0) == ACL_SUCCESS);
    CHECK(aclrtMallocPhysical(&memory, SIZE / 2, &device, 0) == ACL_SUCCESS);
    CHECK(aclrtMapMem(range, SIZE, 0, memory, 0) == ACL_ERROR_INVALID_PARAM); /* more than there is */
    CHECK(aclrtMapMem(range, SIZE / 2, 0, memory, 0) == ACL_SUCCESS);
    CHECK(aclrtMapMem(range, SIZE / 2, 0, memory, 0) == ACL_ERROR_INVALID_PARAM); /* mapped already */
    CHECK(aclrtMemcpy(range, SIZE, text, sizeof text, HOST_TO_DEVICE) == ACL_SUCCESS && memcmp(range, text, sizeof text) == 0);
    CHECK(aclrtReleaseMemAddress(range) == ACL_ERROR_INVALID_PARAM); /* still mapped */
    CHECK(aclrtUnmapMem(range) == ACL_SUCCESS && aclrtUnmapMem(range) == ACL_ERROR_INVALID_PARAM);
    CHECK(aclrtMemcpy(range, SIZE, text, sizeof text, HOST_TO_DEVICE) == ACL_ERROR_INVALID_PARAM);
    CHECK(aclrtFreePhysical(memory) == ACL_SUCCESS && aclrtFreePhysical(memory) == ACL_ERROR_INVALID_PARAM);
    CHECK(aclrtMapMem(range, SIZE / 2, 0, memory, 0) == ACL_ERROR_INVALID_PARAM);
    CHECK(aclrtReleaseMemAddress(range) == ACL_SUCCESS && aclrtReleaseMemAddress(range) == ACL_ERROR_INVALID_PARAM);
}

/* Sizes that do not fit, and views that leave their memory. */
static void bad_views(void)
{
    int64_t huge[] = {INT64_C(1) << 40, INT64_C(1) << 40}, negative[] = {-1, 3}, dims[] = {4, 3}, back[] = {-3, 1}, value = 0;
    CHECK(aclCreateTensor(huge, 2, ACL_FLOAT, NULL, 0, 2, huge, 2, NULL) == NULL);
    CHECK(aclCreateTensor(negative, 2, ACL_FLOAT, NULL, 0, 2, dims, 2, NULL) == NULL);
    CHECK(aclCreateTensor(dims, 2, ACL_FLOAT, huge, INT64_MAX, 2, dims, 2, NULL) == NULL);
    CHECK(aclCreateIntArray(&value, UINT64_C(1) << 61) == NULL);
    int64_t count_dims[] = {1, 1}, one = 1, four = 4;
    int32_t counts = 4;
    void *data = on_device(NULL, 512), *number = on_device(&counts, sizeof counts);
    /* negative strides; an offset from no memory at all */
    aclTensor *bad[] = {aclCreateTensor(dims, 2, ACL_INT8, back, 0, 2, dims, 2, data), aclCreateTensor(dims, 2, ACL_INT8, NULL, 5, 2, dims, 2, NULL)};
    aclTensor *rest[] = {aclCreateTensor(count_dims, 2, ACL_INT32, NULL, 0, 2, count_dims, 2, number),
                         aclCreateTensor(dims, 2, ACL_INT8, NULL, 0, 2, dims, 2, data), aclCreateTensor(&four, 1, ACL_FLOAT, NULL, 0, 2, &four, 1, data),
                         aclCreateTensor(&four, 1, ACL_INT32, NULL, 32, 2, &four, 1, data), aclCreateTensor(&one, 1, ACL_INT32, NULL, 64, 2, &one, 1, data)};
    for (size_t i = 0; i < 2; i++) {
        uint64_t workspace;
        executor *call = NULL;
        CHECK(aclnnMoeReRoutingGetWorkspaceSize(bad[i], rest[0], NULL, 1, 0, rest[1], rest[2], rest[3], rest[4], &workspace, &call) == ACL_SUCCESS);
        CHECK(aclnnMoeReRouting(NULL, 0, call, NULL) == (i == 0 ? ACLNN_ERROR_INVALID : ACL_ERROR_INVALID_PARAM));
        aclDestroyTensor(bad[i]);
    }
    for (size_t i = 0; i < 5; i++)
        aclDestroyTensor(rest[i]);
    CHECK(aclrtFree(data) == ACL_SUCCESS && aclrtFree(number) == ACL_SUCCESS);
}

/* ---- several threads, on streams and events of their own and on shared ones ---- */

enum { THREADS = 4, ROUNDS = 100 };
static aclrtStream shared_stream;
static aclrtEvent shared_event;

static void *work(void *argument)
{
    const unsigned char mark = *(const unsigned char *)argument;
    aclrtStream own = NULL;
    aclrtEvent event = NULL;
    int32_t status = 0;
    float milliseconds = 0;
    size_t free_bytes = 0, total = 0;
    CHECK(aclrtSetDevice(0) == ACL_SUCCESS && aclrtCreateStream(&own) == ACL_SUCCESS);
    for (int round = 0; round < ROUNDS; round++) {
        unsigned char values[64], back[64];
        memset(values, mark + round, sizeof values);
        void *memory = on_device(NULL, sizeof values);
        CHECK(aclrtMemcpyAsync(memory, sizeof values, values, sizeof values, HOST_TO_DEVICE, round % 2 ? own : shared_stream) == ACL_SUCCESS);
        CHECK(aclrtCreateEvent(&event) == ACL_SUCCESS && aclrtRecordEvent(event, own) == ACL_SUCCESS);
        CHECK(aclrtRecordEvent(shared_event, own) == ACL_SUCCESS && aclrtStreamWaitEvent(own, shared_event) == ACL_SUCCESS);
        CHECK(aclrtStreamWaitEvent(shared_stream, event) == ACL_SUCCESS && aclrtQueryEventStatus(shared_event, &status) == ACL_SUCCESS);
        CHECK(aclrtEventElapsedTime(&milliseconds, event, shared_event) == ACL_SUCCESS);
        CHECK(moe_sim_delay_stream(shared_stream, 1000) && aclrtStreamQuery(shared_stream, &status) == ACL_SUCCESS);
        CHECK(moe_sim_set_pending_error(0, 507015, "of a thread"));
        aclError error = aclrtSynchronizeStreamWithTimeout(own, -1); /* another thread may have taken the fault back */
        CHECK(error == 507015 || error == ACL_SUCCESS);
        CHECK(moe_sim_set_pending_error(0, ACL_SUCCESS, ""));
        error = aclrtSynchronizeEvent(shared_event);
        CHECK(error == 507015 || error == ACL_SUCCESS);
        CHECK(aclrtMemcpy(back, sizeof back, memory, sizeof back, DEVICE_TO_HOST) == ACL_SUCCESS && memcmp(values, back, sizeof back) == 0);
        CHECK(aclrtGetMemInfo(1, &free_bytes, &total) == ACL_SUCCESS && free_bytes < total);
        CHECK(aclrtDestroyEvent(event) == ACL_SUCCESS && aclrtFree(memory) == ACL_SUCCESS);
        sim_not_modelled("aclOfSomeThread");
    }
    CHECK(aclrtDestroyStream(own) == ACL_SUCCESS);
    return NULL;
}

static void *launch(void *argument)
{
    static const int32_t good[] = {1, 2, 0, 2, 0, 2}, bad[] = {1, 2, 0, 2, 0, 1};
    (void)argument;
    CHECK(aclrtSetDevice(0) == ACL_SUCCESS);
    for (int round = 0; round < ROUNDS; round++)
        CHECK((route(round % 4 ? good : bad, round % 2 ? 8 : HIDDEN, true, true) == ACL_SUCCESS) == (round % 4 != 0));
    return NULL;
}

static void threads(void)
{
    pthread_t all[2 * THREADS];
    unsigned char marks[THREADS];
    size_t free_before = 0, free_after = 0, total = 0;
    CHECK(aclrtGetMemInfo(1, &free_before, &total) == ACL_SUCCESS);
    CHECK(aclrtCreateStream(&shared_stream) == ACL_SUCCESS && aclrtCreateEvent(&shared_event) == ACL_SUCCESS);
    for (size_t i = 0; i < THREADS; i++) {
        marks[i] = (unsigned char)(50 * i);
        CHECK(pthread_create(&all[2 * i], NULL, work, &marks[i]) == 0 && pthread_create(&all[2 * i + 1], NULL, launch, NULL) == 0);
    }
    for (size_t i = 0; i < 2 * THREADS; i++)
        CHECK(pthread_join(all[i], NULL) == 0);
    CHECK(moe_sim_set_pending_error(0, ACL_SUCCESS, "") && aclrtSynchronizeDevice() == ACL_SUCCESS);
    CHECK(aclrtDestroyStream(shared_stream) == ACL_SUCCESS && aclrtDestroyEvent(shared_event) == ACL_SUCCESS);
    CHECK(aclrtGetMemInfo(1, &free_after, &total) == ACL_SUCCESS && free_after == free_before);
}

typedef struct {
    int32_t device;
    void *communicator;
} member;

static void *broadcast(void *argument)
{
    const member *own = argument;
    char *data = NULL;
    CHECK(aclrtSetDevice(own->device) == ACL_SUCCESS && aclrtMalloc((void **)&data, 64, 0) == ACL_SUCCESS);
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t root = (uint32_t)round % 2;
        memset(data, 10 * own->device + round % 7, 64);
        CHECK(HcclBroadcast(data, 16, 4, root, own->communicator, NULL) == 0);
        CHECK(data[0] == 10 * (int)root + round % 7 && data[63] == data[0]);
        CHECK(HcclBroadcast(data, 15 + (uint64_t)own->device, 4, root, own->communicator, NULL) != 0); /* they differ */
        CHECK(HcclBroadcast(data, own->device == 0 ? 17 : 16, 4, root, own->communicator, NULL) != 0); /* past the end */
    }
    CHECK(aclrtFree(data) == ACL_SUCCESS && HcclCommDestroy(own->communicator) == 0);
    return NULL;
}

static void communicators(void)
{
    int32_t devices[] = {0, 1}, twice[] = {1, 1}, wild[] = {0, 64};
    void *made[2];
    pthread_t all[2];
    CHECK(setenv("MOE_GRAPH_SIM_DEVICES", "2", 1) == 0);
    CHECK(HcclCommInitAll(2, twice, made) != 0 && HcclCommInitAll(2, wild, made) != 0 && HcclCommInitAll(2, NULL, made) != 0);
    CHECK(HcclCommInitAll(2, devices, made) == 0);
    member members[] = {{0, made[0]}, {1, made[1]}};
    for (size_t i = 0; i < 2; i++)
        CHECK(pthread_create(&all[i], NULL, broadcast, &members[i]) == 0);
    for (size_t i = 0; i < 2; i++)
        CHECK(pthread_join(all[i], NULL) == 0);
    CHECK(HcclCommDestroy(made[0]) != 0 && HcclBroadcast(NULL, 0, 4, 0, made[1], NULL) != 0);
}

int main(void)
{
    const int32_t good[] = {1, 2, 0, 2, 0, 2}, short_sum[] = {1, 2, 0, 2, 0, 1}, long_sum[] = {1, 2, 0, 2, 0, 3}, negative[] = {1, 2, -1, 2, 0, 2};
    CHECK(aclrtSetDevice(0) == ACL_SUCCESS);
    CHECK(aclrtSetDevice(5) != ACL_SUCCESS);
    memory();
    streams();
    slow_streams();
    pending_errors();
    missed();
    profiling();
    kernels_for_profilers();
    handles();
    CHECK(route(good, HIDDEN, true, true) == ACL_SUCCESS);
    CHECK(route(good, HIDDEN, false, true) == ACL_SUCCESS);
    CHECK(route(good, 8, true, true) == ACL_SUCCESS); /* strided tokens */
    CHECK(route(good, HIDDEN, true, false) == ACL_SUCCESS);
    CHECK(route(short_sum, HIDDEN, true, true) != ACL_SUCCESS);
    CHECK(route(long_sum, HIDDEN, true, true) != ACL_SUCCESS);
    CHECK(route(negative, HIDDEN, true, true) != ACL_SUCCESS);
    CHECK(strstr(aclGetRecentErrMsg(), "expert_token_num_per_rank[0, 2] must not be negative, got -1") != NULL);
    stale_handles();
    virtual_memory();
    bad_views();
    threads();
    communicators();
    puts("ok");
    return 0;
}
