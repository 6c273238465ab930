// SPDX-License-Identifier: MIT
//
// A dump is cut into batches. A thread seals a batch into its buffer and hands that down; a load
// goes down first, and a thread opens what has arrived. Nothing is sealed or opened inside a
// callback.
#include "store.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace encrypt {
namespace {

constexpr size_t kBatchShards = 16, kQueuedShards = 65536, kSpoilt = 4096;
constexpr uint64_t kBatchBytes = 8u << 20, kMostSegment = 1u << 30;
constexpr auto kBusyPause = std::chrono::milliseconds(2);

uint64_t whole_pages(uint64_t bytes) {
    return (bytes + UCM_ALIGNMENT - 1) / UCM_ALIGNMENT * UCM_ALIGNMENT;
}

bool lookup_only(const ucm_open_args &args) {
    return (args.flags & UCM_OPEN_LOOKUP_ONLY) != 0;
}

int64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

std::string text_of(const uint8_t *ids, size_t i) {
    return {reinterpret_cast<const char *>(ids) + i * UCM_BLOCK_ID_BYTES, UCM_BLOCK_ID_BYTES};
}

// What is kept of a transfer beyond its call, arrays apart, which are copied one by one.
ucm_transfer kept(const ucm_transfer &given) {
    ucm_transfer t{};
    t.struct_size = sizeof t;
    t.flags = given.flags;
    t.n = given.n;
    t.done = given.done;
    t.finished = given.finished;
    t.ctx = given.ctx;
    t.event = given.event;
    t.tag = given.tag;
    t.priority = given.priority;
    t.deadline_ns = given.deadline_ns;
    return t;
}

Sealer sealer_of(const ucm::Values &values) {
    return Sealer::from(values[kKeyFile].s, values[kKeyEnv].s, values[kTenant].s);
}

}  // namespace

struct Transfer {
    ucm_transfer given{};
    bool dump = false;
    std::vector<uint8_t> ids;
    std::vector<uint32_t> shards, depths;
    std::vector<void *> addresses;
    std::vector<uint64_t> lengths, raw_lengths;
    uint64_t number = 0;             // of a dump
    size_t taken = 0;                // shards that are in batches
    std::atomic<size_t> holders{1};  // shards that have not ended, and whoever cuts it up
};

struct Batch {
    explicit Batch(EncryptStore *owner) : store(owner) {}

    EncryptStore *store;
    std::shared_ptr<Transfer> transfer;
    std::unique_ptr<uint8_t, decltype(&::free)> buffer{nullptr, ::free};
    std::vector<size_t> index;  // in the transfer, of each row of the buffer that goes below
    std::vector<ucm_result> results;
    std::vector<uint8_t> ids;
    std::vector<uint32_t> shards, depths;
    std::vector<void *> rows;
    std::vector<uint64_t> lengths, raw_lengths;
    uint64_t flags = 0;

    uint8_t *row(size_t k, uint64_t row_bytes) const { return buffer.get() + k * row_bytes; }
};

void EncryptStore::lower_layout(const ucm_layout_args &args, ucm_layout &out) {
    const ucm_layout &layout = *args.layout;
    if (args.segments_room < 1) throw ucm::Error(UCM_INVALID, "segments_room must be at least 1");
    out.flags = UCM_LAYOUT_PAGES;
    out.n_segments = 1;
    out.segment_bytes = args.segment_bytes;
    out.capacity = args.segment_bytes[0] = layout.capacity + kSealBytes;
    const size_t used = strnlen(layout.encoding, sizeof layout.encoding);
    const std::string mine =
        (used ? "+aesgcm.1-" : "aesgcm.1-") + sealer_of(ucm::Values(args)).fingerprint();
    if (used + mine.size() >= sizeof layout.encoding)
        throw ucm::Error(UCM_UNSUPPORTED, "too many layers that encode: no room for " + mine);
    std::memcpy(out.encoding + used, mine.data(), mine.size());
}

