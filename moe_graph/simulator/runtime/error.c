/* The recent error message of a thread, and the ways in which a function that is not modelled fails. */
#define _GNU_SOURCE
#include "sim.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MESSAGE_LENGTH 1024

static _Thread_local char message[MESSAGE_LENGTH];
static _Thread_local char handed_out[MESSAGE_LENGTH];
static _Thread_local aclError last_error;

aclError sim_fail(aclError code, const char *format, ...)
{
    int used = snprintf(message, sizeof message, "simulated device: ");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message + used, sizeof message - (size_t)used, format, arguments);
    va_end(arguments);
    last_error = code;
    return code;
}

/* CANN hands a message out once: a later success must not be followed by an old message. */
SIM_API const char *aclGetRecentErrMsg(void)
{
    memcpy(handed_out, message, sizeof message);
    message[0] = '\0';
    return handed_out;
}

SIM_API aclError aclrtPeekAtLastError(int32_t level)
{
    (void)level;
    return last_error;
}

SIM_API aclError aclrtGetLastError(int32_t level)
{
    aclError error = aclrtPeekAtLastError(level);
    last_error = ACL_SUCCESS;
    return error;
}

/* ---- functions that are not modelled, and how often each was asked for: the report at exit lists them ---- */

#define MISSED_CAPACITY 1024 /* kinds; a program that meets more of them than this works with hardly anything */

static pthread_mutex_t missed_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char *function;
    uint64_t count;
} missed[MISSED_CAPACITY];
static size_t missed_size;

static void (*when_missed)(const char *function);

/* From now on this is called with the name of each function that is not modelled and asked for, but for launches of operators. */
SIM_API void moe_sim_when_missed(void (*observer)(const char *function))
{
    when_missed = observer;
}

static void remember_missed(const char *function)
{
    pthread_mutex_lock(&missed_lock);
    size_t at = 0;
    while (at < missed_size && strcmp(missed[at].function, function) != 0)
        at++;
    if (at == missed_size && at < MISSED_CAPACITY && (missed[at].function = strdup(function)) != NULL)
        missed_size++;
    if (at < missed_size)
        missed[at].count++;
    pthread_mutex_unlock(&missed_lock);
}

/* The function at `index` in the order of their first call; false past the last one. */
SIM_API bool moe_sim_missed(size_t index, const char **function, uint64_t *count)
{
    pthread_mutex_lock(&missed_lock);
    bool found = index < missed_size;
    if (found) {
        *function = missed[index].function;
        *count = missed[index].count;
    }
    pthread_mutex_unlock(&missed_lock);
    return found;
}

/* Operators are launched without Python's lock; what else is not modelled is asked for in whatever way. */
static bool is_launch(const char *function)
{
    static const char *const prefixes[] = {"aclnn", "aclop", "Atb"};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (strncmp(function, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    return false;
}

aclError sim_not_modelled(const char *function)
{
    remember_missed(function);
    if (is_launch(function))
        sim_take_lock_back();
    else if (when_missed != NULL)
        when_missed(function);
    return sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "%s is not modelled", function);
}

void *sim_not_modelled_pointer(const char *function)
{
    sim_not_modelled(function);
    return NULL;
}

int32_t sim_not_modelled_hccl(const char *function)
{
    sim_not_modelled(function);
    return HCCL_ERROR_NOT_SUPPORTED;
}

/* The name of a C++ function as it stands in source, without its parameters; the mangled one if it cannot be read. */
static void read_name(const char *mangled, char *text, size_t length)
{
    char *(*demangle)(const char *, char *, size_t *, int *) = NULL;
    *(void **)&demangle = dlsym(RTLD_DEFAULT, "__cxa_demangle");
    char *name = demangle == NULL ? NULL : demangle(mangled, NULL, NULL, NULL);
    const char *start = name == NULL ? mangled : name;
    int depth = 0;
    for (char *at = name; at != NULL && *at != '\0'; at++) {
        depth += (*at == '<') - (*at == '>');
        if (*at == ' ' && depth == 0)
            start = at + 1; /* what stands before is the type of the result */
        if (*at == '(' && depth == 0) {
            *at = '\0';
            break;
        }
    }
    snprintf(text, length, "%s", start);
    free(name);
}

/* A C++ function of unknown return type has no code to return: throw std::runtime_error, through the function by which libstdc++
 * itself throws it. Where there is no libstdc++ there is no handler either. */
void sim_not_modelled_cpp(const char *function)
{
    char name[MESSAGE_LENGTH / 2], text[MESSAGE_LENGTH];
    read_name(function, name, sizeof name);
    snprintf(text, sizeof text, "simulated device: %s (C++) is not modelled", name);
    remember_missed(name);
    sim_fail(ACL_ERROR_FEATURE_NOT_SUPPORTED, "%s (C++) is not modelled", name);
    sim_take_lock_back();
    if (when_missed != NULL)
        when_missed(name);
    void (*throw_runtime_error)(const char *) = NULL;
    *(void **)&throw_runtime_error = dlsym(RTLD_DEFAULT, "_ZSt21__throw_runtime_errorPKc");
    if (throw_runtime_error != NULL)
        throw_runtime_error(text);
    fprintf(stderr, "%s\n", text);
    abort();
}
