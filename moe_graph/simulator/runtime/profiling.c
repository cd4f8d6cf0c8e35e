/* The interface of CANN's profiler for a session (aclprof, for torch_npu.profiler); activities by callbacks are in mspti.c.
 *
 * There is no device whose time could be taken. Sessions start and stop, so that torch_npu's profiler records the host side, and nothing of a
 * device is written. Whoever profiles is told so, once.
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

void sim_tell_of_times(void)
{
    pthread_once(&told, tell);
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
    sim_tell_of_times();
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
