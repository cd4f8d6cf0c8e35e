/* Calls that set options, dumps, profiling or timeouts. Nothing here computes: what is set is kept where it can be asked for, and has
 * no effect otherwise, as there is no compiler, no scheduler and no profiler behind the simulated device. */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- options of the operator compiler ---- */

#define OPTION_COUNT 32
#define OPTION_LENGTH 256
enum { OPTION_JIT_COMPILE = 10 };

static char options[OPTION_COUNT][OPTION_LENGTH] = {[OPTION_JIT_COMPILE] = "disable"};

static bool is_option(const char *function, int32_t option)
{
    if (option >= 0 && option < OPTION_COUNT)
        return true;
    sim_fail(ACL_ERROR_INVALID_PARAM, "%s: no option %d", function, option);
    return false;
}

SIM_API aclError aclSetCompileopt(int32_t option, const char *value)
{
    if (!is_option("aclSetCompileopt", option))
        return ACL_ERROR_INVALID_PARAM;
    if (value == NULL || strlen(value) >= OPTION_LENGTH)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclSetCompileopt: the value of option %d is null or too long", option);
    pthread_mutex_lock(&lock);
    strcpy(options[option], value);
    pthread_mutex_unlock(&lock);
    return ACL_SUCCESS;
}

SIM_API size_t aclGetCompileoptSize(int32_t option)
{
    return is_option("aclGetCompileoptSize", option) ? OPTION_LENGTH : 0;
}

SIM_API aclError aclGetCompileopt(int32_t option, char *value, size_t length)
{
    if (!is_option("aclGetCompileopt", option))
        return ACL_ERROR_INVALID_PARAM;
    pthread_mutex_lock(&lock);
    bool fits = value != NULL && strlen(options[option]) < length;
    if (fits)
        strcpy(value, options[option]);
    pthread_mutex_unlock(&lock);
    return fits ? ACL_SUCCESS : sim_fail(ACL_ERROR_INVALID_PARAM, "aclGetCompileopt: value is null or too short for option %d", option);
}

/* ---- system parameters (determinism and the like) ---- */

#define PARAMETER_COUNT 8
static int64_t parameters[PARAMETER_COUNT];

SIM_API aclError aclrtSetSysParamOpt(int32_t option, int64_t value)
{
    if (option < 0 || option >= PARAMETER_COUNT)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtSetSysParamOpt: no parameter %d", option);
    __atomic_store_n(&parameters[option], value, __ATOMIC_RELAXED);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtCtxSetSysParamOpt(int32_t option, int64_t value)
{
    return aclrtSetSysParamOpt(option, value);
}

SIM_API aclError aclrtGetSysParamOpt(int32_t option, int64_t *value)
{
    if (option < 0 || option >= PARAMETER_COUNT || value == NULL)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtGetSysParamOpt: no parameter %d, or null value", option);
    *value = __atomic_load_n(&parameters[option], __ATOMIC_RELAXED);
    return ACL_SUCCESS;
}

/* ---- attributes of streams and of the device: overflow handling, failure mode, timeouts ---- */

SIM_API aclError aclrtSetStreamAttribute(aclrtStream stream, int32_t attribute, const void *value)
{
    (void)attribute;
    (void)value;
    return sim_check_stream("aclrtSetStreamAttribute", stream);
}

/* Descriptions of launches, which torch_npu asks for to compile a static kernel for each. There are none, and it compiles none. */
SIM_API aclError aclopStartDumpArgs(uint32_t kind, const char *path)
{
    static bool said;
    (void)kind;
    (void)path;
    if (!__atomic_exchange_n(&said, true, __ATOMIC_RELAXED))
        fputs("simulated device: static kernels are off, they need CANN's operator compiler; the launches run without them, to the same "
              "values\n", stderr);
    return ACL_SUCCESS;
}

SIM_API aclError aclopStopDumpArgs(uint32_t kind)
{
    (void)kind;
    return ACL_SUCCESS;
}

/* Super kernels fuse launches of a captured graph: the values are those of the launches one by one, as they run here. */
SIM_API aclError aclskScopeBegin(const char *name, aclrtStream stream)
{
    (void)name;
    return sim_check_stream("aclskScopeBegin", stream);
}

SIM_API aclError aclskScopeEnd(const char *name, aclrtStream stream)
{
    (void)name;
    return sim_check_stream("aclskScopeEnd", stream);
}

SIM_API aclError aclmdlRIGetId(const void *model, uint32_t *id);

SIM_API aclError aclskOptimize(const void *model, const void *options)
{
    (void)options;
    uint32_t id;
    return aclmdlRIGetId(model, &id);
}

SIM_API aclError aclrtSetStreamFailureMode(aclrtStream stream, uint64_t mode)
{
    (void)mode;
    return sim_check_stream("aclrtSetStreamFailureMode", stream);
}

SIM_API aclError aclrtSetStreamOverflowSwitch(aclrtStream stream, uint32_t flag)
{
    (void)flag;
    return sim_check_stream("aclrtSetStreamOverflowSwitch", stream);
}

SIM_API aclError aclrtSetDeviceSatMode(int32_t mode)
{
    (void)mode;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSetOpWaitTimeout(uint32_t seconds)
{
    (void)seconds;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSetOpExecuteTimeOut(uint32_t seconds)
{
    (void)seconds;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSetOpExecuteTimeOutV2(uint64_t microseconds, uint64_t *actual)
{
    if (actual != NULL)
        *actual = microseconds;
    return ACL_SUCCESS;
}

SIM_API int32_t HcclSetConfig(int32_t option, int64_t value)
{
    (void)option;
    (void)value;
    return 0;
}

/* ---- dumps and logs: switched off, and switching them off is no error ---- */

SIM_API aclError aclmdlInitDump(void)
{
    return ACL_SUCCESS;
}

SIM_API aclError aclmdlFinalizeDump(void)
{
    return ACL_SUCCESS;
}

SIM_API void aclAppLog(int32_t level, const char *function, const char *file, uint32_t line, const char *format, ...)
{
    (void)level;
    (void)function;
    (void)file;
    (void)line;
    (void)format;
}

/* ---- profiling: libraries announce themselves to the profiler when they load; it never calls them back ---- */

SIM_API int32_t MsprofRegisterCallback(uint32_t module, void *callback)
{
    (void)module;
    (void)callback;
    return 0;
}

SIM_API uint64_t MsprofSysCycleTime(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

/* FNV-1a: any stable hash of the text serves. */
SIM_API uint64_t MsprofGetHashId(const char *text, size_t length)
{
    uint64_t hash = 14695981039346656037ull;
    for (size_t i = 0; text != NULL && i < length; i++)
        hash = (hash ^ (unsigned char)text[i]) * 1099511628211ull;
    return hash;
}

/* ---- the bounds-checked string functions that CANN's libraries bring along; -1 or 34 (ERANGE) is their failure ---- */

SIM_API int vsnprintf_s(char *to, size_t room, size_t count, const char *format, va_list arguments)
{
    if (to == NULL || format == NULL || room == 0)
        return -1;
    int length = vsnprintf(to, count < room - 1 ? count + 1 : room, format, arguments);
    return length < 0 || (size_t)length >= room || (size_t)length > count ? -1 : length;
}

SIM_API int snprintf_s(char *to, size_t room, size_t count, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf_s(to, room, count, format, arguments);
    va_end(arguments);
    return length;
}

SIM_API int strcpy_s(char *to, size_t room, const char *from)
{
    if (to == NULL || from == NULL || strlen(from) >= room)
        return 34;
    strcpy(to, from);
    return 0;
}
