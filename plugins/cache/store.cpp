// SPDX-License-Identifier: MIT
#include "store.h"

namespace ucm::cache {

namespace {

// More is left to threads, so that a caller who wants to go on can; all, where it says so.
constexpr uint64_t kInlineBytes = 2u << 20;

// A block that is not wanted any more, before the store below is asked to remove it, is given to
// drop(block, flags).
template <typename F>
void forget(Table &table, const IdSet &ids, F drop) {
    for (auto &id : ids) {
        table.forget_spilled(id);
        for (const BlockRef &block : {table.gathering(id), table.visible(id)})
            if (block) drop(block, kRemoved);
    }
}

// And after it. Fills that began meanwhile may hold what is gone now. Dumps that did are newer than
// the call, but if the store below had a part of one, or has it now, that may be gone too.
template <typename F>
void forget_again(Table &table, const IdSet &ids, F drop) {
    for (auto &id : ids) {
        table.forget_spilled(id);
        const BlockRef visible = table.visible(id), gathering = table.gathering(id);
        if (visible && table.state(visible) == State::kClean)
            table.detach(visible.record, UCM_NOT_FOUND);
        else if (visible && table.partly_below(visible.record))
            drop(visible, kRemoved);
        if (gathering && table.partly_below(gathering.record)) drop(gathering, kRemoved);
    }
}

}  // namespace

CacheStore::Engine::Engine(const ucm_open_args &args, const Shape &shape,
                           const std::string &unique_id)
    : core(args, shape, unique_id),
      writer(core),
      dumps(core, writer),
      loads(core),
      watch(core, writer, loads),
      events(core, dumps, loads),
      tasks(args.layout),
      dump_admission(core.config.waiting_shards, core.segment.data_bytes()),
      load_admission(core.config.waiting_shards, core.segment.data_bytes()),
      on_host(args.layout->memory == UCM_MEMORY_HOST) {
    {
        Outcome outcome;
        Lock lock(core.mutex);
        core.segment.alive();
        watch.adopt(outcome);
        // Pinning takes long: of as much as can be, before it is used.
        if (args.layout->memory != UCM_MEMORY_HOST) watch.grow_all(lock, outcome);
        outcome.give(lock, core.log);
    }
    core.pin_ready();
    writer.start();
    dumps.start();
    loads.start();
    watch.start();
    events.start();
}

uint64_t CacheStore::Engine::inline_bytes(const ucm_transfer &t) const {
    return on_host && t.priority >= 0 ? kInlineBytes : 0;
}

CacheStore::CacheStore(const ucm_open_args &args)
    : log_(args.host, "Cache"),
      lower_(args.lower),
      lower_caps_(args.lower->capabilities),
      segment_(segment_name(args)) {
    if (args.flags & UCM_OPEN_LOOKUP_ONLY) {
        wanted_ = known_shape(args);
        if (!segment_.empty()) view_ = std::make_unique<SegmentView>(wanted_, segment_);
        return;
    }
    const Shape shape = make_shape(args, !segment_.empty(), log_);
    engine_ = std::make_unique<Engine>(args, shape, segment_);
    const Core &core = engine_->core;
    if (core.segment.shared())
        log_.write(UCM_LOG_INFO, "%s: %s, %.6g GiB in all", core.segment.path().c_str(),
                   core.segment.found() ? "joined" : "made",
                   double(core.segment.data_bytes()) / 1073741824.0);
}

void CacheStore::lower_layout(const ucm_layout_args &args, ucm_layout &out) {
    const ucm_layout &layout = *args.layout;
    if (args.segments_room < 1) throw Error(UCM_INVALID, "segments_room must be at least 1");
    out.flags = UCM_LAYOUT_PAGES;
    out.n_segments = 1;
    out.segment_bytes = args.segment_bytes;
    args.segment_bytes[0] = layout.capacity;
    out.n_planes = layout.n_planes;
    out.plane_stride = layout.plane_stride;
    out.planes = layout.planes;
}

uint64_t CacheStore::capabilities() const {
    const bool keeps = (lower_caps_ & UCM_CAP_KEEPS) != 0;
    uint64_t caps = (lower_caps_ & UCM_CAPS_OF_DATA) | UCM_CAP_KEEPS | UCM_CAP_LOADS;
    if (keeps) caps |= UCM_CAP_WRITE_BACK;
    if (engine_) caps |= UCM_CAP_CANCEL;
    if (engine_ && engine_->core.device->events()) caps |= UCM_CAP_EVENTS;
    if (!keeps || (lower_caps_ & UCM_CAP_REMOVE)) caps |= UCM_CAP_REMOVE;
    return caps;
}

ucm_status CacheStore::closed(ucm_error *err) const {
    return closing_.load() ? ucm_fail(err, UCM_CLOSED, 0, "the store is closing") : UCM_OK;
}

JobRef CacheStore::accept(const ucm_transfer &t, bool dump, ucm_task *number, ucm_status *status,
                          ucm_error *err) {
    Core &core = engine_->core;
    ucm_transfer limited;
    ucm_copy(&limited, sizeof limited, &t);
    const int64_t latest_ns = deadline_after_ms(core.config.timeout_ms);
    if (!limited.deadline_ns || limited.deadline_ns > latest_ns) limited.deadline_ns = latest_ns;
    auto task = engine_->tasks.accept(limited, dump,
                                      dump ? engine_->dump_admission : engine_->load_admission,
                                      number, status, err);
    if (!task) return nullptr;
    const uint64_t epoch = dump ? core.ledger.accept(task->n()) : 0;
    return std::make_shared<Job>(std::move(task), dump, epoch, core.log, core.metrics);
}

ucm_status CacheStore::load(const ucm_transfer &t, ucm_task *number, ucm_error *err) {
    ucm_status status;
    if (const JobRef job = accept(t, false, number, &status, err))
        if (!engine_->events.push(job)) engine_->loads.push(job, engine_->inline_bytes(t));
    return status;
}

ucm_status CacheStore::dump(const ucm_transfer &t, ucm_task *number, ucm_error *err) {
    ucm_status status;
    if (const JobRef job = accept(t, true, number, &status, err))
        if (!engine_->events.push(job)) engine_->dumps.push(job, engine_->inline_bytes(t));
    return status;
}

ucm_status CacheStore::cancel(ucm_task number, ucm_error *err) {
    if (!engine_) return ucm_fail(err, UCM_NOT_FOUND, 0, "no such task");
    const ucm_status status = engine_->tasks.cancel(number, err);
    if (status != UCM_OK) return status;
    engine_->loads.cancel(number);
    Lock lock(engine_->core.mutex);
    engine_->writer.cancelled();
    engine_->dumps.cancelled();
    return UCM_OK;
}

// Without a lock, but where somebody else is in the middle of a change for long.
void CacheStore::find_here(const ucm_lookup_args &args, std::vector<uint8_t> &here) {
    if (!engine_) {
        if (!view_) return;
        std::string warning;
        {
            const std::lock_guard<std::mutex> hold(view_mutex_);
            const uint8_t *base = view_->look();
            if (base) Index(base).find_whole(args.block_ids, args.n, here.data());
            warning = view_->warning();
        }
        if (!warning.empty()) log_.write(UCM_LOG_WARN, "%s", warning.c_str());
        std::replace(here.begin(), here.end(), kUnsure, uint8_t(0));
        return;
    }
    Core &core = engine_->core;
    core.table.find_whole(args.block_ids, args.n, here.data());
    if (!std::count(here.begin(), here.end(), kUnsure)) return;
    const Lock lock(core.mutex);
    const Table::Hold hold(core.table);
    for (size_t i = 0; i < args.n; i++) {
        if (here[i] != kUnsure) continue;
        const BlockRef block = core.table.visible(BlockId::at(args.block_ids, i));
        here[i] = block && core.table.whole(block.record);
    }
}

// While the store below is known to load nothing, what is here is the answer: what could be found
// there could not be had, and that it can be found does not say that it can be.
ucm_status CacheStore::lookup_below(const ucm_lookup_args &args, ucm_error *err) {
    if (!engine_) return ucm_lookup(lower_, &args, err);
    if (!engine_->core.load_breaker.open()) return ucm_lookup(lower_, &args, nullptr);
    engine_->loads.seek_probe(args.block_ids, args.n);
    return UCM_UNAVAILABLE;
}

ucm_status CacheStore::lookup(const ucm_lookup_args &args, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    std::vector<uint8_t> here(args.n), below_ids;
    std::vector<uint32_t> depths;
    std::vector<size_t> missing;
    find_here(args, here);
    for (size_t i = 0; i < args.n; i++)
        if (!here[i]) missing.push_back(i);
    std::vector<uint8_t> tiers(missing.size());
    size_t hits = 0;
    if (!missing.empty() && (lower_caps_ & UCM_CAP_KEEPS)) {
        for (size_t i : missing) {
            const uint8_t *id = args.block_ids + i * UCM_BLOCK_ID_BYTES;
            below_ids.insert(below_ids.end(), id, id + UCM_BLOCK_ID_BYTES);
            if (args.depths) depths.push_back(args.depths[i]);
        }
        ucm_lookup_args below{};
        below.struct_size = sizeof below;
        below.mode = args.mode;
        below.tag = args.tag;
        below.deadline_ns = args.deadline_ns;
        below.n = missing.size();
        below.block_ids = below_ids.data();
        below.depths = args.depths ? depths.data() : nullptr;
        below.hits = &hits;
        below.tiers = args.tiers ? tiers.data() : nullptr;
        const ucm_status status = lookup_below(below, engine_ ? nullptr : err);
        if (status == UCM_UNSUPPORTED || status == UCM_INVALID)
            return engine_ ? ucm_fail(err, status, 0, "the store below Cache refuses this lookup")
                           : status;
        // What is here is the answer then, unless there is nothing that could be.
        if (status != UCM_OK && !engine_ && missing.size() == args.n) return status;
        if (status != UCM_OK) {
            hits = 0;
            std::fill(tiers.begin(), tiers.end(), uint8_t(0));
        }
    }
    if (args.tiers) {
        std::copy(here.begin(), here.end(), args.tiers);
        for (size_t k = 0; k < missing.size(); k++)
            args.tiers[missing[k]] = uint8_t(tiers[k] ? std::min(tiers[k] + 1, 255) : 0);
    }
    if (!args.hits) return UCM_OK;
    if (args.mode == UCM_LOOKUP_ALL) {
        *args.hits = args.n - missing.size() + hits;
    } else if (args.mode == UCM_LOOKUP_PREFIX) {
        *args.hits = hits < missing.size() ? missing[hits] : args.n;
    } else {
        size_t last = args.n;
        while (last && !here[last - 1]) last--;
        *args.hits = std::max(last, hits ? missing[hits - 1] + 1 : 0);
    }
    return UCM_OK;
}

ucm_status CacheStore::prefetch(const ucm_ids_args &args, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    if (!engine_) return ucm_prefetch(lower_, &args, err);
    if (!engine_->core.lower_loads) return UCM_OK;
    std::vector<uint8_t> here(args.n);
    engine_->core.table.find_whole(args.block_ids, args.n, here.data());
    std::vector<BlockId> absent;
    for (size_t i = 0; i < args.n; i++)
        if (here[i] != 1) absent.push_back(BlockId::at(args.block_ids, i));
    engine_->loads.prefetch(absent);
    return UCM_OK;
}

ucm_status CacheStore::touch(const ucm_ids_args &args, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    for (size_t i = 0; engine_ && i < args.n; i++) {
        const BlockRef block = engine_->core.table.find(BlockId::at(args.block_ids, i));
        if (block) engine_->core.table.touched(block.record);
    }
    return ucm_touch(lower_, &args, err);
}

void CacheStore::drop(const IdSet &ids, Outcome &outcome) {
    Core &core = engine_->core;
    engine_->events.cancel(ids);
    engine_->dumps.cancel(ids);
    const Table::Hold hold(core.table);
    forget(core.table, ids, [&](const BlockRef &block, uint32_t flags) {
        engine_->writer.drop(block, outcome, flags);
    });
}

// Members find what they had of these blocks gone, as they do when another member removes them.
void CacheStore::drop_as_visitor(const IdSet &ids, bool again) const {
    if (segment_.empty()) return;
    const auto segment = Segment::visit(wanted_, segment_, log_);
    if (!segment) return;
    Table table(*segment, false);
    const Table::Hold hold(table);
    const auto drop = [&](const BlockRef &block, uint32_t flags) {
        table.detach(block.record, UCM_CANCELLED, flags);
    };
    again ? forget_again(table, ids, drop) : forget(table, ids, drop);
}

ucm_status CacheStore::remove(const ucm_ids_args &args, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    const bool below = (lower_caps_ & UCM_CAP_KEEPS) != 0;
    if (below && !(lower_caps_ & UCM_CAP_REMOVE))
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "the store below Cache cannot remove");
    IdSet ids;
    for (size_t i = 0; i < args.n; i++) ids.insert(BlockId::at(args.block_ids, i));
    if (!engine_) {
        drop_as_visitor(ids, false);
        if (!below) return UCM_OK;
        const ucm_status status = ucm_remove(lower_, &args, err);
        drop_as_visitor(ids, true);
        return status;
    }
    Core &core = engine_->core;
    Outcome outcome;
    {
        Lock lock(core.mutex);
        drop(ids, outcome);
        // A lower dump that is being submitted must be known there before it is asked to remove.
        engine_->writer.wait_submitted(lock);
        outcome.give(lock, core.log);
    }
    if (!below) return UCM_OK;
    const ucm_status status = ucm_remove(lower_, &args, err);
    Lock lock(core.mutex);
    {
        const Table::Hold hold(core.table);
        forget_again(core.table, ids, [&](const BlockRef &block, uint32_t flags) {
            engine_->writer.drop(block, outcome, flags);
        });
    }
    outcome.give(lock, core.log);
    return status;
}

