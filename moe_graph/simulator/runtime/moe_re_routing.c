/* aclnnMoeReRouting: checked as the kernel of the product checks it, executed on host memory, and recorded.
 *
 * Chunk (r, e) holds the tokens that rank r sent for expert e. The source has the chunks in rank-major order, the destination in
 * expert-major order. A chunk is contiguous in both, so it moves by one memcpy for each output: O(A + N * E).
 *
 * Limits: the operator's page in torch_npu's documentation, and the published tiling code of the kernels (ops-transformer).
 */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME "aclnnMoeReRouting"
#define MAX_HIDDEN 16384
#define TEXT 256

typedef struct {
    /* Copies: the caller may destroy its handles as soon as the first phase returns. */
    aclTensor tokens, counts, scales;
    aclTensor permute_tokens, permute_scales, permute_idx, expert_num;
    bool has_scales;
    int64_t expert_token_num_type, idx_type;
} aclOpExecutor;

/* ---- the record of calls, read by Python (see simulator/calls.py, which mirrors this layout) ---- */

#define RECORD_LENGTH 65536 /* pages of the table come into being as it fills */

typedef struct {
    int32_t dtype;
    int32_t rank; /* -1: not given */
    int64_t dims[SIM_MAX_DIMS];
    int32_t contiguous;
    int32_t reserved;
} tensor_record;

typedef struct {
    uint64_t number; /* counted from 1 */
    tensor_record tokens, counts, scales;
    int64_t expert_token_num_type, idx_type;
    int32_t device, status;
} call_record;

static pthread_mutex_t record_lock = PTHREAD_MUTEX_INITIALIZER;
static call_record records[RECORD_LENGTH];
static uint64_t record_count;

static tensor_record describe_for_record(const aclTensor *tensor)
{
    tensor_record record = {0};
    record.rank = -1;
    if (tensor != NULL) {
        record.dtype = tensor->dtype;
        record.rank = (int32_t)tensor->rank;
        record.contiguous = sim_is_contiguous(tensor);
        memcpy(record.dims, tensor->dims, sizeof record.dims);
    }
    return record;
}

static void record_call(const aclOpExecutor *call, aclError status)
{
    call_record record = {0};
    record.tokens = describe_for_record(&call->tokens);
    record.counts = describe_for_record(&call->counts);
    record.scales = describe_for_record(call->has_scales ? &call->scales : NULL);
    record.expert_token_num_type = call->expert_token_num_type;
    record.idx_type = call->idx_type;
    record.device = sim_current_device();
    record.status = status;
    pthread_mutex_lock(&record_lock);
    record.number = ++record_count;
    records[(record.number - 1) % RECORD_LENGTH] = record;
    pthread_mutex_unlock(&record_lock);
}

/* Number of launches so far. */
SIM_API uint64_t moe_sim_call_count(void)
{
    pthread_mutex_lock(&record_lock);
    uint64_t count = record_count;
    pthread_mutex_unlock(&record_lock);
    return count;
}

/* The record of launch `number` (from 1); false if there was none, or if RECORD_LENGTH later ones have overwritten it. */
SIM_API bool moe_sim_call(uint64_t number, call_record *record)
{
    pthread_mutex_lock(&record_lock);
    bool kept = number >= 1 && number <= record_count && record_count - number < RECORD_LENGTH;
    if (kept)
        *record = records[(number - 1) % RECORD_LENGTH];
    pthread_mutex_unlock(&record_lock);
    return kept;
}

/* ---- checks ---- */

static aclError refuse(const char *argument, const char *allowed, const aclTensor *got)
{
    char text[TEXT];
    return sim_fail(ACLNN_ERROR_INVALID, NAME ": %s must be %s, got %s", argument, allowed, sim_describe(got, text, sizeof text));
}

static bool same_shape(const aclTensor *a, const aclTensor *b)
{
    return a->rank == b->rank && memcmp(a->dims, b->dims, a->rank * sizeof *a->dims) == 0;
}

