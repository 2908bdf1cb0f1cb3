/* bitsmith.c - what runs beside the kernels: opening, checking, threads, and the loop over the steps. See
 * bitsmith.h. */
#define _GNU_SOURCE
#include "runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const bs_model *const MODEL = &bs_the_model;

static const bs_entry *entry_at(int32_t index) {
    return index >= 0 && index < MODEL->entry_count ? &MODEL->entries[index] : NULL;
}

static int32_t check_cpu(void) {
    char missing[512] = "";
    for (const char *const *f = MODEL->features; *f; f++) {
        size_t used = strlen(missing);
        if (!bs_has_feature(*f))
            snprintf(missing + used, sizeof missing - used, "%s%s", used ? ", " : "", *f);
    }
    if (!*missing) return BITSMITH_OK;
    return bs_fail(BITSMITH_BAD_CPU, "model '%s' needs CPU features that this machine lacks: %s", MODEL->name,
                   missing);
}

/* ---- weights ---- */

static uint64_t mixed(uint64_t word, uint64_t position) {
    word = (word ^ position * UINT64_C(0xd6e8feb86659fd93)) * UINT64_C(0xff51afd7ed558ccd);
    return (word ^ word >> 32) * UINT64_C(0xc4ceb9fe1a85ec53);
}

/* A checksum against damage and mix-ups (not against forgery): the sum of bijectively mixed 64-bit words,
 * each with its position. Any single changed word changes it; the words need no order, so numpy computes it
 * too. A short tail is padded with zeros. */
static uint64_t hash64(const char *data, uint64_t bytes) {
    const uint64_t words = bytes / 8;
    uint64_t sum = bytes * UINT64_C(0x9e3779b97f4a7c15), word = 0;
    for (uint64_t i = 0; i < words; i++) {
        memcpy(&word, data + 8 * i, 8);
        sum += mixed(word, i + 1);
    }
    word = 0;
    if (bytes % 8) memcpy(&word, data + 8 * words, bytes % 8);
    sum += mixed(word, words + 1);
    return sum ^ sum >> 29;
}

static int32_t map_weights(const char *path, char **weights) {
    struct stat info;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &info)) {
        int reason = errno;
        if (file >= 0) close(file);
        return bs_fail(BITSMITH_IO, "cannot read %s: %s", path, strerror(reason));
    }
    if (!S_ISREG(info.st_mode) || (uint64_t)info.st_size != MODEL->weight_bytes) {
        close(file);
        return bs_fail(
            BITSMITH_BAD_WEIGHTS,
            "%s has %lld bytes, model '%s' has %llu of weights: it is cut short or another model's", path,
            (long long)info.st_size, MODEL->name, (unsigned long long)MODEL->weight_bytes);
    }
    int flags = MAP_SHARED;
#ifdef MAP_POPULATE
    flags |= MAP_POPULATE; /* the checksum reads every page anyway */
#endif
    void *map = MODEL->weight_bytes ? mmap(NULL, MODEL->weight_bytes, PROT_READ, flags, file, 0) : NULL;
    int reason = errno;
    close(file);
    if (map == MAP_FAILED) return bs_fail(BITSMITH_IO, "cannot map %s: %s", path, strerror(reason));
    *weights = map;
    if (hash64(map, MODEL->weight_bytes) == MODEL->weight_hash) return BITSMITH_OK;
    return bs_fail(BITSMITH_BAD_WEIGHTS,
                   "%s is damaged or another model's: its checksum is not the one in the library", path);
}

/* ---- instances ---- */

struct bitsmith_model {
    char *arena, *weights, *states;
    bs_pool *pool;
    _Atomic int32_t busy;
    _Atomic int32_t threads;
};

void bitsmith_close(bitsmith_model *m) {
    if (!m) return;
    bs_pool_free(m->pool);
    if (m->weights) munmap(m->weights, MODEL->weight_bytes);
    if (m->arena) munmap(m->arena, MODEL->arena_bytes);
    if (m->states) munmap(m->states, MODEL->state_bytes);
    free(m);
}

