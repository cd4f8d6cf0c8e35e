/* Device memory, which is host memory behind device pointers; pinned host memory.
 *
 * Every allocation is known by address, so that sizes are accounted, a wild or stale device pointer is refused, and a pointer can be
 * told to be of the device or of the host. The table is a sorted array: torch_npu's caching allocator makes few, large allocations.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ALIGNMENT 512
#define PAGE 4096
#define LARGE (1u << 20) /* from this size on a block is mapped: what is never touched of it costs the machine nothing */
#define MAX_DEVICES 64
#define DEFAULT_GIB 64.0

typedef enum { ON_DEVICE, MAPPED_ON_DEVICE, ON_HOST, REGISTERED_HOST } place;

typedef struct {
    char *start;
    size_t size;
    place where;
    int32_t device; /* of device memory only */
} allocation;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static allocation *table;
static size_t table_size, table_capacity;
static size_t used_bytes[MAX_DEVICES];

/* Bytes of one device: 64 GiB, or MOE_GRAPH_SIM_MEMORY_GB (a fraction is fine). 0, with a message, if that is no number. */
static size_t device_capacity(void)
{
    const char *text = getenv("MOE_GRAPH_SIM_MEMORY_GB");
    if (text == NULL || text[0] == '\0')
        return (size_t)(DEFAULT_GIB * (1 << 30));
    char *end = NULL;
    errno = 0;
    double gib = strtod(text, &end);
    if (errno != 0 || *end != '\0' || !(gib > 0 && gib <= 1 << 20)) {
        sim_fail(ACL_ERROR_INVALID_PARAM, "MOE_GRAPH_SIM_MEMORY_GB must be a positive number, got \"%s\"", text);
        return 0;
    }
    return (size_t)(gib * (1 << 30));
}

/* Index of the last allocation that starts at or before `pointer`, or table_size if there is none. The lock is held. */
static size_t find(const void *pointer)
{
    size_t low = 0, high = table_size;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uintptr_t)table[middle].start <= (uintptr_t)pointer)
            low = middle + 1;
        else
            high = middle;
    }
    return low == 0 ? table_size : low - 1;
}

static bool insert(allocation entry)
{
    if (table_size == table_capacity) {
        size_t capacity = table_capacity ? 2 * table_capacity : 64;
        allocation *grown = realloc(table, capacity * sizeof *table);
        if (grown == NULL)
            return false;
        table = grown;
        table_capacity = capacity;
    }
    size_t before = find(entry.start);
    size_t at = before == table_size ? 0 : before + 1;
    memmove(table + at + 1, table + at, (table_size - at) * sizeof *table);
    table[at] = entry;
    table_size++;
    return true;
}

