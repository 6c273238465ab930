// SPDX-License-Identifier: MIT
#include "store.h"

#include <time.h>

#include <algorithm>
#include <cstring>

#include "buffers.h"
#include "clock.h"

namespace ucm::fault {
namespace {

constexpr int64_t kWatchNs = 20 * 1000000;  // between two looks at the control file
constexpr int64_t kIdleNs = 60ll * 1000000000;

std::vector<uint64_t> segments_of(const ucm_open_args &args) {
    if (!args.layout) return {};
    return {args.layout->segment_bytes, args.layout->segment_bytes + args.layout->n_segments};
}

void sleep_until(int64_t when_ns) {
    timespec until{};
    until.tv_sec = time_t(when_ns / 1000000000);
    until.tv_nsec = long(when_ns % 1000000000);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
    }
}

}  // namespace

// What happens to a shard, and what that needs of it.
struct Fate {
    Plan plan;
    uint64_t length = 0;               // dump
    std::vector<void *> addresses;     // load:flip
    std::unique_ptr<Mapping> altered;  // dump:flip
};

// One transfer from above, and the one that goes below for it.
struct Transfer {
    FaultStore *store;
    bool dump;
    void (*done)(void *, size_t, const ucm_result *);
    void (*finished)(void *);
    void *ctx;
    size_t n;
    std::vector<uint64_t> lengths;   // dump: of every shard
    std::map<size_t, Fate> fates;    // of those that a rule applies to
    std::vector<size_t> below;       // index here of each shard there; empty: the same
    std::atomic<size_t> holders{0};  // shards that have not ended, the lower finished, start
    std::shared_ptr<Transfer> self;  // until finished
    std::atomic<ucm_task> number{0};
};

FaultStore::FaultStore(const ucm_open_args &args)
    : log_(args.host, "Fault"),
      lower_(args.lower),
      lookup_only_((args.flags & UCM_OPEN_LOOKUP_ONLY) != 0),
      segments_(args.layout ? args.layout->n_segments : 0),
      segment_bytes_(segments_of(args)),
      capacity_(args.layout ? args.layout->capacity : 0),
      rules_(Values(args)[kFaultRules].s, Values(args)[kFaultControl].s,
             uint64_t(Values(args)[kFaultSeed].i)) {
    if (args.layout && args.layout->memory != UCM_MEMORY_HOST)
        throw Error(UCM_UNSUPPORTED, "Fault breaks host memory only; put Cache above it");
    refresh();
    if (!lookup_only_) thread_.start(1, "ucm-fault", [this] { hold_loop(); });
}

FaultStore::~FaultStore() {
    {
        std::lock_guard<std::mutex> hold(mutex_);
        stopping_ = true;
    }
    look_again();
    thread_.join();
}

void FaultStore::lower_layout(const ucm_layout_args &args, ucm_layout &out) {
    const ucm_layout &layout = *args.layout;
    out.flags = layout.flags;
    out.n_planes = layout.n_planes;
    out.plane_stride = layout.plane_stride;
    out.planes = layout.planes;
}

uint64_t FaultStore::capabilities() const {
    return lower_->capabilities & (UCM_CAPS_OF_DATA | UCM_CAP_REMOVE | UCM_CAP_CANCEL);
}

ucm_status FaultStore::closed(ucm_error *err) const {
    return closing_ ? ucm_fail(err, UCM_CLOSED, 0, "the store is closing") : UCM_OK;
}

void FaultStore::refresh() {
    std::string problem;
    const bool changed = rules_.refresh(&problem);
    if (!problem.empty()) log_.write(UCM_LOG_ERROR, "fault_control: %s", problem.c_str());
    if (!changed) return;
    log_.write(UCM_LOG_INFO, "fault_control: other rules from here on");
    look_again();
}

void FaultStore::look_again() {
    std::lock_guard<std::mutex> hold(mutex_);
    changed_ = true;
    wake_.notify_all();
}

ucm_status FaultStore::call(const Plan &plan, int64_t deadline_ns, ucm_error *err) {
    if (plan.delay_ms) {
        metrics_.add(kDelays, 1);
        const int64_t until_ns = deadline_after_ms(plan.delay_ms);
        sleep_until(deadline_ns ? std::min(until_ns, deadline_ns) : until_ns);
        if (deadline_ns && deadline_ns < until_ns)
            return ucm_fail(err, UCM_TIMEOUT, 0, "the deadline passed in an injected delay");
    }
    if (plan.status == UCM_OK) return UCM_OK;
    metrics_.add(kErrors, 1);
    return ucm_fail(err, plan.status, plan.error, "injected by fault_rules");
}