EncryptStore::EncryptStore(const ucm_open_args &args)
    : host_(args.host), lower_(args.lower), sealer_(sealer_of(ucm::Values(args))) {
    if (lookup_only(args)) return;
    const ucm_layout &layout = *args.layout;
    if (layout.memory != UCM_MEMORY_HOST)
        throw ucm::Error(UCM_UNSUPPORTED, "Encrypt seals host memory only; put Cache above it");
    segments_.assign(layout.segment_bytes, layout.segment_bytes + layout.n_segments);
    if (*std::max_element(segments_.begin(), segments_.end()) > kMostSegment)
        throw ucm::Error(UCM_UNSUPPORTED, "a segment is longer than 1 GiB");
    capacity_ = layout.capacity;
    row_bytes_ = whole_pages(args.lower_layout->capacity);
    const size_t rows = std::clamp<size_t>(kBatchBytes / row_bytes_, 1, kBatchShards);
    const size_t threads = size_t(ucm::Values(args)[kThreads].i);
    for (size_t i = 0; i < 2 * threads; i++) {
        batches_.push_back(std::make_unique<Batch>(this));
        Batch &batch = *batches_.back();
        batch.buffer.reset(
            static_cast<uint8_t *>(::aligned_alloc(UCM_ALIGNMENT, rows * row_bytes_)));
        if (!batch.buffer) throw std::bad_alloc();
        std::memset(batch.buffer.get(), 0, rows * row_bytes_);
        batch.results.resize(rows);
        free_.push_back(&batch);
    }
    sigset_t all, old;
    sigfillset(&all);  // threads of a plugin block all signals but those of a crash
    for (const int crash : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&all, crash);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (size_t i = 0; i < threads; i++) threads_.emplace_back([this] { work(); });
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
    for (auto &thread : threads_) pthread_setname_np(thread.native_handle(), "ucm-encrypt");
}

EncryptStore::~EncryptStore() {
    {
        std::lock_guard<std::mutex> hold(mutex_);
        stopping_ = true;
        wake_.notify_all();
    }
    for (auto &thread : threads_) thread.join();
}

uint64_t EncryptStore::capabilities() const {
    return (lower_->capabilities & (UCM_CAPS_OF_DATA | UCM_CAP_REMOVE)) | UCM_CAP_VERIFIES;
}

ucm_status EncryptStore::lookup(const ucm_lookup_args &args, ucm_error *err) {
    const ucm_status status = ucm_lookup(lower_, &args, err);
    if (status == UCM_OK && args.tiers)
        for (size_t i = 0; i < args.n; i++)
            if (args.tiers[i] != 0 && args.tiers[i] != UINT8_MAX) args.tiers[i]++;
    return status;
}

ucm_status EncryptStore::prefetch(const ucm_ids_args &args, ucm_error *err) {
    return ucm_prefetch(lower_, &args, err);
}

ucm_status EncryptStore::touch(const ucm_ids_args &args, ucm_error *err) {
    return ucm_touch(lower_, &args, err);
}

ucm_status EncryptStore::remove(const ucm_ids_args &args, ucm_error *err) {
    // What is queued here must not bring a block back.
    {
        std::unique_lock<std::mutex> hold(mutex_);
        std::set<std::string> wanted;
        for (size_t i = 0; i < args.n; i++) wanted.insert(text_of(args.block_ids, i));
        const auto of_these = [&](const Transfer &transfer) {
            for (size_t k = 0; transfer.dump && k < transfer.shards.size(); k++)
                if (wanted.count(text_of(transfer.ids.data(), k))) return true;
            return false;
        };
        const auto busy = [&] {
            for (const auto &transfer : waiting_)
                if (of_these(*transfer)) return true;
            for (const auto &batch : batches_)
                if (batch->transfer && of_these(*batch->transfer)) return true;
            return false;
        };
        while (busy()) {
            if (args.deadline_ns && now_ns() > args.deadline_ns)
                return ucm_fail(err, UCM_TIMEOUT, 0, "a dump of these blocks still runs");
            idle_.wait_for(hold, kBusyPause);
        }
    }
    return ucm_remove(lower_, &args, err);
}

ucm_status EncryptStore::load(const ucm_transfer &t, ucm_task *task, ucm_error *err) {
    return accept(false, t, task, err);
}

