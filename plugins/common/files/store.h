// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "dump_run.h"
#include "dumper.h"
#include "job.h"
#include "lane.h"
#include "loader.h"
#include "threads.h"

namespace ucm::files {

// What every store of block files takes (options.inc); its own options follow from kFileOptions on.
enum FileOption {
    kStorageBackends,
    kTimeoutMs,
    kNamespace,
    kModel,
    kFingerprint,
    kFileMode,
    kFileGroup,
    kDurability,
    kVerify,
    kCapacity,
    kGcEnable,
    kGcTrigger,
    kGcRecycle,
    kWriteMbps,
    kAdmission,
    kFileOptions
};

// How a store wants files to be used.
struct FileUse {
    const char *layer;       // its name
    const char *thread;      // begins the names of its threads
    bool direct = false;     // O_DIRECT
    bool zero_copy = false;  // of memory that is not registered, too
};

// Does the kernel give huge pages to those who ask?
bool huge_pages();

// Blocks as files in directories.
class FileStore : public Store {
  public:
    FileStore(const ucm_open_args &args, const FileUse &use, std::unique_ptr<Medium> medium);
    ~FileStore() override;

    uint64_t capabilities() const override;
    ucm_status lookup(const ucm_lookup_args &, ucm_error *) override;
    ucm_status load(const ucm_transfer &, ucm_task *, ucm_error *) override;
    ucm_status dump(const ucm_transfer &, ucm_task *, ucm_error *) override;
    ucm_status cancel(ucm_task, ucm_error *) override;
    ucm_status touch(const ucm_ids_args &, ucm_error *) override;
    ucm_status remove(const ucm_ids_args &, ucm_error *) override;
    ucm_status drain(const ucm_wait_args &, ucm_report &, ucm_error *) override;
    ucm_status metrics(const ucm_metrics_args &, ucm_error *) override;
    ucm_status register_memory(const ucm_memory_args &, ucm_error *) override;
    ucm_status close(const ucm_wait_args &, ucm_report &, ucm_error *) override;

  private:
    ucm_transfer capped(const ucm_transfer &) const;
    // `sure`: that it is absent is not believed of the index.
    bool present(const BlockId &id, bool sure);
    void attend();
    // 0 or an errno.
    int unlink_block(const BlockId &id);
    void start_threads(bool direct);
    ucm_status refused(bool dump, ucm_error *err) const;
    void tidy_loop();
    void walk_loop();
    void collect_loop();
    void stop();
    bool gone(int64_t until_ns);
    void go();

    const int64_t timeout_ms_;
    const std::string thread_;
    std::unique_ptr<Medium> medium_;
    Context context_;
    Tasks tasks_;
    Ledger ledger_;
    Admission load_admission_, dump_admission_;
    Queue<Job> loads_;
    std::atomic<size_t> load_slots_{0}, dump_slots_{0};  // that are not stuck; see Lane
    Dumper dumper_;
    std::vector<std::unique_ptr<Lane<Loader, Job>>> load_lanes_;
    std::vector<std::unique_ptr<Lane<DumpRun, BlockId>>> dump_lanes_;
    std::atomic<bool> closing_{false};
    std::mutex stop_mutex_;  // guards changes of stopped_
    std::condition_variable stop_wake_;
    std::atomic<bool> stopped_{false}, walk_wanted_{false};
    bool collect_wanted_ = false;        // guarded by stop_mutex_
    bool going_ = false, gone_ = false;  // see gone; guarded by stop_mutex_
    // Of close alone: all tasks have ended, with so many shards of unfinished blocks.
    bool idle_ = false;
    uint64_t unfinished_ = 0;
    Threads threads_, tidy_, walk_, collect_, go_;
};

}  // namespace ucm::files