/* Zeros in pages of their own, which take no memory until they are written. */
static int32_t map_zeros(uint64_t bytes, char **made) {
    if (!bytes) return BITSMITH_OK;
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return bs_fail(BITSMITH_NO_MEMORY, "no memory for the %llu bytes that model '%s' works in",
                       (unsigned long long)bytes, MODEL->name);
    *made = map;
    return BITSMITH_OK;
}

int32_t bitsmith_open_weights(int32_t abi_version, const char *weights_path, bitsmith_model **model) {
    if (!model || !weights_path) return bs_fail(BITSMITH_BAD_ARGUMENT, "bitsmith_open: a null pointer");
    *model = NULL;
    if (abi_version != BITSMITH_ABI_VERSION)
        return bs_fail(BITSMITH_BAD_VERSION,
                       "the program was compiled for version %d of bitsmith.h, this library has version %d",
                       abi_version, BITSMITH_ABI_VERSION);
    int32_t code = check_cpu();
    if (code) return code;
    bitsmith_model *m = calloc(1, sizeof *m);
    if (!m) return bs_fail(BITSMITH_NO_MEMORY, "no memory for an instance of model '%s'", MODEL->name);
    m->threads = 1;
    code = map_weights(weights_path, &m->weights);
    if (!code) code = map_zeros(MODEL->arena_bytes, &m->arena);
    if (!code) code = map_zeros(MODEL->state_bytes, &m->states);
    if (!code)
        *model = m;
    else
        bitsmith_close(m);
    return code;
}

int32_t bitsmith_open(int32_t abi_version, const char *directory, bitsmith_model **model) {
    char path[4096];
    if (!directory) return bs_fail(BITSMITH_BAD_ARGUMENT, "bitsmith_open: a null pointer");
    if (snprintf(path, sizeof path, "%s/weights.bin", directory) >= (int)sizeof path)
        return bs_fail(BITSMITH_BAD_ARGUMENT, "the path of the model is longer than %zu bytes", sizeof path);
    return bitsmith_open_weights(abi_version, path, model);
}

static int32_t enter(bitsmith_model *m) {
    if (!atomic_exchange(&m->busy, 1)) return BITSMITH_OK;
    return bs_fail(BITSMITH_BUSY,
                   "another thread is using this instance of model '%s': open one instance per thread",
                   MODEL->name);
}

static int32_t replace_pool(bitsmith_model *m, int32_t threads) {
    bs_pool *next;
    int32_t code = bs_pool_new(threads, &next);
    if (code) return code;
    bs_pool_free(m->pool);
    m->pool = next;
    return BITSMITH_OK;
}

static int32_t check_threads(int32_t threads) {
    if (threads >= 1 && threads <= BITSMITH_MAX_THREADS) return BITSMITH_OK;
    return bs_fail(BITSMITH_BAD_ARGUMENT, "threads must be 1 to %d, not %d", BITSMITH_MAX_THREADS, threads);
}

int32_t bitsmith_set_threads(bitsmith_model *m, int32_t threads) {
    int32_t code = m ? check_threads(threads) : bs_fail(BITSMITH_BAD_ARGUMENT, "the model is null");
    if (!code) code = enter(m);
    if (code) return code;
    code = replace_pool(m, threads);
    if (!code) m->threads = threads;
    atomic_store(&m->busy, 0);
    return code;
}

int32_t bitsmith_reset(bitsmith_model *m) {
    int32_t code = m ? enter(m) : bs_fail(BITSMITH_BAD_ARGUMENT, "the model is null");
    if (code) return code;
    if (MODEL->state_bytes) memset(m->states, 0, MODEL->state_bytes);
    atomic_store(&m->busy, 0);
    return BITSMITH_OK;
}

