/* The lock of the Python interpreter, where torch_npu loses it.
 *
 * torch_npu launches an operator without Python's lock: it gives the lock back first if the calling thread holds it, and takes it again
 * afterwards, but not when the launch throws. A caller that came from Python with the lock would then go on in Python without it, and the
 * interpreter would abort. Such a caller says so beforehand; a launch that is about to fail takes the lock back for it. */
#define _GNU_SOURCE
#include "sim.h"

#include <dlfcn.h>

static _Thread_local bool came_with_lock;

/* Whether launches of this thread come from a caller that held Python's lock. Returns what was said before. */
SIM_API bool moe_sim_comes_with_lock(bool with_lock)
{
    bool before = came_with_lock;
    came_with_lock = with_lock;
    return before;
}

void sim_take_lock_back(void)
{
    if (!came_with_lock)
        return;
    int (*is_held)(void) = NULL;
    void *(*thread_state)(void) = NULL;
    void (*take)(void *) = NULL;
    *(void **)&is_held = dlsym(RTLD_DEFAULT, "PyGILState_Check");
    *(void **)&thread_state = dlsym(RTLD_DEFAULT, "PyGILState_GetThisThreadState");
    *(void **)&take = dlsym(RTLD_DEFAULT, "PyEval_RestoreThread");
    if (is_held == NULL || thread_state == NULL || take == NULL || is_held())
        return;
    void *state = thread_state();
    if (state != NULL)
        take(state);
}
