// SPDX-License-Identifier: MIT
#include <cerrno>

#include "engines.h"
#include "writer_lock.h"

#ifdef UCM_HAVE_URING
#include <liburing.h>
#endif

namespace ucm::posix {

#ifdef UCM_HAVE_URING
namespace {

// What would hold up whoever submits it is done by threads of the kernel; so many a ring.
constexpr unsigned kKernelThreads = 1;

class Uring final : public Engine {
  public:
    explicit Uring(size_t depth) : depth_(depth) {}
    ~Uring() override {
        if (!open_) return;
        fork_closed_.set(-1);
        io_uring_queue_exit(&ring_);
    }

    int open() {
        io_uring_params params{};
        params.flags = IORING_SETUP_CLAMP;
        int error = -io_uring_queue_init_params(unsigned(depth_), &ring_, &params);
        if (error != 0) return error;
        open_ = true;
        fork_closed_.set(ring_.ring_fd);
        io_uring_ring_dontfork(&ring_);
        return 0;
    }

    size_t depth() const override { return depth_; }
    int fd() const override { return ring_.ring_fd; }

    void start(Io &io) override {
        io_uring_sqe *entry = io_uring_get_sqe(&ring_);
        while (!entry) {
            submit();
            entry = io_uring_get_sqe(&ring_);
        }
        switch (io.way) {
            case Io::Way::kRead:
                io_uring_prep_readv(entry, io.fd, io.pieces, io.n, io.offset);
                break;
            case Io::Way::kWrite:
                io_uring_prep_writev(entry, io.fd, io.pieces, io.n, io.offset);
                break;
            case Io::Way::kSync:
                io_uring_prep_fsync(entry, io.fd, IORING_FSYNC_DATASYNC);
                break;
        }
        io_uring_sqe_set_data(entry, &io);
    }

    bool submit() override {
        limit_kernel_threads();
        // EAGAIN and EBUSY: the kernel is short of memory, or of room for what is finished.
        if (io_uring_sq_ready(&ring_)) io_uring_submit(&ring_);
        return io_uring_sq_ready(&ring_) == 0;
    }

    Io *finish(bool wait) override {
        io_uring_cqe *entry = nullptr;
        while (io_uring_peek_cqe(&ring_, &entry) != 0) {
            if (!wait) return nullptr;
            io_uring_submit_and_wait(&ring_, 1);
        }
        Io *io = static_cast<Io *>(io_uring_cqe_get_data(entry));
        io->result = entry->res;
        io_uring_cqe_seen(&ring_, entry);
        // Some devices cannot be asked without waiting.
        if (io->result == -EAGAIN) move_now(*io);
        return io;
    }

  private:
    // The limit is that of the thread which asks for it, so not of the one that opens.
    void limit_kernel_threads() {
        if (limited_) return;
        limited_ = true;
        unsigned most[2] = {kKernelThreads, 0};  // of bounded work; the rest as it is
        io_uring_register_iowq_max_workers(&ring_, most);
    }

    const size_t depth_;
    bool limited_ = false;
    io_uring ring_{};
    bool open_ = false;
    ForkClosed fork_closed_;  // ring_'s own descriptor
};

}  // namespace

std::unique_ptr<Engine> make_uring(size_t depth, int *error) {
    auto engine = std::make_unique<Uring>(depth);
    *error = engine->open();
    if (*error != 0) return nullptr;
    return engine;
}
#else
std::unique_ptr<Engine> make_uring(size_t, int *error) {
    *error = ENOSYS;
    return nullptr;
}
#endif

}  // namespace ucm::posix
