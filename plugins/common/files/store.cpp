// SPDX-License-Identifier: MIT
#include "store.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "failpoint.h"

namespace ucm::files {
namespace {

constexpr uint64_t kQueuedShards = 65536;
constexpr uint64_t kQueuedBytes = 1ull << 30;
constexpr int64_t kTidyNs = 20000000;
constexpr int64_t kCollectNs = 1000000000;
constexpr int64_t kLookTimesEvery = 64;  // lookups between two looks at the clock

const ucm_layout *layout_of(const ucm_open_args &args, const char *layer) {
    if (args.flags & UCM_OPEN_LOOKUP_ONLY) return nullptr;
    if (args.layout->memory != UCM_MEMORY_HOST)
        throw Error(UCM_UNSUPPORTED,
                    std::string(layer) + " moves host memory only; put Cache above it");
    return args.layout;
}

void read_quota(const ucm_open_args &args, Wanted &wanted) {
    const Values values(args);
    wanted.quota.capacity = uint64_t(values[kCapacity].f * double(1u << 30));
    wanted.quota.collects = values[kGcEnable].i != 0;
    wanted.quota.trigger = values[kGcTrigger].f;
    wanted.quota.recycle = values[kGcRecycle].f;
    wanted.filter.bytes_per_s = uint64_t(values[kWriteMbps].i) * 1000000;
    wanted.filter.second_sight = values[kAdmission].s == std::string("second_sight");
    if (args.layout)
        wanted.block_bytes =
            whole_block_bytes(args.layout->shards_per_block, args.layout->capacity);
}

Wanted wanted_of(const ucm_open_args &args, const FileUse &use) {
    const Values values(args);
    Wanted wanted{};
    wanted.writes = !(args.flags & UCM_OPEN_LOOKUP_ONLY);
    wanted.direct = use.direct;
    wanted.layout = args.layout != nullptr;
    wanted.software = std::string(use.layer) + " 0.1.0";
    wanted.space.label = values[kNamespace].s;
    wanted.space.model = values[kModel].s;
    wanted.space.fingerprint = values[kFingerprint].s;
    if (args.layout) {
        const char *encoding = args.layout->encoding;
        wanted.space.shards_per_block = args.layout->shards_per_block;
        wanted.space.raw_capacity = args.layout->raw_capacity;
        wanted.space.encoding.assign(encoding, strnlen(encoding, UCM_ENCODING_BYTES));
    }
    wanted.space.check();
    wanted.access = Access(values[kFileMode].s, values[kFileGroup].s);
    read_quota(args, wanted);
    return wanted;
}

bool verify_of(const ucm_open_args &args) {
    if (Values(args)[kVerify].i) return true;
    const char *purpose = getenv("UCM_MEASURE");
    if (purpose && std::strcmp(purpose, "verify") == 0) return false;
    throw Error(UCM_INVALID,
                "posix_verify: what is loaded is always checked; off is for measuring what that "
                "costs, with UCM_MEASURE=verify in the environment");
}

DraftLimits draft_limits(const Directories &directories, uint64_t capacity) {
    DraftLimits limits;
    if (const uint64_t total = directories.total_bytes()) limits.bytes = total / 2;
    if (capacity) limits.bytes = std::min(limits.bytes, capacity / 2);
    return limits;
}

bool past(int64_t deadline_ns) {
    return deadline_ns && monotonic_ns() > deadline_ns;
}

ucm_status closed(ucm_error *err) {
    return ucm_fail(err, UCM_CLOSED, 0, "the store is closing");
}

}  // namespace

// Does the kernel give huge pages to those who ask?
bool huge_pages() {
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
    std::string words;
    std::getline(file, words);
    return words.find("[always]") != std::string::npos ||
           words.find("[madvise]") != std::string::npos;
}

FileStore::FileStore(const ucm_open_args &args, const FileUse &use, std::unique_ptr<Medium> medium)
    : timeout_ms_(Values(args)[kTimeoutMs].i),
      thread_(use.thread),
      medium_(std::move(medium)),
      context_(args, use.layer, *medium_, Values(args)[kStorageBackends], wanted_of(args, use),
               Values(args)[kDurability].s, verify_of(args), use.zero_copy),
      tasks_(layout_of(args, use.layer)),
      load_admission_(kQueuedShards, kQueuedBytes),
      dump_admission_(kQueuedShards, kQueuedBytes),
      dumper_(context_, ledger_,
              draft_limits(context_.directories, wanted_of(args, use).quota.capacity)) {
    context_.directories.on_work([this] {
        std::lock_guard<std::mutex> hold(stop_mutex_);
        collect_wanted_ = true;
        stop_wake_.notify_all();
    });
    try {
        walk_.start(1, (thread_ + "-walk").c_str(), [this] { walk_loop(); });
        if (!context_.lookup_only) start_threads(use.direct);
    } catch (...) {
        stop();
        throw;
    }
}

FileStore::~FileStore() {
    stop();
}

uint64_t FileStore::capabilities() const {
    return UCM_CAP_KEEPS | UCM_CAP_LOADS | UCM_CAP_PERSISTENT | UCM_CAP_VERIFIES | UCM_CAP_REMOVE |
           UCM_CAP_CANCEL;
}

void FileStore::start_threads(bool direct) {
    const std::string how = medium_->start(context_.directories.direct(),
                                           block_header_bytes(context_.shape.shard_count));
    context_.log.write(UCM_LOG_INFO, "%s", how.c_str());
    for (size_t i = 0; i < medium_->load_threads(); i++)
        load_lanes_.push_back(std::make_unique<Lane<Loader, Job>>(
            loads_, medium_->engine(true), context_, direct, load_slots_,
            [this](Scratch &scratch) { return std::make_unique<Loader>(context_, scratch); }));
    for (size_t i = 0; i < medium_->dump_threads(); i++)
        dump_lanes_.push_back(std::make_unique<Lane<DumpRun, BlockId>>(
            dumper_.ready(), medium_->engine(false), context_, direct, dump_slots_,
            [this](Scratch &scratch) {
                return std::make_unique<DumpRun>(context_, dumper_, ledger_, scratch);
            }));
    for (auto &lane : load_lanes_)
        threads_.start(1, (thread_ + "-load").c_str(), [lane = lane.get()] { lane->run(); });
    for (auto &lane : dump_lanes_)
        threads_.start(1, (thread_ + "-dump").c_str(), [lane = lane.get()] { lane->run(); });
    tidy_.start(1, (thread_ + "-tidy").c_str(), [this] { tidy_loop(); });
    collect_.start(1, (thread_ + "-gc").c_str(), [this] { collect_loop(); });
}

void FileStore::tidy_loop() {
    int64_t due = 0;
    std::unique_lock<std::mutex> hold(stop_mutex_);
    while (!stopped_) {
        hold.unlock();
        context_.directories.tidy();
        medium_->tidy();
        if (monotonic_ns() >= due) due = dumper_.abandon_idle();
        hold.lock();
        stop_wake_.wait_for(hold, std::chrono::nanoseconds(kTidyNs),
                            [&] { return stopped_.load(); });
    }
}

void FileStore::walk_loop() {
    std::unique_lock<std::mutex> hold(stop_mutex_);
    while (!stopped_) {
        walk_wanted_ = false;
        hold.unlock();
        const int64_t pause_ns = context_.directories.walk(stopped_);
        hold.lock();
        stop_wake_.wait_for(hold, std::chrono::nanoseconds(pause_ns),
                            [&] { return stopped_ || walk_wanted_; });
    }
}

void FileStore::collect_loop() {
    std::unique_lock<std::mutex> hold(stop_mutex_);
    while (!stopped_) {
        collect_wanted_ = false;
        hold.unlock();
        context_.directories.collect(stopped_);
        hold.lock();
        stop_wake_.wait_for(hold, std::chrono::nanoseconds(kCollectNs),
                            [&] { return stopped_ || collect_wanted_; });
    }
}

void FileStore::stop() {
    context_.directories.stop_waiting();
    loads_.close();
    dumper_.stop();
    {
        std::lock_guard<std::mutex> hold(stop_mutex_);
        stopped_ = true;
        stop_wake_.notify_all();
    }
    threads_.join();
    tidy_.join();
    walk_.join();
    collect_.join();
}

void FileStore::attend() {
    if (context_.directories.attend() && !walk_wanted_) {
        std::lock_guard<std::mutex> hold(stop_mutex_);
        walk_wanted_ = true;
        stop_wake_.notify_all();
    }
    context_.directories.await_news();
}

bool FileStore::present(const BlockId &id, bool sure) {
    do {
        Directory *directory = context_.directories.of(id);
        BlockIndex *index = directory ? directory->index() : nullptr;
        if (!index) continue;
        const BlockIndex::Answer answer = index->find(id);
        if (answer == BlockIndex::Answer::kPresent) return true;
        if (answer == BlockIndex::Answer::kAbsent && !sure) continue;
        context_.metrics.add(kLookupStats, 1);
        if (index->look(id)) return true;
    } while (context_.directories.look_again());
    return false;
}

ucm_status FileStore::lookup(const ucm_lookup_args &args, ucm_error *err) {
    if (closing_) return closed(err);
    const bool backwards = args.mode == UCM_LOOKUP_LAST;
    if (args.mode != UCM_LOOKUP_ALL && args.mode != UCM_LOOKUP_PREFIX && !backwards)
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this mode of lookup is not known here");
    if (args.tiers) std::memset(args.tiers, 0, args.n);
    attend();
    size_t hits = 0;
    for (size_t k = 0; k < args.n; k++) {
        if (k % kLookTimesEvery == 0 && past(args.deadline_ns))
            return ucm_fail(err, UCM_TIMEOUT, 0, "the deadline passed during the lookup");
        const size_t i = backwards ? args.n - 1 - k : k;
        // A prefix ends at the first absent one: a publisher that was killed may not have told.
        const bool here = present(BlockId::at(args.block_ids, i), args.mode == UCM_LOOKUP_PREFIX);
        if (here && args.tiers) args.tiers[i] = 1;
        if (here && backwards) {
            hits = i + 1;
            break;
        }
        if (!here && args.mode == UCM_LOOKUP_PREFIX) break;
        hits += here;
    }
    if (args.hits) *args.hits = hits;
    return UCM_OK;
}

ucm_transfer FileStore::capped(const ucm_transfer &given) const {
    ucm_transfer transfer;
    ucm_copy(&transfer, sizeof transfer, &given);
    const int64_t cap = deadline_after_ms(timeout_ms_);
    if (transfer.deadline_ns == 0 || transfer.deadline_ns > cap) transfer.deadline_ns = cap;
    return transfer;
}

// Where every buffer waits for a request that nobody has finished, more of them would only wait
// too.
ucm_status FileStore::refused(bool dump, ucm_error *err) const {
    if ((dump ? dump_slots_ : load_slots_) > 0 || context_.lookup_only) return UCM_OK;
    return ucm_fail(err, UCM_UNAVAILABLE, ETIME,
                    "all buffers wait for requests that were given up; the file system does not "
                    "answer");
}

ucm_status FileStore::load(const ucm_transfer &given, ucm_task *number, ucm_error *err) {
    if (const ucm_status status = refused(false, err); status != UCM_OK) return status;
    const ucm_transfer transfer = capped(given);
    std::shared_ptr<Batch> batch = split(transfer, false);
    ucm_status status;
    batch->task = tasks_.accept(transfer, false, load_admission_, number, &status, err);
    if (!batch->task) return status;
    log_dispatch(context_, *batch);
    for (size_t i = 0, n = batch->starts.size() - 1; i < n; i++) loads_.push({batch, i});
    return UCM_OK;
}

ucm_status FileStore::dump(const ucm_transfer &given, ucm_task *number, ucm_error *err) {
    if (const ucm_status status = refused(true, err); status != UCM_OK) return status;
    const ucm_transfer transfer = capped(given);
    std::shared_ptr<Batch> batch = split(transfer, true);
    ucm_status status;
    batch->task = tasks_.accept(transfer, true, dump_admission_, number, &status, err);
    if (!batch->task) return status;
    batch->epoch = ledger_.accept(transfer.n);
    log_dispatch(context_, *batch);
    for (size_t i = 0, n = batch->starts.size() - 1; i < n; i++) dumper_.accept({batch, i});
    return UCM_OK;
}

ucm_status FileStore::cancel(ucm_task number, ucm_error *err) {
    return tasks_.cancel(number, err);
}

int FileStore::unlink_block(const BlockId &id) {
    std::string path = context_.directories.find(id);
    if (path.empty() && context_.directories.look_again()) path = context_.directories.find(id);
    if (path.empty()) return 0;
    Directory &directory = *context_.directories.of(id);
    if (::unlink(path.c_str()) == 0) {
        medium_->deleted(path);
        directory.removed(id);
        directory.shrank();
        return 0;
    }
    const int error = errno;
    if (status_of_errno(error, UCM_NOT_FOUND) != UCM_NOT_FOUND) return error;
    directory.missed(id);
    return 0;
}

ucm_status FileStore::touch(const ucm_ids_args &args, ucm_error *err) {
    if (closing_) return closed(err);
    for (size_t i = 0; i < args.n; i++) {
        const BlockId id = BlockId::at(args.block_ids, i);
        if (Directory *directory = context_.directories.of(id)) directory->touched(id);
    }
    return UCM_OK;
}

ucm_status FileStore::remove(const ucm_ids_args &args, ucm_error *err) {
    if (closing_) return closed(err);
    std::vector<BlockId> ids(args.n);
    for (size_t i = 0; i < args.n; i++) ids[i] = BlockId::at(args.block_ids, i);
    if (!dumper_.drop(ids, args.deadline_ns))
        return ucm_fail(err, UCM_TIMEOUT, 0, "a dump of these blocks still runs at the deadline");
    attend();
    ucm_status status = UCM_OK;
    for (const BlockId &id : ids) {
        UCM_FAILPOINT("posix.before_remove");
        const int error = unlink_block(id);
        UCM_FAILPOINT("posix.removed");
        if (error == 0 || status != UCM_OK) continue;
        status = ucm_fail(err, status_of_errno(error), error,
                          ("cannot remove block " + id.hex() + ": " + errno_text(error)).c_str());
    }
    return status;
}

ucm_status FileStore::drain(const ucm_wait_args &args, ucm_report &report, ucm_error *err) {
    if (closing_) return closed(err);
    const ucm_status status = ledger_.drain(deadline_after_ms(args.timeout_ms), report);
    report.unfinished = dumper_.unfinished_shards();
    return status;
}

ucm_status FileStore::metrics(const ucm_metrics_args &args, ucm_error *err) {
    if (closing_) return closed(err);
    const Directories::Known known = context_.directories.known();
    context_.metrics.set(kIndexBlocks, known.blocks);
    context_.metrics.set(kIndexListed, known.folders ? known.listed * 100 / known.folders : 0);
    const QuotaNumbers quota = context_.directories.quota_numbers();
    context_.metrics.set(kEvictedBlocks, quota.evicted_blocks);
    context_.metrics.set(kEvictedBytes, quota.evicted_bytes);
    context_.metrics.set(kQuotaUsed, quota.used);
    context_.metrics.set(kQuotaLimit, quota.limit);
    uint64_t own[kMediumMetrics] = {};
    medium_->count(own, kMediumMetrics);
    for (size_t i = 0; i < kMediumMetrics; i++) context_.metrics.set(kFileMetrics + i, own[i]);
    return context_.metrics.copy(args);
}

// Nothing is pinned beyond a request, so memory can be given back at any time.
ucm_status FileStore::register_memory(const ucm_memory_args &args, ucm_error *err) {
    if (closing_) return closed(err);
    if (args.memory != UCM_MEMORY_HOST)
        return ucm_fail(err, UCM_UNSUPPORTED, 0,
                        (std::string(context_.layer) + " moves host memory only").c_str());
    if (!args.release) {
        if (!medium_->take_memory(args.base, args.bytes))
            return ucm_fail(err, UCM_UNSUPPORTED, 0, "this memory goes through buffers");
        context_.direct_memory.add(args.base, args.bytes);
        return UCM_OK;
    }
    if (!context_.direct_memory.remove(args.base, args.bytes))
        return ucm_fail(err, UCM_INVALID, 0, "this memory is not registered");
    medium_->release_memory(args.base, args.bytes);
    return UCM_OK;
}

ucm_status FileStore::close(const ucm_wait_args &args, ucm_report &report, ucm_error *) {
    closing_ = true;
    const int64_t until_ns = deadline_after_ms(args.timeout_ms);
    if (!idle_) {  // what is abandoned later is in `unfinished` already
        idle_ = tasks_.close(until_ns);
        ledger_.drain(0, report);
        unfinished_ = dumper_.unfinished_shards();
    }
    report.unfinished = unfinished_;
    return idle_ && gone(until_ns) ? UCM_OK : UCM_PENDING;
}

// A thread of its own takes leave of the file system, where any call may hang. False: it has not
// done so in time, a second at least, which is short for what hangs and long for what does not.
bool FileStore::gone(int64_t until_ns) {
    std::unique_lock<std::mutex> hold(stop_mutex_);
    if (!going_) go_.start(1, (thread_ + "-close").c_str(), [this] { go(); });
    going_ = true;
    const auto is_gone = [this] { return gone_; };
    if (until_ns != INT64_MAX) {
        const int64_t left_ns = std::max(until_ns - monotonic_ns(), kSecond);
        return stop_wake_.wait_for(hold, std::chrono::nanoseconds(left_ns), is_gone);
    }
    stop_wake_.wait(hold, is_gone);
    return true;
}

// Nothing is left for the destructor to do there.
void FileStore::go() {
    stop();
    dumper_.abandon_all();
    load_lanes_.clear();
    dump_lanes_.clear();
    context_.directories.close();
    medium_.reset();
    std::lock_guard<std::mutex> hold(stop_mutex_);
    gone_ = true;
    stop_wake_.notify_all();
}

}  // namespace ucm::files
