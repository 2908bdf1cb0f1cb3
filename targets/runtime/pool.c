/* pool.c - the threads of one instance. A step's tasks are dealt out in one contiguous range for each thread,
 * so that a thread finds in its cache what it wrote one step before. A thread takes its range piece by piece;
 * when it is through, it takes from the others' ranges. So nobody waits for a thread that has not begun: where
 * another program holds the core that a worker needs, the caller does that worker's tasks itself. */
#define _GNU_SOURCE
#include "runtime.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
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

/* How long a thread looks for what it waits for before it sleeps: a worker longer than the usual gap between
 * two steps, and giving way to whoever wants its core; the caller only for pieces that others have begun. */
enum { WORKER_SPIN_NS = 100000, CALLER_SPIN_NS = 50000, PAUSES = 64 };

typedef struct {
    _Alignas(64) _Atomic uint64_t span; /* tasks that nobody has taken: [low half, high half) */
    _Atomic uint32_t turn; /* counted up when there is work for this worker */
    _Atomic int32_t sleeps;
    sem_t wake;
    bs_pool *owner;
    pthread_t thread;
    int32_t index;
} worker;

/* Sleeping: who is about to sleep says so before it looks a last time, who has news looks for sleepers
 * afterwards. With sequentially consistent atomics one of them sees the other, and whoever takes the flag back
 * (atomic_exchange) owes or is owed exactly one post of the semaphore. */
struct bs_pool {
    const bs_step *step; /* these two are read only by holders of a piece, and written when nobody holds one */
    const bs_frame *frame;
    _Atomic int32_t ending;
    _Alignas(64) _Atomic int32_t pending; /* tasks that are not finished */
    _Atomic int32_t caller_sleeps;
    sem_t done;
    pid_t process; /* threads do not survive fork() */
    int32_t threads; /* the caller's included; it is workers[0], without a thread of its own */
    int32_t started;
    worker workers[];
};

int bs_pool_alive(const bs_pool *p) { return p && p->process == getpid(); }
int32_t bs_pool_threads(const bs_pool *p) { return p ? p->threads : 1; }

static void sleep_on(sem_t *semaphore) {
    while (sem_wait(semaphore) && errno == EINTR) continue;
}

static uint64_t pack(uint32_t begin, uint32_t end) { return (uint64_t)end << 32 | begin; }

/* Takes half of what is left of a range, at least one task: the owner from the front, others from the back. A
 * value of `span` that has come back since it was read does no harm: what it says is true again, of the
 * present step. */
static int take(worker *from, int front, int32_t *begin, int32_t *end) {
    uint64_t seen = atomic_load(&from->span), left;
    do {
        uint32_t first = (uint32_t)seen, last = (uint32_t)(seen >> 32);
        if (first >= last) return 0;
        uint32_t count = (last - first + 1) / 2;
        *begin = (int32_t)(front ? first : last - count);
        *end = *begin + (int32_t)count;
        left = front ? pack(first + count, last) : pack(first, last - count);
    } while (!atomic_compare_exchange_weak(&from->span, &seen, left));
    return 1;
}

static void finish(bs_pool *p, int32_t count) {
    if (atomic_fetch_sub(&p->pending, count) == count && atomic_load(&p->caller_sleeps) &&
        atomic_exchange(&p->caller_sleeps, 0))
        sem_post(&p->done);
}

/* Does tasks until nobody has any to take. */
static void help(bs_pool *p, int32_t index) {
    int32_t begin, end;
    for (int32_t k = 0; k < p->threads; k++) {
        worker *from = &p->workers[(index + k) % p->threads];
        while (take(from, k == 0, &begin, &end)) {
            p->step->call(p->frame, begin, end);
            finish(p, end - begin);
        }
    }
}

static int turned(const worker *w, uint32_t seen) { return atomic_load(&w->turn) != seen; }

