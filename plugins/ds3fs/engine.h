// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "descriptors.h"
#include "files/engine.h"
#include "links.h"
#include "log.h"
#include "memory.h"
#include "usrbio.h"

namespace ucm::ds3fs {

// What all engines of a store share.
struct Shared {
    Shared(const Library &library, const Logger &log, size_t most_idle)
        : library(library), log(log), descriptors(library, most_idle) {}

    const Library &library;
    const Logger log;
    std::string mount_point;
    int numa = -1;
    int64_t request_ns = 0;  // how long a request may take
    Descriptors descriptors;
    SharedMemory memory;
    Links links;

    std::atomic<uint64_t> requests{0}, running{0}, stuck{0}, given_up{0}, submits{0}, bytes{0};
};

// One iov and its rings, made and destroyed together.
class Rings {
  public:
    // Throws where the daemon does not take them.
    Rings(Shared &shared, size_t bytes, int entries, bool writes);
    ~Rings();
    Rings(const Rings &) = delete;
    Rings &operator=(const Rings &) = delete;

    const Iov &iov() const { return iov_; }
    const Ior &ring(bool write) const { return write ? write_ : read_; }
    // To the daemon that knows them; NULL where it is not seen.
    Link *link() const { return link_.get(); }

  private:
    void make_ring(const Shared &shared, Ior &ring, int entries, bool reads);
    void destroy_ring(Ior &ring, bool reads);
    void destroy();
    void take_file(Links &links);

    const Library &library_;
    Iov iov_{};
    Ior read_{}, write_{};
    std::shared_ptr<Link> link_;
};

// Requests of one thread, through rings of its own.
class UsrbioEngine final : public files::Engine {
  public:
    UsrbioEngine(Shared &shared, size_t depth, size_t slot_bytes, bool writes);
    ~UsrbioEngine() override;

    size_t depth() const override { return requests_.size(); }
    void begin() override { cut_off(); }
    void start(files::Io &io) override;
    files::Io *finish(bool wait) override;
    bool submit() override;
    void move(files::Io &io) override;
    uint8_t *memory(size_t slot) const override { return rings_->iov().base + slot * slot_bytes_; }
    bool stuck(size_t slot) const override { return requests_[slot].stuck; }

  private:
    // What a slot does. Its pieces are requests of the library, each with its own result. Those
    // to memory of others are given up only when their daemon is gone.
    struct Request {
        files::Io *io = nullptr;  // NULL: none, or given up
        uint32_t life = 0;        // tells the requests of a slot from each other
        bool stuck = false;       // given up, and not over
        bool write = false;
        bool direct = false;  // a piece is not in the slot
        size_t prepared = 0, running = 0;
        uint64_t offset = 0;  // of the next piece
        std::vector<iovec> pieces;
        std::vector<int64_t> results;  // by piece
        int fd = -1;
        int64_t since_ns = 0;
    };

    std::unique_ptr<Rings> make_rings() const;
    void lay_out(Request &request) const;
    const Iov *iov_of(const iovec &piece) const;
    void prepare();
    bool prepare_pieces(size_t slot, Request &request);
    bool reap(int64_t wait_ns);
    size_t reap_ring(bool write, int64_t wait_ns);
    void took(const Cqe &entry, bool write);
    void end(Request &request);
    void free(Request &request);
    void look_around();
    void give_up(size_t slot, Request &request, int error);
    bool cut_off();
    bool end_all();
    void forget_all();
    void renew();

    Shared &shared_;
    const size_t slot_bytes_;
    const bool writes_;
    std::unique_ptr<Rings> rings_;
    std::vector<Request> requests_;       // by slot
    std::deque<size_t> waiting_;          // slots with pieces that are not prepared
    std::deque<files::Io *> finished_;    // not handed out yet
    bool hinted_ = true;                  // nothing was prepared since the last submit
    size_t running_[2] = {0, 0};          // pieces on the ring for reading, for writing
    int64_t look_ns_ = 0, renew_ns_ = 0;  // when to look for late ones; to try another daemon
};

}  // namespace ucm::ds3fs