ucm_status EncryptStore::dump(const ucm_transfer &t, ucm_task *task, ucm_error *err) {
    return accept(true, t, task, err);
}

ucm_status EncryptStore::accept(bool dump, const ucm_transfer &given, ucm_task *task,
                                ucm_error *err) {
    auto transfer = std::make_shared<Transfer>();
    transfer->given = kept(given);
    const ucm_transfer &t = given;
    const size_t n = t.n;
    transfer->dump = dump;
    transfer->ids.assign(t.block_ids, t.block_ids + n * UCM_BLOCK_ID_BYTES);
    transfer->shards.assign(t.shard_index, t.shard_index + n);
    transfer->addresses.assign(t.addresses, t.addresses + n * segments_.size());
    if (t.depths) transfer->depths.assign(t.depths, t.depths + n);
    if (dump) {
        transfer->lengths.assign(n, capacity_);
        if (t.lengths) transfer->lengths.assign(t.lengths, t.lengths + n);
        transfer->raw_lengths = transfer->lengths;
        if (t.raw_lengths) transfer->raw_lengths.assign(t.raw_lengths, t.raw_lengths + n);
    }
    transfer->holders = n + 1;
    if (task) *task = 0;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        if (closing_) return ucm_fail(err, UCM_CLOSED, 0, "the store is closing");
        if (queued_shards_ > 0 && queued_shards_ + n > kQueuedShards)
            return ucm_fail(err, UCM_BUSY, 0, "Encrypt has as many shards as it takes");
        queued_shards_ += n;
        transfers_++;
        if (dump) dumps_.insert(transfer->number = ++number_);
        if (n > 0) waiting_.push_back(transfer);
        wake_.notify_one();
    }
    if (n == 0) let_go(*transfer);
    return UCM_OK;
}

void EncryptStore::work() {
    std::unique_lock<std::mutex> hold(mutex_);
    for (;;) {
        if (next(hold)) continue;
        if (stopping_) return;
        if (refused_.empty())
            wake_.wait(hold);
        else
            wake_.wait_for(hold, kBusyPause);
    }
}

// Does one thing, without the lock; false: there is none.
bool EncryptStore::next(std::unique_lock<std::mutex> &hold) {
    Batch *batch = nullptr;
    void (EncryptStore::*step)(Batch &) = nullptr;
    std::shared_ptr<Transfer> cut;
    if (!arrived_.empty()) {
        batch = arrived_.back();
        arrived_.pop_back();
        step = &EncryptStore::open_all;
    } else if (!refused_.empty()) {
        batch = refused_.back();
        refused_.pop_back();
        step = &EncryptStore::submit;
    } else if (!waiting_.empty() && !free_.empty()) {
        batch = free_.back();
        free_.pop_back();
        batch->transfer = waiting_.front();
        Transfer &transfer = *batch->transfer;
        const size_t most =
            std::min(batch->results.size(), transfer.shards.size() - transfer.taken);
        batch->index.resize(most);
        for (size_t &i : batch->index) i = transfer.taken++;
        if (transfer.taken == transfer.shards.size()) {
            cut = waiting_.front();
            waiting_.pop_front();
        }
        step = &EncryptStore::start;
    }
    if (!batch) return false;
    hold.unlock();
    const bool again = step == &EncryptStore::submit;
    (this->*step)(*batch);
    if (cut) let_go(*cut);
    hold.lock();
    // What was refused once more waits a little.
    return !again || refused_.empty();
}

std::vector<Piece> EncryptStore::pieces(const Transfer &transfer, size_t i, uint64_t bytes) const {
    std::vector<Piece> answer;
    for (size_t k = 0; k < segments_.size() && bytes > 0; k++) {
        const uint64_t part = std::min(bytes, segments_[k]);
        answer.push_back({transfer.addresses[i * segments_.size() + k], size_t(part)});
        bytes -= part;
    }
    return answer;
}

