/* Fault injection: what faults.py switches on. An error that a kernel leaves behind surfaces when a device or stream is waited for. */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define MAX_DEVICES 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    aclError code;
    char message[512];
} pending[MAX_DEVICES];

/* From now on every wait for the device fails with this code; 0 ends it. False if there is no such device. */
SIM_API bool moe_sim_set_pending_error(int32_t device, aclError code, const char *message)
{
    if (device < 0 || device >= sim_device_count())
        return false;
    pthread_mutex_lock(&lock);
    pending[device].code = code;
    snprintf(pending[device].message, sizeof pending[device].message, "%s", message);
    pthread_mutex_unlock(&lock);
    return true;
}

/* aclrtErrorInfo: what kind of error a device has. torch_npu asks on 950 whenever a call has failed. The detail is of memory errors, which
 * there are none of, or a kind of AI core error, unknown (0). */
typedef struct {
    uint8_t try_repair, has_detail, reserved[2];
    int32_t type;
} error_info;

SIM_API aclError aclrtGetErrorVerbose(int32_t device, error_info *info)
{
    enum { NONE = 0, AICORE = 3, OTHERS = 0xFFFF, AICORE_EXCEPTION = 507015 };
    if (device < 0 || device >= MAX_DEVICES || info == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtGetErrorVerbose: no device %d, or null errorInfo", device);
    pthread_mutex_lock(&lock);
    aclError code = pending[device].code;
    pthread_mutex_unlock(&lock);
    *info = (error_info){.type = code == ACL_SUCCESS ? NONE : code == AICORE_EXCEPTION ? AICORE : OTHERS};
    return ACL_SUCCESS;
}

aclError sim_pending_error(const char *function, int32_t device)
{
    if (device < 0 || device >= MAX_DEVICES)
        return ACL_SUCCESS;
    char message[sizeof pending[0].message];
    pthread_mutex_lock(&lock);
    aclError code = pending[device].code;
    memcpy(message, pending[device].message, sizeof message);
    pthread_mutex_unlock(&lock);
    return code == ACL_SUCCESS ? ACL_SUCCESS : sim_fail(code, "%s: %s", function, message);
}