ucm_status FaultStore::lookup(const ucm_lookup_args &args, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    refresh();
    const Plan plan = rules_.next(Operation::kLookup);
    if (const ucm_status status = call(plan, args.deadline_ns, err)) return status;
    if (plan.hit || plan.miss) {
        metrics_.add(kLies, 1);
        if (args.hits) *args.hits = plan.hit ? args.n : 0;
        if (args.tiers) std::memset(args.tiers, plan.hit ? 2 : 0, args.n);
        return UCM_OK;
    }
    const ucm_status status = ucm_lookup(lower_, &args, err);
    if (status == UCM_OK && args.tiers)
        for (size_t i = 0; i < args.n; i++)
            if (args.tiers[i] != 0 && args.tiers[i] != UINT8_MAX) args.tiers[i]++;
    return status;
}

ucm_status FaultStore::prefetch(const ucm_ids_args &args, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    return ucm_prefetch(lower_, &args, err);
}

ucm_status FaultStore::touch(const ucm_ids_args &args, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    return ucm_touch(lower_, &args, err);
}

ucm_status FaultStore::remove(const ucm_ids_args &args, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    refresh();
    const Plan plan = rules_.next(Operation::kRemove);
    if (const ucm_status status = call(plan, args.deadline_ns, err)) return status;
    return ucm_remove(lower_, &args, err);
}

ucm_status FaultStore::register_memory(const ucm_memory_args &args, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    return ucm_register_memory(lower_, &args, err);
}

ucm_status FaultStore::drain(const ucm_wait_args &args, ucm_report &report, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    return ucm_drain(lower_, &args, &report, err);
}

ucm_status FaultStore::metrics(const ucm_metrics_args &args, ucm_error *) {
    return metrics_.copy(args);
}

ucm_status FaultStore::load(const ucm_transfer &t, ucm_task *task, ucm_error *err) {
    return start(false, t, task, err);
}

ucm_status FaultStore::dump(const ucm_transfer &t, ucm_task *task, ucm_error *err) {
    return start(true, t, task, err);
}

std::shared_ptr<Transfer> FaultStore::plan(bool dump, const ucm_transfer &t) {
    auto transfer = std::make_shared<Transfer>();
    transfer->store = this;
    transfer->dump = dump;
    transfer->done = t.done;
    transfer->finished = t.finished;
    transfer->ctx = t.ctx;
    transfer->n = t.n;
    if (dump && t.lengths) transfer->lengths.assign(t.lengths, t.lengths + t.n);
    bool all = true;
    for (size_t i = 0; i < t.n; i++) {
        const Plan plan = rules_.next(dump ? Operation::kDump : Operation::kLoad);
        if (plan.plain()) continue;
        Fate &fate = transfer->fates[i];
        fate.plan = plan;
        all = all && plan.status == UCM_OK;
        if (!plan.flip || plan.status != UCM_OK) continue;
        void *const *row = t.addresses + i * segments_;
        fate.addresses.assign(row, row + segments_);
        if (!dump) continue;
        fate.altered = std::make_unique<Mapping>(capacity_);
        uint64_t offset = 0, left = t.lengths ? t.lengths[i] : capacity_;
        if (left) metrics_.add(kFlips, 1);
        const uint64_t bit = plan.where % std::max<uint64_t>(left * 8, 1);
        for (size_t k = 0; k < segments_; offset += segment_bytes_[k++]) {
            const uint64_t part = std::min(left, segment_bytes_[k]);
            std::memcpy(fate.altered->base() + offset, row[k], part);
            fate.addresses[k] = fate.altered->base() + offset;
            left -= part;
        }
        fate.altered->base()[bit / 8] ^= uint8_t(1u << bit % 8);
    }
    for (size_t i = 0; !all && i < t.n; i++) {
        const auto found = transfer->fates.find(i);
        if (found == transfer->fates.end() || found->second.plan.status == UCM_OK)
            transfer->below.push_back(i);
    }
    return transfer;
}

// The arrays of what goes below, where they are not those from above.
struct Rows {
    std::vector<uint8_t> ids;
    std::vector<uint32_t> shards, depths;
    std::vector<void *> addresses;
    std::vector<uint64_t> lengths, raw_lengths;

