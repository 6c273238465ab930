// SPDX-License-Identifier: MIT
#include "engines.h"
#include "files/store.h"

namespace {

using namespace ucm::files;

enum Option { kIoDirect = kFileOptions, kIoEngine, kConcurrency, kZeroCopy };

const ucm_option kOptions[] = {
#include "files/options.inc"
    {"io_direct", UCM_TYPE_BOOL, 0, "false", nullptr, nullptr,
     "Use O_DIRECT, past the page cache, where the file system can."},
    {"posix_io_engine", UCM_TYPE_STRING, 0, "psync", "psync|aio|io_uring|auto", nullptr,
     "How reads and writes are made: psync is preadv and pwritev on threads; auto tries."},
    {"posix_data_trans_concurrency", UCM_TYPE_INT, 0, "8", "1..256", "requests",
     "Reads under way at once, and as many writes; with psync each has a thread."},
    {"posix_zero_copy", UCM_TYPE_BOOL, 0, "false", nullptr, nullptr,
     "With io_direct, move aligned memory without buffers in huge pages; registered memory always "
     "is."},
};

const ucm_metric kMetrics[] = {
    UCM_STANDARD_METRICS,
#include "files/metrics.inc"
};
static_assert(sizeof kMetrics / sizeof *kMetrics == kFileMetrics);

class PosixStore final : public FileStore {
  public:
    explicit PosixStore(const ucm_open_args &args)
        : FileStore(args, use(ucm::Values(args)), medium(ucm::Values(args))) {}

  private:
    static FileUse use(const ucm::Values &values) {
        return {"Posix", "ucm-posix", values[kIoDirect].i != 0,
                values[kZeroCopy].i != 0 || !huge_pages()};
    }
    static std::unique_ptr<Medium> medium(const ucm::Values &values) {
        return std::make_unique<ucm::posix::PosixMedium>(
            values[kIoEngine].s, size_t(values[kConcurrency].i), values[kIoDirect].i != 0);
    }
};

}  // namespace

UCM_STORE_PLUGIN(PosixStore, "Posix", "0.1.0", "Keeps blocks as files in directories.", 0, kOptions,
                 kMetrics)