static void await_turn(worker *w, uint32_t seen) {
    const uint64_t limit = bs_now_ns() + WORKER_SPIN_NS;
    do {
        for (int i = 0; i < PAUSES; i++) {
            if (turned(w, seen)) return;
            PAUSE();
        }
        sched_yield();
    } while (bs_now_ns() < limit);
    atomic_store(&w->sleeps, 1);
    if (!turned(w, seen) || !atomic_exchange(&w->sleeps, 0)) sleep_on(&w->wake);
}

static void await_done(bs_pool *p) {
    const uint64_t limit = bs_now_ns() + CALLER_SPIN_NS;
    do {
        for (int i = 0; i < PAUSES; i++) {
            if (!atomic_load(&p->pending)) return;
            PAUSE();
        }
    } while (bs_now_ns() < limit);
    while (atomic_load(&p->pending)) {
        atomic_store(&p->caller_sleeps, 1);
        if (atomic_load(&p->pending) || !atomic_exchange(&p->caller_sleeps, 0)) sleep_on(&p->done);
    }
}

static void *work(void *self) {
    worker *w = self;
    uint32_t seen = 0;
    for (;;) {
        await_turn(w, seen);
        seen = atomic_load(&w->turn);
        if (atomic_load(&w->owner->ending)) return NULL;
        help(w->owner, w->index);
    }
}

static void call_worker(worker *w) {
    atomic_fetch_add(&w->turn, 1);
    if (atomic_load(&w->sleeps) && atomic_exchange(&w->sleeps, 0)) sem_post(&w->wake);
}

void bs_pool_free(bs_pool *p) {
    if (!bs_pool_alive(p)) return; /* after fork() its state is unknown: leave the pool where it is */
    atomic_store(&p->ending, 1);
    for (int32_t i = 1; i <= p->started; i++) call_worker(&p->workers[i]);
    for (int32_t i = 1; i <= p->started; i++) pthread_join(p->workers[i].thread, NULL);
    for (int32_t i = 0; i < p->threads; i++) sem_destroy(&p->workers[i].wake);
    sem_destroy(&p->done);
    free(p);
}

static int start_workers(bs_pool *p) {
    sigset_t all, before; /* signals are for the program's own threads */
    int refused = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int32_t i = 1; i < p->threads && !refused; i++) {
        refused = pthread_create(&p->workers[i].thread, NULL, work, &p->workers[i]);
        p->started += !refused;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return refused;
}

int32_t bs_pool_new(int32_t threads, bs_pool **made) {
    size_t bytes = sizeof(bs_pool) + sizeof(worker) * (size_t)threads;
    *made = NULL;
    if (threads == 1) return BITSMITH_OK;
    bs_pool *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) return bs_fail(BITSMITH_NO_MEMORY, "no memory for %d threads", threads);
    memset(p, 0, bytes);
    p->threads = threads;
    p->process = getpid();
    sem_init(&p->done, 0, 0);
    for (int32_t i = 0; i < threads; i++) {
        p->workers[i].owner = p;
        p->workers[i].index = i;
        sem_init(&p->workers[i].wake, 0, 0);
    }
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

void bs_pool_run(bs_pool *p, int32_t threads, const bs_step *step, const bs_frame *frame) {
    const int64_t tasks = step->tasks;
    if (threads > tasks) threads = (int32_t)tasks;
    if (!p || threads == 1) { /* waking the others would cost more than they could save */
        step->call(frame, 0, step->tasks);
        return;
    }
    p->step = step;
    p->frame = frame;
    atomic_store(&p->pending, step->tasks);
    for (int32_t i = 0; i < threads; i++)
        atomic_store(&p->workers[i].span,
                     pack((uint32_t)(tasks * i / threads), (uint32_t)(tasks * (i + 1) / threads)));
    for (int32_t i = 1; i < threads; i++) call_worker(&p->workers[i]);
    help(p, 0);
    await_done(p);
}