static aclError check_tokens(const sim_product *product, const aclTensor *tokens)
{
    static const int32_t everywhere[] = {ACL_FLOAT16, ACL_BF16, ACL_INT8};
    static const int32_t on_950[] = {ACL_FLOAT8_E4M3FN, ACL_FLOAT8_E5M2, ACL_HIFLOAT8, ACL_FLOAT4_E2M1, ACL_FLOAT4_E1M2};
    bool known = false;
    for (size_t i = 0; i < sizeof everywhere / sizeof *everywhere; i++)
        known |= tokens->dtype == everywhere[i];
    for (size_t i = 0; product->family == SIM_950 && i < sizeof on_950 / sizeof *on_950; i++)
        known |= tokens->dtype == on_950[i];
    if (!known)
        return refuse("tokens",
                      product->family == SIM_950
                          ? "FLOAT16, BF16, INT8, FLOAT8_E4M3FN, FLOAT8_E5M2, HIFLOAT8, FLOAT4_E2M1 or FLOAT4_E1M2 on Ascend 950"
                          : "FLOAT16, BF16 or INT8 on Atlas A2 and A3",
                      tokens);
    if (tokens->rank != 2)
        return refuse("tokens", "2-D [A, H]", tokens);
    if (tokens->dims[1] <= 0 || tokens->dims[1] >= MAX_HIDDEN)
        return refuse("tokens", "[A, H] with 0 < H < 16384", tokens);
    if (tokens->dims[1] * sim_dtype_bits(tokens->dtype) % 8 != 0)
        return refuse("tokens", "[A, H] with rows of whole bytes", tokens);
    if (tokens->dims[0] > INT32_MAX)
        return refuse("tokens", "[A, H] with A within int32, the dtype of permute_token_idx", tokens);
    return ACL_SUCCESS;
}

static aclError check_counts(const aclTensor *counts)
{
    if (counts->dtype != ACL_INT32 && counts->dtype != ACL_INT64)
        return refuse("expert_token_num_per_rank", "INT32 or INT64", counts);
    if (counts->rank != 2 || counts->dims[0] < 1 || counts->dims[1] < 1)
        return refuse("expert_token_num_per_rank", "2-D [N, E] with N, E >= 1", counts);
    return ACL_SUCCESS;
}

static aclError check_scales(const sim_product *product, const aclTensor *scales, int64_t token_count)
{
    bool fits;
    if (product->family == SIM_950) {
        fits = scales->dtype == ACL_FLOAT ? scales->rank == 1 || scales->rank == 2
                                          : scales->dtype == ACL_FLOAT8_E8M0 && scales->rank == 3 && scales->dims[2] == 2;
    } else {
        fits = scales->dtype == ACL_FLOAT && scales->rank == 1;
    }
    if (!fits)
        return refuse("per_token_scales",
                      product->family == SIM_950 ? "FLOAT [A] or [A, S], or FLOAT8_E8M0 [A, K/64, 2] on Ascend 950"
                                                 : "FLOAT [A] on Atlas A2 and A3",
                      scales);
    if (scales->dims[0] != token_count) {
        char allowed[TEXT];
        snprintf(allowed, sizeof allowed, "of A = %lld rows, as tokens are", (long long)token_count);
        return refuse("per_token_scales", allowed, scales);
    }
    return ACL_SUCCESS;
}

static aclError check_output(const char *name, const aclTensor *output, int32_t dtype, size_t rank, const int64_t *dims)
{
    aclTensor wanted = {.rank = rank, .dtype = dtype};
    memcpy(wanted.dims, dims, rank * sizeof *dims);
    if (output->dtype != dtype || !same_shape(output, &wanted)) {
        char allowed[TEXT];
        return refuse(name, sim_describe(&wanted, allowed, sizeof allowed), output);
    }
    if (!sim_is_contiguous(output))
        return refuse(name, "contiguous", output);
    return ACL_SUCCESS;
}

static aclError check_attributes(const sim_product *product, int64_t expert_token_num_type, int64_t idx_type)
{
    if (expert_token_num_type != 1)
        return sim_fail(ACLNN_ERROR_INVALID, NAME ": expert_token_num_type must be 1 (count), got %lld", (long long)expert_token_num_type);
    if (product->family == SIM_950 && idx_type != 0 && idx_type != 1)
        return sim_fail(ACLNN_ERROR_INVALID, NAME ": idx_type must be 0 (gather) or 1 (scatter), got %lld", (long long)idx_type);
    if (product->family != SIM_950 && idx_type != 0)
        return sim_fail(ACLNN_ERROR_INVALID, NAME ": idx_type must be 0 (gather) on Atlas A2 and A3, got %lld", (long long)idx_type);
    return ACL_SUCCESS;
}

