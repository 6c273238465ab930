// SPDX-License-Identifier: MIT
#pragma once

#include "dump_path.h"
#include "load_path.h"

namespace ucm::cache {

// Keeps accepted tasks until the event of the device has come that they have to wait for, so that
// nobody else waits for it: on their paths a copy takes as long as its bytes. One thread asks the
// device again and again, and answers what is cancelled or too late meanwhile. Nobody else does, so
// that no event is asked about when its task has ended, which may be the end of the event.
class EventWait {
  public:
    EventWait(Core &core, DumpPath &dumps, LoadPath &loads)
        : core_(core), dumps_(dumps), loads_(loads) {}
    ~EventWait() { stop(); }

    void start();
    void stop();  // once no task is left

    // False: there is nothing to wait for, and nothing was done.
    bool push(const JobRef &job);
    // With Core::mutex held: shards of these that are to be dumped are cancelled.
    void cancel(const IdSet &ids);

  private:
    void run();
    void look(Lock &lock);

    Core &core_;
    DumpPath &dumps_;
    LoadPath &loads_;
    // All guarded by Core::mutex.
    std::condition_variable changed_;
    std::vector<JobRef> waiting_;
    bool stopping_ = false;
    Threads threads_;
};

}  // namespace ucm::cache
