// SPDX-License-Identifier: MIT
#include "store.h"

#include <algorithm>
#include <cstring>

#include "failpoint.h"
#include "measure.h"

namespace ucm::compress {

namespace {

constexpr char kEncoding[] = "ucmz.3";
constexpr uint64_t kPoolBytes = 64ull << 20;  // of each direction
constexpr size_t kMaxBuffers = 1024, kMaxPieces = 128, kMaxPieceShards = 64;
constexpr uint64_t kQueueShards = 65536, kQueueBytes = 1ull << 30;
constexpr size_t kMaxSuspects = 4096;
constexpr int64_t kRetryNs = 2000000, kSweepNs = 50000000;

// Is there a shard that comes twice?
bool has_twins(const Task &task) {
    std::vector<std::pair<BlockId, uint32_t>> names;
    names.reserve(task.n());
    for (size_t i = 0; i < task.n(); i++) names.emplace_back(task.id(i), task.shard(i));
    auto less = [](const auto &a, const auto &b) {
        const int order = std::memcmp(a.first.bytes, b.first.bytes, sizeof a.first.bytes);
        return order != 0 ? order < 0 : a.second < b.second;
    };
    std::sort(names.begin(), names.end(), less);
    return std::adjacent_find(names.begin(), names.end()) != names.end();
}

int dtype_named(const std::string &name, const ucm_layout &layout) {
    for (uint32_t i = 0; name == "fp8" && i < layout.n_planes; i++)
        if (UCM_AT(ucm_plane, layout.planes, layout.plane_stride, i)->dtype == UCM_DTYPE_FP8_E5M2)
            return UCM_DTYPE_FP8_E5M2;
    return name == "bf16"   ? UCM_DTYPE_BF16
           : name == "fp16" ? UCM_DTYPE_FP16
           : name == "fp32" ? UCM_DTYPE_FP32
           : name == "fp8"  ? UCM_DTYPE_FP8_E4M3
                            : UCM_DTYPE_BYTES;
}

Name name_of(const Task &task, size_t i) {
    Name name{{}, task.shard(i)};
    std::memcpy(name.block_id, task.id(i).bytes, sizeof name.block_id);
    return name;
}

std::unordered_set<BlockId, BlockIdHash> set_of(const ucm_ids_args &args) {
    std::unordered_set<BlockId, BlockIdHash> ids;
    for (size_t i = 0; i < args.n; i++) ids.insert(BlockId::at(args.block_ids, i));
    return ids;
}

}  // namespace

Piece::Piece(CompressStore *s, Lane *l, size_t most) : store(s), lane(l) {
    shards.reserve(most);
    ids.reserve(most * UCM_BLOCK_ID_BYTES);
    indexes.reserve(most);
    depths.reserve(most);
    buffers.reserve(most);
    frames.reserve(most);
    raw_lengths.reserve(most);
}

Lane::Lane(CompressStore *store, ucm_store *lower, bool is_dumps, uint64_t buffer_bytes,
           size_t thread_count)
    : dumps(is_dumps),
      threads(thread_count),
      buffers(std::max(std::min(size_t(kPoolBytes / buffer_bytes), kMaxBuffers), thread_count * 2)),
      pool(buffer_bytes, buffers),
      registered(lower, pool.mapping()) {
    arrived.resize(buffers);
    piece_most = std::clamp<size_t>(buffers / 4, 1, kMaxPieceShards);
    for (size_t i = 0; i < std::min(buffers, kMaxPieces); i++) {
        pieces.push_back(std::make_unique<Piece>(store, this, piece_most));
        idle.push_back(pieces.back().get());
    }
    busy.reserve(pieces.size());
    shared.reserve(threads);
}

void LaneTeam::run(size_t n, const std::function<void(size_t, FrameCoder &)> &work) {
    Lane::Shared shared{work, n, 0, 1};
    std::unique_lock<std::mutex> hold(lane_.mutex);
    lane_.shared.push_back(&shared);
    lane_.wake.notify_all();
    help(shared, lane_, own_, hold);
    lane_.helped.wait(hold, [&] { return shared.helpers == 0; });
}

void LaneTeam::help(Lane::Shared &shared, Lane &lane, FrameCoder &own,
                    std::unique_lock<std::mutex> &hold) {
    while (shared.next < shared.n) {
        const size_t part = shared.next++;
        if (shared.next == shared.n)
            lane.shared.erase(std::find(lane.shared.begin(), lane.shared.end(), &shared));
        hold.unlock();
        shared.work(part, own);
        hold.lock();
    }
    if (--shared.helpers == 0) lane.helped.notify_all();
}

CompressStore::CompressStore(const ucm_open_args &args)
    : log_(args.host, "Compress"),
      lower_(args.lower),
      pace_(std::strcmp(Values(args)[kOptionCodec].s, "auto") == 0,
            mode_of(Values(args)[kOptionCodec].s), log_),
      tasks_(args.flags & UCM_OPEN_LOOKUP_ONLY ? nullptr : args.layout),
      load_admission_(kQueueShards, kQueueBytes),
      dump_admission_(kQueueShards, kQueueBytes) {
    if (!lower_) throw Error(UCM_INVALID, "Compress needs a store below it: \"Compress|Posix\"");
    if (args.flags & UCM_OPEN_LOOKUP_ONLY) return;
    if (args.layout->memory != UCM_MEMORY_HOST)
        throw Error(
            UCM_UNSUPPORTED,
            "Compress reads host memory only; put a layer above it that copies from the device");
    const char *wanted = wanted_kernels();
    if (wanted && !kernels_named(wanted))
        log_.write(UCM_LOG_WARN,
                   "UCM_COMPRESS_KERNELS=%s: this processor runs no such kernels; using %s", wanted,
                   best_kernels().name);
    geometry_ = std::make_unique<Geometry>(*args.layout);
    const uint64_t frame_bytes = args.layout->capacity + kTrailerBytes;
    if (geometry_->capacity() != args.layout->capacity || lower_->capacity != frame_bytes)
        throw Error(UCM_INVALID, "the capacity of the layout, or of the store below, does not fit");
    const size_t threads = size_t(Values(args)[kOptionConcurrency].i);
    const uint64_t buffer_bytes = round_up(frame_bytes);
    loads_ = std::make_unique<Lane>(this, lower_, false, buffer_bytes, threads);
    dumps_ = std::make_unique<Lane>(this, lower_, true, buffer_bytes, threads);
    const int dtype = dtype_named(Values(args)[kOptionDtype].s, *args.layout);
    const bool allow_lossy = Values(args)[kOptionAllowLossy].i != 0;
    for (size_t i = 0; i < threads * 2; i++)
        coders_.push_back(
            std::make_unique<FrameCoder>(*geometry_, dtype, best_kernels(), allow_lossy));
    metrics_.set(kMemory, loads_->pool.mapping().bytes() + dumps_->pool.mapping().bytes() +
                              coders_.size() * coders_.front()->memory_bytes());
    if (pace_.automatic()) {
        static const double costs[kModes] = {
            decoding_cost(Mode::kFast), decoding_cost(Mode::kSmall), decoding_cost(Mode::kRaw)};
        // More threads than cores decode no faster.
        const size_t cores = std::max(1u, std::thread::hardware_concurrency());
        pace_.set_decoders(costs, double(std::min(threads, cores)));
    }
    start_threads();
}

CompressStore::~CompressStore() {
    for (Lane *lane : {loads_.get(), dumps_.get()}) {
        if (!lane) continue;
        std::lock_guard<std::mutex> hold(lane->mutex);
        lane->stopping = true;
        lane->wake.notify_all();
    }
    threads_.join();
}

void CompressStore::lower_layout(const ucm_layout_args &args, ucm_layout &out) {
    const ucm_layout &layout = *args.layout;
    const size_t given = strnlen(layout.encoding, sizeof layout.encoding);
    const std::string encoding =
        std::string(layout.encoding, given) + (given ? "+" : "") + kEncoding;
    if (encoding.size() >= sizeof out.encoding)
        throw Error(UCM_UNSUPPORTED,
                    "no room for \"" + std::string(kEncoding) + "\" behind the encoding \"" +
                        std::string(layout.encoding, given) + "\"; use fewer encoding layers");
    if (args.segments_room < 1) throw Error(UCM_INVALID, "segments_room is 0");
    args.segment_bytes[0] = layout.capacity + kTrailerBytes;
    out.flags = UCM_LAYOUT_PAGES;
    out.n_segments = 1;
    out.segment_bytes = args.segment_bytes;
    out.capacity = layout.capacity + kTrailerBytes;
    std::memset(out.encoding, 0, sizeof out.encoding);
    std::memcpy(out.encoding, encoding.data(), encoding.size());
}

uint64_t CompressStore::capabilities() const {
    const uint64_t below = lower_->capabilities;
    uint64_t mine = (below & (UCM_CAPS_OF_DATA | UCM_CAP_REMOVE)) | UCM_CAP_CANCEL;
    if (below & UCM_CAP_LOADS) mine |= UCM_CAP_VERIFIES;
    return mine;
}

bool CompressStore::closed(ucm_error *err) const {
    if (!closing_.load(std::memory_order_acquire)) return false;
    ucm_fail(err, UCM_CLOSED, 0, "the store is closing");
    return true;
}

ucm_status CompressStore::lookup(const ucm_lookup_args &args, ucm_error *err) {
    if (closed(err)) return UCM_CLOSED;
    ucm_lookup_args below;
    ucm_copy(&below, sizeof below, &args);
    const ucm_status status = ucm_lookup(lower_, &below, err);
    if (status == UCM_OK && args.tiers)
        for (size_t i = 0; i < args.n; i++)
            if (args.tiers[i] != 0 && args.tiers[i] != UINT8_MAX) args.tiers[i]++;
    return status;
}

ucm_status CompressStore::prefetch(const ucm_ids_args &args, ucm_error *err) {
    if (closed(err)) return UCM_CLOSED;
    ucm_ids_args below;
    ucm_copy(&below, sizeof below, &args);
    return ucm_prefetch(lower_, &below, err);
}

ucm_status CompressStore::touch(const ucm_ids_args &args, ucm_error *err) {
    if (closed(err)) return UCM_CLOSED;
    ucm_ids_args below;
    ucm_copy(&below, sizeof below, &args);
    return ucm_touch(lower_, &below, err);
}

ucm_status CompressStore::accept(const ucm_transfer &t, Lane &lane, ucm_task *number,
                                 ucm_error *err) {
    ucm_status status;
    auto task = tasks_.accept(t, lane.dumps, lane.dumps ? dump_admission_ : load_admission_, number,
                              &status, err);
    if (!task) return status;
    const uint64_t epoch = lane.dumps ? ledger_.accept(t.n) : 0;
    const bool in_order = lane.dumps && has_twins(*task);
    std::lock_guard<std::mutex> hold(lane.mutex);
    lane.queue.push_back({std::move(task), epoch, 0, {}, in_order});
    lane.wake.notify_one();
    return UCM_OK;
}

ucm_status CompressStore::load(const ucm_transfer &t, ucm_task *task, ucm_error *err) {
    if (closed(err)) return UCM_CLOSED;
    return accept(t, *loads_, task, err);
}

ucm_status CompressStore::dump(const ucm_transfer &t, ucm_task *task, ucm_error *err) {
    if (closed(err)) return UCM_CLOSED;
    return accept(t, *dumps_, task, err);
}

ucm_status CompressStore::cancel(ucm_task task, ucm_error *err) {
    if (closed(err)) return UCM_CLOSED;
    const ucm_status status = tasks_.cancel(task, err);
    if (status != UCM_OK) return status;
    for (Lane *lane : {loads_.get(), dumps_.get()}) {
        if (!lane) continue;
        std::lock_guard<std::mutex> hold(lane->mutex);
        lane->sweep_ns = 0;
        lane->wake.notify_one();
    }
    return UCM_OK;
}

ucm_status CompressStore::remove(const ucm_ids_args &args, ucm_error *err) {
    if (closed(err)) return UCM_CLOSED;
    if (!(lower_->capabilities & UCM_CAP_REMOVE))
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "the store below cannot remove");
    const auto ids = set_of(args);
    for (const BlockId &id : ids) clear(id);
    if (dumps_) {
        forget_queued(ids);
        const ucm_status status = wait_for_dumps(ids, args.deadline_ns, err);
        if (status != UCM_OK) return status;
    }
    ucm_ids_args below;
    ucm_copy(&below, sizeof below, &args);
    return ucm_remove(lower_, &below, err);
}

