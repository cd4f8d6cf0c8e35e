/* HCCL's communicators between the devices of one process, a thread a device, as DataParallel has them; and their broadcast. Groups of
 * processes communicate elsewhere, and other collectives of these communicators are not modelled. */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct group {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    uint32_t size, arrived, left, members; /* `members`: communicators that are not destroyed yet */
    uint64_t round;                        /* of the broadcast that is being gathered */
    uint32_t root;
    size_t bytes;
    void *source;
    bool agreed;
} group;

typedef struct communicator {
    group *group;
    uint32_t rank;
    int32_t device;
    struct communicator *next;
} communicator;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static communicator *communicators; /* all live ones */

static int32_t fail(int32_t code, const char *message)
{
    sim_fail(ACL_ERROR_INVALID_PARAM, "%s", message);
    return code;
}

static void release(group *one)
{
    pthread_mutex_lock(&one->lock);
    bool last = --one->members == 0;
    pthread_mutex_unlock(&one->lock);
    if (!last)
        return;
    pthread_cond_destroy(&one->moved);
    pthread_mutex_destroy(&one->lock);
    free(one);
}

static bool are_devices(uint32_t count, const int32_t *devices)
{
    for (uint32_t i = 0; i < count; i++) {
        if (devices[i] < 0 || devices[i] >= sim_device_count())
            return false;
        for (uint32_t j = 0; j < i; j++)
            if (devices[j] == devices[i])
                return false;
    }
    return count > 0;
}

SIM_API int32_t HcclCommInitAll(uint32_t count, int32_t *devices, void **handles)
{
    if (devices == NULL || handles == NULL)
        return fail(HCCL_ERROR_POINTER, "HcclCommInitAll: devices or comms is null");
    if (!are_devices(count, devices))
        return fail(HCCL_ERROR_PARAMETER, "HcclCommInitAll: devices must be there, each once");
    group *made = calloc(1, sizeof *made);
    communicator **each = calloc(count, sizeof *each);
    bool whole = made != NULL && each != NULL;
    for (uint32_t rank = 0; whole && rank < count; rank++)
        whole = (each[rank] = malloc(sizeof **each)) != NULL;
    if (!whole) {
        for (uint32_t rank = 0; each != NULL && rank < count; rank++)
            free(each[rank]);
        free(each);
        free(made);
        return fail(HCCL_ERROR_MEMORY, "HcclCommInitAll: this machine is out of memory");
    }
    made->size = made->members = count;
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->moved, NULL);
    pthread_mutex_lock(&lock);
    for (uint32_t rank = 0; rank < count; rank++) {
        *each[rank] = (communicator){made, rank, devices[rank], communicators};
        communicators = handles[rank] = each[rank];
    }
    pthread_mutex_unlock(&lock);
    free(each);
    return HCCL_SUCCESS;
}

SIM_API int32_t HcclCommDestroy(void *handle)
{
    pthread_mutex_lock(&lock);
    communicator **link = &communicators;
    while (*link != NULL && *link != handle)
        link = &(*link)->next;
    communicator *found = *link;
    if (found != NULL)
        *link = found->next;
    pthread_mutex_unlock(&lock);
    if (found == NULL)
        return fail(HCCL_ERROR_PARAMETER, "HcclCommDestroy: comm is not a communicator of HcclCommInitAll");
    release(found->group);
    free(found);
    return HCCL_SUCCESS;
}

static size_t element_size(int32_t dtype)
{
    enum { INT8, INT16, INT32, FP16, FP32, INT64, UINT64, UINT8, UINT16, UINT32, FP64, BFP16, INT128, HIF8 = 14, FP8E4M3, FP8E5M2, FP8E8M0 };
    static const size_t sizes[] = {
        [INT8] = 1,   [UINT8] = 1,  [HIF8] = 1,  [FP8E4M3] = 1, [FP8E5M2] = 1, [FP8E8M0] = 1, [INT16] = 2, [UINT16] = 2, [FP16] = 2,
        [BFP16] = 2, [INT32] = 4, [UINT32] = 4, [FP32] = 4,    [INT64] = 8,   [UINT64] = 8,  [FP64] = 8,  [INT128] = 16,
    };
    return dtype < 0 || (size_t)dtype >= sizeof sizes / sizeof *sizes ? 0 : sizes[dtype];
}

static bool is_free_stream(aclrtStream stream)
{
    return sim_check_stream("HcclBroadcast", stream) == ACL_SUCCESS && sim_check_not_captured("HcclBroadcast", stream) == ACL_SUCCESS;
}

/* Wait for the other devices' threads; then each copies the root's data, which stays until all have. */
SIM_API int32_t HcclBroadcast(void *buffer, uint64_t count, int32_t dtype, uint32_t root, void *handle, aclrtStream stream)
{
    pthread_mutex_lock(&lock);
    communicator *own = communicators;
    while (own != NULL && own != handle)
        own = own->next;
    pthread_mutex_unlock(&lock);
    if (own == NULL)
        return fail(HCCL_ERROR_PARAMETER, "HcclBroadcast: comm is not a communicator of HcclCommInitAll");
    group *all = own->group;
    size_t bytes = count * element_size(dtype);
    bool right = element_size(dtype) != 0 && root < all->size && is_free_stream(stream) &&
                 sim_check_device_range("HcclBroadcast", buffer, bytes) == ACL_SUCCESS;

    pthread_mutex_lock(&all->lock);
    while (all->left != 0) /* of the broadcast before */
        pthread_cond_wait(&all->moved, &all->lock);
    if (all->arrived++ == 0) {
        all->root = root;
        all->bytes = bytes;
        all->agreed = true;
    }
    all->agreed = all->agreed && right && all->root == root && all->bytes == bytes;
    if (own->rank == root)
        all->source = buffer;
    uint64_t round = all->round;
    if (all->arrived == all->size) {
        all->arrived = 0;
        all->left = all->size;
        all->round++;
        pthread_cond_broadcast(&all->moved);
    }
    while (all->round == round)
        pthread_cond_wait(&all->moved, &all->lock);
    bool agreed = all->agreed;
    void *source = all->source;
    pthread_mutex_unlock(&all->lock);

    if (agreed && own->rank != root && bytes != 0)
        memmove(buffer, source, bytes);

    pthread_mutex_lock(&all->lock);
    round = all->round;
    if (--all->left == 0)
        pthread_cond_broadcast(&all->moved);
    while (all->left != 0 && all->round == round)
        pthread_cond_wait(&all->moved, &all->lock);
    pthread_mutex_unlock(&all->lock);
    return agreed ? HCCL_SUCCESS : fail(HCCL_ERROR_PARAMETER, "HcclBroadcast: the devices differ in root or size, or memory, dtype or stream of one is wrong");
}
