// SPDX-License-Identifier: MIT
#include "files/store.h"
#include "medium.h"

namespace {

using namespace ucm::files;

enum Option { kLibrary = kFileOptions, kStreams, kEntries, kNuma, kRequestMs, kZeroCopy };

const ucm_option kOptions[] = {
#include "files/options.inc"
    {"ds3fs_library", UCM_TYPE_STRING, 0, "libhf3fs_api_shared.so", nullptr, nullptr,
     "The client library of 3FS: a path, or a name that the loader finds."},
    {"stream_number", UCM_TYPE_INT, 0, "32", "1..1024", "requests",
     "Reads under way at once, and as many writes."},
    {"ior_entries", UCM_TYPE_INT, 0, "16", "1..1024", "requests",
     "How many of them one thread has, with a ring of its own."},
    {"numa_id", UCM_TYPE_INT, 0, "-1", "-1..1023", nullptr,
     "NUMA node of the memory that is shared with the daemon; -1: any."},
    {"ds3fs_request_timeout_ms", UCM_TYPE_INT, 0, "10000", "1..86400000", "ms",
     "How long a request may take; then it ends with TIMEOUT, and its buffer waits for it."},
    {"ds3fs_zero_copy", UCM_TYPE_BOOL, 0, "false", nullptr, nullptr,
     "Let 3FS use the memory that Cache shares, all of it allocated and pinned, without a copy; "
     "such "
     "requests wait for as long as it takes."},
};

const ucm_metric kMetrics[] = {
    UCM_STANDARD_METRICS,
#include "files/metrics.inc"
    {"requests_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "requests", "Requests made to 3FS."},
    {"requests_running", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "requests",
     "Requests that 3FS has not finished."},
    {"stuck_buffers", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "buffers",
     "Buffers that wait for a request that was given up."},
    {"given_up_requests_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "requests",
     "Requests that were not finished in time, or whose daemon is gone."},
    {"submits_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "calls",
     "Times the daemon was told of new requests."},
    {"buffered_bytes_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "bytes",
     "Bytes of requests that went through buffers: each copied once."},
    {"registrations_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "files",
     "Times a file was registered with the library."},
    {"registered_files", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "files",
     "Files that are open and registered, two descriptors each."},
};
static_assert(sizeof kMetrics / sizeof *kMetrics ==
              kFileMetrics + size_t(ucm::ds3fs::kMediumMetrics));
static_assert(size_t(ucm::ds3fs::kMediumMetrics) <= ucm::files::kMediumMetrics);

class Ds3fsStore final : public FileStore {
  public:
    explicit Ds3fsStore(const ucm_open_args &args)
        : FileStore(args, {"Ds3fs", "ucm-ds3fs"}, medium(args)) {}

  private:
    static std::unique_ptr<Medium> medium(const ucm_open_args &args) {
        if (args.flags & UCM_OPEN_LOOKUP_ONLY) return std::make_unique<ucm::ds3fs::NoMedium>();
        const ucm::Values values(args);
        ucm::ds3fs::Settings settings;
        settings.library = values[kLibrary].s;
        settings.requests = size_t(values[kStreams].i);
        settings.ring_entries = size_t(values[kEntries].i);
        settings.numa = int(values[kNuma].i);
        settings.request_ms = values[kRequestMs].i;
        settings.zero_copy = values[kZeroCopy].i != 0;
        return std::make_unique<ucm::ds3fs::UsrbioMedium>(settings, values[kStorageBackends],
                                                          ucm::Logger(args.host, "Ds3fs"));
    }
};

}  // namespace

UCM_STORE_PLUGIN(Ds3fsStore, "Ds3fs", "0.1.0", "Keeps blocks as files in 3FS, past the kernel.", 0,
                 kOptions, kMetrics)