void CompressStore::forget_queued(const std::unordered_set<BlockId, BlockIdHash> &ids) {
    std::lock_guard<std::mutex> hold(dumps_->mutex);
    for (Lane::Work &work : dumps_->queue)
        for (size_t i = work.next; i < work.task->n(); i++) {
            if (!ids.count(work.task->id(i))) continue;
            work.removed.resize(work.task->n());
            work.removed[i] = true;
        }
    dumps_->wake.notify_one();
}

ucm_status CompressStore::wait_for_dumps(const std::unordered_set<BlockId, BlockIdHash> &ids,
                                         int64_t deadline_ns, ucm_error *err) {
    struct Wanted {
        const Piece *piece;
        uint64_t number;
    };
    std::vector<Wanted> wanted;
    std::unique_lock<std::mutex> hold(dumps_->mutex);
    for (const auto &piece : dumps_->pieces) {
        bool ours = false;
        for (size_t i = 0; piece->running && i < piece->n() && !ours; i++)
            ours = ids.count(BlockId::at(piece->ids.data(), i)) != 0;
        if (ours) wanted.push_back({piece.get(), piece->number});
    }
    for (const Wanted &w : wanted)
        while (w.piece->running && w.piece->number == w.number) {
            const int64_t left = deadline_ns ? deadline_ns - monotonic_ns() : 1000000000;
            if (left <= 0)
                return ucm_fail(err, UCM_TIMEOUT, 0,
                                "dumps of these blocks are still on their way");
            dumps_->ended.wait_for(hold,
                                   std::chrono::nanoseconds(std::min<int64_t>(left, 1000000000)));
        }
    return UCM_OK;
}

