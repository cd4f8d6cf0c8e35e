/* Copies between host and device, and the filling of device memory, at once or on a stream. */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

static aclError copy(const char *function, void *to, size_t room, const void *from, size_t count, int32_t kind)
{
    enum { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE };
    if (count == 0)
        return ACL_SUCCESS;
    if (to == NULL || from == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: %s is null", function, to == NULL ? "dst" : "src");
    if (count > room)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: %zu bytes do not fit into destMax = %zu", function, count, room);
    aclError error = ACL_SUCCESS;
    if (kind == HOST_TO_DEVICE || kind == DEVICE_TO_DEVICE)
        error = sim_check_device_range(function, to, count);
    if (error == ACL_SUCCESS && (kind == DEVICE_TO_HOST || kind == DEVICE_TO_DEVICE))
        error = sim_check_device_range(function, from, count);
    if (error == ACL_SUCCESS)
        error = sim_check_host_memory(function, to, count);
    if (error == ACL_SUCCESS)
        memmove(to, from, count);
    return error;
}

SIM_API aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t count, int32_t kind)
{
    aclError error = sim_check_permitted("aclrtMemcpy");
    return error != ACL_SUCCESS ? error : copy("aclrtMemcpy", to, room, from, count, kind);
}

/* A copy, or the filling of memory (`from` is null), for later. */
typedef struct {
    const char *name;
    void *to;
    const void *from;
    size_t room, count;
    int32_t kind, value;
} transfer;

static aclError set(const char *function, void *pointer, size_t room, int32_t value, size_t count);

static aclError run_transfer(void *data)
{
    const transfer *one = data;
    return one->from == NULL && one->kind < 0 ? set(one->name, one->to, one->room, one->value, one->count)
                                              : copy(one->name, one->to, one->room, one->from, one->count, one->kind);
}

static aclError launch_transfer(transfer one, aclrtStream stream)
{
    aclError error = sim_check_stream(one.name, stream);
    if (error != ACL_SUCCESS || !sim_is_special())
        return error != ACL_SUCCESS ? error : run_transfer(&one);
    transfer *kept = malloc(sizeof *kept);
    if (kept == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "%s: this machine is out of memory", one.name);
    *kept = one;
    return sim_run_or_take(stream, &(sim_launch){one.name, run_transfer, free, kept});
}

SIM_API aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t count, int32_t kind, aclrtStream stream)
{
    return launch_transfer((transfer){"aclrtMemcpyAsync", to, from, room, count, kind, 0}, stream);
}

SIM_API aclError aclrtMemcpyAsyncWithCondition(void *to, size_t room, const void *from, size_t count, int32_t kind, aclrtStream stream)
{
    return launch_transfer((transfer){"aclrtMemcpyAsyncWithCondition", to, from, room, count, kind, 0}, stream);
}

static aclError set(const char *function, void *pointer, size_t room, int32_t value, size_t count)
{
    if (count == 0)
        return ACL_SUCCESS;
    if (pointer == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: devPtr is null", function);
    if (count > room)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: %zu bytes do not fit into maxCount = %zu", function, count, room);
    aclError error = sim_check_device_range(function, pointer, count);
    if (error == ACL_SUCCESS)
        error = sim_check_host_memory(function, pointer, count);
    if (error == ACL_SUCCESS)
        memset(pointer, value, count);
    return error;
}

SIM_API aclError aclrtMemset(void *pointer, size_t room, int32_t value, size_t count)
{
    aclError error = sim_check_permitted("aclrtMemset");
    return error != ACL_SUCCESS ? error : set("aclrtMemset", pointer, room, value, count);
}

SIM_API aclError aclrtMemsetAsync(void *pointer, size_t room, int32_t value, size_t count, aclrtStream stream)
{
    return launch_transfer((transfer){"aclrtMemsetAsync", pointer, NULL, room, count, -1, value}, stream);
}