/* Take the allocation of this kind that starts at `pointer` out of the table; false if none does. Host memory may be registered, too. */
static bool take(void *pointer, place where, allocation *taken)
{
    pthread_mutex_lock(&lock);
    size_t at = find(pointer);
    while (at != table_size && at > 0 && table[at].start == pointer && table[at].where != where)
        at--;
    bool found = at != table_size && table[at].start == pointer && table[at].where == where;
    if (found) {
        *taken = table[at];
        table_size--;
        memmove(table + at, table + at + 1, (table_size - at) * sizeof *table);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

bool sim_add_mapping(void *start, size_t size, int32_t device)
{
    pthread_mutex_lock(&lock);
    bool kept = insert((allocation){start, size, MAPPED_ON_DEVICE, device});
    pthread_mutex_unlock(&lock);
    return kept;
}

size_t sim_remove_mapping(void *start)
{
    allocation taken;
    return take(start, MAPPED_ON_DEVICE, &taken) ? taken.size : 0;
}

size_t sim_mapped_block(const void *start)
{
    pthread_mutex_lock(&lock);
    size_t at = find(start);
    bool found = at != table_size && table[at].start == start && table[at].where == ON_DEVICE && table[at].size >= LARGE;
    size_t size = found ? table[at].size : 0;
    pthread_mutex_unlock(&lock);
    return size;
}

bool sim_has_mapping(const void *start, size_t size)
{
    pthread_mutex_lock(&lock);
    bool any = false;
    size_t at = find(start);
    for (size_t i = at == table_size ? 0 : at; i < table_size && !any; i++) {
        uintptr_t from = (uintptr_t)table[i].start;
        if (from >= (uintptr_t)start + size)
            break;
        any = table[i].where == MAPPED_ON_DEVICE && from + table[i].size > (uintptr_t)start;
    }
    pthread_mutex_unlock(&lock);
    return any;
}

aclError sim_claim(const char *function, int32_t device, size_t bytes)
{
    size_t capacity = device_capacity();
    if (capacity == 0)
        return ACL_ERROR_INVALID_PARAM;
    pthread_mutex_lock(&lock);
    size_t used = used_bytes[device];
    bool fits = used <= capacity && bytes <= capacity - used;
    if (fits)
        used_bytes[device] += bytes;
    pthread_mutex_unlock(&lock);
    if (fits)
        return ACL_SUCCESS;
    return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "%s: device %d is out of memory: %zu bytes asked, %zu of %zu free", function, device,
                    bytes, used < capacity ? capacity - used : 0, capacity);
}

void sim_unclaim(int32_t device, size_t bytes)
{
    pthread_mutex_lock(&lock);
    used_bytes[device] -= bytes;
    pthread_mutex_unlock(&lock);
}

/* Host memory comes in whole pages, as CANN gives it: torch_npu registers it from a page's start on. */
static size_t alignment_of(place where)
{
    return where == ON_DEVICE ? ALIGNMENT : PAGE;
}

static void *take_memory(size_t size, place where)
{
    void *block = NULL;
    if (size >= LARGE) {
        block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return block == MAP_FAILED ? NULL : block;
    }
    return posix_memalign(&block, alignment_of(where), size) == 0 ? block : NULL;
}

static void give_memory_back(void *block, size_t size)
{
    if (size >= LARGE)
        munmap(block, size);
    else
        free(block);
}

static aclError allocate(const char *function, void **pointer, size_t size, place where)
{
    if (pointer == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: the pointer to fill is null", function);
    *pointer = NULL;
    size_t alignment = alignment_of(where);
    if (size == 0 || size > SIZE_MAX - alignment)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: size must be from 1 on, got %zu", function, size);
    allocation entry = {NULL, (size + alignment - 1) / alignment * alignment, where, -1};
    if (where == ON_DEVICE) {
        entry.device = sim_current_device();
        if (entry.device < 0)
            return sim_fail(ACL_ERROR_CONTEXT_NULL, "%s: this thread has set no device", function);
        aclError error = sim_claim(function, entry.device, entry.size);
        if (error != ACL_SUCCESS)
            return error;
    }
    void *block = take_memory(entry.size, where);
    pthread_mutex_lock(&lock);
    entry.start = block;
    bool kept = block != NULL && insert(entry);
    pthread_mutex_unlock(&lock);
    if (!kept) {
        if (where == ON_DEVICE)
            sim_unclaim(entry.device, entry.size);
        if (block != NULL)
            give_memory_back(block, entry.size);
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "%s: this machine has no %zu bytes left behind the simulated device", function, size);
    }
    *pointer = block;
    return ACL_SUCCESS;
}

static aclError release(const char *function, void *pointer, place where)
{
    allocation taken;
    if (!take(pointer, where, &taken))
        return sim_fail(ACL_ERROR_MEMORY_FREE, "%s: %p is not the start of a live %s allocation", function, pointer,
                        where == ON_DEVICE ? "device" : "host");
    if (where == ON_DEVICE)
        sim_unclaim(taken.device, taken.size);
    give_memory_back(taken.start, taken.size);
    return ACL_SUCCESS;
}

/* ---- device memory ---- */

SIM_API aclError aclrtMalloc(void **pointer, size_t size, int32_t policy)
{
    (void)policy;
    return allocate("aclrtMalloc", pointer, size, ON_DEVICE);
}

SIM_API aclError aclrtMallocAlign32(void **pointer, size_t size, int32_t policy)
{
    (void)policy;
    return allocate("aclrtMallocAlign32", pointer, size, ON_DEVICE);
}

SIM_API aclError aclrtFree(void *pointer)
{
    return release("aclrtFree", pointer, ON_DEVICE);
}

SIM_API aclError aclrtGetMemInfo(int32_t attribute, size_t *free_bytes, size_t *total_bytes)
{
    (void)attribute; /* one kind of memory: huge pages and normal ones are counted together */
    if (free_bytes == NULL || total_bytes == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtGetMemInfo: %s is null", free_bytes == NULL ? "free" : "total");
    int32_t device = sim_current_device();
    if (device < 0)
        device = 0; /* torch_npu asks for the properties of a device before it has set one */
    size_t capacity = device_capacity();
    if (capacity == 0)
        return ACL_ERROR_INVALID_PARAM;
    pthread_mutex_lock(&lock);
    size_t used = used_bytes[device];
    pthread_mutex_unlock(&lock);
    *total_bytes = capacity;
    *free_bytes = used < capacity ? capacity - used : 0;
    return ACL_SUCCESS;
}

typedef struct {
    int32_t cube, vector, aicpu, memory; /* percent */
    void *extension;
} utilization;

/* Kernels are finished when their launch returns, so nothing computes at the moment of asking. */
SIM_API aclError aclrtGetDeviceUtilizationRate(int32_t device, utilization *result)
{
    if (result == NULL || device < 0 || device >= sim_device_count())
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtGetDeviceUtilizationRate: no device %d, or null utilizationInfo", device);
    size_t capacity = device_capacity();
    if (capacity == 0)
        return ACL_ERROR_INVALID_PARAM;
    pthread_mutex_lock(&lock);
    size_t used = used_bytes[device];
    pthread_mutex_unlock(&lock);
    *result = (utilization){0, 0, 0, (int32_t)(100.0 * (double)used / (double)capacity), NULL};
    return ACL_SUCCESS;
}

/* ---- host memory ---- */

SIM_API aclError aclrtMallocHost(void **pointer, size_t size)
{
    return allocate("aclrtMallocHost", pointer, size, ON_HOST);
}

SIM_API aclError aclrtMallocHostWithCfg(void **pointer, uint64_t size, void *configuration)
{
    (void)configuration;
    return allocate("aclrtMallocHostWithCfg", pointer, size, ON_HOST);
}

SIM_API aclError aclrtFreeHost(void *pointer)
{
    return release("aclrtFreeHost", pointer, ON_HOST);
}

SIM_API aclError aclrtHostRegisterV2(void *pointer, uint64_t size, uint32_t flags)
{
    (void)flags;
    if (pointer == NULL || size == 0)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtHostRegister: the pointer is null or the size is 0");
    allocation entry = {pointer, size, REGISTERED_HOST, -1};
    pthread_mutex_lock(&lock);
    bool kept = insert(entry);
    pthread_mutex_unlock(&lock);
    return kept ? ACL_SUCCESS : sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtHostRegister: this machine is out of memory");
}

/* Host and device share one address space here, so the device's address of host memory is the same one. */
SIM_API aclError aclrtHostRegister(void *pointer, uint64_t size, int32_t type, void **device_pointer)
{
    (void)type;
    if (device_pointer == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtHostRegister: devPtr is null");
    *device_pointer = pointer;
    return aclrtHostRegisterV2(pointer, size, 0);
}

SIM_API aclError aclrtHostUnregister(void *pointer)
{
    allocation taken;
    if (!take(pointer, REGISTERED_HOST, &taken))
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtHostUnregister: %p is not registered", pointer);
    return ACL_SUCCESS;
}

/* ---- whose memory is it? ---- */

static bool is_device(const allocation *found)
{
    return found->where == ON_DEVICE || found->where == MAPPED_ON_DEVICE;
}

/* The live allocation that holds `pointer`; false if none does. */
static bool look_up(const void *pointer, allocation *found)
{
    pthread_mutex_lock(&lock);
    size_t at = find(pointer);
    bool inside = at != table_size && (uintptr_t)pointer - (uintptr_t)table[at].start < table[at].size;
    if (inside)
        *found = table[at];
    pthread_mutex_unlock(&lock);
    return inside;
}

typedef struct {
    uint32_t id;
    int32_t type;
    uint32_t page_size;
    uint32_t reserved[4];
} pointer_attributes;

SIM_API aclError aclrtPointerGetAttributes(const void *pointer, pointer_attributes *attributes)
{
    enum { HOST = 0, DEVICE = 1, UNREGISTERED = 2 };
    if (attributes == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtPointerGetAttributes: attributes is null");
    memset(attributes, 0, sizeof *attributes);
    attributes->type = UNREGISTERED;
    allocation found;
    if (look_up(pointer, &found)) {
        attributes->type = is_device(&found) ? DEVICE : HOST;
        attributes->id = is_device(&found) ? (uint32_t)found.device : 0;
    }
    return ACL_SUCCESS;
}

aclError sim_check_device_range(const char *what, const void *pointer, size_t bytes)
{
    if (bytes == 0)
        return ACL_SUCCESS;
    /* Mappings of physical memory lie side by side and are used as one. */
    for (size_t checked = 0; checked < bytes;) {
        allocation found;
        const char *position = (const char *)pointer + checked;
        if (!look_up(position, &found) || !is_device(&found)) {
            if (checked == 0)
                return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: %p is not memory of a device", what, pointer);
            return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: %zu bytes at %p run %zu bytes past the end of their allocation", what, bytes,
                            pointer, bytes - checked);
        }
        checked += found.size - (size_t)(position - found.start);
        if (checked < bytes && found.where != MAPPED_ON_DEVICE)
            return sim_fail(ACL_ERROR_INVALID_PARAM, "%s: %zu bytes at %p run %zu bytes past the end of their allocation", what, bytes,
                            pointer, bytes - checked);
    }
    return ACL_SUCCESS;
}