ucm_status CompressStore::drain(const ucm_wait_args &args, ucm_report &report, ucm_error *err) {
    if (closed(err)) return UCM_CLOSED;
    const int64_t until = deadline_after_ms(args.timeout_ms);
    ucm_report mine{};
    const ucm_status status = ledger_.drain(until, mine);
    ucm_wait_args below;
    ucm_copy(&below, sizeof below, &args);
    if (args.timeout_ms > 0)
        below.timeout_ms = std::max<int64_t>(0, (until - monotonic_ns()) / 1000000);
    const ucm_status lower = ucm_drain(lower_, &below, &report, err);
    if (lower != UCM_OK && lower != UCM_PENDING) return lower;
    report.pending += mine.pending;
    return status == UCM_OK ? lower : status;
}

ucm_status CompressStore::metrics(const ucm_metrics_args &args, ucm_error *) {
    metrics_.set(kCodec, uint64_t(pace_.mode()));
    return metrics_.copy(args);
}

ucm_status CompressStore::close(const ucm_wait_args &args, ucm_report &report, ucm_error *) {
    const int64_t until = deadline_after_ms(args.timeout_ms);
    closing_.store(true, std::memory_order_release);
    bool idle = tasks_.close(until);
    for (Lane *lane : {loads_.get(), dumps_.get()}) {
        if (!lane || !idle) continue;
        // Beyond the tasks: the finished of every transfer below.
        std::unique_lock<std::mutex> hold(lane->mutex);
        while (lane->idle.size() != lane->pieces.size() && idle) {
            const int64_t left = until == INT64_MAX ? 1000000000 : until - monotonic_ns();
            idle = left > 0;
            lane->ended.wait_for(
                hold, std::chrono::nanoseconds(std::clamp<int64_t>(left, 0, 1000000000)));
        }
    }
    ucm_report mine{};
    ledger_.drain(0, mine);
    report.stored = report.lost = report.unfinished = 0;
    // When idle, a thread may still be about to end in the ledger what the store below has
    // answered.
    report.pending = idle ? 0 : mine.pending;
    return idle ? UCM_OK : UCM_PENDING;  // the destructor joins the threads
}

