/* aclnnNpuFormatCast: how torch_npu changes a tensor's format on Ascend 950, and on A2 and A3 from CANN 9.1 on. As with Identity in aclop.c the values of a private format
 * lie in their plain order at the start of memory of the private format's size, and the format shows in the descriptor alone. */
#define _GNU_SOURCE
#include "sim.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define NAME "aclnnNpuFormatCast"

enum { FORMAT_ND = 2, FORMAT_NZ = 29, FORMAT_NZ_C0_16 = 50, FORMAT_NZ_C0_32 = 51, ROWS = 16, FRACTAL_BITS = 32 * 8 };

/* The caller frees it as C++ does what `new int64_t[]` gave. */
static int64_t *new_shape(size_t count)
{
    void *(*allocate)(size_t) = (void *(*)(size_t))dlsym(RTLD_DEFAULT, "_Znam");
    return allocate == NULL ? malloc(count * sizeof(int64_t)) : allocate(count * sizeof(int64_t));
}

static int64_t ceil_div(int64_t size, int64_t by)
{
    return (size + by - 1) / by;
}

/* Columns of a fractal, and the format that tells them: those of the tensor's own dtype are FRACTAL_NZ. A2 and A3 have no other name. */
static aclError columns(const aclTensor *src, int additional, int64_t *count, int *format)
{
    int32_t own = sim_dtype_bits(src->dtype), other = sim_dtype_bits(additional);
    const sim_product *product = sim_current_product();
    if (additional == -1 || additional == src->dtype) {
        *count = FRACTAL_BITS / own;
        *format = FORMAT_NZ;
    } else if (product != NULL && product->family != SIM_950 && (other == 8 || other == 16 || other == 32)) {
        *count = FRACTAL_BITS / other;
        *format = FORMAT_NZ;
    } else if (other == 16) {
        *count = 16;
        *format = FORMAT_NZ_C0_16;
    } else if (additional == ACL_FLOAT8_E4M3FN || additional == ACL_INT8) {
        *count = 32;
        *format = FORMAT_NZ_C0_32;
    } else {
        return sim_fail(ACLNN_ERROR_INVALID, NAME ": additionalDtype must be the tensor's, of 16 bits, int8 or float8_e4m3fn, got %s",
                        sim_dtype_name(additional));
    }
    return ACL_SUCCESS;
}

SIM_API aclError aclnnNpuFormatCastCalculateSizeAndFormat(const aclTensor *src, int format, int additional, int64_t **shape,
                                                          uint64_t *rank, int *actual)
{
    if (src == NULL || shape == NULL || rank == NULL || actual == NULL)
        return sim_fail(ACLNN_ERROR_NULLPTR, NAME ": an argument is null");
    if (sim_dtype_bits(src->dtype) == 0)
        return sim_fail(ACLNN_ERROR_INVALID, NAME ": srcTensor is of %s", sim_dtype_name(src->dtype));
    if (format != FORMAT_ND && format != FORMAT_NZ)
        return sim_fail(ACLNN_ERROR_INVALID, NAME ": dstFormat must be ND (2) or FRACTAL_NZ (29), got %d", format);
    if (src->rank < 2 || src->rank > 6)
        return sim_fail(ACLNN_ERROR_INVALID, NAME ": srcTensor must be of 2 to 6 dimensions, got %llu", (unsigned long long)src->rank);
    int64_t count = 0;
    *actual = format;
    aclError error = format == FORMAT_NZ ? columns(src, additional, &count, actual) : ACL_SUCCESS;
    if (error != ACL_SUCCESS)
        return error;
    *rank = format == FORMAT_NZ ? src->rank + 2 : src->rank;
    *shape = new_shape(*rank);
    if (*shape == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, NAME ": this machine is out of memory");
    memcpy(*shape, src->dims, src->rank * sizeof **shape);
    if (format == FORMAT_NZ) {
        int64_t rows = src->dims[src->rank - 2], width = src->dims[src->rank - 1];
        int64_t fractal[] = {ceil_div(width, count), ceil_div(rows, ROWS), ROWS, count};
        memcpy(*shape + src->rank - 2, fractal, sizeof fractal);
    }
    return ACL_SUCCESS;
}

typedef struct {
    char *from, *to;
    size_t bytes;
} cast;

SIM_API aclError aclnnNpuFormatCastGetWorkspaceSize(const aclTensor *src, aclTensor *dst, uint64_t *workspace_size, void **executor)
{
    if (src == NULL || dst == NULL || workspace_size == NULL || executor == NULL)
        return sim_fail(ACLNN_ERROR_NULLPTR, NAME ": an argument is null");
    if (src->dtype != dst->dtype || !sim_is_contiguous(src))
        return sim_fail(ACLNN_ERROR_INVALID, NAME ": srcTensor must be contiguous, of dstTensor's dtype %s, got %s", sim_dtype_name(dst->dtype),
                        sim_dtype_name(src->dtype));
    cast *made = malloc(sizeof *made);
    if (made == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, NAME ": this machine is out of memory");
    *made = (cast){sim_first_byte(src), sim_first_byte(dst), (size_t)((sim_element_count(src) * sim_dtype_bits(src->dtype) + 7) / 8)};
    *workspace_size = 0;
    *executor = made;
    return ACL_SUCCESS;
}

static aclError run(void *data)
{
    const cast *call = data;
    aclError error = sim_check_device_range(NAME ": srcTensor", call->from, call->bytes);
    if (error == ACL_SUCCESS)
        error = sim_check_device_range(NAME ": dstTensor", call->to, call->bytes);
    if (error == ACL_SUCCESS && call->bytes != 0)
        memmove(call->to, call->from, call->bytes);
    return error;
}

/* Takes the executor, as every aclnn operator does. */
SIM_API aclError aclnnNpuFormatCast(void *workspace, uint64_t workspace_size, void *executor, aclrtStream stream)
{
    (void)workspace;
    (void)workspace_size;
    return sim_launch_executor(NAME, run, executor, stream);
}
