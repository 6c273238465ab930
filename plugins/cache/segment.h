// SPDX-License-Identifier: MIT
//
// The memory of a cache: one file in /dev/shm for all processes that name the same unique_id, or
// private memory of the same shape. See docs/shared-cache.md.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "buffers.h"
#include "log.h"
#include "shared.h"
#include "writer_lock.h"

namespace ucm::cache {

// What all members of a segment must agree on, and how large it is to be if it is made anew.
struct Shape {
    uint32_t shards_per_block;  // 0: one who only looks, and was not told the sizes
    uint64_t capacity, raw_capacity, slot_bytes;
    std::string encoding;
    std::string identity;  // namespace, model and fingerprint
    bool any_fingerprint;  // it ends before the fingerprint, which is not known
    bool keeps, loads;     // can the store below
    uint32_t frames;
    std::string refusal;  // why it may be joined and not made; "": it may be made

    uint64_t frame_bytes() const { return shards_per_block * slot_bytes; }
};

// Where the segment of that name is, or "" where there is none.
std::string segment_path(const std::string &unique_id);

class Segment {
  public:
    // unique_id "": private memory. Throws Error.
    Segment(const Shape &shape, const std::string &unique_id, const Logger &log);
    // The last one that lives removes the file, if nothing in it waits to be stored.
    ~Segment();
    Segment(const Segment &) = delete;
    // For one call of a store that only looks, and is no member: the first part alone, to change
    // what blocks are under the mutex. NULL: there is none that is meant. Throws Error.
    static std::unique_ptr<Segment> visit(const Shape &wanted, const std::string &unique_id,
                                          const Logger &log);

    Header &header() const { return *reinterpret_cast<Header *>(base_); }
    template <typename T>
    T *at(uint64_t offset) const {
        return reinterpret_cast<T *>(base_ + offset);
    }
    uint8_t *frame(uint32_t number) const { return data_ + number * frame_bytes_; }
    uint8_t *data() const { return data_; }
    uint64_t data_bytes() const { return data_bytes_; }
    uint32_t member() const { return member_; }
    bool shared() const { return !path_.empty(); }
    const std::string &path() const { return path_; }
    // Nothing in it is this member's any more, so that its place is free when it goes. Of one that
    // goes without, as a store whose opening failed, others take over as from the dead.
    void empty_handed() { empty_handed_ = true; }
    // Was it there before this member came?
    bool found() const { return found_; }
    // Does the kernel say that this member's process, or its store, has gone?
    bool dead(uint32_t member) const;
    // Memory for some frames more: 0 or an errno. Takes long; no lock is to be held.
    int allocate(uint32_t first, uint32_t count) const;
    // Asks for huge pages under them; they may be in use.
    void collapse(uint32_t first, uint32_t count) const;
    uint64_t frame_bytes() const { return frame_bytes_; }
    uint32_t step_frames() const { return step_frames_; }
    // Does the path no longer lead here?
    bool orphaned() const { return shared() && !leads_to(path_, file_.get()); }
    // Removes segments of this user that nobody lives in, unless something in them waits to be
    // stored and has not waited for long.
    void sweep_others() const;
    void alive() const { header().used_ns.store(clock_ns(CLOCK_BOOTTIME)); }

  private:
    Segment(const std::string &path, const Logger &log)
        : log_(log), path_(path), member_(kNobody) {}
    void make_private(const Shape &shape);
    void join(const Shape &shape);
    bool open_once(const Shape &shape);
    void create(const Shape &shape);
    void move_here();
    void map(uint64_t data_at, uint64_t bytes);
    void unmap();
    void leave();
    bool take_member();
    std::string living_pids(uint64_t file_bytes) const;

    const Logger &log_;
    std::string path_;
    ForkClosed file_;  // holds the lock of the member, or of who visits
    uint8_t *base_ = nullptr, *data_ = nullptr;
    uint8_t *reserved_ = nullptr;
    uint64_t head_bytes_ = 0, data_bytes_ = 0, reserved_bytes_ = 0, frame_bytes_ = 0;
    uint32_t member_ = 0, step_frames_ = 1;
    bool found_ = false, empty_handed_ = false;
};

// A segment that is only looked into: mapped read-only when there is one, at each use.
class SegmentView {
  public:
    SegmentView(const Shape &wanted, const std::string &unique_id)
        : wanted_(wanted), path_(segment_path(unique_id)) {}
    ~SegmentView() { drop(); }
    SegmentView(const SegmentView &) = delete;

    // NULL: there is none now that is meant.
    const uint8_t *look();
    // Why the one that is there is not: once, to be logged; else "".
    std::string warning() { return std::exchange(warning_, ""); }

  private:
    void drop();

    const Shape wanted_;
    const std::string path_;
    std::string warning_;
    bool told_ = false;
    uint8_t *base_ = nullptr;
    uint64_t bytes_ = 0, inode_ = 0;
    int64_t next_try_ns_ = 0;
};

}  // namespace ucm::cache