bool CompressStore::suspected(const BlockId &id) const {
    if (suspects_count_.load(std::memory_order_relaxed) == 0) return false;
    std::lock_guard<std::mutex> hold(suspects_mutex_);
    return suspects_.count(id) != 0;
}

void CompressStore::suspect(const BlockId &id) {
    std::lock_guard<std::mutex> hold(suspects_mutex_);
    if (!suspects_.insert(id).second) return;
    suspects_order_.push_back(id);
    if (suspects_order_.size() > kMaxSuspects) {
        suspects_.erase(suspects_order_.front());
        suspects_order_.pop_front();
    }
    suspects_count_.store(suspects_.size(), std::memory_order_relaxed);
}

void CompressStore::clear(const BlockId &id) {
    if (suspects_count_.load(std::memory_order_relaxed) == 0) return;
    std::lock_guard<std::mutex> hold(suspects_mutex_);
    if (suspects_.erase(id) == 0) return;
    suspects_order_.erase(std::find(suspects_order_.begin(), suspects_order_.end(), id));
    suspects_count_.store(suspects_.size(), std::memory_order_relaxed);
}

void CompressStore::start_threads() {
    try {
        for (Lane *lane : {loads_.get(), dumps_.get()})
            for (size_t i = 0; i < lane->threads; i++) {
                FrameCoder *coder = coders_[(lane->dumps ? lane->threads : 0) + i].get();
                threads_.start(1, lane->dumps ? "ucm-compress" : "ucm-decompress",
                               [this, lane, coder] { run(*lane, *coder); });
            }
    } catch (...) {
        // The destructor will not run; those that did start end before the members go.
        for (Lane *lane : {loads_.get(), dumps_.get()}) {
            std::lock_guard<std::mutex> hold(lane->mutex);
            lane->stopping = true;
            lane->wake.notify_all();
        }
        threads_.join();
        throw;
    }
}

