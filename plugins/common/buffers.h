// SPDX-License-Identifier: MIT
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "ucm/store_v1.hpp"

namespace ucm {

constexpr uint64_t round_up(uint64_t value, uint64_t to = UCM_ALIGNMENT) {
    return (value + to - 1) / to * to;
}

constexpr uint64_t kHugePageBytes = 2u << 20;

enum class Pages { kSmall, kHuge };

// One page-aligned anonymous mapping. Pages take memory when first touched; a forked child does not
// get them. Huge ones are asked for only: the kernel gives those it has. The first `small` bytes,
// whole small pages, have none: who touches these alone takes no more.
class Mapping {
  public:
    explicit Mapping(uint64_t bytes, Pages pages = Pages::kSmall, uint64_t small = 0)
        : bytes_(round_up(bytes ? bytes : 1)) {
        const uint64_t spare = pages == Pages::kHuge ? kHugePageBytes : 0;
        void *base = mmap(nullptr, bytes_ + spare, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED)
            throw Error(UCM_UNAVAILABLE,
                        "cannot map " + std::to_string(bytes_) + " bytes of memory", errno);
        base_ = static_cast<uint8_t *>(base);
        if (pages == Pages::kHuge) align(small);
        madvise(base_, bytes_, MADV_DONTFORK);
    }
    ~Mapping() { munmap(base_, bytes_); }
    Mapping(const Mapping &) = delete;
    Mapping &operator=(const Mapping &) = delete;

    uint8_t *base() const { return base_; }
    uint64_t bytes() const { return bytes_; }

  private:
    // To huge pages; what is mapped beyond bytes_ goes.
    void align(uint64_t small) {
        const uint64_t first = reinterpret_cast<uint64_t>(base_) + small;
        const uint64_t before = round_up(first, kHugePageBytes) - first;
        if (before > 0) munmap(base_, before);
        base_ += before;
        if (before < kHugePageBytes) munmap(base_ + bytes_, kHugePageBytes - before);
        madvise(base_ + small, bytes_ - small, MADV_HUGEPAGE);
    }

    uint64_t bytes_;
    uint8_t *base_;
};

// Tells the store below that transfers will use this memory, until it is destroyed. A store that
// does not care, or refuses, loses nothing but speed.
class Registered {
  public:
    Registered(ucm_store *lower, const Mapping &mapping)
        : Registered(lower, mapping.base(), mapping.bytes()) {}
    Registered(ucm_store *lower, void *base, uint64_t bytes) : lower_(lower) {
        args_.struct_size = sizeof args_;
        args_.memory = UCM_MEMORY_HOST;
        args_.base = base;
        args_.bytes = bytes;
        done_ = ucm_register_memory(lower_, &args_, nullptr) == UCM_OK;
    }
    ~Registered() {
        args_.release = 1;
        if (done_) ucm_register_memory(lower_, &args_, nullptr);
    }
    Registered(const Registered &) = delete;
    Registered &operator=(const Registered &) = delete;

  private:
    ucm_store *lower_;
    ucm_memory_args args_{};
    bool done_;
};

// A fixed number of equal page-aligned buffers, made once.
class BufferPool {
  public:
    BufferPool(uint64_t bytes_each, size_t count)
        : each_(round_up(bytes_each)), mapping_(each_ * count, Pages::kHuge) {
        free_.reserve(count);
        for (size_t i = count; i-- > 0;) free_.push_back(mapping_.base() + i * each_);
    }

    // NULL when all are taken.
    uint8_t *take() {
        std::lock_guard<std::mutex> hold(mutex_);
        if (free_.empty()) return nullptr;
        uint8_t *buffer = free_.back();
        free_.pop_back();
        return buffer;
    }

    void give(uint8_t *buffer) {
        std::lock_guard<std::mutex> hold(mutex_);
        free_.push_back(buffer);
    }

    uint64_t bytes_each() const { return each_; }
    const Mapping &mapping() const { return mapping_; }

  private:
    uint64_t each_;
    Mapping mapping_;
    std::mutex mutex_;  // guards free_
    std::vector<uint8_t *> free_;
};

}  // namespace ucm
