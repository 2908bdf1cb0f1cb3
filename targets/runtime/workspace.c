/* Scratch memory of kernels that TVM scheduled: their objects call through these pointers, which TVM declares weak.
 * Kernels of our own keep their scratch on the stack and never come here. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void* allocate(int device, int id, uint64_t bytes, int code, int bits) {
    (void)device, (void)id, (void)code, (void)bits;
    void* memory = aligned_alloc(64, (bytes + 63) & ~(uint64_t)63);
    if (memory == NULL) {
        /* A kernel has no way to report it: stop rather than go on with a wrong result. */
        fprintf(stderr, "bitsmith: out of memory (%llu bytes of scratch)\n", (unsigned long long)bytes);
        abort();
    }
    return memory;
}

static int release(int device, int id, void* memory) {
    (void)device, (void)id;
    free(memory);
    return 0;
}

void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = release;
