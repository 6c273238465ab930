// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cerrno>
#include <thread>

#include "block_file.h"
#include "engines.h"
#include "ucm/store_v1.hpp"

namespace ucm::posix {
namespace {

// The calling thread moves the bytes itself.
class Psync final : public Engine {
  public:
    size_t depth() const override { return 1; }
    void start(Io &io) override {
        move_now(io);
        done_ = &io;
    }
    Io *finish(bool) override {
        Io *done = done_;
        done_ = nullptr;
        return done;
    }

  private:
    Io *done_ = nullptr;
};

std::unique_ptr<Engine> make_ring(const std::string &name, size_t depth, int *error) {
    return name == "aio" ? make_aio(depth, error) : make_uring(depth, error);
}

bool built_in(const std::string &name) {
#ifdef UCM_HAVE_AIO
    if (name == "aio") return true;
#endif
#ifdef UCM_HAVE_URING
    if (name == "io_uring") return true;
#endif
    return name == "psync";
}

// `error` is from make_aio or make_uring.
std::string refusal(const std::string &name, int error) {
    const bool aio = name == "aio";
    if (error == ENOSYS && !built_in(name))
        return aio ? "this build has no aio; build it where libaio-dev is installed"
                   : "this build has no io_uring; build it where liburing-dev is installed";
    if (error == ELIBACC) return "aio needs libaio.so.1; install libaio1";
    std::string text = "the kernel refuses " + name + " (" + errno_text(error) + ")";
    if (aio && error == EAGAIN) return text + "; raise sysctl fs.aio-max-nr";
    if (!aio && (error == EPERM || error == ENOSYS))
        return text + "; see sysctl kernel.io_uring_disabled and the container's seccomp profile";
    return error == ENOMEM ? text + "; raise ulimit -l" : text;
}

EngineChoice psync_choice(size_t concurrency, const std::string &why) {
    return {"psync", concurrency, concurrency, concurrency, why};
}

// A few threads are enough where each keeps many requests under way: with three of the store's
// own, and one of the kernel's for each ring that writes through its cache, cores + 4 or 8 at most.
EngineChoice ring_choice(const std::string &name, size_t concurrency, bool direct,
                         const std::string &why) {
    const size_t third = std::max(1u, std::thread::hardware_concurrency()) / 3;
    const size_t loads = std::min(std::max<size_t>(third, 2), concurrency);
    const size_t dumps = direct ? loads : std::min(std::max<size_t>(third, 1), concurrency);
    return {name, loads, dumps, concurrency, why};
}

}  // namespace

EngineChoice choose_engine(const std::string &wanted, size_t concurrency, bool direct) {
    if (wanted == "psync") return psync_choice(concurrency, "as configured");
    if (wanted == "auto" && !direct)
        return psync_choice(concurrency, "without O_DIRECT the kernel queues nothing");
    std::string refused;
    for (const char *name : {"io_uring", "aio"}) {
        if (wanted != "auto" && wanted != name) continue;
        int error = 0;
        if (make_ring(name, 2, &error))
            return ring_choice(
                name, concurrency, direct,
                wanted == "auto" ? "O_DIRECT works here" + refused : "as configured");
        if (wanted != "auto")
            throw Error(UCM_UNAVAILABLE,
                        "posix_io_engine: " + refusal(name, error) + "; or use auto or psync",
                        error);
        refused += ", " + refusal(name, error);
    }
    return psync_choice(concurrency, "no other engine is to be had" + refused);
}

size_t EngineChoice::depth(size_t threads) const {
    return name == "psync" ? 1 : std::max<size_t>((under_way + threads - 1) / threads, 2);
}

std::unique_ptr<Engine> make_engine(const std::string &name, size_t depth) {
    if (name == "psync") return std::make_unique<Psync>();
    int error = 0;
    std::unique_ptr<Engine> engine = make_ring(name, depth, &error);
    if (!engine) throw Error(UCM_UNAVAILABLE, "posix_io_engine: " + refusal(name, error), error);
    return engine;
}

std::string PosixMedium::start(bool direct, uint64_t) {
    choice_ = choose_engine(wanted_, concurrency_, direct_ && direct);
    return "posix_io_engine: " + choice_.name + ", " + std::to_string(choice_.load_threads) +
           " threads for loads and " + std::to_string(choice_.dump_threads) + " for dumps, " +
           std::to_string(choice_.under_way) + " requests under way at once for each (" +
           choice_.why + ")";
}

std::unique_ptr<Engine> PosixMedium::engine(bool loads) {
    return make_engine(choice_.name,
                       choice_.depth(loads ? choice_.load_threads : choice_.dump_threads));
}

}  // namespace ucm::posix
