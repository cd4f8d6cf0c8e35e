/* mspti: the activities of a device by callbacks, for torch.profiler.
 *
 * A launch of an eager operator is a kernel here: on its stream, of the host's times, and tied to the operator that torch recorded. Other kinds
 * of activity (copies, communication) are not reported. Layouts and codes are those of CANN's mspti_activity.h and mspti_result.h.
 */
#include "sim.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MSPTI_SUCCESS = 0, MSPTI_INVALID_PARAMETER = 1, MSPTI_QUEUE_EMPTY = 5 };
enum { KERNEL = 2, EXTERNAL_CORRELATION = 8, KINDS = 64 }; /* of activities */
enum { CUSTOM = 2, DEPTH = 1024, BUCKETS = 256 };

typedef struct __attribute__((packed, aligned(8))) {
    int32_t kind;
    uint64_t start, end; /* nanoseconds since 1970 */
    uint32_t device, stream;
    uint64_t correlation;
    const char *type, *name;
} kernel_record;

typedef struct __attribute__((packed, aligned(8))) {
    int32_t kind, external_kind;
    uint64_t external, correlation;
} correlation_record;

typedef struct name_entry {
    struct name_entry *next;
    char text[];
} name_entry;

typedef void (*buffer_requester)(uint8_t **buffer, size_t *size, size_t *most_records);
typedef void (*buffer_taker)(uint8_t *buffer, size_t size, size_t valid);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static buffer_requester request;
static buffer_taker take;
static uint8_t *buffer;
static size_t size, used;
static uint64_t launched;
static name_entry *names[BUCKETS];

static uint64_t enabled; /* a bit for each kind of activity */

static _Thread_local uint64_t correlations[DEPTH];
static _Thread_local size_t depth; /* what is pushed beyond DEPTH is counted, not kept */

SIM_API int32_t msptiSubscribe(void **subscriber, void *callback, void *user_data)
{
    static char only;
    (void)callback;
    (void)user_data;
    if (subscriber == NULL)
        return MSPTI_INVALID_PARAMETER;
    *subscriber = &only;
    return MSPTI_SUCCESS;
}

SIM_API int32_t msptiUnsubscribe(void *subscriber)
{
    return subscriber != NULL ? MSPTI_SUCCESS : MSPTI_INVALID_PARAMETER;
}

SIM_API int32_t msptiActivityRegisterCallbacks(buffer_requester requested, buffer_taker completed)
{
    if (requested == NULL || completed == NULL)
        return MSPTI_INVALID_PARAMETER;
    pthread_mutex_lock(&lock);
    request = requested;
    take = completed;
    pthread_mutex_unlock(&lock);
    return MSPTI_SUCCESS;
}

SIM_API int32_t msptiActivityEnable(int32_t kind)
{
    if (kind <= 0 || kind >= KINDS)
        return MSPTI_INVALID_PARAMETER;
    __atomic_or_fetch(&enabled, UINT64_C(1) << kind, __ATOMIC_RELAXED);
    return MSPTI_SUCCESS;
}

SIM_API int32_t msptiActivityDisable(int32_t kind)
{
    if (kind <= 0 || kind >= KINDS)
        return MSPTI_INVALID_PARAMETER;
    __atomic_and_fetch(&enabled, ~(UINT64_C(1) << kind), __ATOMIC_RELAXED);
    return MSPTI_SUCCESS;
}

SIM_API bool msptiActivityIsEnabled(int32_t kind)
{
    return kind > 0 && kind < KINDS && (__atomic_load_n(&enabled, __ATOMIC_RELAXED) >> kind & 1);
}

/* Hands the buffer over to whom it belongs. Comes with the lock, goes without it. */
static void hand_over(void)
{
    uint8_t *full = buffer;
    size_t whole = size, valid = used;
    buffer_taker taker = take;
    buffer = NULL;
    used = 0;
    pthread_mutex_unlock(&lock);
    if (full != NULL)
        taker(full, whole, valid);
}