// Seals what is dumped, and makes the arrays for below.
void EncryptStore::start(Batch &batch) {
    Transfer &transfer = *batch.transfer;
    const ucm_transfer &t = transfer.given;
    batch.flags = t.flags;
    batch.ids.clear(), batch.shards.clear(), batch.depths.clear(), batch.rows.clear();
    batch.lengths.clear(), batch.raw_lengths.clear();
    const std::vector<size_t> wanted = std::move(batch.index);
    batch.index.clear();
    for (const size_t i : wanted) {
        const uint8_t *id = transfer.ids.data() + i * UCM_BLOCK_ID_BYTES;
        uint8_t *row = batch.row(batch.index.size(), row_bytes_);
        if (t.deadline_ns && now_ns() > t.deadline_ns) {
            give(transfer, i, ucm::result(UCM_TIMEOUT));
            continue;
        }
        if (transfer.dump) {
            const uint64_t length = transfer.lengths[i];
            if (!sealer_.seal({id, transfer.shards[i]}, pieces(transfer, i, length), row)) {
                give(transfer, i, ucm::result(UCM_INTERNAL));
                continue;
            }
            counters_[kSealedBytes] += length;
            batch.lengths.push_back(length + kSealBytes);
            batch.raw_lengths.push_back(transfer.raw_lengths[i]);
            std::lock_guard<std::mutex> hold(mutex_);
            if (spoilt_.count(text_of(id, 0))) batch.flags |= UCM_TRANSFER_REPLACE;
        }
        batch.index.push_back(i);
        batch.ids.insert(batch.ids.end(), id, id + UCM_BLOCK_ID_BYTES);
        batch.shards.push_back(transfer.shards[i]);
        batch.rows.push_back(row);
        if (!transfer.depths.empty()) batch.depths.push_back(transfer.depths[i]);
    }
    if (batch.index.empty()) return release(batch);
    submit(batch);
}

void EncryptStore::submit(Batch &batch) {
    const Transfer &transfer = *batch.transfer;
    ucm_transfer t = kept(transfer.given);
    t.flags = batch.flags;
    t.n = batch.index.size();
    t.block_ids = batch.ids.data();
    t.shard_index = batch.shards.data();
    t.addresses = batch.rows.data();
    t.lengths = transfer.dump ? batch.lengths.data() : nullptr;
    t.raw_lengths = transfer.dump ? batch.raw_lengths.data() : nullptr;
    t.depths = batch.depths.empty() ? nullptr : batch.depths.data();
    t.done = on_done;
    t.finished = on_finished;
    t.ctx = &batch;
    ucm_error error{};
    error.struct_size = sizeof error;
    const ucm_status status = transfer.dump ? ucm_dump(lower_, &t, nullptr, &error)
                                            : ucm_load(lower_, &t, nullptr, &error);
    if (status == UCM_OK) return;
    if (status == UCM_BUSY) {
        std::lock_guard<std::mutex> hold(mutex_);
        refused_.push_back(&batch);
        return;
    }
    host_->log(host_->ctx, UCM_LOG_WARN, "Encrypt", error.message);
    for (const size_t i : batch.index)
        give(*batch.transfer, i, ucm::result(status, 0, error.os_errno));
    release(batch);
}

void EncryptStore::on_done(void *ctx, size_t k, const ucm_result *given) {
    Batch &batch = *static_cast<Batch *>(ctx);
    ucm_copy(&batch.results[k], sizeof(ucm_result), given);
    batch.results[k].flags &= UCM_RESULT_PUBLISHED | UCM_RESULT_DECLINED;
    // Of a dump the memory was copied long ago: the result is all that is waited for.
    if (batch.transfer->dump) batch.store->give(*batch.transfer, batch.index[k], batch.results[k]);
}

void EncryptStore::on_finished(void *ctx) {
    Batch &batch = *static_cast<Batch *>(ctx);
    EncryptStore &store = *batch.store;
    if (batch.transfer->dump) return store.release(batch);
    std::lock_guard<std::mutex> hold(store.mutex_);
    store.arrived_.push_back(&batch);
    store.wake_.notify_one();
}

