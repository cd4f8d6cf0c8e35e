/* The handles that operators take: tensors, scalars, arrays, lists, executors. */
#define _GNU_SOURCE
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- dtypes ---- */

static const struct {
    int32_t dtype, bits;
    const char *name;
} DTYPES[] = {
    {ACL_FLOAT, 32, "FLOAT"}, {ACL_FLOAT16, 16, "FLOAT16"}, {ACL_INT8, 8, "INT8"}, {ACL_INT32, 32, "INT32"}, {ACL_UINT8, 8, "UINT8"},
    {ACL_INT16, 16, "INT16"}, {ACL_UINT16, 16, "UINT16"}, {ACL_UINT32, 32, "UINT32"}, {ACL_INT64, 64, "INT64"},
    {ACL_UINT64, 64, "UINT64"}, {ACL_DOUBLE, 64, "DOUBLE"}, {ACL_BOOL, 8, "BOOL"}, {ACL_COMPLEX64, 64, "COMPLEX64"},
    {ACL_COMPLEX128, 128, "COMPLEX128"}, {ACL_BF16, 16, "BF16"}, {ACL_INT4, 4, "INT4"}, {ACL_COMPLEX32, 32, "COMPLEX32"},
    {ACL_HIFLOAT8, 8, "HIFLOAT8"}, {ACL_FLOAT8_E5M2, 8, "FLOAT8_E5M2"}, {ACL_FLOAT8_E4M3FN, 8, "FLOAT8_E4M3FN"},
    {ACL_FLOAT8_E8M0, 8, "FLOAT8_E8M0"}, {ACL_FLOAT4_E2M1, 4, "FLOAT4_E2M1"}, {ACL_FLOAT4_E1M2, 4, "FLOAT4_E1M2"},
};

const char *sim_dtype_name(int32_t dtype)
{
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++)
        if (DTYPES[i].dtype == dtype)
            return DTYPES[i].name;
    return "an unknown dtype";
}

int32_t sim_dtype_bits(int32_t dtype)
{
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++)
        if (DTYPES[i].dtype == dtype)
            return DTYPES[i].bits;
    return 0;
}

/* ---- tensors ---- */

/* Whether sizes and positions of the view in bits fit into int64, so that no later arithmetic on them overflows. */
static bool fits(const aclTensor *tensor)
{
    int64_t elements = 1, last = tensor->offset, step, bits;
    for (size_t i = 0; i < tensor->rank; i++) {
        int64_t dim = tensor->dims[i];
        if (dim < 0 || (dim > 1 && __builtin_mul_overflow(elements, dim, &elements)))
            return false;
        if (dim > 1 && (__builtin_mul_overflow(dim - 1, tensor->strides[i] < 0 ? 0 : tensor->strides[i], &step) ||
                        __builtin_add_overflow(last, step, &last)))
            return false;
    }
    return !__builtin_mul_overflow(elements, 128, &bits) && !__builtin_mul_overflow(last, 128, &bits) &&
           !__builtin_mul_overflow(tensor->offset, 128, &bits);
}

SIM_API aclTensor *aclCreateTensor(const int64_t *dims, uint64_t rank, int32_t dtype, const int64_t *strides, int64_t offset,
                                   int32_t format, const int64_t *storage_dims, uint64_t storage_rank, void *data)
{
    if (rank > SIM_MAX_DIMS || storage_rank > SIM_MAX_DIMS) {
        sim_fail(ACLNN_ERROR_INVALID, "aclCreateTensor: at most %d dimensions, got %llu", SIM_MAX_DIMS,
                 (unsigned long long)(rank > storage_rank ? rank : storage_rank));
        return NULL;
    }
    if ((rank != 0 && dims == NULL) || (storage_rank != 0 && storage_dims == NULL)) {
        sim_fail(ACLNN_ERROR_NULLPTR, "aclCreateTensor: dimensions are null");
        return NULL;
    }
    aclTensor *tensor = calloc(1, sizeof *tensor);
    if (tensor == NULL) {
        sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclCreateTensor: this machine is out of memory");
        return NULL;
    }
    tensor->rank = rank;
    tensor->storage_rank = storage_rank;
    tensor->dtype = dtype;
    tensor->format = format;
    tensor->offset = offset;
    tensor->data = data;
    uint64_t dense = 1; /* unsigned, as the dimensions are checked only below */
    for (size_t i = rank; i-- > 0;) {
        tensor->dims[i] = dims[i];
        tensor->strides[i] = strides == NULL ? (int64_t)dense : strides[i]; /* null strides mean a contiguous tensor */
        dense *= (uint64_t)dims[i];
    }
    if (!fits(tensor)) {
        char text[256];
        sim_fail(ACLNN_ERROR_INVALID, "aclCreateTensor: %s has a negative dimension, or does not fit into the memory of any device",
                 sim_describe(tensor, text, sizeof text));
        free(tensor);
        return NULL;
    }
    if (storage_rank != 0)
        memcpy(tensor->storage_dims, storage_dims, storage_rank * sizeof *storage_dims);
    return tensor;
}