ucm_status CacheStore::drain_below(int64_t until_ns, ucm_report &report, ucm_error *err) {
    ucm_wait_args wait{};
    wait.struct_size = sizeof wait;
    wait.timeout_ms = -1;
    if (until_ns != INT64_MAX)
        wait.timeout_ms = std::max<int64_t>((until_ns - monotonic_ns()) / 1000000, 0);
    ucm_report below{};
    below.struct_size = sizeof below;
    const ucm_status status = ucm_drain(lower_, &wait, &below, err);
    if (status != UCM_OK && status != UCM_PENDING) return status;
    report.stored = below.stored;
    report.unfinished = below.unfinished;
    report.lost += below.lost;
    report.pending += below.pending;
    return status;
}

ucm_status CacheStore::drain(const ucm_wait_args &args, ucm_report &report, ucm_error *err) {
    if (const ucm_status status = closed(err)) return status;
    const int64_t until_ns = deadline_after_ms(args.timeout_ms);
    report.stored = report.lost = report.pending = report.unfinished = 0;
    if (!engine_) return drain_below(until_ns, report, err);
    Core &core = engine_->core;
    {
        Lock lock(core.mutex);
        while (engine_->draining && monotonic_ns() < until_ns)
            wait_until(core.wakeups.idle, lock, until_ns);
        if (engine_->draining) return UCM_PENDING;
        engine_->draining = true;
        core.impatient.fetch_add(1);
        core.wakeups.writes.notify_all();  // it may wait for a store that is down
    }
    engine_->dumps.flush(true);
    engine_->writer.drain(true);
    ucm_status status = core.ledger.drain(until_ns, report);
    engine_->writer.drain(false);
    engine_->dumps.flush(false);
    core.impatient.fetch_sub(1);
    report.stored = 0;  // the bottom's to count
    const ucm_status below = drain_below(until_ns, report, err);
    if (below != UCM_OK) status = below;
    Lock lock(core.mutex);
    engine_->draining = false;
    core.wakeups.idle.notify_all();
    return status;
}

