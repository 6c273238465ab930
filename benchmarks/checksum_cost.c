/* What xxh3 costs: CPU nanoseconds per byte over 256 MiB, in pieces of the sizes of shards. With AVX2, as
 * in our layers; a processor without it ends this with SIGILL. */
#ifdef __x86_64__
#pragma GCC target("avx2")
#endif
#define XXH_INLINE_ALL
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

enum { kTotal = 256 << 20, kRounds = 7 };

static double cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

int main(void) {
    static const size_t sizes[] = {64 << 10, 1 << 20, 4 << 20};
    unsigned char *data = malloc(kTotal);
    if (!data) return 1;
    for (size_t i = 0; i < kTotal; i++) data[i] = (unsigned char)(i * 2654435761u >> 13);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        double best = 1e30;
        XXH64_hash_t all = 0;
        for (int round = 0; round < kRounds; round++) {
            const double start = cpu_ns();
            for (size_t at = 0; at < kTotal; at += sizes[s])
                all ^= XXH3_64bits_withSeed(data + at, sizes[s], at);
            const double cost = (cpu_ns() - start) / kTotal;
            if (cost < best) best = cost;
        }
        if (all == 1) return 1; /* so that it is not left out */
        printf("%zu %.4f\n", sizes[s], best);
    }
    return 0;
}