SIM_API aclError aclnnMoeReRoutingGetWorkspaceSize(const aclTensor *tokens, const aclTensor *counts, const aclTensor *scales,
                                                   int64_t expert_token_num_type, int64_t idx_type, const aclTensor *permute_tokens,
                                                   const aclTensor *permute_scales, const aclTensor *permute_idx,
                                                   const aclTensor *expert_num, uint64_t *workspace_size, aclOpExecutor **executor)
{
    const struct {
        const char *name;
        const void *pointer;
    } required[] = {{"tokens", tokens},
                    {"expert_token_num_per_rank", counts},
                    {"permute_tokens", permute_tokens},
                    {"permute_per_token_scales", permute_scales},
                    {"permute_token_idx", permute_idx},
                    {"expert_token_num", expert_num},
                    {"workspaceSize", workspace_size},
                    {"executor", executor}};
    for (size_t i = 0; i < sizeof required / sizeof *required; i++)
        if (required[i].pointer == NULL)
            return sim_fail(ACLNN_ERROR_NULLPTR, NAME ": %s is null", required[i].name);
    const sim_product *product = sim_current_product();
    if (product == NULL)
        return ACLNN_ERROR_RUNTIME;

    aclError error = check_tokens(product, tokens);
    if (error == ACL_SUCCESS)
        error = check_counts(counts);
    if (error == ACL_SUCCESS && scales != NULL)
        error = check_scales(product, scales, tokens->dims[0]);
    if (error == ACL_SUCCESS)
        error = check_attributes(product, expert_token_num_type, idx_type);
    if (error == ACL_SUCCESS)
        error = check_output("permute_tokens", permute_tokens, tokens->dtype, tokens->rank, tokens->dims);
    if (error == ACL_SUCCESS)
        error = scales != NULL ? check_output("permute_per_token_scales", permute_scales, scales->dtype, scales->rank, scales->dims)
                               : check_output("permute_per_token_scales", permute_scales, ACL_FLOAT, 1, tokens->dims);
    if (error == ACL_SUCCESS)
        error = check_output("permute_token_idx", permute_idx, ACL_INT32, 1, tokens->dims);
    if (error == ACL_SUCCESS)
        error = check_output("expert_token_num", expert_num, counts->dtype, 1, counts->dims + 1);
    if (error != ACL_SUCCESS) {
        sim_take_lock_back();
        return error;
    }

    aclOpExecutor *made = calloc(1, sizeof *made);
    if (made == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, NAME ": this machine is out of memory");
    *made = (aclOpExecutor){.tokens = *tokens,
                            .counts = *counts,
                            .permute_tokens = *permute_tokens,
                            .permute_scales = *permute_scales,
                            .permute_idx = *permute_idx,
                            .expert_num = *expert_num,
                            .has_scales = scales != NULL,
                            .expert_token_num_type = expert_token_num_type,
                            .idx_type = idx_type};
    if (scales != NULL)
        made->scales = *scales;
    *workspace_size = 0;
    *executor = made;
    return ACL_SUCCESS;
}

SIM_API aclError aclDestroyAclOpExecutor(aclOpExecutor *executor)
{
    free(executor);
    return ACL_SUCCESS;
}

/* ---- execution ---- */

/* An operand as dense bytes: the tensor's own memory, or a dense copy of a strided input, as aclnn makes one before the kernel. */
typedef struct {
    char *bytes;
    void *owned;
} operand;

/* Elements from the first one to the last one in memory. */
static int64_t span(const aclTensor *tensor)
{
    int64_t last = 0;
    if (sim_element_count(tensor) == 0)
        return 0;
    for (size_t i = 0; i < tensor->rank; i++)
        last += (tensor->dims[i] - 1) * tensor->strides[i];
    return last + 1;
}

