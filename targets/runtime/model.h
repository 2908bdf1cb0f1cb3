/* model.h - what bitsmith.c knows of a model: the tables that targets/emit_c.py writes as model.c. */
#ifndef BITSMITH_MODEL_H
#define BITSMITH_MODEL_H

#include "bitsmith.h"

/* Where one run finds its memory. */
typedef struct {
    char *arena;
    char *weights; /* read-only pages */
    const void *const *inputs;
    void *const *outputs;
    char *states; /* what the instance keeps from run to run */
} bs_frame;

/* One kernel call over tasks [begin, end) of `tasks`. */
typedef struct {
    const char *layer;
    const char *kernel;
    void (*call)(const bs_frame *frame, int32_t begin, int32_t end);
    int32_t tasks;
} bs_step;

/* The `count` integers of `bytes` (4 or 8) in an input must be 0 to `most`: places in a state. */
typedef struct {
    int32_t input;
    int32_t bytes;
    int64_t count;
    int64_t most;
} bs_limit;

/* The model for one shape of its inputs. */
typedef struct {
    const bitsmith_tensor *inputs;
    const bitsmith_tensor *outputs;
    const bs_step *steps;
    int32_t input_count;
    int32_t output_count;
    int32_t step_count;
    const bs_limit *limits;
    int32_t limit_count;
} bs_entry;

/* `features` names what the kernels need of the CPU, in the words of /proc/cpuinfo; it ends with NULL.
 * `arena_bytes` are enough for every entry. */
typedef struct {
    const char *name;
    const char *const *features;
    const bs_entry *entries;
    int32_t entry_count;
    const bitsmith_tensor *states; /* the same for all entries */
    int32_t state_count;
    uint64_t state_bytes;
    uint64_t arena_bytes;
    uint64_t weight_bytes;
    uint64_t weight_hash; /* see hash64 in bitsmith.c and in targets/link.py */
} bs_model;

extern const bs_model bs_the_model;

#endif
