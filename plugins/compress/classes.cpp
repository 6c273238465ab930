// SPDX-License-Identifier: MIT
#include "classes.h"

#include <algorithm>
#include <cstring>

#include "sample.h"
#include "ucm/store_v1.h"

namespace ucm::compress {

struct Ranks {
    uint8_t of[256];                      // by symbol
    uint8_t symbols[256 + kMostMembers];  // and back; a table of 256 begins at any rank of a class
};

namespace {

constexpr size_t kRunBytes = 64, kMost = 2048;
constexpr int kGroups = 3;  // of symbols that are counted at once
// Costs are in parts of a bit, so that they are whole numbers.
constexpr uint32_t kBit = 64;
// What a pass over a symbol may cost: a shorter code of more levels is not worth its time.
constexpr uint32_t kPass = 4;
constexpr int kFew = 32;
constexpr int kSmallTable = 32;
constexpr uint8_t kPacked = 16;  // a bit beside the count of levels
constexpr size_t kFewSymbols = 8192;
constexpr uint8_t kUses = 15;  // of classes, before others are chosen
constexpr uint8_t kSome = 2;   // of them
// They may code so much longer than where they were chosen, or shorter, which is due to other
// numbers that classes of their own would code shorter still.
constexpr float kWorse = 1.007f, kShorter = 0.9f;
constexpr size_t kPiece = 2048;  // a multiple of 64
constexpr int kLines = 16;       // fetched at once: more would be waited for

void count_run(const uint8_t *symbols, size_t n, uint16_t (&counts)[4][256]) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t k = 0; k < 4; k++) counts[k][symbols[i + k]]++;
    for (; i < n; i++) counts[0][symbols[i]]++;
}

// All symbols, or of many a sample. Returns how many.
size_t count_some(const Kernels &kernels, const uint8_t *symbols, size_t n, int possible,
                  uint32_t (&counts)[256]) {
    uint8_t sample[kMost];
    if (n > kMost) {
        uint8_t *to = sample;
        each_run(n, kRunBytes, kMost / kRunBytes, 1, [&](size_t at) {
            std::memcpy(to, symbols + at, kRunBytes);
            to += kRunBytes;
        });
        symbols = sample;
        n = kMost;
    }
    std::memset(counts, 0, sizeof counts);
    const size_t whole = n / kRunBytes * kRunBytes;
    if (whole != 0) {
        // Of numbers that are alike the exponents are soon counted from the largest down.
        size_t left = whole;
        int top = possible > kGroups * kTallied ? kernels.largest(symbols, whole) + 1 : possible;
        for (int i = 0; i < kGroups && top > 0 && left > whole / 128; i++) {
            const int first = std::max(top - kTallied, 0);
            kernels.tally(symbols, whole, uint8_t(first), counts + first);
            while (top > first) left -= counts[--top];
        }
        if (left <= whole / 64) return whole;
    }
    uint16_t four[4][256] = {};
    count_run(symbols, n, four);
    for (int s = 0; s < 256; s++)
        counts[s] = uint32_t(four[0][s]) + four[1][s] + four[2][s] + four[3][s];
    return n;
}

struct Identity {
    uint8_t bytes[256] = {};
    constexpr Identity() {
        for (int s = 0; s < 256; s++) bytes[s] = uint8_t(s);
    }
};
constexpr Identity kIdentity;

// Of the symbols of this dtype.
int table_of(int dtype) {
    return symbol_bits(dtype) == 8 ? 256 : kSmallTable;
}

// Symbols by rank: those of classes first, each in exchange for the one that was there.
void rank(const Classes &classes, int table, Ranks &ranks) {
    for (int s = 0; s < table; s += kSmallTable) {
        std::memcpy(ranks.of + s, kIdentity.bytes + s, kSmallTable);
        std::memcpy(ranks.symbols + s, kIdentity.bytes + s, kSmallTable);
    }
    for (int i = 0; i < classes.listed; i++) {
        const uint8_t symbol = classes.members[i], other = ranks.symbols[i];
        const uint8_t place = ranks.of[symbol];
        ranks.symbols[place] = other;
        ranks.of[other] = place;
        ranks.symbols[i] = symbol;
        ranks.of[symbol] = uint8_t(i);
    }
}

