// SPDX-License-Identifier: MIT
//
// The engines of Posix: system calls of the thread itself, libaio, io_uring.
#pragma once

#include <memory>
#include <string>

#include "files/engine.h"
#include "files/medium.h"

namespace ucm::posix {

using files::Engine;
using files::Io;
using files::move_now;

struct EngineChoice {
    std::string name;  // "psync", "aio" or "io_uring"
    size_t load_threads = 1, dump_threads = 1;
    size_t under_way = 1;  // of loads, and of dumps; all threads together
    std::string why;       // for the log

    // For each of so many threads.
    size_t depth(size_t threads) const;
};

// What posix_io_engine asks for, on this machine. `direct`: all directories take O_DIRECT.
// Throws where a named engine is not to be had; "auto" takes another.
EngineChoice choose_engine(const std::string &wanted, size_t concurrency, bool direct);
// Throws where the kernel has no room for one more.
std::unique_ptr<Engine> make_engine(const std::string &name, size_t depth);

// NULL and an errno in *error: the kernel refuses; ENOSYS also where it is not built in.
std::unique_ptr<Engine> make_aio(size_t depth, int *error);
std::unique_ptr<Engine> make_uring(size_t depth, int *error);

// Files through the kernel.
class PosixMedium final : public files::Medium {
  public:
    PosixMedium(std::string wanted, size_t concurrency, bool direct)
        : wanted_(std::move(wanted)), concurrency_(concurrency), direct_(direct) {}

    std::string start(bool direct, uint64_t header_bytes) override;
    size_t load_threads() const override { return choice_.load_threads; }
    size_t dump_threads() const override { return choice_.dump_threads; }
    std::unique_ptr<Engine> engine(bool loads) override;

  private:
    const std::string wanted_;
    const size_t concurrency_;
    const bool direct_;
    EngineChoice choice_;
};

}  // namespace ucm::posix
