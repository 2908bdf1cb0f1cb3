/* pool.c - the threads of one instance: a step's tasks are split into one contiguous range for each thread.
 */
#define _GNU_SOURCE
#include "runtime.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

/* Some 50 to 200 us of waiting: longer than the gap between two steps, shorter than anyone would call burning
 * a core. */
enum { SPINS = 4096 };

typedef struct {
    bs_pool *owner;
    pthread_t thread;
    int32_t index;
} worker;

/* The caller publishes a step by counting `epoch` up; each worker does its share and counts `pending` down.
 * Both spin first and sleep then. Who is about to sleep says so before it looks a last time, who publishes
 * looks for sleepers afterwards: with sequentially consistent atomics one of them sees the other, so no
 * wake-up is lost. */
struct bs_pool {
    _Alignas(64) _Atomic uint32_t epoch;
    _Atomic int32_t sleepers;
    const bs_step *step; /* NULL: end */
    const bs_frame *frame;
    _Alignas(64) _Atomic int32_t pending;
    _Atomic int32_t caller_sleeps;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    pid_t process; /* threads do not survive fork() */
    int32_t threads; /* the caller's included */
    int32_t started; /* fewer than threads - 1 only when the system refused one */
    worker workers[];
};

int bs_pool_alive(const bs_pool *p) { return p && p->process == getpid(); }

static void run_share(const bs_pool *p, int32_t index) {
    const int64_t tasks = p->step->tasks;
    int32_t begin = (int32_t)(tasks * index / p->threads), end = (int32_t)(tasks * (index + 1) / p->threads);
    if (begin < end) p->step->call(p->frame, begin, end);
}

static void await_epoch(bs_pool *p, uint32_t seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&p->epoch) != seen) return;
        PAUSE();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->epoch) == seen) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void await_done(bs_pool *p) {
    for (int i = 0; i < SPINS; i++) {
        if (!atomic_load(&p->pending)) return;
        PAUSE();
    }
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, 1);
    while (atomic_load(&p->pending)) pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->caller_sleeps, 0);
    pthread_mutex_unlock(&p->lock);
}

static void *work(void *self) {
    worker *w = self;
    bs_pool *p = w->owner;
    for (uint32_t seen = 0;; seen++) {
        await_epoch(p, seen);
        if (!p->step) return NULL;
        run_share(p, w->index);
        if (atomic_fetch_sub(&p->pending, 1) == 1 && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void publish(bs_pool *p, const bs_step *step, const bs_frame *frame) {
    p->step = step;
    p->frame = frame;
    atomic_store(&p->pending, p->threads - 1);
    atomic_fetch_add(&p->epoch, 1);
    if (!atomic_load(&p->sleepers)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void bs_pool_free(bs_pool *p) {
    if (!bs_pool_alive(p))
        return; /* after fork() the lock may be held for ever: leave the pool where it is */
    publish(p, NULL, NULL);
    for (int32_t i = 0; i < p->started; i++) pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static int start_workers(bs_pool *p) {
    sigset_t all, before; /* signals are for the program's own threads */
    int refused = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int32_t i = 0; i < p->threads - 1 && !refused; i++) {
        p->workers[i] = (worker){.owner = p, .index = i + 1};
        refused = pthread_create(&p->workers[i].thread, NULL, work, &p->workers[i]);
        p->started += !refused;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return refused;
}

int32_t bs_pool_new(int32_t threads, bs_pool **made) {
    size_t bytes = sizeof(bs_pool) + sizeof(worker) * (size_t)(threads - 1);
    *made = NULL;
    if (threads == 1) return BITSMITH_OK;
    bs_pool *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) return bs_fail(BITSMITH_NO_MEMORY, "no memory for %d threads", threads);
    memset(p, 0, bytes);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    p->threads = threads;
    p->process = getpid();
    int refused = start_workers(p);
    if (refused) {
        int32_t started = p->started;
        bs_pool_free(p);
        return bs_fail(BITSMITH_NO_THREADS, "the system started %d of %d threads: %s", started + 1, threads,
                       strerror(refused));
    }
    *made = p;
    return BITSMITH_OK;
}

void bs_pool_run(bs_pool *p, const bs_step *step, const bs_frame *frame) {
    if (!p || step->tasks == 1) { /* waking the others would cost more than they could save */
        step->call(frame, 0, step->tasks);
        return;
    }
    publish(p, step, frame);
    run_share(p, 0);
    await_done(p);
}
