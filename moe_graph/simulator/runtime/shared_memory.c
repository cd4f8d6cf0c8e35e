/* Device memory between processes of one machine: what torch_npu shares when an NPU tensor goes into a queue of torch.multiprocessing.
 *
 * A block that is exported moves, at its address, into a file without a name; the key says where other processes of the user find it. */
#define _GNU_SOURCE
#include "sim.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096
#define KEY_LENGTH 65
#define FILE_NAME "moe_graph_device_memory"

typedef struct shared {
    char key[KEY_LENGTH];
    int file;    /* of an exported block, -1 of an imported one */
    void *start; /* of an imported block */
    size_t size;
    struct shared *next;
} shared;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static shared *all;

static bool keep(shared entry)
{
    shared *kept = malloc(sizeof *kept);
    if (kept == NULL)
        return false;
    *kept = entry;
    pthread_mutex_lock(&lock);
    kept->next = all;
    all = kept;
    pthread_mutex_unlock(&lock);
    return true;
}

/* Pages of zeros stay holes: what nobody touched costs nothing here, either. */
static void copy_pages(char *to, const char *from, size_t size)
{
    static const char zeros[PAGE];
    for (size_t at = 0; at < size; at += PAGE) {
        size_t count = size - at < PAGE ? size - at : PAGE;
        if (memcmp(from + at, zeros, count) != 0)
            memcpy(to + at, from + at, count);
    }
}

SIM_API aclError aclrtIpcMemGetExportKey(void *pointer, size_t size, char *key, size_t length, uint64_t flags)
{
    (void)flags;
    if (key == NULL || length < KEY_LENGTH)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtIpcMemGetExportKey: key is null or shorter than %d", KEY_LENGTH);
    size_t whole = sim_mapped_block(pointer);
    if (whole == 0 || size > whole)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtIpcMemGetExportKey: no block of device memory of 1 MiB or more, and of %zu bytes, starts "
                        "at %p", size, pointer);
    int file = memfd_create(FILE_NAME, MFD_CLOEXEC);
    void *copy = file >= 0 && ftruncate(file, (off_t)whole) == 0 ? mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
    if (copy == MAP_FAILED) {
        if (file >= 0)
            close(file);
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtIpcMemGetExportKey: this machine has no %zu bytes to share", whole);
    }
    shared entry = {.file = file, .size = whole};
    snprintf(entry.key, sizeof entry.key, "%ld:%d:%zu", (long)getpid(), file, whole);
    copy_pages(copy, pointer, whole);
    if (!keep(entry) || mremap(copy, whole, whole, MREMAP_MAYMOVE | MREMAP_FIXED, pointer) == MAP_FAILED) {
        munmap(copy, whole);
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtIpcMemGetExportKey: %zu bytes at %p cannot be shared", whole, pointer);
    }
    memset(key, 0, length);
    strcpy(key, entry.key);
    return ACL_SUCCESS;
}

/* The file behind a key, opened; -1 if the process that shared it is gone, or its file is another one by now. */
static int open_shared(const char *path, size_t size)
{
    char target[64] = "";
    struct stat found;
    if (readlink(path, target, sizeof target - 1) < 0 || strstr(target, FILE_NAME) == NULL)
        return -1;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file >= 0 && (fstat(file, &found) != 0 || (size_t)found.st_size != size)) {
        close(file);
        return -1;
    }
    return file;
}

SIM_API aclError aclrtIpcMemImportByKey(void **pointer, const char *key, uint64_t flags)
{
    (void)flags;
    long process = 0;
    int number = 0;
    shared entry = {.file = -1};
    if (pointer == NULL || key == NULL || sscanf(key, "%ld:%d:%zu", &process, &number, &entry.size) != 3)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtIpcMemImportByKey: devPtr is null, or key is no key of shared memory");
    int32_t device = sim_current_device();
    if (device < 0)
        return sim_fail(ACL_ERROR_CONTEXT_NULL, "aclrtIpcMemImportByKey: this thread has set no device");
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", process, number);
    int file = open_shared(path, entry.size);
    if (file < 0)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtIpcMemImportByKey: process %ld has ended, or has given the memory back that it shared: "
                        "it must keep the tensor until this process has it", process);
    entry.start = mmap(NULL, entry.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    snprintf(entry.key, sizeof entry.key, "%s", key);
    if (entry.start == MAP_FAILED || !sim_add_mapping(entry.start, entry.size, device) || !keep(entry))
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclrtIpcMemImportByKey: this machine cannot map %zu bytes", entry.size);
    *pointer = entry.start;
    return ACL_SUCCESS;
}

/* By who imported it: the mapping goes. By who exported it: nobody finds it any more, who has it keeps it. */
SIM_API aclError aclrtIpcMemClose(const char *key)
{
    if (key == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtIpcMemClose: key is null");
    pthread_mutex_lock(&lock);
    shared **at = &all;
    while (*at != NULL && strncmp((*at)->key, key, KEY_LENGTH - 1) != 0)
        at = &(*at)->next;
    shared *found = *at;
    if (found != NULL)
        *at = found->next;
    pthread_mutex_unlock(&lock);
    if (found == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtIpcMemClose: no memory is shared by this key");
    if (found->file >= 0) {
        close(found->file);
    } else {
        sim_remove_mapping(found->start);
        munmap(found->start, found->size);
    }
    free(found);
    return ACL_SUCCESS;
}