static void pack(const aclTensor *tensor, size_t dimension, const char *from, char **to, size_t element)
{
    if (dimension == tensor->rank) {
        memcpy(*to, from, element);
        *to += element;
        return;
    }
    for (int64_t i = 0; i < tensor->dims[dimension]; i++)
        pack(tensor, dimension + 1, from + i * tensor->strides[dimension] * (int64_t)element, to, element);
}

static aclError open_operand(const char *argument, const aclTensor *tensor, bool is_input, operand *result)
{
    char what[TEXT];
    int32_t bits = sim_dtype_bits(tensor->dtype);
    *result = (operand){sim_first_byte(tensor), NULL};
    snprintf(what, sizeof what, NAME ": %s", argument);
    bool dense = sim_is_contiguous(tensor);
    for (size_t i = 0; i < tensor->rank && !dense; i++)
        if (tensor->strides[i] < 0)
            return refuse(argument, "of strides that are not negative", tensor);
    if (bits < 8 && (!dense || tensor->offset % 2 != 0))
        return refuse(argument, "contiguous from a whole byte on, as two elements share a byte", tensor);
    aclError error = sim_check_device_range(what, result->bytes, (size_t)((span(tensor) * bits + 7) / 8));
    if (error != ACL_SUCCESS || dense || !is_input)
        return error;
    size_t element = (size_t)bits / 8;
    result->owned = malloc((size_t)sim_element_count(tensor) * element);
    if (result->owned == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, NAME ": this machine is out of memory");
    char *end = result->owned;
    pack(tensor, 0, result->bytes, &end, element);
    result->bytes = result->owned;
    return ACL_SUCCESS;
}

static int64_t count_at(const operand *counts, int32_t dtype, int64_t position)
{
    if (dtype == ACL_INT64) {
        int64_t value;
        memcpy(&value, counts->bytes + 8 * position, sizeof value);
        return value;
    }
    int32_t value;
    memcpy(&value, counts->bytes + 4 * position, sizeof value);
    return value;
}

/* Where each chunk starts in the source, in rank-major order, and where the last one ends; checks the counts on the way. */
static aclError find_starts(const aclOpExecutor *call, const operand *counts, int64_t *starts)
{
    int64_t ranks = call->counts.dims[0], experts = call->counts.dims[1], tokens = call->tokens.dims[0], position = 0;
    for (int64_t chunk = 0; chunk < ranks * experts; chunk++) {
        int64_t count = count_at(counts, call->counts.dtype, chunk);
        if (count < 0)
            return sim_fail(ACLNN_ERROR_RUNTIME, NAME ": expert_token_num_per_rank[%lld, %lld] must not be negative, got %lld",
                            (long long)(chunk / experts), (long long)(chunk % experts), (long long)count);
        if (count > tokens - position)
            return sim_fail(ACLNN_ERROR_RUNTIME, NAME ": the sum of expert_token_num_per_rank must be A = %lld, but exceeds it",
                            (long long)tokens);
        starts[chunk] = position;
        position += count;
    }
    starts[ranks * experts] = position;
    if (position != tokens)
        return sim_fail(ACLNN_ERROR_RUNTIME, NAME ": the sum of expert_token_num_per_rank must be A = %lld, got %lld", (long long)tokens,
                        (long long)position);
    return ACL_SUCCESS;
}

typedef struct {
    operand tokens, counts, scales, permute_tokens, permute_scales, permute_idx, expert_num;
} operands;

static aclError open_operands(const aclOpExecutor *call, operands *all)
{
    const struct {
        const char *name;
        const aclTensor *tensor;
        bool is_input;
        operand *result;
    } each[] = {{"tokens", &call->tokens, true, &all->tokens},
                {"expert_token_num_per_rank", &call->counts, true, &all->counts},
                {"per_token_scales", call->has_scales ? &call->scales : NULL, true, &all->scales},
                {"permute_tokens", &call->permute_tokens, false, &all->permute_tokens},
                {"permute_per_token_scales", call->has_scales ? &call->permute_scales : NULL, false, &all->permute_scales},
                {"permute_token_idx", &call->permute_idx, false, &all->permute_idx},
                {"expert_token_num", &call->expert_num, false, &all->expert_num}};
    for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
        if (each[i].tensor == NULL)
            continue;
        aclError error = open_operand(each[i].name, each[i].tensor, each[i].is_input, each[i].result);
        if (error != ACL_SUCCESS)
            return error;
    }
    return ACL_SUCCESS;
}