SIM_API aclError aclDestroyTensor(const aclTensor *tensor)
{
    free((void *)tensor);
    return ACL_SUCCESS;
}

int64_t sim_element_count(const aclTensor *tensor)
{
    int64_t count = 1;
    for (size_t i = 0; i < tensor->rank; i++)
        count *= tensor->dims[i];
    return count;
}

char *sim_first_byte(const aclTensor *tensor)
{
    return (char *)((uintptr_t)tensor->data + (uintptr_t)(tensor->offset * sim_dtype_bits(tensor->dtype) / 8));
}

bool sim_is_contiguous(const aclTensor *tensor)
{
    int64_t dense = 1;
    if (sim_element_count(tensor) == 0)
        return true;
    for (size_t i = tensor->rank; i-- > 0;) {
        if (tensor->dims[i] != 1 && tensor->strides[i] != dense)
            return false;
        dense *= tensor->dims[i];
    }
    return true;
}

const char *sim_describe(const aclTensor *tensor, char *text, size_t length)
{
    if (tensor == NULL) {
        snprintf(text, length, "null");
        return text;
    }
    int used = snprintf(text, length, "%s [", sim_dtype_name(tensor->dtype));
    for (size_t i = 0; i < tensor->rank && used >= 0 && (size_t)used < length; i++)
        used += snprintf(text + used, length - (size_t)used, "%s%lld", i == 0 ? "" : ", ", (long long)tensor->dims[i]);
    if (used >= 0 && (size_t)used < length)
        snprintf(text + used, length - (size_t)used, "]");
    return text;
}

/* The dimension getters hand out an array that the caller frees with delete[]; malloc's memory serves that on every platform of CANN. */
static aclError copy_of_dims(const char *function, const void *tensor, const int64_t *from, size_t rank, int64_t **dims, uint64_t *count)
{
    if (tensor == NULL || dims == NULL || count == NULL)
        return sim_fail(ACLNN_ERROR_NULLPTR, "%s: an argument is null", function);
    *dims = malloc((rank == 0 ? 1 : rank) * sizeof **dims);
    if (*dims == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "%s: this machine is out of memory", function);
    memcpy(*dims, from, rank * sizeof **dims);
    *count = rank;
    return ACL_SUCCESS;
}

SIM_API aclError aclGetViewShape(const aclTensor *tensor, int64_t **dims, uint64_t *count)
{
    return copy_of_dims("aclGetViewShape", tensor, tensor == NULL ? NULL : tensor->dims, tensor == NULL ? 0 : tensor->rank, dims, count);
}

SIM_API aclError aclGetViewStrides(const aclTensor *tensor, int64_t **strides, uint64_t *count)
{
    return copy_of_dims("aclGetViewStrides", tensor, tensor == NULL ? NULL : tensor->strides, tensor == NULL ? 0 : tensor->rank, strides,
                        count);
}

SIM_API aclError aclGetStorageShape(const aclTensor *tensor, int64_t **dims, uint64_t *count)
{
    return copy_of_dims("aclGetStorageShape", tensor, tensor == NULL ? NULL : tensor->storage_dims,
                        tensor == NULL ? 0 : tensor->storage_rank, dims, count);
}

SIM_API aclError aclGetViewOffset(const aclTensor *tensor, int64_t *offset)
{
    if (tensor == NULL || offset == NULL)
        return sim_fail(ACLNN_ERROR_NULLPTR, "aclGetViewOffset: an argument is null");
    *offset = tensor->offset;
    return ACL_SUCCESS;
}

