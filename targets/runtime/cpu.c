/* cpu.c - whether this machine, CPU and operating system, has a CPU feature. */
#include "runtime.h"

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

/* Where CPUID reports a feature (Intel SDM vol. 2, CPUID), and which register files the system must save for
 * it (XCR0). */
enum { EAX, EBX, ECX, EDX, NO_STATE = 0, YMM = 0x6, ZMM = 0xe6 };
/* clang-format off */
static const struct {
    const char *name;
    uint32_t leaf, subleaf;
    uint8_t reg, bit, state;
} FEATURES[] = {
    {"sse2", 1, 0, EDX, 26, NO_STATE},
    {"pni", 1, 0, ECX, 0, NO_STATE},
    {"ssse3", 1, 0, ECX, 9, NO_STATE},
    {"fma", 1, 0, ECX, 12, YMM},
    {"sse4_1", 1, 0, ECX, 19, NO_STATE},
    {"sse4_2", 1, 0, ECX, 20, NO_STATE},
    {"movbe", 1, 0, ECX, 22, NO_STATE},
    {"popcnt", 1, 0, ECX, 23, NO_STATE},
    {"avx", 1, 0, ECX, 28, YMM},
    {"f16c", 1, 0, ECX, 29, YMM},
    {"abm", 0x80000001, 0, ECX, 5, NO_STATE},
    {"bmi1", 7, 0, EBX, 3, NO_STATE},
    {"avx2", 7, 0, EBX, 5, YMM},
    {"bmi2", 7, 0, EBX, 8, NO_STATE},
    {"avx512f", 7, 0, EBX, 16, ZMM},
    {"avx512dq", 7, 0, EBX, 17, ZMM},
    {"avx512ifma", 7, 0, EBX, 21, ZMM},
    {"avx512cd", 7, 0, EBX, 28, ZMM},
    {"avx512bw", 7, 0, EBX, 30, ZMM},
    {"avx512vl", 7, 0, EBX, 31, ZMM},
    {"avx512vbmi", 7, 0, ECX, 1, ZMM},
    {"avx512_vbmi2", 7, 0, ECX, 6, ZMM},
    {"gfni", 7, 0, ECX, 8, NO_STATE},
    {"avx512_vnni", 7, 0, ECX, 11, ZMM},
    {"avx512_bitalg", 7, 0, ECX, 12, ZMM},
    {"avx512_vpopcntdq", 7, 0, ECX, 14, ZMM},
    {"avx512_fp16", 7, 0, EDX, 23, ZMM},
    {"avx_vnni", 7, 1, EAX, 4, YMM},
    {"avx512_bf16", 7, 1, EAX, 5, ZMM},
};
/* clang-format on */

static uint32_t saved_state(void) {
    uint32_t r[4], low, high;
    if (!__get_cpuid(1, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) || !(r[ECX] >> 27 & 1)) return 0; /* no OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

int bs_has_feature(const char *name) {
    for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++) {
        uint32_t r[4];
        if (strcmp(FEATURES[i].name, name)) continue;
        return __get_cpuid_count(FEATURES[i].leaf, FEATURES[i].subleaf, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) &&
               r[FEATURES[i].reg] >> FEATURES[i].bit & 1 &&
               (saved_state() & FEATURES[i].state) == FEATURES[i].state;
    }
    return 0; /* a name that this table lacks is a feature of chips newer than it */
}
#else
/* Other chips' libraries list no features yet that a machine of the same architecture could lack. */
int bs_has_feature(const char *name) { return name != NULL; }
#endif
