/* The older way to run an operator: describe its tensors and attributes, then aclopCompileAndExecute. The descriptions are real, so
 * that torch_npu comes as far as the execution, which fails and names the operator. Two are executed, which move elements: Identity and
 * AsStrided. */
#define _GNU_SOURCE
#include "sim.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    int32_t dtype, format, rank;
    int64_t dims[SIM_MAX_DIMS];
} description;

SIM_API description *aclCreateTensorDesc(int32_t dtype, int rank, const int64_t *dims, int32_t format)
{
    if (rank < 0 || rank > SIM_MAX_DIMS || (rank != 0 && dims == NULL)) {
        sim_fail(ACL_ERROR_INVALID_PARAM, "aclCreateTensorDesc: from 0 to %d dimensions, got %d", SIM_MAX_DIMS, rank);
        return NULL;
    }
    description *made = calloc(1, sizeof *made);
    if (made == NULL) {
        sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclCreateTensorDesc: this machine is out of memory");
        return NULL;
    }
    made->dtype = dtype;
    made->format = format;
    made->rank = rank;
    if (rank != 0)
        memcpy(made->dims, dims, (size_t)rank * sizeof *dims);
    return made;
}

SIM_API void aclDestroyTensorDesc(const description *desc)
{
    free((void *)desc);
}

static aclError check(const char *function, const void *handle)
{
    return handle != NULL ? ACL_SUCCESS : sim_fail(ACL_ERROR_INVALID_PARAM, "%s: the handle is null", function);
}

SIM_API void aclSetTensorDescName(description *desc, const char *name)
{
    (void)name;
    check("aclSetTensorDescName", desc);
}

SIM_API aclError aclSetTensorFormat(description *desc, int32_t format)
{
    (void)format;
    return check("aclSetTensorFormat", desc);
}

SIM_API aclError aclSetTensorPlaceMent(description *desc, int32_t memory)
{
    (void)memory;
    return check("aclSetTensorPlaceMent", desc);
}

SIM_API aclError aclSetTensorShape(description *desc, int rank, const int64_t *dims)
{
    (void)rank;
    (void)dims;
    return check("aclSetTensorShape", desc);
}

SIM_API int32_t aclGetTensorDescType(const description *desc)
{
    return desc == NULL ? -1 : desc->dtype;
}

SIM_API int32_t aclGetTensorDescFormat(const description *desc)
{
    return desc == NULL ? -1 : desc->format;
}

SIM_API size_t aclGetTensorDescNumDims(const description *desc)
{
    return desc == NULL ? 0 : (size_t)desc->rank;
}

SIM_API aclError aclGetTensorDescDimV2(const description *desc, size_t index, int64_t *size)
{
    if (desc == NULL || size == NULL || index >= (size_t)desc->rank)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclGetTensorDescDimV2: null argument, or no dimension %zu", index);
    *size = desc->dims[index];
    return ACL_SUCCESS;
}

typedef struct {
    void *data;
    size_t size;
} data_buffer;

SIM_API data_buffer *aclCreateDataBuffer(void *data, size_t size)
{
    data_buffer *made = malloc(sizeof *made);
    if (made == NULL)
        sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclCreateDataBuffer: this machine is out of memory");
    else
        *made = (data_buffer){data, size};
    return made;
}

SIM_API aclError aclDestroyDataBuffer(const data_buffer *buffer)
{
    free((void *)buffer);
    return ACL_SUCCESS;
}

/* Attributes are taken and forgotten: no operator is there to read them. */
SIM_API void *aclopCreateAttr(void)
{
    void *made = malloc(1);
    if (made == NULL)
        sim_fail(ACL_ERROR_MEMORY_ALLOCATION, "aclopCreateAttr: this machine is out of memory");
    return made;
}

SIM_API void aclopDestroyAttr(const void *attributes)
{
    free((void *)attributes);
}

