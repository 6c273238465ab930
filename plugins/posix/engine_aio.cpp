// SPDX-License-Identifier: MIT
#include <cerrno>
#include <vector>

#include "engines.h"
#include "writer_lock.h"

#ifdef UCM_HAVE_AIO
#include <dlfcn.h>
#include <libaio.h>
#include <sys/eventfd.h>
#include <unistd.h>
#endif

namespace ucm::posix {

#ifdef UCM_HAVE_AIO
namespace {

// libaio, opened once and kept.
struct Library {
    decltype(&::io_setup) setup = nullptr;
    decltype(&::io_destroy) destroy = nullptr;
    decltype(&::io_submit) submit = nullptr;
    decltype(&::io_getevents) getevents = nullptr;

    static const Library &get() {
        static const Library library;
        return library;
    }
    bool here() const { return setup && destroy && submit && getevents; }

  private:
    Library() {
        void *handle = dlopen("libaio.so.1", RTLD_NOW | RTLD_LOCAL);
        if (!handle) handle = dlopen("libaio.so.1t64", RTLD_NOW | RTLD_LOCAL);
        if (!handle) return;
        find(handle, "io_setup", setup);
        find(handle, "io_destroy", destroy);
        find(handle, "io_submit", submit);
        find(handle, "io_getevents", getevents);
    }
    template <typename F>
    static void find(void *handle, const char *name, F &function) {
        function = reinterpret_cast<F>(dlsym(handle, name));
    }
};

class Aio final : public Engine {
  public:
    explicit Aio(size_t depth) : depth_(depth), blocks_(depth), finished_(depth) {
        for (iocb &block : blocks_) free_.push_back(&block);
        waiting_.reserve(depth);
    }
    ~Aio() override {
        if (context_) library_.destroy(context_);
    }

    int open() {
        if (!library_.here()) return ELIBACC;
        const int error = -library_.setup(int(depth_), &context_);
        if (error != 0) {
            context_ = nullptr;
            return error;
        }
        bell_.set(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        return bell_.get() >= 0 ? 0 : errno;
    }

    size_t depth() const override { return depth_; }
    int fd() const override { return bell_.get(); }

    void start(Io &io) override {
        iocb *block = free_.back();
        free_.pop_back();
        const int n = int(io.n);
        const long long offset = static_cast<long long>(io.offset);
        switch (io.way) {
            case Io::Way::kRead:
                io_prep_preadv(block, io.fd, io.pieces, n, offset);
                break;
            case Io::Way::kWrite:
                io_prep_pwritev(block, io.fd, io.pieces, n, offset);
                break;
            case Io::Way::kSync:
                io_prep_fdsync(block, io.fd);
                break;
        }
        io_set_eventfd(block, bell_.get());
        block->data = &io;
        waiting_.push_back(block);
    }

    bool submit() override {
        size_t at = 0;
        while (at < waiting_.size()) {
            const int taken = library_.submit(context_, long(waiting_.size() - at), &waiting_[at]);
            if (taken > 0) {
                at += size_t(taken);
            } else if (taken != -EINTR) {
                // It is refused alone: what comes after it may be fine.
                refuse(waiting_[at++], taken < 0 ? taken : -EIO);
            }
        }
        waiting_.clear();
        return refused_.empty();
    }

    Io *finish(bool wait) override {
        submit();
        while (next_ == count_ && refused_.empty()) {
            uint64_t rings;
            if (!wait && ::read(bell_.get(), &rings, sizeof rings) < 0 && errno == EAGAIN)
                return nullptr;
            next_ = count_ = 0;
            const int got =
                library_.getevents(context_, wait ? 1 : 0, long(depth_), finished_.data(), nullptr);
            if (got > 0) count_ = size_t(got);
            if (got <= 0 && !wait) return nullptr;
        }
        if (!refused_.empty()) {
            Io *io = refused_.back();
            refused_.pop_back();
            return io;
        }
        const io_event &event = finished_[next_++];
        Io *io = static_cast<Io *>(event.data);
        io->result = int64_t(static_cast<long>(event.res));
        free_.push_back(event.obj);
        return io;
    }

  private:
    void refuse(iocb *block, int64_t result) {
        Io *io = static_cast<Io *>(block->data);
        free_.push_back(block);
        // The kernel is short of room, or the file system cannot: then the thread does it.
        if (result == -EAGAIN || (io->way == Io::Way::kSync && result == -EINVAL))
            move_now(*io);
        else
            io->result = result;
        refused_.push_back(io);
    }

    const Library &library_ = Library::get();
    const size_t depth_;
    io_context_t context_ = nullptr;
    ForkClosed bell_;
    std::vector<iocb> blocks_;
    std::vector<iocb *> free_, waiting_;
    std::vector<io_event> finished_;
    size_t next_ = 0, count_ = 0;  // in finished_: those not handed out yet
    std::vector<Io *> refused_;
};

}  // namespace

std::unique_ptr<Engine> make_aio(size_t depth, int *error) {
    auto engine = std::make_unique<Aio>(depth);
    *error = engine->open();
    if (*error != 0) return nullptr;
    return engine;
}
#else
std::unique_ptr<Engine> make_aio(size_t, int *error) {
    *error = ENOSYS;
    return nullptr;
}
#endif

}  // namespace ucm::posix
