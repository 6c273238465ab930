// SPDX-License-Identifier: MIT
// What kernels_avx512.cpp takes of VBMI and VBMI2, in plain code: a processor with AVX-512BW alone
// runs all of it. Included before it, by the command line.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace vbmi {

template <typename T>
struct Lanes {
    static constexpr int n = 64 / sizeof(T);
    T at[n] = {};

    Lanes() = default;
    explicit Lanes(__m512i v) { std::memcpy(at, &v, 64); }
    operator __m512i() const {
        __m512i v;
        std::memcpy(&v, at, 64);
        return v;
    }
};
using Bytes = Lanes<uint8_t>;
using Words = Lanes<uint16_t>;

inline __m512i permutex2var(__m512i low, __m512i index, __m512i high) {
    const Bytes from[2] = {Bytes(low), Bytes(high)}, by(index);
    Bytes to;
    for (int i = 0; i < 64; i++) to.at[i] = from[by.at[i] >> 6 & 1].at[by.at[i] & 63];
    return to;
}

inline __m512i permutexvar(__m512i index, __m512i from) {
    return permutex2var(from, index, from);
}

inline __m512i multishift(__m512i control, __m512i from) {
    const Bytes by(control);
    const Lanes<uint64_t> words(from);
    Bytes to;
    for (int i = 0; i < 64; i++) {
        const uint64_t word = words.at[i / 8];
        const int shift = by.at[i] & 63;
        to.at[i] = uint8_t(word >> shift | word << (-shift & 63));
    }
    return to;
}

inline __m512i shldi(__m512i high, __m512i low, int shift) {
    const Words a(high), b(low);
    Words to;
    for (int i = 0; i < 32; i++)
        to.at[i] = uint16_t((uint32_t(a.at[i]) << 16 | b.at[i]) << shift >> 16);
    return to;
}

inline __m512i shrdi(__m512i low, __m512i high, int shift) {
    const Words a(low), b(high);
    Words to;
    for (int i = 0; i < 32; i++) to.at[i] = uint16_t((uint32_t(b.at[i]) << 16 | a.at[i]) >> shift);
    return to;
}

inline __m512i compress(__mmask64 mask, __m512i from) {
    const Bytes all(from);
    Bytes to;
    for (int i = 0, next = 0; i < 64; i++)
        if (mask >> i & 1) to.at[next++] = all.at[i];
    return to;
}

inline __m512i expand(__m512i others, __mmask64 mask, __m512i from) {
    const Bytes all(from);
    Bytes to(others);
    for (int i = 0, next = 0; i < 64; i++)
        if (mask >> i & 1) to.at[i] = all.at[next++];
    return to;
}

}  // namespace vbmi

// Some compilers have macros of these names.
#undef _mm512_shldi_epi16
#undef _mm512_shrdi_epi16
#define _mm512_permutex2var_epi8 vbmi::permutex2var
#define _mm512_permutexvar_epi8 vbmi::permutexvar
#define _mm512_multishift_epi64_epi8 vbmi::multishift
#define _mm512_shldi_epi16 vbmi::shldi
#define _mm512_shrdi_epi16 vbmi::shrdi
#define _mm512_maskz_compress_epi8 vbmi::compress
#define _mm512_mask_expand_epi8 vbmi::expand
