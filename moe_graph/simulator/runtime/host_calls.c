/* Functions of the host that a stream calls. */
#define _GNU_SOURCE
#include "sim.h"

#include <stdlib.h>
#include <time.h>

typedef struct {
    void (*function)(void *);
    void *argument;
} host_call;

static aclError call_host(void *data)
{
    const host_call *call = data;
    call->function(call->argument);
    return ACL_SUCCESS;
}

/* Launches are finished when they return, so a host function runs at once, in the caller's thread. */
static aclError launch_host(const char *name, aclrtStream handle, void (*function)(void *), void *argument)
{
    aclError error = sim_check_stream(name, handle);
    if (error != ACL_SUCCESS)
        return error;
    host_call *call = function != NULL ? malloc(sizeof *call) : NULL;
    if (call == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: fn is null, or this machine is out of memory", name);
    *call = (host_call){function, argument};
    return sim_run_or_take(handle, &(sim_launch){name, call_host, free, call});
}

SIM_API aclError aclrtLaunchHostFunc(aclrtStream handle, void (*function)(void *), void *argument)
{
    return launch_host("aclrtLaunchHostFunc", handle, function, argument);
}

SIM_API aclError aclrtLaunchCallback(void (*function)(void *), void *argument, int32_t blocking, aclrtStream handle)
{
    (void)blocking;
    return launch_host("aclrtLaunchCallback", handle, function, argument);
}

/* Callbacks are called by the thread that launches them: there is none to subscribe, and nothing waits for aclrtProcessReport. */
SIM_API aclError aclrtSubscribeReport(uint64_t thread, aclrtStream handle)
{
    (void)thread;
    return sim_check_stream("aclrtSubscribeReport", handle);
}

SIM_API aclError aclrtUnSubscribeReport(uint64_t thread, aclrtStream handle)
{
    (void)thread;
    return sim_check_stream("aclrtUnSubscribeReport", handle);
}

SIM_API aclError aclrtProcessReport(int32_t timeout)
{
    struct timespec rest = {timeout / 1000, (long)(timeout % 1000) * 1000000};
    if (timeout > 0)
        nanosleep(&rest, NULL);
    return sim_fail(ACL_ERROR_REPORT_TIMEOUT, "aclrtProcessReport: no callback in %d ms", timeout);
}