void CompressStore::run(Lane &lane, FrameCoder &coder) {
    for (;;) {
        Step step = next_step(lane);
        switch (step.kind) {
            case Step::kStop:
                return;
            case Step::kHelp: {
                std::unique_lock<std::mutex> hold(lane.mutex);
                LaneTeam::help(*step.shared, lane, coder, hold);
                break;
            }
            case Step::kDecode:
                decode(*step.frame.piece, step.frame.i, coder);
                break;
            case Step::kRefuse:
                refuse_shards(lane, step);
                break;
            case Step::kFill:
                if (lane.dumps) encode(*step.piece, coder);
                submit(*step.piece);
                break;
            case Step::kSubmit:
                submit(*step.piece);
                break;
        }
    }
}

CompressStore::Step CompressStore::next_step(Lane &lane) {
    std::unique_lock<std::mutex> hold(lane.mutex);
    for (;;) {
        const int64_t now = monotonic_ns();
        Step step;
        if (choose(lane, now, step)) {
            const bool more = step.kind == Step::kFill || step.kind == Step::kRefuse;
            if (more && !lane.queue.empty()) lane.wake.notify_one();
            return step;
        }
        int64_t until = INT64_MAX;
        if (!lane.busy.empty()) until = lane.retry_ns;
        if (lane.arrived_count != 0) until = std::min(until, pace_.held_until_ns());
        if (!lane.queue.empty()) until = std::min(until, lane.sweep_ns);
        const int64_t shut = lane.dumps ? 0 : pace_.shut_until_ns();
        if (now < shut) until = std::min(until, shut);
        if (until == INT64_MAX)
            lane.wake.wait(hold);
        else
            lane.wake.wait_for(hold, std::chrono::nanoseconds(std::max<int64_t>(until - now, 0)));
    }
}

// With the lane's mutex held, as the two that follow. False: there is nothing to do now.
bool CompressStore::choose(Lane &lane, int64_t now, Step &step) {
    if (!lane.shared.empty()) {
        step.kind = Step::kHelp;
        step.shared = lane.shared.front();
        step.shared->helpers++;  // so that its owner waits
        return true;
    }
    if (lane.arrived_count != 0 && now >= pace_.held_until_ns()) {
        step.kind = Step::kDecode;
        step.frame = lane.arrived[lane.arrived_first];
        lane.arrived_first = (lane.arrived_first + 1) % lane.arrived.size();
        lane.arrived_count--;
        return true;
    }
    if (refuse(lane, now, step)) return true;
    if (!lane.busy.empty()) {
        if (now < lane.retry_ns) return false;
        step.kind = Step::kSubmit;
        step.piece = lane.busy.front();
        lane.busy.erase(lane.busy.begin());
        return true;
    }
    if (!lane.queue.empty()) return (lane.dumps || now >= pace_.shut_until_ns()) && cut(lane, step);
    step.kind = Step::kStop;
    return lane.stopping;
}

