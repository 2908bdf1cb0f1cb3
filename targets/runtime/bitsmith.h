/* bitsmith.h - how a program uses a compiled model: a directory of model.so, weights.bin and manifest.json.
 *
 *     bitsmith_model *model;
 *     if (bitsmith_open(BITSMITH_ABI_VERSION, "model_dir", &model) != BITSMITH_OK)
 *         fprintf(stderr, "%s\n", bitsmith_last_error());
 *     bitsmith_set_threads(model, 2);
 *     const void *inputs[] = {image};
 *     void *outputs[] = {logits};
 *     bitsmith_run(model, inputs, outputs);
 *     bitsmith_close(model);
 *
 * The library holds one model, and needs nothing but the C library. What the model looks like
 * (bitsmith_input, ...) may be asked before it is opened. Several instances may be open at once; each has its
 * own working memory and its own threads, and they share the weights. Two instances may run in two threads at
 * the same time. One instance runs one call at a time: a second call that comes meanwhile returns
 * BITSMITH_BUSY and changes nothing.
 *
 * A model may have states, as the keys and values of a language model: memory of each instance that a run reads
 * and writes, shared by its entries, zeros after opening. A call that fails leaves them as they are.
 */
#ifndef BITSMITH_H
#define BITSMITH_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BITSMITH_ABI_VERSION 1 /* changes when a program must be recompiled */
#define BITSMITH_ALIGNMENT 16  /* of every input and output pointer, in bytes: what malloc gives */
#define BITSMITH_MAX_THREADS 256

typedef struct bitsmith_model bitsmith_model; /* one opened instance */

enum {
    BITSMITH_OK = 0,
    BITSMITH_BAD_ARGUMENT = 1, /* a null or misaligned pointer, a thread count out of range */
    BITSMITH_BAD_VERSION = 2,  /* the program was compiled with another bitsmith.h */
    BITSMITH_BAD_CPU = 3, /* the CPU or its operating system lacks instructions that the library uses */
    BITSMITH_IO = 4, /* weights.bin is missing or cannot be read */
    BITSMITH_BAD_WEIGHTS = 5, /* weights.bin is damaged or belongs to another model */
    BITSMITH_NO_MEMORY = 6,
    BITSMITH_BUSY = 7, /* another thread is using this instance */
    BITSMITH_NO_THREADS = 8, /* the system refused to start a thread */
    BITSMITH_BAD_VALUE = 9 /* an input names a place beyond the end of a state: the run was not begun */
};

/* An input or output: contiguous, row-major. `dtype` is a numpy name, such as "float32". */
typedef struct {
    const char *name;
    const char *dtype;
    const int64_t *shape; /* `rank` dimensions */
    int32_t rank;
    uint64_t bytes;
} bitsmith_tensor;

/* What the library holds. Indices out of range give NULL. */
int32_t bitsmith_abi_version(void);
const char *bitsmith_model_name(void);
int32_t bitsmith_input_count(void);
int32_t bitsmith_output_count(void);
const bitsmith_tensor *bitsmith_input(int32_t index);
const bitsmith_tensor *bitsmith_output(int32_t index);
uint64_t bitsmith_arena_bytes(void); /* working memory of one instance */
uint64_t bitsmith_weight_bytes(void); /* mapped read-only, shared by all instances and processes */
int32_t bitsmith_step_count(void);
const char *bitsmith_step_layer(int32_t index); /* the layer of the source model that the step belongs to */
const char *bitsmith_step_kernel(int32_t index); /* the kernel that it calls */

/* What an instance keeps from run to run, of so many bytes in all; 0 where every run stands alone. */
uint64_t bitsmith_state_bytes(void);
int32_t bitsmith_state_count(void);
const bitsmith_tensor *bitsmith_state(int32_t index);

/* A model may be compiled for several shapes of its inputs: its entries, numbered from 0. They have the same
 * inputs and outputs in the same order, but for their shapes, and share weights and working memory. What does
 * not name an entry, as bitsmith_input and bitsmith_run, is about entry 0. */
int32_t bitsmith_entry_count(void); /* 1 or more */
const bitsmith_tensor *bitsmith_entry_input(int32_t entry, int32_t index);
const bitsmith_tensor *bitsmith_entry_output(int32_t entry, int32_t index);
int32_t bitsmith_entry_step_count(int32_t entry); /* 0 out of range */
const char *bitsmith_entry_step_layer(int32_t entry, int32_t index);
const char *bitsmith_entry_step_kernel(int32_t entry, int32_t index);

/* Opens the model. `abi_version` is always BITSMITH_ABI_VERSION. On success *model is ready to run on one
 * thread; otherwise it is NULL and bitsmith_last_error says why. The CPU is checked first, then the size and
 * the checksum of the weights. While the model is open, weights.bin must not be written to; replacing the
 * file by renaming another over it is safe. */
int32_t bitsmith_open(int32_t abi_version, const char *directory, bitsmith_model **model);
int32_t bitsmith_open_weights(int32_t abi_version, const char *weights_path, bitsmith_model **model);

/* Frees the instance and ends its threads. No call on it may be in progress. NULL is allowed. */
void bitsmith_close(bitsmith_model *model);

/* Makes all states zeros again, as after opening. */
int32_t bitsmith_reset(bitsmith_model *model);

/* How many threads a run uses, the caller's included; 1 after opening. Results do not depend on it. */
int32_t bitsmith_set_threads(bitsmith_model *model, int32_t threads);
int32_t bitsmith_threads(const bitsmith_model *model);

/* Runs the model once. `inputs` and `outputs` point to one buffer for each input and output, in order, each
 * of its `bytes`; outputs must not overlap each other or an input. */
int32_t bitsmith_run(bitsmith_model *model, const void *const *inputs, void *const *outputs);

/* The same on so many threads, whatever bitsmith_set_threads said; later runs are as before. Threads that the
 * instance lacks are started, and kept for the next such call until bitsmith_set_threads or bitsmith_close. */
int32_t bitsmith_run_threads(bitsmith_model *model, const void *const *inputs, void *const *outputs,
                             int32_t threads);

/* The same for one entry, whose shapes the buffers have; `threads` 0: as many as bitsmith_set_threads said. */
int32_t bitsmith_run_entry(bitsmith_model *model, int32_t entry, const void *const *inputs,
                           void *const *outputs, int32_t threads);

/* The same as bitsmith_run, and writes the time of each step, in nanoseconds, to `step_ns`: an array of
 * bitsmith_step_count, or bitsmith_entry_step_count, numbers. */
int32_t bitsmith_profile(bitsmith_model *model, const void *const *inputs, void *const *outputs,
                         uint64_t *step_ns);
int32_t bitsmith_profile_entry(bitsmith_model *model, int32_t entry, const void *const *inputs,
                               void *const *outputs, uint64_t *step_ns);

/* What a code means; and, in the words of the last failed call of this thread, what went wrong. */
const char *bitsmith_strerror(int32_t code);
const char *bitsmith_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