SIM_API int32_t msptiActivityFlushAll(uint32_t flag)
{
    (void)flag;
    sim_tell_of_times();
    pthread_mutex_lock(&lock);
    hand_over();
    return MSPTI_SUCCESS;
}

SIM_API int32_t msptiActivityGetNextRecord(uint8_t *start, size_t valid, void **record)
{
    if (start == NULL || record == NULL)
        return MSPTI_INVALID_PARAMETER;
    uint8_t *next = start;
    if (*record != NULL)
        next = (uint8_t *)*record + (*(int32_t *)*record == KERNEL ? sizeof(kernel_record) : sizeof(correlation_record));
    *record = next < start + valid ? next : NULL;
    return *record != NULL ? MSPTI_SUCCESS : MSPTI_QUEUE_EMPTY;
}

SIM_API int32_t msptiActivityPushExternalCorrelationId(int32_t kind, uint64_t id)
{
    (void)kind;
    if (depth < DEPTH)
        correlations[depth] = id;
    depth++;
    return MSPTI_SUCCESS;
}

SIM_API int32_t msptiActivityPopExternalCorrelationId(int32_t kind, uint64_t *last)
{
    (void)kind;
    if (depth == 0)
        return MSPTI_QUEUE_EMPTY;
    depth--;
    if (last != NULL)
        *last = depth < DEPTH ? correlations[depth] : 0;
    return MSPTI_SUCCESS;
}

/* The same text, which stays: a record's name must live as long as its buffer, and that is its reader's. NULL if memory is short. */
static const char *kept(const char *text)
{
    size_t bucket = 5381;
    for (const char *c = text; *c != 0; c++)
        bucket = bucket * 33 + (unsigned char)*c;
    name_entry **first = &names[bucket % BUCKETS];
    for (name_entry *entry = *first; entry != NULL; entry = entry->next)
        if (strcmp(entry->text, text) == 0)
            return entry->text;
    name_entry *made = malloc(sizeof *made + strlen(text) + 1);
    if (made == NULL)
        return NULL;
    made->next = *first;
    *first = made;
    return strcpy(made->text, text);
}

/* A kernel ran for this thread's innermost recorded operator. Only for Python; called when msptiActivityIsEnabled(KERNEL). */
SIM_API void moe_sim_kernel_ran(const char *name, uint64_t start, uint64_t end, uint32_t device, aclrtStream stream)
{
    kernel_record kernel = {.kind = KERNEL, .start = start, .end = end, .device = device, .type = "SIMULATED"};
    correlation_record correlation = {.kind = EXTERNAL_CORRELATION, .external_kind = CUSTOM};
    bool is_tied = depth > 0 && depth <= DEPTH && msptiActivityIsEnabled(EXTERNAL_CORRELATION);
    kernel.stream = (uint32_t)sim_stream_id(stream);
    pthread_mutex_lock(&lock);
    kernel.name = kept(name);
    if (request == NULL || kernel.name == NULL) {
        pthread_mutex_unlock(&lock);
        return;
    }
    if (buffer != NULL && size - used < sizeof kernel + sizeof correlation) {
        hand_over();
        pthread_mutex_lock(&lock);
    }
    if (buffer == NULL) {
        size_t most_records = 0; /* as many as fit */
        size = 0;
        request(&buffer, &size, &most_records);
    }
    if (buffer != NULL && size - used >= sizeof kernel + sizeof correlation) {
        kernel.correlation = ++launched;
        if (is_tied) {
            correlation.external = correlations[depth - 1];
            correlation.correlation = kernel.correlation;
            memcpy(buffer + used, &correlation, sizeof correlation);
            used += sizeof correlation;
        }
        memcpy(buffer + used, &kernel, sizeof kernel);
        used += sizeof kernel;
    }
    pthread_mutex_unlock(&lock);
}
