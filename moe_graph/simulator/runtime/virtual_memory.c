/* Reserved address ranges and physical memory mapped into them: what torch_npu's expandable segments are made of. */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#define GRANULARITY ((size_t)2 << 20)

typedef struct {
    uint32_t id;
    int32_t type;
} location;

typedef struct {
    int32_t handle_type, allocation_type, memory_attribute;
    location where;
    uint64_t reserved;
} physical_property;

/* Physical memory: an amount claimed of a device. Host pages come into being where it is mapped and touched. */
typedef struct physical {
    size_t size;
    int32_t device;
    struct physical *next;
} physical;

/* The sizes of reserved ranges, which munmap wants back. */
typedef struct range {
    void *start;
    size_t size;
    struct range *next;
} range;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static range *ranges;
static physical *physicals; /* all live ones, so that a stale handle is refused and not read */

SIM_API aclError aclrtReserveMemAddress(void **pointer, size_t size, size_t alignment, void *expected, uint64_t flags)
{
    (void)alignment; /* pages, which is all that torch_npu asks for */
    (void)expected;  /* a hint */
    (void)flags;
    if (pointer == NULL || size == 0)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtReserveMemAddress: virPtr is null or size is 0");
    range *made = malloc(sizeof *made);
    void *start = made == NULL ? MAP_FAILED : mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) {
        free(made);
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtReserveMemAddress: this machine cannot reserve %zu bytes", size);
    }
    pthread_mutex_lock(&lock);
    *made = (range){start, size, ranges};
    ranges = made;
    pthread_mutex_unlock(&lock);
    *pointer = start;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtReserveMemAddressNoUCMemory(void **pointer, size_t size, size_t alignment, void *expected, uint64_t flags)
{
    return aclrtReserveMemAddress(pointer, size, alignment, expected, flags);
}

SIM_API aclError aclrtReleaseMemAddress(void *pointer)
{
    pthread_mutex_lock(&lock);
    range **link = &ranges;
    while (*link != NULL && (*link)->start != pointer)
        link = &(*link)->next;
    range *found = *link;
    bool mapped = found != NULL && sim_has_mapping(found->start, found->size);
    if (found != NULL && !mapped)
        *link = found->next;
    pthread_mutex_unlock(&lock);
    if (found == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtReleaseMemAddress: %p is not the start of a reserved range", pointer);
    if (mapped)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtReleaseMemAddress: physical memory is still mapped into the range at %p", pointer);
    munmap(found->start, found->size);
    free(found);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtMallocPhysical(void **handle, size_t size, const physical_property *property, uint64_t flags)
{
    (void)flags;
    if (handle == NULL || property == NULL || size == 0)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtMallocPhysical: an argument is null or size is 0");
    if (property->where.type != 1 || property->where.id >= (uint32_t)sim_device_count())
        return sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "aclrtMallocPhysical: only memory of a device that exists is modelled");
    aclError error = sim_claim("aclrtMallocPhysical", (int32_t)property->where.id, size);
    if (error != ACL_SUCCESS)
        return error;
    physical *made = malloc(sizeof *made);
    if (made == NULL) {
        sim_unclaim((int32_t)property->where.id, size);
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtMallocPhysical: this machine is out of memory");
    }
    pthread_mutex_lock(&lock);
    *made = (physical){size, (int32_t)property->where.id, physicals};
    physicals = made;
    pthread_mutex_unlock(&lock);
    *handle = made;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtFreePhysical(void *handle)
{
    pthread_mutex_lock(&lock);
    physical **link = &physicals;
    while (*link != NULL && *link != handle)
        link = &(*link)->next;
    physical *memory = *link;
    if (memory != NULL)
        *link = memory->next;
    pthread_mutex_unlock(&lock);
    if (memory == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtFreePhysical: %p is not live physical memory", handle);
    sim_unclaim(memory->device, memory->size);
    free(memory);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtMemGetAllocationGranularity(const physical_property *property, int32_t option, size_t *granularity)
{
    (void)property;
    (void)option;
    if (granularity == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtMemGetAllocationGranularity: granularity is null");
    *granularity = GRANULARITY;
    return ACL_SUCCESS;
}

static bool is_reserved(const void *start, size_t size)
{
    pthread_mutex_lock(&lock);
    bool inside = false;
    for (const range *each = ranges; each != NULL && !inside; each = each->next) {
        uintptr_t distance = (uintptr_t)start - (uintptr_t)each->start;
        inside = distance < each->size && size <= each->size - distance;
    }
    pthread_mutex_unlock(&lock);
    return inside;
}

static bool find_physical(const void *handle, physical *found)
{
    pthread_mutex_lock(&lock);
    const physical *each = physicals;
    while (each != NULL && each != handle)
        each = each->next;
    if (each != NULL)
        *found = *each;
    pthread_mutex_unlock(&lock);
    return each != NULL;
}

SIM_API aclError aclrtMapMem(void *pointer, size_t size, size_t offset, void *handle, uint64_t flags)
{
    (void)flags;
    physical memory;
    if (!find_physical(handle, &memory) || size == 0 || offset != 0 || size > memory.size || !is_reserved(pointer, size))
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtMapMem: %zu bytes of a handle at %p are not within a reserved range", size, pointer);
    if (sim_has_mapping(pointer, size))
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtMapMem: something is mapped within the %zu bytes at %p", size, pointer);
    if (mprotect(pointer, size, PROT_READ | PROT_WRITE) != 0 || !sim_add_mapping(pointer, size, memory.device))
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtMapMem: this machine has no %zu bytes left behind the simulated device", size);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtUnmapMem(void *pointer)
{
    size_t size = sim_remove_mapping(pointer);
    if (size == 0)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtUnmapMem: nothing is mapped at %p", pointer);
    /* Give the pages back, and let no stale pointer reach them. */
    madvise(pointer, size, MADV_DONTNEED);
    mprotect(pointer, size, PROT_NONE);
    return ACL_SUCCESS;
}
