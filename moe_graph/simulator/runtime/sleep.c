/* aclnnSleep: how torch.npu._sleep keeps a stream busy. A cycle is taken for a nanosecond; the host goes on at once, as on a device. */
#include "sim.h"

#include <stdlib.h>

#define NAME "aclnnSleep"

typedef struct {
    int64_t cycles;
    aclrtStream stream;
} rest;

SIM_API aclError aclnnSleepGetWorkspaceSize(const void *cycles, uint64_t *workspace_size, void **executor)
{
    if (cycles == NULL || workspace_size == NULL || executor == NULL)
        return sim_fail(ACLNN_ERROR_NULLPTR, NAME ": an argument is null");
    int64_t count = sim_only_int(cycles, 0);
    if (count <= 0)
        return sim_fail(ACLNN_ERROR_INVALID, NAME ": cycles must be one number from 1 on");
    rest *made = malloc(sizeof *made);
    if (made == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, NAME ": this machine is out of memory");
    *made = (rest){count, NULL};
    *workspace_size = 0;
    *executor = made;
    return ACL_SUCCESS;
}

static aclError run(void *data)
{
    const rest *call = data;
    if (!moe_sim_delay_stream(call->stream, (uint64_t)call->cycles))
        return sim_fail(ACL_ERROR_INVALID_PARAM, NAME ": the stream is gone");
    return ACL_SUCCESS;
}

/* Takes the executor, as every aclnn operator does. */
SIM_API aclError aclnnSleep(void *workspace, uint64_t workspace_size, void *executor, aclrtStream stream)
{
    (void)workspace;
    (void)workspace_size;
    if (executor != NULL)
        ((rest *)executor)->stream = stream;
    return sim_launch_executor(NAME, run, executor, stream);
}