SIM_API aclError aclGetDataType(const aclTensor *tensor, int32_t *dtype)
{
    if (tensor == NULL || dtype == NULL)
        return sim_fail(ACLNN_ERROR_NULLPTR, "aclGetDataType: an argument is null");
    *dtype = tensor->dtype;
    return ACL_SUCCESS;
}

SIM_API aclError aclGetFormat(const aclTensor *tensor, int32_t *format)
{
    if (tensor == NULL || format == NULL)
        return sim_fail(ACLNN_ERROR_NULLPTR, "aclGetFormat: an argument is null");
    *format = tensor->format;
    return ACL_SUCCESS;
}

/* ---- scalars and arrays: values kept, in one block ---- */

typedef struct {
    uint64_t count; /* elements, or the dtype of a scalar */
    unsigned char values[];
} block;

static block *keep(const char *function, uint64_t count, const void *values, uint64_t number, size_t element)
{
    size_t bytes, all;
    if (__builtin_mul_overflow(number, element, &bytes) || __builtin_add_overflow(bytes, sizeof(block), &all)) {
        sim_fail(ACLNN_ERROR_INVALID, "%s: %llu elements do not fit into any memory", function, (unsigned long long)number);
        return NULL;
    }
    if (bytes != 0 && values == NULL) {
        sim_fail(ACLNN_ERROR_NULLPTR, "%s: the values are null", function);
        return NULL;
    }
    block *made = malloc(all);
    if (made == NULL) {
        sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "%s: this machine is out of memory", function);
        return NULL;
    }
    made->count = count;
    if (bytes != 0)
        memcpy(made->values, values, bytes);
    return made;
}

static aclError drop(const void *handle)
{
    free((void *)handle);
    return ACL_SUCCESS;
}

SIM_API void *aclCreateScalar(const void *value, int32_t dtype)
{
    int32_t bits = sim_dtype_bits(dtype);
    if (bits == 0) {
        sim_fail(ACLNN_ERROR_INVALID, "aclCreateScalar: dtype %d is unknown", dtype);
        return NULL;
    }
    return keep("aclCreateScalar", (uint64_t)dtype, value, 1, ((size_t)bits + 7) / 8);
}

SIM_API void *aclCreateIntArray(const int64_t *values, uint64_t count)
{
    return keep("aclCreateIntArray", count, values, count, sizeof *values);
}

SIM_API void *aclCreateFloatArray(const float *values, uint64_t count)
{
    return keep("aclCreateFloatArray", count, values, count, sizeof *values);
}

SIM_API void *aclCreateBoolArray(const bool *values, uint64_t count)
{
    return keep("aclCreateBoolArray", count, values, count, sizeof *values);
}

SIM_API aclError aclGetIntArraySize(const void *array, uint64_t *count)
{
    if (array == NULL || count == NULL)
        return sim_fail(ACLNN_ERROR_NULLPTR, "aclGetIntArraySize: an argument is null");
    *count = ((const block *)array)->count;
    return ACL_SUCCESS;
}

int64_t sim_only_int(const void *array, int64_t otherwise)
{
    const block *numbers = array;
    int64_t number = otherwise;
    if (numbers != NULL && numbers->count == 1)
        memcpy(&number, numbers->values, sizeof number);
    return number;
}

SIM_API aclError aclDestroyScalar(const void *handle) { return drop(handle); }
SIM_API aclError aclDestroyIntArray(const void *handle) { return drop(handle); }
SIM_API aclError aclDestroyFloatArray(const void *handle) { return drop(handle); }
SIM_API aclError aclDestroyBoolArray(const void *handle) { return drop(handle); }

/* A list owns its members: destroying it destroys them. */
static aclError drop_list(const void *list)
{
    if (list != NULL) {
        const block *members = list;
        for (uint64_t i = 0; i < members->count; i++)
            free(((void *const *)(const void *)members->values)[i]);
    }
    return drop(list);
}

SIM_API void *aclCreateTensorList(const aclTensor *const *tensors, uint64_t count)
{
    return keep("aclCreateTensorList", count, tensors, count, sizeof *tensors);
}

SIM_API void *aclCreateScalarList(const void *const *scalars, uint64_t count)
{
    return keep("aclCreateScalarList", count, scalars, count, sizeof *scalars);
}

SIM_API aclError aclDestroyTensorList(const void *list) { return drop_list(list); }
SIM_API aclError aclDestroyScalarList(const void *list) { return drop_list(list); }
