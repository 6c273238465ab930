// SPDX-License-Identifier: MIT
#include <algorithm>

#include "metrics.h"
#include "ucm/store_v1.hpp"

namespace {

const ucm_metric kMetrics[] = {UCM_STANDARD_METRICS};

// Takes every dump, finds nothing. Answers inside the call: what is above it shows its own cost.
class Empty final : public ucm::Store {
  public:
    explicit Empty(const ucm_open_args &args)
        : capacity_(args.layout ? args.layout->capacity : 0) {}

    uint64_t capabilities() const override { return UCM_CAP_REMOVE; }

    ucm_status lookup(const ucm_lookup_args &args, ucm_error *) override {
        if (args.hits) *args.hits = 0;
        if (args.tiers) std::fill_n(args.tiers, args.n, uint8_t(0));
        return UCM_OK;
    }

    ucm_status load(const ucm_transfer &t, ucm_task *task, ucm_error *) override {
        answer(t, task, ucm::result(UCM_NOT_FOUND));
        return UCM_OK;
    }

    ucm_status dump(const ucm_transfer &t, ucm_task *task, ucm_error *) override {
        uint64_t bytes = t.lengths ? 0 : t.n * capacity_;
        for (size_t i = 0; t.lengths && i < t.n; i++) bytes += t.lengths[i];
        metrics_.add(ucm::kDumpShards, t.n);
        metrics_.add(ucm::kDumpBytes, bytes);
        answer(t, task, ucm::result(UCM_OK));
        return UCM_OK;
    }

    ucm_status remove(const ucm_ids_args &, ucm_error *) override { return UCM_OK; }

    ucm_status drain(const ucm_wait_args &, ucm_report &report, ucm_error *) override {
        return nothing(report);
    }

    ucm_status metrics(const ucm_metrics_args &args, ucm_error *) override {
        return metrics_.copy(args);
    }

    ucm_status close(const ucm_wait_args &, ucm_report &report, ucm_error *) override {
        return nothing(report);
    }

  private:
    static void answer(const ucm_transfer &t, ucm_task *task, const ucm_result &result) {
        if (task) *task = 0;
        for (size_t i = 0; i < t.n; i++) t.done(t.ctx, i, &result);
        t.finished(t.ctx);
    }

    // What is not kept is neither stored nor lost.
    static ucm_status nothing(ucm_report &report) {
        report.stored = report.lost = report.pending = report.unfinished = 0;
        return UCM_OK;
    }

    const uint64_t capacity_;
    ucm::Metrics<ucm::kStandardMetrics> metrics_;
};

}  // namespace

UCM_STORE_PLUGIN(Empty, "Empty", "0.1.0", "Accepts every dump and keeps nothing.", 0, nullptr,
                 kMetrics)
