// SPDX-License-Identifier: MIT
#include "job.h"

#include <fcntl.h>

#include <unordered_map>

namespace ucm::files {
namespace {

Rows rows_of(const ucm_open_args &args, bool lookup_only) {
    return lookup_only ? Rows() : Rows(*args.layout);
}

Durability durability_of(const std::string &word) {
    if (word == "full") return Durability::kFull;
    return word == "data" ? Durability::kData : Durability::kNone;
}

HeaderState read_header(File &file, Scratch &scratch, uint64_t file_bytes, uint64_t expected,
                        const BlockId &id, BlockHeader &header, int *error) {
    uint8_t *data = scratch.header();
    uint64_t have = 0, need = round_up(std::min(expected, file_bytes));
    // Twice at most: a header of another size says so in its first page.
    for (int turn = 0; turn < 2; turn++) {
        uint64_t got = 0;
        *error = file.read(data + have, need - have, have, &got);
        if (*error != 0) return HeaderState::kCorrupt;
        have += got;
        const HeaderState state = decode_block_header(data, have, file_bytes, id, header, &need);
        if (state != HeaderState::kMore) return state;
        if (have % UCM_ALIGNMENT) break;
    }
    return HeaderState::kCorrupt;
}

}  // namespace

Context::Context(const ucm_open_args &args, const char *layer, Medium &medium,
                 const ucm_value &paths, const Wanted &wanted, const char *durability_word,
                 bool verify, bool zero_copy)
    : layer(layer),
      medium(medium),
      lookup_only((args.flags & UCM_OPEN_LOOKUP_ONLY) != 0),
      log(args.host, layer),
      directories(paths, wanted, log),
      durability(durability_of(durability_word)),
      verifies(verify),
      shape(lookup_only ? BlockShape() : BlockShape(*args.layout, wanted.space.id())),
      rows(rows_of(args, lookup_only)),
      direct_memory(zero_copy) {}

std::shared_ptr<Batch> split(const ucm_transfer &transfer, bool dump) {
    auto batch = std::make_shared<Batch>();
    std::unordered_map<BlockId, uint32_t, BlockIdHash> seen;
    std::vector<uint32_t> job_of(transfer.n), sizes;
    for (size_t i = 0; i < transfer.n; i++) {
        const BlockId id = BlockId::at(transfer.block_ids, i);
        const bool same = i > 0 && id == BlockId::at(transfer.block_ids, i - 1);
        const uint32_t job =
            same ? job_of[i - 1] : seen.emplace(id, uint32_t(sizes.size())).first->second;
        if (job == sizes.size()) sizes.push_back(0);
        job_of[i] = job;
        sizes[job]++;
    }
    batch->starts.assign(1, 0);
    for (uint32_t size : sizes) batch->starts.push_back(batch->starts.back() + size);
    std::vector<uint32_t> next(batch->starts.begin(), batch->starts.end() - 1);
    batch->order.resize(transfer.n);
    for (size_t i = 0; i < transfer.n; i++) batch->order[next[job_of[i]]++] = uint32_t(i);
    batch->jobs_left = batch->untold = sizes.size();
    batch->start_ns = monotonic_ns();
    batch->dump = dump;
    return batch;
}

static const char *operation(const Batch &batch) {
    return batch.dump ? "Cache2Backend" : "Backend2Cache";
}

static uint64_t bytes_of(const Task &task) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < task.n(); i++) bytes += task.length(i);
    return bytes;
}

void log_dispatch(const Context &context, const Batch &batch) {
    if (!context.log.wants(UCM_LOG_DEBUG)) return;
    const Task &task = *batch.task;
    context.log.write(UCM_LOG_DEBUG, "%s task(%llu,%s,%zu,%llu) dispatching.", context.layer,
                      static_cast<unsigned long long>(task.number()), operation(batch), task.n(),
                      static_cast<unsigned long long>(bytes_of(task)));
}

void complete(Context &context, const Job &job, size_t index, const ucm_result &result) {
    const bool dump = job.batch->dump;
    if (result.status == UCM_OK) {
        context.metrics.add(dump ? kDumpShards : kLoadShards, 1);
        context.metrics.add(dump ? kDumpBytes : kLoadBytes,
                            dump ? job.task().length(index) : result.length);
    } else if (result.status != UCM_NOT_FOUND) {
        context.metrics.add(kFailedShards, 1);
    }
    job.task().complete(index, result);
}

void tell_if_last(Context &context, const Job &job) {
    if (job.batch->untold.fetch_sub(1) != 1) return;
    try {
        context.directories.tell();
    } catch (const std::exception &) {  // no memory: they find out by themselves
    }
}

void end_job(const Context &context, const Job &job) {
    Batch &batch = *job.batch;
    if (batch.jobs_left.fetch_sub(1) != 1 || !context.log.wants(UCM_LOG_DEBUG)) return;
    const Task &task = *batch.task;
    context.log.write(UCM_LOG_DEBUG, "%s task(%llu,%s,%zu,%llu) finished, cost %.3fms.",
                      context.layer, static_cast<unsigned long long>(task.number()),
                      operation(batch), task.n(), static_cast<unsigned long long>(bytes_of(task)),
                      double(monotonic_ns() - batch.start_ns) / 1e6);
}

BlockState open_file(Directory &directory, const BlockId &id, OpenBlock &out) {
    // Whatever stands there instead of a file, a pipe or a link, must not hold a thread up.
    const std::string path = directory.block_path(id);
    out.error = out.file.open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    if (out.error == ELOOP && ::lstat(path.c_str(), &out.st) == 0 && S_ISLNK(out.st.st_mode))
        return BlockState::kCorrupt;
    if (out.error == 0) out.error = out.file.stat(out.st);
    if (status_of_errno(out.error, UCM_NOT_FOUND) == UCM_NOT_FOUND) return BlockState::kAbsent;
    if (out.error != 0) return BlockState::kFailed;
    return S_ISREG(out.st.st_mode) ? BlockState::kFits : BlockState::kCorrupt;
}

BlockState judge_block(const Context &context, const BlockId &id, Scratch &scratch,
                       OpenBlock &out) {
    const uint64_t expected = block_header_bytes(context.shape.shard_count);
    HeaderState state = HeaderState::kCorrupt;
    for (int turn = 0; turn < 2 && out.error == 0 && state == HeaderState::kCorrupt; turn++)
        state = read_header(out.file, scratch, out.bytes(context), expected, id, out.header,
                            &out.error);
    if (status_of_errno(out.error, UCM_NOT_FOUND) == UCM_NOT_FOUND) return BlockState::kAbsent;
    if (out.error != 0) return BlockState::kFailed;
    if (state == HeaderState::kCorrupt) return BlockState::kCorrupt;
    const bool fits = state == HeaderState::kSound && context.shape.fits(out.header);
    return fits ? BlockState::kFits : BlockState::kMisfit;
}

BlockState open_block(const Context &context, Directory &directory, const BlockId &id,
                      Scratch &scratch, OpenBlock &out) {
    const BlockState state = open_file(directory, id, out);
    return state == BlockState::kFits ? judge_block(context, id, scratch, out) : state;
}

}  // namespace ucm::files
