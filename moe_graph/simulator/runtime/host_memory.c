/* What this machine can hold. A device's memory is reserved when it is allocated, and held by this machine from the first write on: a
 * device has more than many machines. A write that does not fit must be an error, or the system ends the process. */
#define _GNU_SOURCE
#include "sim.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define SMALL ((size_t)256 << 20) /* not looked at: the look is then of no weight beside the write */
#define AT_ONCE 16384

/* Bytes of [start, start + bytes) that this machine does not hold yet. */
static size_t not_held(const char *start, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), missing = 0;
    uintptr_t first = (uintptr_t)start / page * page, end = (uintptr_t)start + bytes;
    unsigned char held[AT_ONCE];
    while (first < end) {
        size_t pages = (end - first + page - 1) / page;
        if (pages > AT_ONCE)
            pages = AT_ONCE;
        if (mincore((void *)first, pages * page, held) != 0)
            missing += pages * page;
        else
            for (size_t i = 0; i < pages; i++)
                missing += (held[i] & 1) == 0 ? page : 0;
        first += pages * page;
    }
    return missing;
}

/* What the system says it can still give, swap included; SIZE_MAX if it does not say. */
static size_t left(void)
{
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    unsigned long long kilobytes = 0, available = 0, swap = 0;
    bool known = false;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "MemAvailable: %llu", &kilobytes) == 1) {
            available = kilobytes;
            known = true;
        } else if (sscanf(line, "SwapFree: %llu", &kilobytes) == 1) {
            swap = kilobytes;
        }
    }
    if (file != NULL)
        fclose(file);
    return known ? (size_t)(available + swap) * 1024 : SIZE_MAX;
}

/* Does writing [start, start + bytes) need more memory than this machine has left: how much, and what is left. */
SIM_API bool moe_sim_lacks_memory(const void *start, size_t bytes, size_t *needed, size_t *available)
{
    if (bytes < SMALL)
        return false;
    *needed = not_held(start, bytes);
    *available = *needed < SMALL ? SIZE_MAX : left();
    return *needed > *available;
}

aclError sim_check_host_memory(const char *function, const void *start, size_t bytes)
{
    size_t needed = 0, available = 0;
    if (!moe_sim_lacks_memory(start, bytes, &needed, &available))
        return ACL_SUCCESS;
    return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "%s: %zu MiB must be held by this machine, which has %zu MiB left", function, needed >> 20,
                    available >> 20);
}