// Takes out shards that were cancelled, removed, or whose time is over: at the front of the queue
// always, behind it when a sweep is due.
bool CompressStore::refuse(Lane &lane, int64_t now, Step &step) {
    const bool sweep = now >= lane.sweep_ns;
    for (size_t k = 0; k < (sweep ? lane.queue.size() : std::min<size_t>(lane.queue.size(), 1));
         k++) {
        Lane::Work &work = lane.queue[k];
        const size_t n = work.task->n();
        step.status = work.task->refused();
        step.until = step.status == UCM_OK ? work.next : n;
        if (step.status == UCM_OK && !work.removed.empty()) {
            step.status = UCM_CANCELLED;
            while (step.until < n && work.removed[step.until]) step.until++;
        }
        if (step.until == work.next) continue;
        step.kind = Step::kRefuse;
        step.work = {work.task, work.epoch, work.next, {}, false};
        work.next = step.until;
        if (work.next == n) lane.queue.erase(lane.queue.begin() + ptrdiff_t(k));
        return true;
    }
    if (sweep) lane.sweep_ns = now + kSweepNs;
    return false;
}

// Starts a piece: neighbouring shards of the first task, all with their buffers, or none.
bool CompressStore::cut(Lane &lane, Step &step) {
    Lane::Work &work = lane.queue.front();
    const Task &task = *work.task;
    if (work.in_order)
        for (const auto &other : lane.pieces)
            if (other->running && other->task == work.task) return false;
    const size_t left = task.n() - work.next;
    const size_t share = lane.dumps ? (left + lane.threads - 1) / lane.threads : left;
    const size_t most = std::min(lane.piece_most, share);
    if (lane.idle.empty() || lane.buffers < most) return false;
    Piece &piece = *lane.idle.back();
    lane.idle.pop_back();
    auto replace = [&](size_t i) { return task.replace() || suspected(task.id(i)); };
    piece.replace = lane.dumps && replace(work.next);
    for (size_t i = work.next; i < task.n() && piece.n() < most; i++) {
        if (!work.removed.empty() && work.removed[i]) break;
        if (lane.dumps && replace(i) != piece.replace) break;
        const BlockId id = task.id(i);
        piece.shards.push_back(i);
        piece.ids.insert(piece.ids.end(), id.bytes, id.bytes + sizeof id.bytes);
        piece.indexes.push_back(task.shard(i));
        piece.depths.push_back(task.depth(i));
        piece.buffers.push_back(lane.pool.take());
        piece.frames.push_back(0);
        piece.raw_lengths.push_back(task.raw_length(i));
    }
    piece.task = work.task;
    piece.epoch = work.epoch;
    piece.number = lane.next_number++;
    piece.running = true;
    piece.holders.store(piece.n() + 1, std::memory_order_relaxed);
    lane.buffers -= piece.n();
    work.next += piece.n();
    if (work.next == task.n()) lane.queue.pop_front();
    step.kind = Step::kFill;
    step.piece = &piece;
    return true;
}

void CompressStore::refuse_shards(const Lane &lane, const Step &step) {
    const size_t first = step.work.next;
    metrics_.add(kFailedShards, step.until - first);
    if (lane.dumps) ledger_.end(step.work.epoch, 0, 0, step.until - first);
    for (size_t i = first; i < step.until; i++) step.work.task->complete(i, result(step.status));
}