void EncryptStore::open_all(Batch &batch) {
    Transfer &transfer = *batch.transfer;
    for (size_t k = 0; k < batch.index.size(); k++) {
        const size_t i = batch.index[k];
        ucm_result result = batch.results[k];
        result.flags = 0;  // they are about the sealed bytes
        if (result.status == UCM_OK) {
            const uint64_t sealed = result.length;
            const uint8_t *id = batch.ids.data() + k * UCM_BLOCK_ID_BYTES;
            result.length = sealed < kSealBytes ? 0 : sealed - kSealBytes;
            if (sealed > capacity_ + kSealBytes ||
                !sealer_.open({id, transfer.shards[i]}, batch.row(k, row_bytes_), sealed,
                              pieces(transfer, i, result.length))) {
                counters_[kRefusedShards]++;
                result = ucm::result(UCM_CORRUPT);
                std::lock_guard<std::mutex> hold(mutex_);
                if (spoilt_.size() == kSpoilt) spoilt_.erase(spoilt_.begin());
                spoilt_.insert(text_of(id, 0));
            } else {
                counters_[kOpenedBytes] += result.length;
            }
        }
        give(transfer, i, result);
    }
    release(batch);
}

void EncryptStore::release(Batch &batch) {
    std::shared_ptr<Transfer> last;  // freed after the lock
    std::lock_guard<std::mutex> hold(mutex_);
    last = std::move(batch.transfer);
    free_.push_back(&batch);
    wake_.notify_one();
    idle_.notify_all();
}

void EncryptStore::give(Transfer &transfer, size_t i, const ucm_result &result) {
    if (result.status == UCM_OK && (result.flags & UCM_RESULT_PUBLISHED)) {
        std::lock_guard<std::mutex> hold(mutex_);
        spoilt_.erase(text_of(transfer.ids.data(), i));
    }
    transfer.given.done(transfer.given.ctx, i, &result);
    let_go(transfer);
}

// The last one ends the transfer. Its room in the queue is free before that is told.
void EncryptStore::let_go(Transfer &transfer) {
    if (transfer.holders.fetch_sub(1) != 1) return;
    const ucm_transfer given = transfer.given;
    const uint64_t number = transfer.number;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        queued_shards_ -= given.n;
    }
    given.finished(given.ctx);
    std::lock_guard<std::mutex> hold(mutex_);
    transfers_--;
    dumps_.erase(number);
    idle_.notify_all();
}

ucm_status EncryptStore::drain(const ucm_wait_args &args, ucm_report &report, ucm_error *err) {
    const int64_t start_ns = now_ns();
    ucm_wait_args left;
    uint64_t pending = 0;
    {
        std::unique_lock<std::mutex> hold(mutex_);
        const uint64_t last = number_;
        const auto ended = [&] { return dumps_.empty() || *dumps_.begin() > last; };
        if (args.timeout_ms < 0)
            idle_.wait(hold, ended);
        else if (!idle_.wait_for(hold, std::chrono::milliseconds(args.timeout_ms), ended))
            pending = uint64_t(std::distance(dumps_.begin(), dumps_.upper_bound(last)));
    }
    ucm_copy(&left, sizeof left, &args);
    if (args.timeout_ms > 0)
        left.timeout_ms = std::max<int64_t>(0, args.timeout_ms - (now_ns() - start_ns) / 1000000);
    const ucm_status status = ucm_drain(lower_, &left, &report, err);
    report.pending += pending;
    return status == UCM_OK && pending > 0 ? UCM_PENDING : status;
}

ucm_status EncryptStore::metrics(const ucm_metrics_args &args, ucm_error *) {
    for (size_t i = 0; i < std::min<size_t>(args.n, kMetrics); i++)
        args.values[i] = counters_[i].load();
    return UCM_OK;
}

ucm_status EncryptStore::close(const ucm_wait_args &args, ucm_report &report, ucm_error *) {
    report.stored = report.lost = report.pending = report.unfinished = 0;
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(args.timeout_ms);
    std::unique_lock<std::mutex> hold(mutex_);
    closing_ = true;
    const auto idle = [&] { return transfers_ == 0 && free_.size() == batches_.size(); };
    if (args.timeout_ms < 0)
        idle_.wait(hold, idle);
    else if (!idle_.wait_until(hold, until, idle))
        return UCM_PENDING;
    return UCM_OK;
}

}  // namespace encrypt
