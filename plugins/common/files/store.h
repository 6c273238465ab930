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

// What every store of block files takes; its own options follow from kFileOptions on.
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

// Their table, in their order.
#define UCM_FILE_OPTIONS                                                                           \
    {"storage_backends",                                                                           \
     UCM_TYPE_STRINGS,                                                                             \
     0,                                                                                            \
     nullptr,                                                                                      \
     nullptr,                                                                                      \
     nullptr,                                                                                      \
     "Directories that keep the blocks; they must exist."},                                        \
        {"timeout_ms",                                                                             \
         UCM_TYPE_INT,                                                                             \
         0,                                                                                        \
         "30000",                                                                                  \
         "1..86400000",                                                                            \
         "ms",                                                                                     \
         "How long a shard may wait before its I/O starts."},                                      \
        {"namespace",                                                                              \
         UCM_TYPE_STRING,                                                                          \
         0,                                                                                        \
         "default",                                                                                \
         nullptr,                                                                                  \
         nullptr,                                                                                  \
         "Whose blocks: a folder of this name keeps them."},                                       \
        {"model",                                                                                  \
         UCM_TYPE_STRING,                                                                          \
         0,                                                                                        \
         "",                                                                                       \
         nullptr,                                                                                  \
         nullptr,                                                                                  \
         "The model whose KV cache it is; another one's blocks are not seen."},                    \
        {"fingerprint",                                                                            \
         UCM_TYPE_STRING,                                                                          \
         0,                                                                                        \
         "",                                                                                       \
         nullptr,                                                                                  \
         nullptr,                                                                                  \
         "All else that tells what the bytes mean; with another one blocks are not seen."},        \
        {"file_mode",                                                                              \
         UCM_TYPE_STRING,                                                                          \
         0,                                                                                        \
         "0600",                                                                                   \
         "0600|0640|0660",                                                                         \
         nullptr,                                                                                  \
         "Who may use new files: 0640 lets the group read, 0660 write too. In quotes."},           \
        {"file_group",                                                                             \
         UCM_TYPE_STRING,                                                                          \
         0,                                                                                        \
         "",                                                                                       \
         nullptr,                                                                                  \
         nullptr,                                                                                  \
         "Group of new files, by name or number; empty: as it comes."},                            \
        {"posix_durability",                                                                       \
         UCM_TYPE_STRING,                                                                          \
         0,                                                                                        \
         "none",                                                                                   \
         "none|data|full",                                                                         \
         nullptr,                                                                                  \
         "What is synced before a block is published: nothing, its data, or its folder too."},     \
        {"posix_verify",                                                                           \
         UCM_TYPE_BOOL,                                                                            \
         0,                                                                                        \
         "true",                                                                                   \
         nullptr,                                                                                  \
         nullptr,                                                                                  \
         "Off only to measure what checks cost; refused unless UCM_MEASURE=verify is set."},       \
        {"posix_capacity_gb",                                                                      \
         UCM_TYPE_FLOAT,                                                                           \
         0,                                                                                        \
         "0",                                                                                      \
         "0..",                                                                                    \
         "GiB",                                                                                    \
         "What all writers together may take in storage_backends; 0: no limit."},                  \
        {"posix_gc_enable",                                                                        \
         UCM_TYPE_BOOL,                                                                            \
         0,                                                                                        \
         "true",                                                                                   \
         nullptr,                                                                                  \
         nullptr,                                                                                  \
         "Delete the coldest blocks to make room; false: what does not fit is NO_SPACE."},         \
        {"posix_gc_trigger_threshold_ratio",                                                       \
         UCM_TYPE_FLOAT,                                                                           \
         0,                                                                                        \
         "0.9",                                                                                    \
         "0.01..1",                                                                                \
         nullptr,                                                                                  \
         "The part of the capacity beyond which blocks are deleted; 0.7 in older versions, which " \
         "estimated."},                                                                            \
        {"posix_gc_recycle_percent",                                                               \
         UCM_TYPE_FLOAT,                                                                           \
         0,                                                                                        \
         "0.1",                                                                                    \
         "0..1",                                                                                   \
         nullptr,                                                                                  \
         "The part of that which is then made free."},                                             \
        {"posix_write_mbps_max",                                                                   \
         UCM_TYPE_INT,                                                                             \
         0,                                                                                        \
         "0",                                                                                      \
         "0..1000000",                                                                             \
         "MB/s",                                                                                   \
         "New blocks beyond this rate, of all writers together, are not kept; 0: no limit."},      \
        {"posix_admission",                                                                        \
         UCM_TYPE_STRING,                                                                          \
         0,                                                                                        \
         "all",                                                                                    \
         "all|second_sight",                                                                       \
         nullptr,                                                                                  \
         "second_sight: a block is kept when it is dumped for the second time."}

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

    const int64_t timeout_ms_;
    const std::string thread_;
    const std::unique_ptr<Medium> medium_;
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
    bool collect_wanted_ = false;  // guarded by stop_mutex_
    Threads threads_, tidy_, walk_, collect_;
};

}  // namespace ucm::files