    void take(const ucm_transfer &t, size_t i, size_t segments, void *const *row) {
        const uint8_t *id = t.block_ids + i * UCM_BLOCK_ID_BYTES;
        ids.insert(ids.end(), id, id + UCM_BLOCK_ID_BYTES);
        shards.push_back(t.shard_index[i]);
        addresses.insert(addresses.end(), row, row + segments);
        if (t.depths) depths.push_back(t.depths[i]);
        if (t.lengths) lengths.push_back(t.lengths[i]);
        if (t.raw_lengths) raw_lengths.push_back(t.raw_lengths[i]);
    }

    // Another transfer with these rows; `from` is of this version.
    ucm_transfer put(const ucm_transfer &from) const {
        ucm_transfer t{};
        t.struct_size = sizeof t;
        t.flags = from.flags;
        t.n = shards.size();
        t.block_ids = ids.data();
        t.shard_index = shards.data();
        t.addresses = addresses.data();
        if (from.depths) t.depths = depths.data();
        if (from.lengths) t.lengths = lengths.data();
        if (from.raw_lengths) t.raw_lengths = raw_lengths.data();
        t.event = from.event;
        t.tag = from.tag;
        t.priority = from.priority;
        t.deadline_ns = from.deadline_ns;
        return t;
    }
};

ucm_status FaultStore::start(bool dump, const ucm_transfer &given, ucm_task *task, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    refresh();
    if (rules_.busy(dump ? Operation::kDump : Operation::kLoad)) {
        metrics_.add(kBusyRefusals, 1);
        return ucm_fail(err, UCM_BUSY, 0, "injected by fault_rules");
    }
    ucm_transfer t;
    ucm_copy(&t, sizeof t, &given);
    const auto transfer = plan(dump, t);
    const auto &fates = transfer->fates;
    Rows rows;
    if (!fates.empty()) {
        for (size_t i = 0; i < t.n; i++) {
            const auto found = fates.find(i);
            if (found != fates.end() && found->second.plan.status != UCM_OK) continue;
            const bool altered = found != fates.end() && found->second.altered;
            rows.take(t, i, segments_,
                      altered ? found->second.addresses.data() : t.addresses + i * segments_);
        }
        t = rows.put(t);
    }
    t.done = on_done;
    t.finished = on_finished;
    t.ctx = transfer.get();
    transfer->holders = transfer->n + 2;
    transfer->self = transfer;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        running_++;
    }
    ucm_task number = 0;
    if (!task) task = &number;
    const ucm_status status =
        dump ? ucm_dump(lower_, &t, task, err) : ucm_load(lower_, &t, task, err);
    if (status != UCM_OK) {
        transfer->self.reset();
        std::lock_guard<std::mutex> hold(mutex_);
        running_--;
        idle_.notify_all();
        return status;
    }
    transfer->number = *task;
    for (const auto &[i, fate] : fates)
        if (fate.plan.status != UCM_OK) {
            metrics_.add(kErrors, 1);
            ended(transfer, i, result(fate.plan.status, 0, fate.plan.error));
        }
    drop(*transfer);
    return UCM_OK;
}

ucm_status FaultStore::cancel(ucm_task task, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    const ucm_status status = ucm_cancel(lower_, task, err);
    if (status != UCM_NOT_FOUND) return status;
    std::lock_guard<std::mutex> hold(mutex_);
    for (const auto &[due_ns, held] : held_)
        if (held.transfer->number == task) return UCM_OK;  // it ends as it would have
    return status;
}

void FaultStore::on_done(void *ctx, size_t i, const ucm_result *given) {
    auto *transfer = static_cast<Transfer *>(ctx);
    ucm_result result;
    ucm_copy(&result, sizeof result, given);
    const size_t index = transfer->below.empty() ? i : transfer->below[i];
    transfer->store->ended(transfer->self, index, result);
}

void FaultStore::on_finished(void *ctx) {
    auto *transfer = static_cast<Transfer *>(ctx);
    transfer->store->drop(*transfer);
}