int32_t bitsmith_threads(const bitsmith_model *m) { return m ? m->threads : 0; }

static int32_t check_buffers(const char *what, const void *const *buffers, int32_t count,
                             const bitsmith_tensor *tensors) {
    if (!buffers) return bs_fail(BITSMITH_BAD_ARGUMENT, "the list of %ss is null", what);
    for (int32_t i = 0; i < count; i++)
        if (!buffers[i] || (uintptr_t)buffers[i] % BITSMITH_ALIGNMENT)
            return bs_fail(BITSMITH_BAD_ARGUMENT, "%s %d ('%s') is %s", what, i, tensors[i].name,
                           buffers[i] ? "not aligned to 16 bytes" : "null");
    return BITSMITH_OK;
}

static int32_t check_limits(const bs_entry *e, const void *const *inputs) {
    for (int32_t i = 0; i < e->limit_count; i++) {
        const bs_limit *const limit = &e->limits[i];
        for (int64_t k = 0; k < limit->count; k++) {
            const void *const values = inputs[limit->input];
            int64_t value = limit->bytes == 4 ? ((const int32_t *)values)[k] : ((const int64_t *)values)[k];
            if (value < 0 || value > limit->most)
                return bs_fail(BITSMITH_BAD_VALUE,
                               "input %d ('%s') is %lld, must be 0 to %lld: what model '%s' keeps ends there",
                               limit->input, e->inputs[limit->input].name, (long long)value,
                               (long long)limit->most, MODEL->name);
        }
    }
    return BITSMITH_OK;
}

/* `threads` 0: as many as bitsmith_set_threads said. A pool that is too small is replaced by one that stays. */
static int32_t execute(bitsmith_model *m, int32_t entry, const void *const *inputs, void *const *outputs,
                       int32_t threads, uint64_t *step_ns) {
    const bs_entry *const e = entry_at(entry);
    if (!e)
        return bs_fail(BITSMITH_BAD_ARGUMENT, "entry %d: model '%s' has entries 0 to %d", entry, MODEL->name,
                       MODEL->entry_count - 1);
    int32_t code = m ? check_buffers("input", inputs, e->input_count, e->inputs)
                     : bs_fail(BITSMITH_BAD_ARGUMENT, "the model is null");
    if (!code) code = check_buffers("output", (const void *const *)outputs, e->output_count, e->outputs);
    if (!code) code = check_limits(e, inputs);
    if (!code) code = enter(m);
    if (code) return code;
    if (!threads) threads = m->threads;
    if (threads > bs_pool_threads(m->pool) || (m->pool && !bs_pool_alive(m->pool)))
        code = replace_pool(m, threads > m->threads ? threads : m->threads);
    const bs_frame frame = {m->arena, m->weights, inputs, outputs, m->states};
    uint64_t start = step_ns && !code ? bs_now_ns() : 0;
    for (int32_t i = 0; !code && i < e->step_count; i++) {
        bs_pool_run(m->pool, threads, &e->steps[i], &frame);
        if (!step_ns) continue;
        uint64_t end = bs_now_ns();
        step_ns[i] = end - start;
        start = end;
    }
    atomic_store(&m->busy, 0);
    return code;
}

int32_t bitsmith_run(bitsmith_model *m, const void *const *inputs, void *const *outputs) {
    return execute(m, 0, inputs, outputs, 0, NULL);
}

int32_t bitsmith_run_threads(bitsmith_model *m, const void *const *inputs, void *const *outputs,
                             int32_t threads) {
    int32_t code = check_threads(threads);
    return code ? code : execute(m, 0, inputs, outputs, threads, NULL);
}

int32_t bitsmith_run_entry(bitsmith_model *m, int32_t entry, const void *const *inputs, void *const *outputs,
                           int32_t threads) {
    int32_t code = threads ? check_threads(threads) : BITSMITH_OK;
    return code ? code : execute(m, entry, inputs, outputs, threads, NULL);
}

