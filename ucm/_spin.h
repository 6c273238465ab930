/* SPDX-License-Identifier: MIT
 *
 * Looking, for a moment, for what another thread is about to do: to wake a thread that sleeps costs
 * more than most answers of a Python store take.
 */
#ifndef UCM_SPIN_H
#define UCM_SPIN_H

#include <stdint.h>
#include <time.h>

/* SPIN_NS is about what waking costs. Who has looked in vain lets one chance pass, then three, and
 * up to SPIN_REST; at once a quarter of that who was off its core for STOLEN_NS meanwhile: others
 * want it. */
enum { SPIN_NS = 100000, SPIN_REST = 127, STOLEN_NS = 500000 };

/* Atomic; of all who look for the same. */
typedef struct spin {
    unsigned pass, vain; /* how many chances are let pass: from here on, and after the next one */
} spin;

static inline int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline void spin_set(spin *spin, unsigned pass, unsigned vain) {
    __atomic_store_n(&spin->pass, pass, __ATOMIC_RELAXED);
    __atomic_store_n(&spin->vain, vain, __ATOMIC_RELAXED);
}

/* 1 once *at, atomic, is no longer `before`; 0 if that takes too long. Who calls holds no lock, the
 * GIL least of all. */
static inline int spin_while(spin *spin, const unsigned *at, unsigned before, int64_t limit_ns) {
    const unsigned pass = __atomic_load_n(&spin->pass, __ATOMIC_RELAXED);
    if (__atomic_load_n(at, __ATOMIC_ACQUIRE) != before) return 1;
    if (pass) {
        __atomic_store_n(&spin->pass, pass - 1, __ATOMIC_RELAXED);
        return 0;
    }
    const unsigned vain = __atomic_load_n(&spin->vain, __ATOMIC_RELAXED);
    int64_t now = now_ns(), before_ns, until = now + limit_ns;
    int found;
    do {
        spin_pause();
        found = __atomic_load_n(at, __ATOMIC_ACQUIRE) != before;
        before_ns = now;
        now = now_ns();
    } while (!found && now < until && now - before_ns < STOLEN_NS);
    if (now - before_ns >= STOLEN_NS)
        spin_set(spin, SPIN_REST / 4, SPIN_REST / 4);
    else if (found)
        spin_set(spin, 0, vain / 2);
    else
        spin_set(spin, vain, 2 * vain < SPIN_REST ? 2 * vain + 1 : SPIN_REST);
    return found;
}
#endif