// The members of all classes; those that are close to each other as nibbles above the least.
uint8_t *write_members(const Classes &classes, uint8_t *out, uint8_t *levels) {
    const uint8_t *begin = classes.members, *end = begin + classes.listed;
    *levels = uint8_t(classes.levels);
    if (begin == end) return out;
    const uint8_t least = *std::min_element(begin, end);
    if (*std::max_element(begin, end) - least > 15) {
        std::memcpy(out, begin, size_t(classes.listed));
        return out + classes.listed;
    }
    *levels |= kPacked;
    *out++ = least;
    for (; begin < end; begin += 2)
        *out++ = uint8_t((begin[0] - least) | (begin + 1 < end ? begin[1] - least : 0) << 4);
    return out;
}

// NULL: there are not so many, or none of ours would be like that.
const uint8_t *read_members(const uint8_t *at, const uint8_t *end, bool packed, Classes &classes) {
    const int n = classes.listed, bytes = packed ? 1 + (n + 1) / 2 : n;
    if (bytes > end - at) return nullptr;
    for (int i = 0; i < n; i++)
        classes.members[i] = packed ? uint8_t(at[0] + (at[1 + i / 2] >> i % 2 * 4 & 15)) : at[i];
    if (packed && (n == 0 || (n % 2 && at[bytes - 1] >> 4))) return nullptr;
    return at + bytes;
}

size_t bytes_of_codes(size_t n, int width) {
    return (n * size_t(width) + 7) / 8;
}

// Are the bits behind the last of n codes zero?
bool clean_end(const uint8_t *codes, size_t n, int width) {
    const size_t used = n * size_t(width) % 8;
    return used == 0 || codes[n * size_t(width) / 8] >> used == 0;
}

bool clean_planes(const uint8_t *planes, int dtype, size_t n) {
    if (dtype == UCM_DTYPE_FP8_E4M3) return clean_end(planes, n, 4);
    if (dtype == UCM_DTYPE_FP16) planes += n;
    if (dtype == UCM_DTYPE_FP16 || dtype == UCM_DTYPE_FP8_E5M2)
        return clean_end(planes, n, 2) && clean_end(planes + (n + 3) / 4, n, 1);
    return true;
}

bool fit(const uint8_t *symbols, size_t n, int dtype) {
    if (symbol_bits(dtype) == 8) return true;
    uint8_t all = 0;
    for (size_t i = 0; i < n; i++) all |= symbols[i];
    return all >> symbol_bits(dtype) == 0;
}

// Largest first, of n that differ, a multiple of 8. A place is how many are larger: no branch is
// guessed wrong.
void sort_few(const int32_t *values, int n, int32_t (&sorted)[kFew]) {
    for (int at = 0; at < n; at += 8) {
        int32_t larger[8] = {};
        for (int i = 0; i < n; i++)
            for (int k = 0; k < 8; k++) larger[k] += values[i] > values[at + k];
        for (int k = 0; k < 8; k++) sorted[larger[k]] = values[at + k];
    }
}

// Counts and symbols in one number each, the most frequent first. Returns of how many members.
int most_frequent(const uint32_t (&counts)[256], int possible, int32_t (&order)[kFew]) {
    int32_t all[256];
    int n = 0;
    for (int at = 0; at < possible; at += 8) {
        uint32_t any = 0;
        for (int s = at; s < at + 8; s++) any |= counts[s];
        if (any == 0) continue;
        for (int k = 0; k < 8; k++) all[n + k] = int32_t(counts[at + k] << 8) | (at + k);
        n += 8;
    }
    std::fill(order, order + kFew, 0);
    if (n > kFew) {
        std::partial_sort(all, all + kFew, all + n, std::greater<int32_t>());
        std::copy(all, all + kFew, order);
    } else {
        sort_few(all, n, order);
    }
    int known = 0;
    while (known < kMostMembers && order[known] >> 8 != 0) known++;
    return known;
}

}  // namespace

