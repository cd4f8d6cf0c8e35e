/* Random calls of aclnnMoeReRouting, valid and not, without Python: status codes against the operator's rules as written here once
 * more, results against a plain loop over tokens. Arguments: rounds, seed. */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct executor executor;
const char *aclGetRecentErrMsg(void);
aclError aclrtSetDevice(int32_t);
aclError aclrtMalloc(void **, size_t, int32_t);
aclError aclrtFree(void *);
aclTensor *aclCreateTensor(const int64_t *, uint64_t, int32_t, const int64_t *, int64_t, int32_t, const int64_t *, uint64_t, void *);
aclError aclDestroyTensor(const aclTensor *);
aclError aclnnMoeReRoutingGetWorkspaceSize(const aclTensor *, const aclTensor *, const aclTensor *, int64_t, int64_t, const aclTensor *,
                                           const aclTensor *, const aclTensor *, const aclTensor *, uint64_t *, executor **);
aclError aclnnMoeReRouting(void *, uint64_t, executor *, aclrtStream);

static unsigned long round_number;
#define CHECK(CONDITION)                                                                                        \
    do {                                                                                                        \
        if (!(CONDITION)) {                                                                                     \
            fprintf(stderr, "round %lu, line %d: %s; %s\n", round_number, __LINE__, #CONDITION, aclGetRecentErrMsg()); \
            exit(1);                                                                                            \
        }                                                                                                       \
    } while (0)

/* ---- random numbers: SplitMix64 ---- */

static uint64_t state;

static uint64_t below(uint64_t limit)
{
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (z ^ (z >> 31)) % limit;
}

/* ---- operands ---- */

typedef struct {
    aclTensor *tensor;
    char *memory; /* of the device */
    int64_t dims[2], strides[2], offset;
    size_t rank, element;
} operand;

/* A tensor in memory of its own, which ends with its last element's allocation; strided inputs have gaps between rows and columns. */
static operand make(int32_t dtype, size_t element, size_t rank, int64_t a, int64_t b, bool strided)
{
    operand made = {.dims = {a, b}, .rank = rank, .element = element, .offset = (int64_t)below(4)};
    int64_t column = strided ? 1 + (int64_t)below(3) : 1;
    made.strides[rank - 1] = column;
    if (rank == 2)
        made.strides[0] = b * column + (strided ? (int64_t)below(5) : 0);
    int64_t room = made.offset + 1 + (rank == 2 ? a * made.strides[0] : a * column);
    CHECK(aclrtMalloc((void **)&made.memory, (size_t)room * element, 0) == ACL_SUCCESS);
    for (size_t i = 0; i < (size_t)room * element; i++)
        made.memory[i] = (char)below(256);
    made.tensor = aclCreateTensor(made.dims, rank, dtype, made.strides, made.offset, 2, &room, 1, made.memory);
    CHECK(made.tensor != NULL);
    return made;
}

static void drop(operand *one)
{
    if (one->tensor != NULL)
        CHECK(aclDestroyTensor(one->tensor) == ACL_SUCCESS && aclrtFree(one->memory) == ACL_SUCCESS);
}

static char *at(const operand *one, int64_t row, int64_t column)
{
    int64_t position = one->offset + row * one->strides[0] + (one->rank == 2 ? column * one->strides[1] : 0);
    return one->memory + position * (int64_t)one->element;
}

static int64_t integer(const operand *one, int64_t row, int64_t column)
{
    int32_t narrow;
    int64_t wide;
    memcpy(&narrow, at(one, row, column), sizeof narrow);
    if (one->element == 8)
        memcpy(&wide, at(one, row, column), sizeof wide);
    return one->element == 8 ? wide : narrow;
}

static void set_integer(const operand *one, int64_t row, int64_t column, int64_t value)
{
    int32_t narrow = (int32_t)value;
    memcpy(at(one, row, column), one->element == 8 ? (void *)&value : (void *)&narrow, one->element);
}

/* ---- one call ---- */

enum { GOOD, TOKENS_DTYPE, COUNTS_DTYPE, SCALES_ROWS, ATTRIBUTE, INDEX_TYPE, OUTPUT_ROWS, OUTPUT_DTYPE, NULL_OUTPUT, SUM, NEGATIVE, FREED, KINDS };

static aclError one_call(int kind)
{
    static const int32_t dtypes[] = {ACL_FLOAT16, ACL_BF16, ACL_INT8};
    static const size_t sizes[] = {2, 2, 1};
    size_t which = below(3), wide = below(2) ? 8 : 4;
    int64_t ranks = 1 + (int64_t)below(4), experts = 1 + (int64_t)below(6), hidden = 1 + (int64_t)below(9), rows = 0;
    bool scaled = kind == SCALES_ROWS || below(2), strided = below(2);
    operand counts = make(kind == COUNTS_DTYPE ? ACL_FLOAT : wide == 8 ? ACL_INT64 : ACL_INT32, kind == COUNTS_DTYPE ? 4 : wide, 2, ranks, experts,
                          below(2));
    for (int64_t rank = 0; rank < ranks; rank++)
        for (int64_t expert = 0; expert < experts; expert++) {
            int64_t count = below(3) ? (int64_t)below(5) : 0;
            set_integer(&counts, rank, expert, count);
            rows += count;
        }
    int64_t last = integer(&counts, ranks - 1, experts - 1);
    if (kind == SUM)
        set_integer(&counts, ranks - 1, experts - 1, below(2) ? last + 1 : last > 0 ? last - 1 : INT32_MAX);
    if (kind == NEGATIVE)
        set_integer(&counts, (int64_t)below((uint64_t)ranks), (int64_t)below((uint64_t)experts), -1 - (int64_t)below(INT32_MAX));
    operand tokens = make(kind == TOKENS_DTYPE ? ACL_DOUBLE : dtypes[which], kind == TOKENS_DTYPE ? 8 : sizes[which], 2, rows, hidden, strided);
    int64_t other = rows > 0 && below(2) ? rows - 1 : rows + 1; /* a length that is not the tokens' */
    operand scales = {0};
    if (scaled)
        scales = make(ACL_FLOAT, 4, 1, kind == SCALES_ROWS ? other : rows, 1, below(2));
    operand out[] = {make(dtypes[which], sizes[which], 2, rows, hidden, false), make(ACL_FLOAT, 4, 1, rows, 1, false),
                     make(kind == OUTPUT_DTYPE ? ACL_FLOAT : ACL_INT32, 4, 1, kind == OUTPUT_ROWS ? other : rows, 1, false),
                     make(wide == 8 ? ACL_INT64 : ACL_INT32, wide, 1, experts, 1, false)};
    uint64_t workspace = 1;
    executor *call = NULL;
    aclError error = aclnnMoeReRoutingGetWorkspaceSize(tokens.tensor, counts.tensor, scales.tensor, kind == ATTRIBUTE ? 0 : 1, kind == INDEX_TYPE,
                                                       kind == NULL_OUTPUT ? NULL : out[0].tensor, out[1].tensor, out[2].tensor,
                                                       out[3].tensor, &workspace, &call);
    CHECK((error == ACL_SUCCESS) == (call != NULL));
    if (error == ACL_SUCCESS && kind == FREED) {
        CHECK(aclDestroyTensor(out[3].tensor) == ACL_SUCCESS && aclrtFree(out[3].memory) == ACL_SUCCESS);
        out[3].tensor = NULL;
    }
    if (error == ACL_SUCCESS)
        error = aclnnMoeReRouting(NULL, 0, call, NULL);
    int64_t row = 0;
    for (int64_t expert = 0; error == ACL_SUCCESS && expert < experts; expert++) {
        int64_t of_expert = 0;
        for (int64_t rank = 0; rank < ranks; rank++) {
            int64_t source = 0; /* tokens of all chunks before (rank, expert) */
            for (int64_t before = 0; before < rank * experts + expert; before++)
                source += integer(&counts, before / experts, before % experts);
            for (int64_t i = 0; i < integer(&counts, rank, expert); i++, row++, source++, of_expert++) {
                CHECK(integer(&out[2], row, 0) == source);
                CHECK(!scaled || memcmp(at(&out[1], row, 0), at(&scales, source, 0), 4) == 0);
                for (int64_t j = 0; j < hidden; j++)
                    CHECK(memcmp(at(&out[0], row, j), at(&tokens, source, j), sizes[which]) == 0);
            }
        }
        CHECK(integer(&out[3], expert, 0) == of_expert);
    }
    CHECK(error != ACL_SUCCESS || row == rows);
    drop(&tokens);
    drop(&counts);
    drop(&scales);
    for (size_t i = 0; i < 4; i++)
        drop(&out[i]);
    return error;
}

int main(int count, char **arguments)
{
    static const aclError expected[KINDS] = {[GOOD] = ACL_SUCCESS,
                                             [TOKENS_DTYPE] = ACLNN_ERROR_INVALID,
                                             [COUNTS_DTYPE] = ACLNN_ERROR_INVALID,
                                             [SCALES_ROWS] = ACLNN_ERROR_INVALID,
                                             [ATTRIBUTE] = ACLNN_ERROR_INVALID,
                                             [INDEX_TYPE] = ACLNN_ERROR_INVALID,
                                             [OUTPUT_ROWS] = ACLNN_ERROR_INVALID,
                                             [OUTPUT_DTYPE] = ACLNN_ERROR_INVALID,
                                             [NULL_OUTPUT] = ACLNN_ERROR_NULLPTR,
                                             [SUM] = ACLNN_ERROR_RUNTIME,
                                             [NEGATIVE] = ACLNN_ERROR_RUNTIME,
                                             [FREED] = ACL_ERROR_INVALID_PARAM};
    unsigned long rounds = count > 1 ? strtoul(arguments[1], NULL, 10) : 1000;
    state = count > 2 ? strtoull(arguments[2], NULL, 10) : 0;
    CHECK(aclrtSetDevice(0) == ACL_SUCCESS);
    for (round_number = 0; round_number < rounds; round_number++) {
        int kind = below(2) ? GOOD : (int)below(KINDS);
        aclError error = one_call(kind);
        if (error != expected[kind]) {
            fprintf(stderr, "round %lu, kind %d: status %d instead of %d; %s\n", round_number, kind, error, expected[kind], aclGetRecentErrMsg());
            return 1;
        }
        if (error == ACL_SUCCESS)
            continue;
        CHECK(aclGetRecentErrMsg()[0] != '\0');
    }
    printf("%lu rounds\n", rounds);
    return 0;
}
