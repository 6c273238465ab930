// SPDX-License-Identifier: MIT
//
// Copies between slots in shared memory and a caller's private memory, in pieces in random order:
// around the caches (host_copy.h) beside memcpy, alternated. Made and run by copy_cost.py.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../plugins/cache/host_copy.h"

namespace {

constexpr size_t kMiB = 1 << 20;

uint8_t *map(size_t bytes, int kind) {
    void *base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) exit(1);
    memset(base, 1, bytes);
    return static_cast<uint8_t *>(base);
}

double seconds() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

struct Pass {
    uint8_t *to;
    const uint8_t *from;
    size_t total, piece;
    std::mt19937 random{1};

    // GB/s of copying everything at least once, and 64 MiB at least.
    double run(bool streaming) {
        const size_t n = total / piece, repeat = std::max<size_t>(1, 64 * kMiB / total);
        std::vector<uint32_t> order(n);
        for (size_t i = 0; i < n; i++) order[i] = uint32_t(i);
        std::shuffle(order.begin(), order.end(), random);
        const double start = seconds();
        for (size_t k = 0; k < repeat; k++)
            for (size_t i = 0; i < n; i++)
                ucm::cache::copy_bytes(to + i * piece, from + order[i] * piece, piece, streaming);
        return double(total * repeat) / (seconds() - start) / 1e9;
    }
};

void compare(const char *what, Pass pass, int pairs) {
    std::vector<double> plain, streaming, ratios;
    pass.run(false);
    for (int i = 0; i < pairs; i++) {
        plain.push_back(pass.run(false));
        streaming.push_back(pass.run(true));
        ratios.push_back(streaming.back() / plain.back());
    }
    printf("%s %zu %zu %.2f %.2f %.2f\n", what, pass.total / kMiB, pass.piece, median(plain),
           median(streaming), median(ratios));
}

}  // namespace

// Prints: direction, working set in MiB, bytes a piece, GB/s of memcpy, of streaming, median ratio.
int main(int argc, char **argv) {
    const size_t total = (argc > 1 ? size_t(atoi(argv[1])) : 256) * kMiB;
    const int pairs = argc > 2 ? atoi(argv[2]) : 15;
    uint8_t *caller = map(total, MAP_PRIVATE), *slots = map(total, MAP_SHARED);
    for (size_t piece = 4096; piece <= 16 * kMiB && piece <= total; piece *= 4) {
        compare("dump", {slots, caller, total, piece}, pairs);
        compare("load", {caller, slots, total, piece}, pairs);
    }
    for (size_t set = kMiB; set < total; set *= 2) {
        if (set > 32 * kMiB) break;
        compare("load", {caller, slots, set, 256 << 10}, pairs);
    }
    return 0;
}
