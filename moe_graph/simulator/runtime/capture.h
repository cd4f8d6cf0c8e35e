/* What the parts of capture and replay share: capture.c, captured_streams.c, replay.c, values.c, task_group.c, conditional.c. */
#ifndef MOE_GRAPH_CAPTURE_H
#define MOE_GRAPH_CAPTURE_H

#include "sim.h"

#include <pthread.h>

#define SIM_MAX_CAPTURED_STREAMS 64 /* of one model */

enum { SIM_MODE_GLOBAL = 0, SIM_MODE_THREAD_LOCAL = 1, SIM_MODE_RELAXED = 2 };

typedef struct sim_model sim_model;
typedef struct sim_group sim_group;

/* A recorded launch. `stream`: the index of its stream among those of the model. */
typedef struct {
    sim_launch launch;
    uint32_t stream;
    sim_group *group; /* NULL outside of task groups */
} sim_task;

/* Task groups live as long as their model. */
struct sim_group {
    sim_model *model;
    size_t first, count; /* its tasks are those of `model` that name it, from `first` on */
    bool updating;
    sim_group *next;
};

struct sim_condition; /* conditional.c */

/* aclmdlRI: a captured graph of launches. */
struct sim_model {
    uint32_t id; /* never used again */
    int32_t device, mode;
    pthread_t thread; /* that began the capture */
    enum { MODEL_EMPTY, MODEL_CAPTURING, MODEL_READY } status;
    aclrtStream origin;
    sim_task *tasks;
    size_t task_count, task_capacity;
    int32_t stream_ids[SIM_MAX_CAPTURED_STREAMS];
    size_t stream_count;
    uint64_t python_count; /* tasks of Python among them */
    sim_group *groups;
    struct sim_condition *conditions;
    sim_model *parent; /* of the body of a condition */
    int running;       /* replays under way */
    int suspended;     /* replays that wait for a value */
    sim_model *next;
};

/* A stream that is captured: which launches of the model's streams are known to come before its next one (a vector clock). */
typedef struct sim_member {
    aclrtStream stream;
    sim_model *model;
    uint32_t index; /* among the streams of the model */
    uint32_t clock[SIM_MAX_CAPTURED_STREAMS];
    sim_group *group; /* the open task group */
    struct sim_member *next;
} sim_member;

extern pthread_mutex_t sim_capture_lock;

/* The lock is held for these. */
sim_model *sim_find_model(const void *handle);
sim_member *sim_find_member(aclrtStream stream);
sim_model *sim_new_model(void);          /* NULL where there is no memory left */
void sim_free_model(sim_model *model);   /* with what it holds; takes it out of the list */
aclError sim_begin(const char *function, aclrtStream stream, sim_model *model, int32_t mode);
sim_model *sim_first_model(void);
uint64_t sim_count_tasks(uint32_t id);
/* captured_streams.c */
sim_member *sim_join(const char *function, aclrtStream stream, sim_model *model); /* NULL, with a message, where it cannot be */
void sim_leave(const sim_model *model);
aclError sim_check_whole(const sim_model *model, const sim_member *origin);
/* replay.c */
void sim_drop_tasks(sim_model *model);
aclError sim_add_task(sim_member *member, const sim_launch *launch);
bool sim_is_python(const sim_launch *launch);
void sim_keep_number(const sim_launch *before, const sim_launch *after); /* of tasks of Python */
/* conditional.c */
void sim_drop_conditions(sim_model *model);
bool sim_conditions_are_closed(const sim_model *model);
void sim_reset_conditions(const sim_model *model);
/* task_group.c */
void sim_end_updates(const sim_model *model);
uint32_t sim_updated_model(aclrtStream stream); /* 0 if the stream updates none */

/* Without the lock. */
/* How many streams are captured, in an update or waiting for a value: while there are none, operators look nothing up. */
void sim_count_special(int change);
aclError sim_replay(sim_model *model, aclrtStream stream, size_t from); /* replay.c: the tasks from this one on */
void sim_tell_captured(uint32_t model);
void sim_tell_python_destroyed(uint32_t model);
void sim_tell_destroyed(void);
bool sim_is_updating(aclrtStream stream); /* task_group.c */
/* values.c: the wait that `launch` is, if it is one: is it over? */
bool sim_must_wait(const sim_launch *launch);
/* Go on with the model at task `next` once the value is there that `launch` waits for. */
aclError sim_suspend(sim_model *model, aclrtStream stream, size_t next, const sim_launch *launch);
/* task_group.c: *taken if the stream is in an update: the launch has taken the place of its group's next task. */
aclError sim_update_task(aclrtStream stream, const sim_launch *launch, bool *taken);

#endif