ucm_status CacheStore::metrics(const ucm_metrics_args &args, ucm_error *) {
    if (!engine_) {
        std::fill_n(args.values, std::min<size_t>(args.n, kMetrics), uint64_t(0));
        return UCM_OK;
    }
    Core &core = engine_->core;
    const Header &header = core.table.header();
    const auto set = [&](Metric metric, uint64_t value) { core.metrics.set(metric, value); };
    set(kEvictedBlocks, header.evicted.load());
    set(kFrames, header.frames);
    set(kFramesReady, header.frames_ready.load());
    set(kFramesDirty, header.held.load());
    set(kFramesFree, header.frame_list.size.load());
    set(kMembers_, core.table.members());
    set(kBreakerOpen, core.dump_breaker.open() || core.load_breaker.open());
    return core.metrics.copy(args);
}

// False: there was not enough time to store what this member owns.
bool CacheStore::leave(int64_t until_ns) {
    Core &core = engine_->core;
    Outcome outcome;
    Lock lock(core.mutex);
    engine_->loads.forget_prefetches();
    core.wakeups.writes.notify_all();  // it may wait for a store that is down
    engine_->watch.adopt(outcome);
    for (;;) {
        bool more;
        {
            const Table::Hold hold(core.table);
            // Others may have completed blocks of this member since.
            if (core.table.changed_hands()) engine_->writer.find_own();
            more = engine_->writer.leave(outcome);
        }
        outcome.give(lock, core.log);
        const bool idle = !more && engine_->idle();
        if (idle || monotonic_ns() >= until_ns) return idle;
        if (!engine_->idle()) wait_until(core.wakeups.idle, lock, until_ns);
    }
}

ucm_status CacheStore::close(const ucm_wait_args &args, ucm_report &report, ucm_error *) {
    if (!closing_.exchange(true) && engine_) {
        engine_->core.closing.store(true);
        engine_->core.impatient.fetch_add(1);
    }
    report.stored = report.lost = report.pending = report.unfinished = 0;
    if (!engine_) return UCM_OK;
    Core &core = engine_->core;
    const int64_t until_ns = deadline_after_ms(args.timeout_ms);
    bool idle = engine_->tasks.close(until_ns);
    if (idle) idle = leave(until_ns);
    core.ledger.drain(0, report);
    report.stored = 0;
    if (!idle) return UCM_PENDING;
    engine_->watch.stop();
    engine_->events.stop();
    engine_->dumps.stop();
    engine_->writer.stop();
    engine_->loads.stop();
    core.segment.empty_handed();
    return UCM_OK;
}

}  // namespace ucm::cache
