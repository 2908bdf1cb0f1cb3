/* runtime.h - what the runtime's files share: bitsmith.c (the ABI), pool.c (threads), cpu.c (CPU features),
 * support.c (errors, time). */
#ifndef BITSMITH_RUNTIME_H
#define BITSMITH_RUNTIME_H

#include "model.h"

/* Keeps the message for bitsmith_last_error and returns `code`. */
__attribute__((format(printf, 2, 3))) int32_t bs_fail(int32_t code, const char *format, ...);

/* Whether this machine has the feature that /proc/cpuinfo calls `name`. */
int bs_has_feature(const char *name);

/* Nanoseconds of a clock that only goes forward. */
uint64_t bs_now_ns(void);

/* The threads that help the caller of bs_pool_run until bs_pool_free. NULL stands for no helpers: one thread.
 * A pool is not alive when it is NULL, or in the child of a fork(), where the threads are gone. bs_pool_run
 * uses `threads` of them, the caller's included: 1 to bs_pool_threads. */
typedef struct bs_pool bs_pool;
int32_t bs_pool_new(int32_t threads, bs_pool **made);
void bs_pool_free(bs_pool *pool);
int bs_pool_alive(const bs_pool *pool);
int32_t bs_pool_threads(const bs_pool *pool);
void bs_pool_run(bs_pool *pool, int32_t threads, const bs_step *step, const bs_frame *frame);

#endif
