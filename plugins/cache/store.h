// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <memory>

#include "dump_path.h"
#include "event_wait.h"
#include "load_path.h"
#include "watch.h"

namespace ucm::cache {

// Keeps blocks in memory over a slower store: dumps are done when they are copied, and go below
// later; loads and lookups ask below only for what is not here.
class CacheStore final : public Store {
  public:
    explicit CacheStore(const ucm_open_args &args);

    static constexpr uint64_t kMemories = Store::kMemories | uint64_t(1) << UCM_MEMORY_CUDA;

    uint64_t capabilities() const override;
    ucm_status lookup(const ucm_lookup_args &args, ucm_error *err) override;
    ucm_status load(const ucm_transfer &t, ucm_task *task, ucm_error *err) override;
    ucm_status dump(const ucm_transfer &t, ucm_task *task, ucm_error *err) override;
    ucm_status cancel(ucm_task task, ucm_error *err) override;
    ucm_status prefetch(const ucm_ids_args &args, ucm_error *err) override;
    ucm_status touch(const ucm_ids_args &args, ucm_error *err) override;
    ucm_status remove(const ucm_ids_args &args, ucm_error *err) override;
    ucm_status drain(const ucm_wait_args &args, ucm_report &report, ucm_error *err) override;
    ucm_status metrics(const ucm_metrics_args &args, ucm_error *err) override;
    ucm_status close(const ucm_wait_args &args, ucm_report &report, ucm_error *err) override;

    static void lower_layout(const ucm_layout_args &args, ucm_layout &out);

  private:
    struct Engine {
        Engine(const ucm_open_args &args, const Shape &shape, const std::string &unique_id);
        bool idle() const { return writer.idle() && loads.idle(); }
        // How much of it is copied on the thread of the caller.
        uint64_t inline_bytes(const ucm_transfer &t) const;

        Core core;
        WriteBack writer;
        DumpPath dumps;
        LoadPath loads;
        Watch watch;
        EventWait events;
        Tasks tasks;
        Admission dump_admission, load_admission;
        const bool on_host;     // the caller's memory
        bool draining = false;  // guarded by core.mutex
    };

    JobRef accept(const ucm_transfer &t, bool dump, ucm_task *task, ucm_status *status,
                  ucm_error *err);
    ucm_status closed(ucm_error *err) const;
    void find_here(const ucm_lookup_args &args, std::vector<uint8_t> &here);
    ucm_status lookup_below(const ucm_lookup_args &args, ucm_error *err);
    ucm_status drain_below(int64_t until_ns, ucm_report &report, ucm_error *err);
    void drop(const IdSet &ids, Outcome &outcome);
    void drop_as_visitor(const IdSet &ids, bool again) const;
    bool leave(int64_t until_ns);

    const Logger log_;
    ucm_store *const lower_;
    const uint64_t lower_caps_;
    std::atomic<bool> closing_{false};
    std::unique_ptr<Engine> engine_;  // NULL: a lookup-only store, which has what follows
    std::mutex view_mutex_;           // guards view_
    std::unique_ptr<SegmentView> view_;
    const std::string segment_;  // its unique_id; "": there is none
    Shape wanted_{};
};

}  // namespace ucm::cache
