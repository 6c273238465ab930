// SPDX-License-Identifier: MIT
#pragma once

#include <optional>

#include "dumper.h"

namespace ucm::files {

// Adds the shards of one job to the draft of their block, and publishes it when it is whole. What
// is rare is done by system calls of the thread itself.
class DumpRun {
  public:
    DumpRun(Context &context, Dumper &dumper, Ledger &ledger, Scratch &scratch)
        : context_(context), dumper_(dumper), ledger_(ledger), scratch_(scratch) {}

    // See Lane. Takes the next job of this block.
    bool begin(BlockId &id);
    bool resume();
    Io &io() { return io_; }
    void refuse(BlockId &id);

  private:
    enum class Stage { kPayload, kHeader, kSync };

    template <typename Step>
    bool guarded(Step step);
    bool break_off(ucm_status status, int error, const char *why);
    bool take(const BlockId &id);
    bool start();
    bool begin_draft(Directory &directory);
    bool admitted(Directory &directory);
    void choose();
    int open_temporary();
    int make_temporary();
    bool next_payload();
    void next_run();
    bool whole_in_run() const;
    int reserve();
    void was_full();
    void took_payload();
    bool settle();
    bool put_aside();
    void encode_header();
    bool after_header();
    bool sync();
    bool publish(int error);
    int put_in_place(const struct stat &mine);
    int make_lasting(OpenBlock &block);
    ucm_status refused() const;
    void fail(const std::vector<size_t> &which, ucm_status status, int error);
    bool end();

    Context &context_;
    Dumper &dumper_;
    Ledger &ledger_;
    Scratch &scratch_;
    Io io_;

    // Of the job that runs. Shards go by their number within it.
    BlockId id_{};
    Job job_;
    Dumper::Block *block_ = nullptr;
    std::optional<File> file_;
    Stage stage_ = Stage::kPayload;
    std::vector<ucm_result> results_;               // UCM_PENDING: not decided
    std::vector<size_t> fresh_;                     // not in the draft yet
    std::vector<std::pair<size_t, size_t>> twins_;  // of a fresh one in this job
    std::vector<size_t> written_;
    size_t from_ = 0;            // in fresh_: the first of the run on its way
    std::vector<Placed> run_;    // on their way
    std::vector<size_t> which_;  // the same shards, by number
    bool sealed_ = false;        // the run has the header in front of it
    bool abandoned_ = false;
    bool ending_ = false;  // the shards are being told
};

}  // namespace ucm::files