// The cheapest way down the symbols in order of their counts, one class after another.
Classes choose_classes(const uint32_t (&counts)[256], size_t total, size_t n, int possible) {
    int32_t order[kFew];
    const int known = most_frequent(counts, possible, order);
    // For ranks from s on: how many symbols, the bits they take, and the width of the next level.
    uint32_t left[kMostMembers + 1], bits[kMostMembers + 3];
    uint8_t width[kMostMembers + 1];
    left[0] = uint32_t(total);
    for (int s = 0; s < known; s++) left[s + 1] = left[s] - uint32_t(order[s] >> 8);
    for (int s = known; s < known + 3; s++) bits[s] = 8 * kBit * left[known];
    width[known] = 0;
    const uint32_t member = uint32_t(4 * kBit * total / n);  // of the table, as sampled
    const uint32_t level = 2 * member;                       // for its time
    const int last = std::min(possible, kMostMembers) - 3;
    for (int s = known - 1; s >= 0; s--) {
        const uint32_t none = 8 * kBit * left[s];
        const uint32_t one = (kBit + kPass) * left[s] + bits[s + 1] + member + level;
        uint32_t two = (2 * kBit + kPass) * left[s] + bits[s + 3] + 3 * member + level;
        if (s > last) two = UINT32_MAX / 4;
        // The width beside the bits: which is best is no branch, as nobody could guess it.
        const uint32_t best = std::min(none * 4, std::min(one * 4 + 1, two * 4 + 2));
        bits[s] = best / 4;
        width[s] = best % 4;
    }

    Classes classes;
    classes.bits = double(bits[0]) / double(kBit * total);
    int spare = 0;
    for (int s = 0; s < known && width[s] != 0 && classes.levels < kMostLevels;) {
        const int size = (1 << width[s]) - 1;
        for (int k = 0; k < size; k++) {
            int symbol = int(order[std::min(s + k, known - 1)] & 255);
            // None is left: the lowest that does not occur stands in.
            if (s + k >= known) {
                while (counts[spare]) spare++;
                symbol = spare++;
            }
            classes.members[classes.listed++] = uint8_t(symbol);
        }
        if (width[s] == 2) classes.widths = uint8_t(classes.widths | 1 << classes.levels);
        classes.levels++;
        s += size;
    }
    return classes;
}

ClassCoder::ClassCoder(const Kernels &kernels)
    : kernels_(kernels), symbols_(kTileBytes + kKernelSlack), ranks_(kTileBytes + kKernelSlack) {}

size_t ClassCoder::encode(const uint8_t *raw, size_t n, int dtype, uint8_t *out, size_t most,
                          Kept &kept) {
    const size_t planes = plane_bytes(dtype, n);
    if (planes + 2 + kMostMembers > most) return 0;
    kernels_.split[dtype](raw, n, symbols_.base(), out);
    fetch(kLines);
    // In a small tile, choosing takes as long as coding.
    const bool small = n < kFewSymbols;
    if (small && kept.uses > 0 && kept.dtype == dtype) {
        const size_t coded = code(kept.classes, dtype, n, out + planes, most - planes);
        const float now = float(coded) / float(n);  // 0 where they do not fit
        if (kept.reached * kShorter < now && now < kept.reached * kWorse) {
            if (--kept.uses == 0) kept.pause = 0;
            return planes + coded;
        }
        // Where the first ones are not alike already, the next ones are not asked, and more of them
        // every time.
        kept.pause = kUses - kept.uses < kSome ? std::min(kept.pause * 4 + 3, 127) : 0;
        kept.paused = kept.pause;
        kept.uses = 0;
    }
    const int possible = 1 << symbol_bits(dtype);
    uint32_t counts[256];
    const size_t total = count_some(kernels_, symbols_.base(), n, possible, counts);
    fetch(kLines);
    const Classes classes = choose_classes(counts, total, n, possible);
    if (double(planes) + classes.bits * double(n) / 8 > double(most)) return 0;
    const size_t coded = code(classes, dtype, n, out + planes, most - planes);
    if (coded == 0) return 0;
    if (kept.paused > 0) {
        kept.paused--;
    } else if (small) {
        kept = {classes, float(coded) / float(n), uint8_t(dtype), kUses, kept.pause, 0};
    }
    return planes + coded;
}

void ClassCoder::fetch(int lines) {
    for (; lines > 0 && ahead_ < ahead_end_; lines--, ahead_ += 64) __builtin_prefetch(ahead_);
}