#define SETTER(NAME, ...)                          \
    SIM_API aclError NAME(void *attributes, const char *name, __VA_ARGS__) \
    {                                              \
        (void)name;                                \
        return check(#NAME, attributes);           \
    }

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
SETTER(aclopSetAttrBool, uint8_t value)
SETTER(aclopSetAttrInt, int64_t value)
SETTER(aclopSetAttrFloat, float value)
SETTER(aclopSetAttrString, const char *value)
SETTER(aclopSetAttrDataType, int32_t value)
SETTER(aclopSetAttrListBool, int count, const uint8_t *values)
SETTER(aclopSetAttrListInt, int count, const int64_t *values)
SETTER(aclopSetAttrListFloat, int count, const float *values)
SETTER(aclopSetAttrListListInt, int count, const int *lengths, const int64_t *const *values)

/* Identity is how torch_npu changes a tensor's format. The values of a private format lie in their plain order here, at the start of
 * memory of the private format's size: what computes on them sees an ordinary tensor, and the format shows in its descriptor alone. */
static aclError identity(int inputs, const data_buffer *const *input, int outputs, data_buffer *const *output)
{
    if (inputs != 1 || outputs != 1 || input == NULL || output == NULL || input[0] == NULL || output[0] == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "operator Identity: one input and one output, got %d and %d", inputs, outputs);
    size_t size = input[0]->size < output[0]->size ? input[0]->size : output[0]->size;
    if (size != 0)
        memmove(output[0]->data, input[0]->data, size);
    return ACL_SUCCESS;
}

/* Whole numbers that are an input: their count, -1 if they are none or more than `most`. */
static int numbers(const description *desc, const data_buffer *input, int64_t *values, int most)
{
    size_t width = desc->dtype == ACL_INT64 ? sizeof(int64_t) : desc->dtype == ACL_INT32 ? sizeof(int32_t) : 0;
    size_t count = 1;
    for (int i = 0; i < desc->rank; i++)
        count *= (size_t)desc->dims[i];
    if (width == 0 || count > (size_t)most || input->size < count * width)
        return -1;
    for (size_t i = 0; i < count; i++)
        values[i] = width == sizeof(int64_t) ? ((const int64_t *)input->data)[i] : ((const int32_t *)input->data)[i];
    return (int)count;
}

/* AsStrided(x, size, stride, storage_offset): how torch_npu makes a view contiguous. It refuses it in a capture itself. */
static aclError as_strided(int inputs, const description *const *desc, const data_buffer *const *input, int outputs,
                           data_buffer *const *output)
{
    if (inputs != 4 || outputs != 1 || desc == NULL || input == NULL || output == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "operator AsStrided: four inputs and one output, got %d and %d", inputs, outputs);
    int64_t sizes[SIM_MAX_DIMS], strides[SIM_MAX_DIMS], index[SIM_MAX_DIMS] = {0}, at = 0, count = 1;
    int rank = numbers(desc[1], input[1], sizes, SIM_MAX_DIMS);
    if (rank < 0 || numbers(desc[2], input[2], strides, SIM_MAX_DIMS) != rank || numbers(desc[3], input[3], &at, 1) != 1)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "operator AsStrided: size, stride and storage_offset must be whole numbers that go together");
    int64_t last = at;
    for (int i = 0; i < rank; i++) {
        count *= sizes[i];
        last += (sizes[i] - 1) * strides[i];
    }
    if (count == 0)
        return ACL_SUCCESS;
    int32_t bits = sim_dtype_bits(desc[0]->dtype);
    if (bits < 8)
        return sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "operator AsStrided of %s is not modelled", sim_dtype_name(desc[0]->dtype));
    size_t bytes = (size_t)bits / 8;
    if (at < 0 || last < at || ((size_t)last + 1) * bytes > input[0]->size || (size_t)count * bytes > output[0]->size)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "operator AsStrided: %lld elements, the last of them %lld, of %zu bytes into %zu",
                        (long long)count, (long long)last, input[0]->size, output[0]->size);
    char *to = output[0]->data;
    for (int64_t done = 0; done < count; done++, to += bytes) {
        memmove(to, (const char *)input[0]->data + at * (int64_t)bytes, bytes);
        for (int i = rank - 1; i >= 0; i--) {
            at += strides[i];
            if (++index[i] < sizes[i])
                break;
            at -= strides[i] * sizes[i];
            index[i] = 0;
        }
    }
    return ACL_SUCCESS;
}

static aclError execute(const char *function, const char *type, int inputs, const description *const *input_desc,
                        const data_buffer *const *input, int outputs, data_buffer *const *output)
{
    aclError error;
    if (type != NULL && strcmp(type, "Identity") == 0)
        error = identity(inputs, input, outputs, output);
    else if (type != NULL && strcmp(type, "AsStrided") == 0)
        error = as_strided(inputs, input_desc, input, outputs, output);
    else
        error = sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "operator %s (%s) is not modelled", type == NULL ? "null" : type, function);
    if (error != ACL_SUCCESS)
        sim_take_lock_back();
    return error;
}

/* The arguments that follow are those of CANN's function, which only operators of CANN's own would read. */
SIM_API aclError aclopCompileAndExecute(const char *type, int inputs, const description *const *input_desc,
                                        const data_buffer *const *input, int outputs, const description *const *output_desc,
                                        data_buffer *const *output, ...)
{
    return execute("aclopCompileAndExecute", type, inputs, input_desc, input, outputs, output);
}

SIM_API aclError aclopCompileAndExecuteV2(const char *type, int inputs, description *const *input_desc,
                                          const data_buffer *const *input, int outputs, description *const *output_desc,
                                          data_buffer *const *output, ...)
{
    return execute("aclopCompileAndExecuteV2", type, inputs, (const description *const *)input_desc, input, outputs, output);
}
#pragma GCC diagnostic pop