void CompressStore::encode(Piece &piece, FrameCoder &coder) {
    Busy<kAllMetrics> busy(metrics_, kDumpBusyNs);
    LaneTeam team(*piece.lane, coder);
    for (size_t i = 0; i < piece.n(); i++) {
        TileCounts counts;
        const size_t shard = piece.shards[i];
        const Mode mode = pace_.next_dump();
        piece.frames[i] = coder.encode(name_of(*piece.task, shard), piece.task->addresses(shard),
                                       piece.task->length(shard), mode,
                                       static_cast<uint8_t *>(piece.buffers[i]), &counts, &team);
        pace_.coded(mode, piece.task->length(shard), piece.frames[i]);
        uint64_t tiles = 0;
        for (int codec = 0; codec < kTileCodecs; codec++) {
            tiles += counts.of[codec];
            metrics_.add(kTiles + codec, counts.of[codec]);
        }
        metrics_.add(kRawShards, tiles == 0);
    }
    UCM_FAILPOINT("compress.framed");
}

ucm_status CompressStore::hand_over(Piece &piece, ucm_error *err) {
    const auto unknown = [](uint32_t depth) { return depth == kUnknownDepth; };
    const bool no_depths = std::all_of(piece.depths.begin(), piece.depths.end(), unknown);
    const bool dumps = piece.lane->dumps;
    ucm_transfer t{};
    t.struct_size = sizeof t;
    t.flags = piece.replace ? uint64_t(UCM_TRANSFER_REPLACE) : 0;
    t.n = piece.n();
    t.block_ids = piece.ids.data();
    t.shard_index = piece.indexes.data();
    t.addresses = piece.buffers.data();
    t.lengths = dumps ? piece.frames.data() : nullptr;
    t.raw_lengths = dumps ? piece.raw_lengths.data() : nullptr;
    t.done = on_done;
    t.finished = on_finished;
    t.ctx = &piece;
    t.depths = no_depths ? nullptr : piece.depths.data();
    t.tag = piece.task->tag();
    t.priority = piece.task->priority();
    t.deadline_ns = piece.task->deadline_ns();
    return dumps ? ucm_dump(lower_, &t, nullptr, err) : ucm_load(lower_, &t, nullptr, err);
}

void CompressStore::submit(Piece &piece) {
    Lane &lane = *piece.lane;
    const size_t n = piece.n();
    const uint64_t epoch = piece.epoch;
    ucm_error error{};
    error.struct_size = sizeof error;
    // It may have waited long for room below.
    ucm_status status = piece.task->refused();
    const bool refused = status != UCM_OK;
    if (!refused) {
        if (!lane.dumps) piece.period = pace_.begin(monotonic_ns());
        status = hand_over(piece, &error);
        if (status != UCM_OK && piece.period != 0) {
            pace_.read(piece.period, 0, monotonic_ns());
            pace_.end(monotonic_ns());
            piece.period = 0;
        }
    }
    if (status == UCM_BUSY) {
        std::lock_guard<std::mutex> hold(lane.mutex);
        lane.busy.insert(lane.busy.begin(), &piece);
        lane.retry_ns = monotonic_ns() + kRetryNs;
        lane.wake.notify_one();
        return;
    }
    // Accepted: the store below counts them now, and the piece may be gone.
    if (lane.dumps) ledger_.end(epoch, n, 0, 0);
    if (status == UCM_OK) return;
    if (!refused)
        log_.write(UCM_LOG_WARN, "the store below refused %zu shards: %s", n, error.message);
    for (size_t i = 0; i < n; i++) complete(piece, i, result(status, 0, error.os_errno));
    drop(piece);
}

void CompressStore::decode(Piece &piece, size_t i, FrameCoder &coder) {
    const size_t shard = piece.shards[i];
    Decoded decoded;
    UCM_FAILPOINT("compress.before_decode");
    if (pace_.automatic()) pace_.decoding(monotonic_ns());
    {
        Busy<kAllMetrics> busy(metrics_, kLoadBusyNs);
        LaneTeam team(*piece.lane, coder);
        decoded = coder.decode(name_of(*piece.task, shard),
                               static_cast<const uint8_t *>(piece.buffers[i]), piece.frames[i],
                               piece.task->addresses(shard), &team);
    }
    const bool good = decoded.status == UCM_OK;
    if (pace_.automatic()) pace_.decoded(good ? decoded.bytes : 0, piece.frames[i], monotonic_ns());
    if (!good) {
        const BlockId id = piece.task->id(shard);
        suspect(id);
        metrics_.add(kBadFrames, 1);
        log_.write(UCM_LOG_WARN, "block %s shard %u: the stored frame %s", id.hex().c_str(),
                   piece.task->shard(shard),
                   decoded.is_lossy
                       ? "is lossy, which compress_allow_lossy=false refuses; set it to "
                         "true, or the next dump of this block replaces it"
                   : decoded.status == UCM_CORRUPT ? "is corrupt"
                                                   : "does not fit this layout");
        decoded.bytes = 0;
    }
    complete(piece, i, result(decoded.status, decoded.bytes));
}

