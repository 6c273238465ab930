// SPDX-License-Identifier: MIT
#pragma once

#include "load_path.h"
#include "write_back.h"

namespace ucm::cache {

// One thread that listens to this member's bell: wakes who waits for what other processes do, takes
// over from the dead, makes room ahead of use, and ends what has waited too long.
class Watch {
  public:
    Watch(Core &core, WriteBack &writer, LoadPath &loads)
        : core_(core), writer_(writer), loads_(loads) {}
    ~Watch() { stop(); }

    void start();
    void stop();
    // Takes over from the dead now. With Core::mutex held.
    void adopt(Outcome &outcome);
    // Makes all the room that there is to be, now, or waits while another makes some of it. With
    // Core::mutex held, before start.
    void grow_all(Lock &lock, Outcome &outcome);

  private:
    void run();
    void check(Lock &lock, Outcome &outcome);
    void relieve(Outcome &outcome);
    void grow(Lock &lock, Outcome &outcome, uint32_t ahead);
    void tidy(Lock &lock, Outcome &outcome);
    bool waiting() const;

    Core &core_;
    WriteBack &writer_;
    LoadPath &loads_;
    Table &table_ = core_.table;
    // Guarded by Core::mutex.
    bool stopping_ = false;
    bool told_full_ = false, told_orphaned_ = false;
    int64_t next_check_ns_ = 0, next_tidy_ns_ = 0;
    Threads threads_;
};

}  // namespace ucm::cache
