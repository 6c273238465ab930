// SPDX-License-Identifier: MIT
#pragma once

#include <poll.h>
#include <sys/eventfd.h>

#include <atomic>
#include <memory>
#include <vector>

#include "engine.h"
#include "file.h"
#include "job.h"
#include "threads.h"

namespace ucm::files {

// What one thread does: takes work from a queue, as much at once as its engine keeps under way, and
// goes on with each piece as its bytes have moved. Checksums of one piece are computed while the
// bytes of others move.
//
// Work is made with a Scratch, and has
//     bool begin(Item &)   // false: it is over already; true: io() is to be moved
//     bool resume()        // after io() has moved; the same
//     Io &io()
//     void refuse(Item &)  // with UNAVAILABLE; needs no memory
template <typename Work, typename Item>
class Lane {
  public:
    template <typename Make>
    Lane(Queue<Item> &queue, std::unique_ptr<Engine> engine, Context &context, bool direct,
         std::atomic<size_t> &usable, Make make)
        : queue_(queue), usable_(usable), engine_(std::move(engine)) {
        const uint64_t header_bytes = block_header_bytes(context.shape.shard_count);
        for (size_t i = 0; i < engine_->depth(); i++) {
            scratches_.push_back(std::make_unique<Scratch>(
                context.medium, *engine_, i, context.direct_memory, direct, header_bytes));
            works_.push_back(make(*scratches_.back()));
            works_.back()->io().slot = i;
            free_.push_back(i);
        }
        usable_ += engine_->depth();
        if (engine_->fd() < 0) return;
        bell_.set(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (bell_.get() < 0) throw Error(UCM_UNAVAILABLE, "cannot make an eventfd", errno);
    }

    // Until the queue is closed and empty.
    void run() {
        for (;;) {
            take_back();
            if (busy() == 0) engine_->begin();
            fill();
            if (busy() == 0) {
                if (parked_.empty() ? !wait_for_item() : !wait_while_stuck()) return;
                continue;
            }
            const bool full = !engine_->submit() || free_.empty() || bell_.get() < 0;
            if (!full) wait_for_either();
            for (Io *io = engine_->finish(full); io; io = engine_->finish(false)) {
                const size_t slot = io->slot;
                if (works_[slot]->resume()) {
                    engine_->start(*io);
                } else {
                    leave(slot);
                    fill();
                }
            }
        }
    }

  private:
    size_t busy() const { return works_.size() - free_.size() - parked_.size(); }

    // Its work has ended.
    void leave(size_t slot) {
        if (!engine_->stuck(slot)) return free_.push_back(slot);
        parked_.push_back(slot);
        usable_--;
    }

    void take_back() {
        for (size_t i = parked_.size(); i-- > 0;) {
            if (engine_->stuck(parked_[i])) continue;
            free_.push_back(parked_[i]);
            parked_.erase(parked_.begin() + long(i));
            usable_++;
        }
    }

    void fill() {
        Item item;
        while (!free_.empty() && queue_.try_pop(item)) begin(item);
    }

    void begin(Item &item) {
        const size_t slot = free_.back();
        free_.pop_back();
        if (!works_[slot]->begin(item)) return leave(slot);
        engine_->start(works_[slot]->io());
    }

    // False: none will come, or others serve them. Where no slot of any lane is left, whatever
    // waits is refused.
    bool wait_while_stuck() {
        Item item;
        engine_->finish(false);
        if (usable_ == 0)
            while (queue_.try_pop(item)) works_[parked_[0]]->refuse(item);
        if (queue_.closed()) return free_.empty() ? false : !drained();
        const timespec pause{0, kStuckNs};
        nanosleep(&pause, nullptr);
        return true;
    }

    // False: none will come.
    bool wait_for_item() {
        if (bell_.get() >= 0) {
            if (!queue_.listen(bell_.get())) return !drained();
            pollfd wanted{bell_.get(), POLLIN, 0};
            ::poll(&wanted, 1, -1);
            queue_.hush(bell_.get());
            return true;
        }
        Item item;
        if (!queue_.pop(item)) return false;
        engine_->begin();
        begin(item);
        return true;
    }

    bool drained() {
        Item item;
        if (!queue_.closed()) return false;
        if (!queue_.try_pop(item)) return true;
        begin(item);
        return false;
    }

    // For an item, where there is a free place, or a finished request.
    void wait_for_either() {
        pollfd wanted[2] = {{engine_->fd(), POLLIN, 0}, {bell_.get(), POLLIN, 0}};
        const bool listens = queue_.listen(bell_.get());
        // After the end of the queue only requests are waited for.
        const bool closed = !listens && queue_.closed();
        ::poll(wanted, listens ? 2 : 1, listens || closed ? -1 : 0);
        if (listens) queue_.hush(bell_.get());
    }

    static constexpr long kStuckNs = 2000000;

    Queue<Item> &queue_;
    std::atomic<size_t> &usable_;  // slots of all lanes of the queue that are not parked
    std::unique_ptr<Engine> engine_;
    std::vector<std::unique_ptr<Scratch>> scratches_;
    std::vector<std::unique_ptr<Work>> works_;  // by slot
    std::vector<size_t> free_;
    std::vector<size_t> parked_;  // the engine says stuck
    ForkClosed bell_;             // of the queue; none where the engine moves one request at a time
};

}  // namespace ucm::files