// Ends one shard of a piece. Holds no lock when the upper layer is called.
void CompressStore::complete(Piece &piece, size_t i, const ucm_result &result) {
    const Lane &lane = *piece.lane;
    const size_t shard = piece.shards[i];
    if (result.status == UCM_OK) {
        metrics_.add(lane.dumps ? kDumpShards : kLoadShards, 1);
        metrics_.add(lane.dumps ? kDumpBytes : kLoadBytes,
                     lane.dumps ? piece.task->length(shard) : result.length);
        metrics_.add(lane.dumps ? kDumpOutBytes : kLoadInBytes, piece.frames[i]);
    } else if (result.status != UCM_NOT_FOUND) {
        metrics_.add(kFailedShards, 1);
    }
    if (piece.replace && (result.flags & UCM_RESULT_PUBLISHED)) clear(piece.task->id(shard));
    give(*piece.lane, piece.buffers[i]);
    piece.task->complete(shard, result);
    drop(piece);
}

void CompressStore::give(Lane &lane, void *buffer) {
    lane.pool.give(static_cast<uint8_t *>(buffer));
    std::lock_guard<std::mutex> hold(lane.mutex);
    lane.buffers++;
    if (!lane.queue.empty()) lane.wake.notify_one();
}

void CompressStore::drop(Piece &piece) {
    if (piece.holders.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    Lane &lane = *piece.lane;
    if (piece.period != 0) pace_.end(monotonic_ns());
    piece.period = 0;
    std::shared_ptr<Task> last;  // freed after the lock
    std::lock_guard<std::mutex> hold(lane.mutex);
    last = std::move(piece.task);
    piece.running = false;
    piece.shards.clear();
    piece.ids.clear();
    piece.indexes.clear();
    piece.depths.clear();
    piece.buffers.clear();
    piece.frames.clear();
    piece.raw_lengths.clear();
    lane.idle.push_back(&piece);
    if (!lane.queue.empty()) lane.wake.notify_one();
    // Under the lock: close may delete this store as soon as it is released.
    lane.ended.notify_all();
}

void CompressStore::on_done(void *ctx, size_t i, const ucm_result *given) {
    Piece &piece = *static_cast<Piece *>(ctx);
    CompressStore &store = *piece.store;
    Lane &lane = *piece.lane;
    ucm_result below;
    ucm_copy(&below, sizeof below, given);
    if (below.status == UCM_OK && !lane.dumps)
        piece.moved.fetch_add(below.length, std::memory_order_relaxed);
    if (lane.dumps || below.status != UCM_OK) {
        const uint32_t flags = below.flags & (UCM_RESULT_PUBLISHED | UCM_RESULT_DECLINED);
        store.complete(piece, i, result(below.status, 0, below.os_errno, flags));
        return;
    }
    if (below.length > store.lower_->capacity) {
        store.complete(piece, i, result(UCM_INTERNAL));
        return;
    }
    piece.frames[i] = below.length;
    std::lock_guard<std::mutex> hold(lane.mutex);
    lane.arrived[(lane.arrived_first + lane.arrived_count++) % lane.arrived.size()] = {&piece, i};
    lane.wake.notify_one();
}

void CompressStore::on_finished(void *ctx) {
    Piece &piece = *static_cast<Piece *>(ctx);
    Lane &lane = *piece.lane;
    if (piece.period != 0)
        piece.store->pace_.read(piece.period, piece.moved.exchange(0), monotonic_ns());
    {
        std::lock_guard<std::mutex> hold(lane.mutex);
        lane.retry_ns = 0;
        if (!lane.busy.empty() || lane.arrived_count != 0) lane.wake.notify_all();
    }
    piece.store->drop(piece);
}

}  // namespace ucm::compress
