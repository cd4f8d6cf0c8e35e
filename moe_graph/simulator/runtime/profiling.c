/* The interfaces of CANN's profiler: collection by a session (aclprof), and activities by callbacks (mspti, for torch.profiler).
 *
 * There is no device whose time could be taken. Sessions start and stop, so that torch_npu's and torch's profilers record the host side, and
 * no activity of a device is reported. Whoever profiles is told so, once.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static pthread_once_t told = PTHREAD_ONCE_INIT;

static void tell(void)
{
    fputs("moe_graph: the device is simulated: what is profiled, and its times, are the host's\n", stderr);
}

/* ---- aclprof ---- */

typedef struct {
    uint64_t data_types;
} profiler_config;

SIM_API aclError aclprofInit(const char *folder, size_t length)
{
    if (folder == NULL || length == 0)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclprofInit: the folder of the results is null or empty");
    return ACL_SUCCESS;
}

SIM_API aclError aclprofFinalize(void)
{
    return ACL_SUCCESS;
}

SIM_API profiler_config *aclprofCreateConfig(uint32_t *devices, uint32_t count, int32_t metrics, const void *events, uint64_t data_types)
{
    (void)metrics;
    (void)events;
    if (devices == NULL && count != 0) {
        sim_fail(ACL_ERROR_INVALID_PARAM, "aclprofCreateConfig: deviceIdList is null");
        return NULL;
    }
    profiler_config *made = malloc(sizeof *made);
    if (made == NULL)
        sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclprofCreateConfig: this machine is out of memory");
    else
        made->data_types = data_types;
    return made;
}

SIM_API aclError aclprofDestroyConfig(const profiler_config *config)
{
    free((void *)config);
    return ACL_SUCCESS;
}

static aclError check(const char *function, const profiler_config *config)
{
    return config != NULL ? ACL_SUCCESS : sim_fail(ACL_ERROR_INVALID_PARAM, "%s: profilerConfig is null", function);
}

SIM_API aclError aclprofWarmup(const profiler_config *config)
{
    return check("aclprofWarmup", config);
}

SIM_API aclError aclprofStart(const profiler_config *config)
{
    pthread_once(&told, tell);
    return check("aclprofStart", config);
}

SIM_API aclError aclprofStop(const profiler_config *config)
{
    return check("aclprofStop", config);
}

SIM_API aclError aclprofSetConfig(int32_t option, const char *value, size_t length)
{
    (void)option;
    (void)length;
    return value != NULL ? ACL_SUCCESS : sim_fail(ACL_ERROR_INVALID_PARAM, "aclprofSetConfig: config is null");
}

/* No feature beyond the common ones. */
SIM_API aclError aclprofGetSupportedFeatures(size_t *size, void **features)
{
    if (size == NULL || features == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclprofGetSupportedFeatures: null argument");
    *size = 0;
    *features = NULL;
    return ACL_SUCCESS;
}

SIM_API aclError aclprofGetSupportedFeaturesV2(size_t *size, void **features)
{
    return aclprofGetSupportedFeatures(size, features);
}

SIM_API aclError aclprofRegisterDeviceCallback(void)
{
    return ACL_SUCCESS;
}

SIM_API aclError aclprofMarkEx(const char *message, size_t length, aclrtStream stream)
{
    (void)length;
    if (message == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclprofMarkEx: the message is null");
    return sim_check_stream("aclprofMarkEx", stream);
}

/* ---- the driver: a version before system counters, so that the profiler takes the host's clock ---- */

SIM_API int32_t halGetAPIVersion(int32_t *version)
{
    if (version != NULL)
        *version = 0x071900;
    return version != NULL ? 0 : 1;
}

SIM_API int32_t halGetDeviceInfo(uint32_t device, int32_t module, int32_t information, int64_t *value)
{
    enum { DRV_ERROR_NOT_SUPPORT = 0xfffe };
    (void)device;
    (void)module;
    (void)value;
    sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "halGetDeviceInfo: information %d is not modelled", information);
    return DRV_ERROR_NOT_SUPPORT;
}

/* ---- mspti ---- */

enum { MSPTI_SUCCESS = 0, MSPTI_INVALID_PARAMETER = 1, MSPTI_QUEUE_EMPTY = 5, KINDS = 64, DEPTH = 1024 };

static uint64_t enabled; /* a bit for each kind of activity */

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

SIM_API int32_t msptiActivityRegisterCallbacks(void *requested, void *completed)
{
    return requested != NULL && completed != NULL ? MSPTI_SUCCESS : MSPTI_INVALID_PARAMETER;
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

SIM_API int32_t msptiActivityFlushAll(uint32_t flag)
{
    (void)flag;
    pthread_once(&told, tell);
    return MSPTI_SUCCESS;
}

SIM_API int32_t msptiActivityGetNextRecord(uint8_t *buffer, size_t size, void **record)
{
    (void)buffer;
    (void)size;
    if (record == NULL)
        return MSPTI_INVALID_PARAMETER;
    *record = NULL;
    return MSPTI_QUEUE_EMPTY;
}

static _Thread_local uint64_t correlations[DEPTH];
static _Thread_local size_t depth; /* what is pushed beyond DEPTH is counted, not kept */

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
