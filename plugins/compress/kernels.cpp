// SPDX-License-Identifier: MIT
#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace ucm::compress {
namespace {

bool runs(const Kernels &kernels) {
#if defined(__x86_64__)
    if (&kernels == &kAvx512Kernels)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
               __builtin_cpu_supports("avx512vbmi2");
    if (&kernels == &kAvx2Kernels)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
#elif defined(__aarch64__)
    if (&kernels == &kNeonKernels) return true;
#endif
    return &kernels == &kScalarKernels;
}

const Kernels *const kAll[] = {
#if defined(__x86_64__)
    &kAvx512Kernels,
    &kAvx2Kernels,
#elif defined(__aarch64__)
    &kNeonKernels,
#endif
    &kScalarKernels,
};

}  // namespace

const char *wanted_kernels() {
    return std::getenv("UCM_COMPRESS_KERNELS");
}

const Kernels &best_kernels() {
    const char *name = wanted_kernels();
    const Kernels *named = name ? kernels_named(name) : nullptr;
    if (named) return *named;
    for (const Kernels *each : kAll)
        if (runs(*each)) return *each;
    return kScalarKernels;
}

const Kernels *kernels_named(const char *name) {
    for (const Kernels *each : kAll)
        if (std::strcmp(each->name, name) == 0 && runs(*each)) return each;
    return nullptr;
}

}  // namespace ucm::compress