int32_t bitsmith_profile(bitsmith_model *m, const void *const *inputs, void *const *outputs,
                         uint64_t *step_ns) {
    return bitsmith_profile_entry(m, 0, inputs, outputs, step_ns);
}

int32_t bitsmith_profile_entry(bitsmith_model *m, int32_t entry, const void *const *inputs,
                               void *const *outputs, uint64_t *step_ns) {
    if (!step_ns) return bs_fail(BITSMITH_BAD_ARGUMENT, "step_ns is null");
    return execute(m, entry, inputs, outputs, 0, step_ns);
}

/* ---- description ---- */

int32_t bitsmith_abi_version(void) { return BITSMITH_ABI_VERSION; }
const char *bitsmith_model_name(void) { return MODEL->name; }
uint64_t bitsmith_arena_bytes(void) { return MODEL->arena_bytes; }
uint64_t bitsmith_weight_bytes(void) { return MODEL->weight_bytes; }
uint64_t bitsmith_state_bytes(void) { return MODEL->state_bytes; }
int32_t bitsmith_state_count(void) { return MODEL->state_count; }
const bitsmith_tensor *bitsmith_state(int32_t i) {
    return i >= 0 && i < MODEL->state_count ? &MODEL->states[i] : NULL;
}
int32_t bitsmith_entry_count(void) { return MODEL->entry_count; }

const bitsmith_tensor *bitsmith_entry_input(int32_t entry, int32_t i) {
    const bs_entry *const e = entry_at(entry);
    return e && i >= 0 && i < e->input_count ? &e->inputs[i] : NULL;
}
const bitsmith_tensor *bitsmith_entry_output(int32_t entry, int32_t i) {
    const bs_entry *const e = entry_at(entry);
    return e && i >= 0 && i < e->output_count ? &e->outputs[i] : NULL;
}
int32_t bitsmith_entry_step_count(int32_t entry) {
    const bs_entry *const e = entry_at(entry);
    return e ? e->step_count : 0;
}
static const bs_step *step_at(int32_t entry, int32_t i) {
    return i >= 0 && i < bitsmith_entry_step_count(entry) ? &MODEL->entries[entry].steps[i] : NULL;
}
const char *bitsmith_entry_step_layer(int32_t entry, int32_t i) {
    const bs_step *const step = step_at(entry, i);
    return step ? step->layer : NULL;
}
const char *bitsmith_entry_step_kernel(int32_t entry, int32_t i) {
    const bs_step *const step = step_at(entry, i);
    return step ? step->kernel : NULL;
}

int32_t bitsmith_input_count(void) { return MODEL->entries[0].input_count; }
int32_t bitsmith_output_count(void) { return MODEL->entries[0].output_count; }
int32_t bitsmith_step_count(void) { return bitsmith_entry_step_count(0); }
const bitsmith_tensor *bitsmith_input(int32_t i) { return bitsmith_entry_input(0, i); }
const bitsmith_tensor *bitsmith_output(int32_t i) { return bitsmith_entry_output(0, i); }
const char *bitsmith_step_layer(int32_t i) { return bitsmith_entry_step_layer(0, i); }
const char *bitsmith_step_kernel(int32_t i) { return bitsmith_entry_step_kernel(0, i); }

const char *bitsmith_strerror(int32_t code) {
    static const char *const MEANING[] = {"success",
                                          "bad argument",
                                          "the program was compiled with another version of bitsmith.h",
                                          "the CPU lacks instructions that the library uses",
                                          "weights.bin cannot be read",
                                          "weights.bin is damaged or another model's",
                                          "out of memory",
                                          "another thread is using this instance",
                                          "the system refused to start a thread",
                                          "a place lies outside of what the model keeps"};
    return code >= 0 && code < (int32_t)(sizeof MEANING / sizeof *MEANING) ? MEANING[code]
                                                                           : "unknown error code";
}