void FaultStore::ended(const std::shared_ptr<Transfer> &transfer, size_t i, ucm_result result) {
    const auto found = transfer->fates.find(i);
    if (found == transfer->fates.end()) return give(transfer, i, result);
    const Fate &fate = found->second;
    const Plan &plan = fate.plan;
    if (plan.flip && !transfer->dump && result.status == UCM_OK && result.length) {
        uint64_t bit = plan.where % (result.length * 8);
        size_t k = 0;
        while (bit / 8 >= segment_bytes_[k]) bit -= segment_bytes_[k++] * 8;
        static_cast<uint8_t *>(fate.addresses[k])[bit / 8] ^= uint8_t(1u << bit % 8);
        metrics_.add(kFlips, 1);
    }
    if (plan.shorten && result.status == UCM_OK && result.length) {
        result.length = plan.bytes < result.length ? plan.bytes : result.length / 2;
        metrics_.add(kShortReads, 1);
    }
    if (!plan.delay_ms) return give(transfer, i, result);
    metrics_.add(plan.hang ? kHangs : kDelays, 1);
    metrics_.add(kHeldShards, 1);
    {
        std::lock_guard<std::mutex> hold(mutex_);
        held_.emplace(deadline_after_ms(plan.delay_ms),
                      Held{transfer, i, result, plan.hang, plan.version});
    }
    look_again();
}

void FaultStore::give(const std::shared_ptr<Transfer> &transfer, size_t i,
                      const ucm_result &result) {
    const bool dump = transfer->dump;
    if (result.status == UCM_OK) {
        uint64_t bytes = result.length;
        if (dump) bytes = transfer->lengths.empty() ? capacity_ : transfer->lengths[i];
        metrics_.add(dump ? kDumpShards : kLoadShards, 1);
        metrics_.add(dump ? kDumpBytes : kLoadBytes, bytes);
        metrics_.add(dump ? kDumpOutBytes : kLoadInBytes, bytes);
    } else if (result.status != UCM_NOT_FOUND) {
        metrics_.add(kFailedShards, 1);
    }
    transfer->done(transfer->ctx, i, &result);
    drop(*transfer);
}

// The last one ends the transfer.
void FaultStore::drop(Transfer &transfer) {
    if (transfer.holders.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const std::shared_ptr<Transfer> last = std::move(transfer.self);  // freed after the lock
    last->finished(last->ctx);
    std::lock_guard<std::mutex> hold(mutex_);
    running_--;
    // Under the lock: close may delete this store as soon as it is released.
    idle_.notify_all();
}

void FaultStore::hold_loop() {
    std::unique_lock<std::mutex> hold(mutex_);
    while (!stopping_) {
        changed_ = false;
        hold.unlock();
        if (rules_.watches()) refresh();
        const int64_t due_ns = let_go();
        hold.lock();
        int64_t wait_ns = std::clamp<int64_t>(due_ns - monotonic_ns(), 0, kIdleNs);
        if (rules_.watches() && !held_.empty()) wait_ns = std::min(wait_ns, kWatchNs);
        wake_.wait_for(hold, std::chrono::nanoseconds(wait_ns), [&] { return changed_; });
    }
}

// Ends what is due; returns when the next one will be.
int64_t FaultStore::let_go() {
    for (;;) {
        Held held;
        {
            std::lock_guard<std::mutex> hold(mutex_);
            const int64_t now_ns = monotonic_ns();
            const uint64_t version = rules_.version();
            const auto next = std::find_if(held_.begin(), held_.end(), [&](const auto &each) {
                const bool other_rules = each.second.hangs && each.second.version != version;
                return closing_ || other_rules || each.first <= now_ns;
            });
            if (next == held_.end()) return held_.empty() ? INT64_MAX : held_.begin()->first;
            held = std::move(next->second);
            held_.erase(next);
        }
        metrics_.add(kHeldShards, uint64_t(-1));
        if (held.hangs && closing_) held.result = result(UCM_CANCELLED);
        give(held.transfer, held.i, held.result);
    }
}

ucm_status FaultStore::close(const ucm_wait_args &args, ucm_report &report, ucm_error *) {
    const int64_t until_ns = deadline_after_ms(args.timeout_ms);
    report.stored = report.lost = report.pending = report.unfinished = 0;
    closing_ = true;
    look_again();
    std::unique_lock<std::mutex> hold(mutex_);
    while (running_ != 0) {
        const int64_t left = until_ns == INT64_MAX ? 1000000000 : until_ns - monotonic_ns();
        if (left <= 0) return UCM_PENDING;
        idle_.wait_for(hold, std::chrono::nanoseconds(std::min<int64_t>(left, 1000000000)));
    }
    return UCM_OK;
}

}  // namespace ucm::fault