static size_t row_bytes(const aclTensor *tensor)
{
    int64_t elements = 1;
    for (size_t i = 1; i < tensor->rank; i++)
        elements *= tensor->dims[i];
    return (size_t)(elements * sim_dtype_bits(tensor->dtype) / 8);
}

static void move_chunk(const operand *to, int64_t destination, const operand *from, int64_t source, int64_t rows, size_t row)
{
    if (rows != 0 && row != 0)
        memmove(to->bytes + (size_t)destination * row, from->bytes + (size_t)source * row, (size_t)rows * row);
}

/* Device pointers need no alignment here, so integers are stored by their bytes. */
static void put(const operand *to, int32_t dtype, int64_t position, int64_t value)
{
    int32_t narrow = (int32_t)value;
    if (dtype == ACL_INT64)
        memcpy(to->bytes + 8 * position, &value, sizeof value);
    else
        memcpy(to->bytes + 4 * position, &narrow, sizeof narrow);
}

static aclError execute(const aclOpExecutor *call, const operands *all)
{
    int64_t ranks = call->counts.dims[0], experts = call->counts.dims[1];
    size_t token_row = row_bytes(&call->tokens), scale_row = call->has_scales ? row_bytes(&call->scales) : 0;
    int64_t *starts = malloc(((size_t)ranks * (size_t)experts + 1) * sizeof *starts);
    if (starts == NULL)
        return sim_fail(ACL_ERROR_MEMORY_ALLOCATION, NAME ": this machine is out of memory");
    aclError error = find_starts(call, &all->counts, starts);
    int64_t destination = 0;
    for (int64_t expert = 0; error == ACL_SUCCESS && expert < experts; expert++) {
        int64_t first = destination;
        for (int64_t rank = 0; rank < ranks; rank++) {
            int64_t source = starts[rank * experts + expert];
            /* Not read again: an output or another thread may have overwritten the counts that were checked. */
            int64_t rows = starts[rank * experts + expert + 1] - source;
            move_chunk(&all->permute_tokens, destination, &all->tokens, source, rows, token_row);
            if (call->has_scales)
                move_chunk(&all->permute_scales, destination, &all->scales, source, rows, scale_row);
            for (int64_t i = 0; i < rows; i++) {
                if (call->idx_type == 0)
                    put(&all->permute_idx, ACL_INT32, destination + i, source + i);
                else
                    put(&all->permute_idx, ACL_INT32, source + i, destination + i);
            }
            destination += rows;
        }
        put(&all->expert_num, call->expert_num.dtype, expert, destination - first);
    }
    free(starts);
    return error;
}

static aclError run_call(void *data)
{
    aclOpExecutor *call = data;
    operands all = {0};
    aclError error = open_operands(call, &all);
    if (error == ACL_SUCCESS)
        error = execute(call, &all);
    free(all.tokens.owned);
    free(all.counts.owned);
    free(all.scales.owned);
    record_call(call, error);
    return error;
}

/* Result `index` of a launch: tokens, scales, places, counts. Its rank is -1 where there is none, or where it is not contiguous. */
SIM_API const void *moe_sim_re_routing_result(const void *launch, int32_t index, tensor_record *record)
{
    const aclOpExecutor *call = launch;
    const aclTensor *results[] = {&call->permute_tokens, call->has_scales ? &call->permute_scales : NULL, &call->permute_idx,
                                  &call->expert_num};
    const aclTensor *result = results[index];
    *record = describe_for_record(result != NULL && sim_is_contiguous(result) ? result : NULL);
    return record->rank < 0 ? NULL : sim_first_byte(result);
}

/* Takes the executor: it is gone when this returns, or with the captured graph that it is recorded in. */
SIM_API aclError aclnnMoeReRouting(void *workspace, uint64_t workspace_size, aclOpExecutor *call, aclrtStream stream)
{
    (void)workspace;
    (void)workspace_size;
    aclError error = call == NULL ? ACL_SUCCESS : sim_check_stream(NAME, stream);
    if (error != ACL_SUCCESS)
        record_call(call, error); /* what runs is recorded when it has run */
    return sim_launch_executor(NAME, run_call, call, stream);
}