// The first level piece by piece, so that ranks are coded where they are hot.
size_t ClassCoder::code_first(const Ranks &ranks, int table, int width, size_t n, uint8_t *codes) {
    alignas(64) uint8_t piece[kPiece + kKernelSlack];
    size_t passed = 0;
    for (size_t i = 0; i < n; i += kPiece) {
        const size_t count = std::min(kPiece, n - i);
        fetch(kLines);
        kernels_.translate(symbols_.base() + i, count, ranks.of, table, piece);
        passed += kernels_.code[width - 1](piece, count, codes + i * size_t(width) / 8,
                                           ranks_.base() + passed);
    }
    return passed;
}

// What symbols_ has; 0: it takes more than `most`.
size_t ClassCoder::code(const Classes &classes, int dtype, size_t n, uint8_t *out, size_t most) {
    if (most < 2 + kMostMembers) return 0;
    uint8_t *const begin = out, *const end = out + most, *const ranks = ranks_.base();
    const int table = table_of(dtype);
    Ranks by_rank;
    rank(classes, table, by_rank);
    out[1] = classes.widths;
    out = write_members(classes, out + 2, out);
    size_t passed = n;
    for (int level = 0; level < classes.levels; level++) {
        const int width = classes.width(level);
        const size_t bytes = bytes_of_codes(passed, width);
        if (bytes > size_t(end - out)) return 0;
        fetch(kLines);
        passed = level == 0 ? code_first(by_rank, table, width, n, out)
                            : kernels_.code[width - 1](ranks, passed, out, ranks);
        out += bytes;
    }
    if (passed > size_t(end - out)) return 0;
    const uint8_t *last = classes.levels == 0 ? symbols_.base() : ranks;
    kernels_.translate(last, passed, by_rank.symbols + classes.listed, table, out);
    return size_t(out - begin) + passed;
}

bool ClassCoder::decode(const uint8_t *stored, size_t bytes, int dtype, size_t n, uint8_t *raw) {
    const size_t planes = plane_bytes(dtype, n);
    if (bytes < planes + 2 || !clean_planes(stored, dtype, n)) return false;
    const uint8_t *at = stored + planes, *const end = stored + bytes;
    Classes classes;
    const bool packed = at[0] & kPacked;
    classes.levels = at[0] & ~kPacked;
    classes.widths = at[1];
    if (classes.levels > kMostLevels || classes.widths >> classes.levels != 0) return false;
    for (int level = 0; level < classes.levels; level++) classes.listed += classes.size(level);
    at = read_members(at + 2, end, packed, classes);
    if (!at || !fit(classes.members, size_t(classes.listed), dtype)) return false;
    const uint8_t *members = classes.members + classes.listed;  // of the level above

    // Where all levels are, before any is decoded: each tells how long the next one is.
    const uint8_t *codes[kMostLevels];
    size_t counts[kMostLevels + 1] = {n};
    for (int level = 0; level < classes.levels; level++) {
        const int width = classes.width(level);
        const size_t length = bytes_of_codes(counts[level], width);
        if (length > size_t(end - at) || !clean_end(at, counts[level], width)) return false;
        codes[level] = at;
        fetch(kLines);
        counts[level + 1] = kernels_.count[width - 1](at, counts[level]);
        at += length;
    }
    const size_t passed = counts[classes.levels];
    if (passed != size_t(end - at) || !fit(at, passed, dtype)) return false;

    uint8_t *from = symbols_.base(), *to = ranks_.base();
    std::memcpy(from, at, passed);
    for (int level = classes.levels; level-- > 1;) {
        const int width = classes.width(level);
        members -= classes.size(level);
        fetch(kLines);
        kernels_.decode[width - 1](codes[level], counts[level], members, from, to);
        std::swap(from, to);
    }
    if (classes.levels == 0) {
        kernels_.merge[dtype](from, stored, n, 0, n, raw);
        return true;
    }
    // The first level piece by piece, so that its symbols are merged where they are hot.
    const int width = classes.width(0);
    const uint8_t *next = from;
    for (size_t i = 0; i < n; i += kPiece) {
        const size_t count = std::min(kPiece, n - i);
        fetch(kLines);
        next = kernels_.decode[width - 1](codes[0] + i * size_t(width) / 8, count, classes.members,
                                          next, to);
        kernels_.merge[dtype](to, stored, n, i, count, raw + i * element_bytes(dtype));
    }
    return true;
}

}  // namespace ucm::compress
