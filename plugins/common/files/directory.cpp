// SPDX-License-Identifier: MIT
#include "directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>

#include "older.h"

namespace ucm::files {
namespace {

constexpr size_t kQuarantineFiles = 64;
constexpr int64_t kWalkPauseNs = 1000000000;

std::string absolute(const std::string &path) {
    char *found = realpath(path.c_str(), nullptr);
    if (!found) {
        const int error = errno;
        const std::string what = "storage_backends: directory '" + path + "'";
        if (error == ENOENT)
            throw Error(UCM_UNAVAILABLE, what + " does not exist; create it with: mkdir -p " + path,
                        error);
        throw Error(UCM_UNAVAILABLE,
                    what + " cannot be used: " + errno_text(error) + who_owns(path, error), error);
    }
    std::string text = found;
    free(found);
    struct stat st{};
    if (::stat(text.c_str(), &st) != 0 || !S_ISDIR(st.st_mode))
        throw Error(UCM_UNAVAILABLE, "storage_backends: '" + path + "' is not a directory",
                    ENOTDIR);
    if (::access(text.c_str(), R_OK | X_OK) != 0) {
        const int error = errno;
        throw Error(UCM_UNAVAILABLE,
                    "storage_backends: cannot read directory " + text + ": " + errno_text(error) +
                        "; give this user read permission there" + who_owns(text, error),
                    error);
    }
    return text;
}

size_t count_files(const std::string &path) {
    std::unique_ptr<DIR, int (*)(DIR *)> dir(opendir(path.c_str()), closedir);
    size_t files = 0;
    if (!dir) return files;
    while (const dirent *entry = readdir(dir.get())) files += entry->d_name[0] != '.';
    return files;
}

}  // namespace

Directory::Directory(const std::string &path, const Wanted &wanted, const Logger &log)
    : path_(absolute(path)),
      log_(log),
      software_(wanted.software),
      access_(wanted.access),
      direct_(wanted.direct) {
    if (!identified()) refuse_older_blocks(path_);
    if (wanted.writes) {
        writer_ = std::make_unique<WriterFolder>(path_, access_);
        if (direct_) try_direct();
        id_ = make_directory_id(path_, writer_->path(), access_);
        identified_ = true;
        sweep_trash(path_);
        open_quota(wanted);
    }
    if (wanted.layout) open_space(wanted);
}

void Directory::open_space(const Wanted &wanted) {
    space_ = std::make_unique<Space>(path_, wanted.space);
    if (space_->there()) return;
    space_->tell_neighbours(log_);
    if (wanted.writes) space_->ensure(*writer_, access_, software_.c_str());
}

void Directory::try_direct() {
    const int fd = ::open((writer_->path() + "/lock").c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd >= 0)
        ::close(fd);
    else if (errno == EINVAL)
        refuse_direct();
}

int Directory::sync_block(const BlockId &id) {
    const std::string folder = block_folder(id);
    auto &known = folders_synced_[std::stoul(folder, nullptr, 16)];
    int error = sync_folder(space_->path() + "/" + folder);
    if (known.load()) return error;
    // Somebody may have made them a moment ago, and not synced.
    const std::string space = space_->path();
    for (const std::string &path : {space, space.substr(0, space.rfind('/')), path_})
        if (error == 0) error = sync_folder(path);
    if (error == 0) known = true;
    return error;
}

Directory::~Directory() {
    if (hotness_) hotness_->tick();
    const std::optional<Maker> mine = maker();
    for (const auto &[space, index] : indexes_) index->tidy(mine ? &*mine : nullptr, true);
}

bool Directory::identified() {
    if (identified_.load(std::memory_order_acquire)) return true;
    std::lock_guard<std::mutex> hold(mutex_);
    if (!identified_ && read_directory_id(path_, id_)) identified_ = true;
    return identified_;
}

void Directory::refuse_direct() {
    if (direct_.exchange(false))
        log_.write(UCM_LOG_WARN, "%s: the file system refuses O_DIRECT; going on without",
                   path_.c_str());
}

void Directory::renew_writer() {
    check_same();
    writer_->renew();
}

void Directory::check_same() const {
    DirectoryId now{};
    // An empty mount point in place of the mount must not be filled.
    if (!read_directory_id(path_, now) || now != id_)
        throw Error(
            UCM_UNAVAILABLE,
            path_ + " is not the directory that was opened; mount it, or open the store again",
            ENOENT);
}

int Directory::make_block_folder(const BlockId &id) {
    const std::string path = space_->path() + "/" + block_folder(id);
    try {
        folders_synced_[std::stoul(block_folder(id), nullptr, 16)] = false;
        if (access_.plain && ::mkdir(path.c_str(), access_.folder) == 0) return 0;
        check_same();
        space_->ensure(*writer_, access_, software_.c_str());
        return place_folder(path, *writer_, access_);
    } catch (const Error &error) {
        log_.write(UCM_LOG_ERROR, "block %s: %s", id.hex().c_str(), error.what());
        return error.os_errno() ? error.os_errno() : EIO;
    }
}

bool Directory::quarantine(const BlockId &id, dev_t device, ino_t inode) {
    const bool gone = take_away(id, device, inode);
    if (gone) removed(id);
    return gone;
}

bool Directory::take_away(const BlockId &id, dev_t device, ino_t inode) {
    const std::string name = block_path(id), folder = path_ + "/.ucm/quarantine";
    std::lock_guard<std::mutex> hold(mutex_);
    struct stat st{};
    if (::lstat(name.c_str(), &st) != 0 || st.st_ino != inode || st.st_dev != device) return false;
    if (const int error = access_.make_folder(folder); error == 0 || error == EEXIST) {
        const std::string kept = folder + "/" + space_->name() + "." + id.hex();
        if (count_files(folder) < kQuarantineFiles && ::rename(name.c_str(), kept.c_str()) == 0) {
            log_.write(UCM_LOG_WARN, "block %s is corrupt: moved to %s", id.hex().c_str(),
                       kept.c_str());
            return true;
        }
    }
    if (::unlink(name.c_str()) == 0) {
        shrank();
        log_.write(UCM_LOG_WARN, "block %s is corrupt: deleted %s", id.hex().c_str(), name.c_str());
        return true;
    }
    log_.write(UCM_LOG_ERROR, "block %s is corrupt, and %s cannot be deleted: %s", id.hex().c_str(),
               name.c_str(), errno_text(errno).c_str());
    return false;
}

std::optional<Maker> Directory::maker() {
    if (!writer_) return std::nullopt;
    return Maker{*writer_, access_};
}

BlockIndex *Directory::use_index(const std::string &space) {
    std::lock_guard<std::mutex> hold(index_mutex_);
    std::shared_ptr<BlockIndex> found;
    for (const auto &[name, index] : indexes_)
        if (name == space) found = index;
    if (!found && !space.empty() && identified()) {
        found = BlockIndex::of(path_, id_, space);
        indexes_.emplace_back(space, found);
    }
    index_.store(found.get(), std::memory_order_release);
    return found.get();
}

BlockIndex *Directory::own_index() {
    BlockIndex *index = this->index();
    return index || !space_ ? index : use_index(space_->below());
}

bool Directory::attend(const std::string &space) {
    BlockIndex *index = space_ ? own_index() : use_index(space);
    return index && index->hear();
}

void Directory::published(const BlockId &id, bool anew) {
    const std::optional<Maker> mine = maker();
    if (BlockIndex *index = own_index()) index->published(id, anew, mine ? &*mine : nullptr);
}

void Directory::tell() {
    const std::optional<Maker> mine = maker();
    if (BlockIndex *index = this->index()) index->tell(mine ? &*mine : nullptr);
}

void Directory::removed(const BlockId &id) {
    const std::optional<Maker> mine = maker();
    if (BlockIndex *index = own_index()) index->removed(id, mine ? &*mine : nullptr);
}

void Directory::missed(const BlockId &id) {
    if (BlockIndex *index = this->index()) index->missed(id);
}

// The collector evicts from every space; lookups of this handle know one.
void Directory::evicted(const std::string &space, const BlockId &id) {
    if (space_ && space_->path() == path_ + "/" + space) removed(id);
}

void Directory::open_quota(const Wanted &wanted) {
    quota_ = std::make_unique<Quota>(path_, *writer_, access_, wanted.quota, log_);
    hotness_ = std::make_unique<Hotness>(*quota_);
    collector_ = std::make_unique<Collector>(
        path_, *quota_, *writer_, access_, log_,
        [this](const std::string &space, const BlockId &id) { evicted(space, id); });
    filter_ = std::make_unique<WriteFilter>(wanted.filter);
    struct statvfs st{};
    if (!wanted.quota.capacity || ::statvfs(path_.c_str(), &st) != 0) return;
    if (wanted.quota.capacity > uint64_t(st.f_blocks) * st.f_frsize)
        log_.write(UCM_LOG_WARN,
                   "posix_capacity_gb: %s may take %.3g GiB, but its file system has %.3g GiB; "
                   "what is full is then the file system",
                   path_.c_str(), double(wanted.quota.capacity) / double(1 << 30),
                   double(st.f_blocks) * double(st.f_frsize) / double(1 << 30));
}

void Directory::loaded(const BlockId &id, const struct stat &file) {
    if (hotness_) hotness_->used(block_path(id), file);
}

void Directory::touched(const BlockId &id) {
    if (hotness_ && space_) hotness_->touched(block_path(id));
}

void Directory::stamp_new(int fd) {
    hotness_->stamp_new(fd);
}

int Directory::reserve(uint64_t bytes, int64_t deadline_ns, const std::function<bool()> &refused) {
    return quota_->reserve(bytes, deadline_ns, refused);
}

void Directory::settle(uint64_t reserved, uint64_t bytes) {
    quota_->settle(reserved, bytes);
}

void Directory::was_full() {
    collector_->was_full();
    quota_->wake();
}

void Directory::shrank() {
    if (quota_) quota_->too_high();
}

bool Directory::admits(const BlockId &id, const std::vector<uint32_t> &shards,
                       uint32_t shards_per_block) {
    return !filter_->active() ||
           filter_->admits(id, shards, shards_per_block, quota_->seen().writers);
}

void Directory::wrote(uint64_t bytes) {
    if (filter_->active()) filter_->wrote(bytes, quota_->seen().writers);
}

QuotaNumbers Directory::quota_numbers() const {
    if (!quota_) return {};
    const LedgerPage page = quota_->seen();
    return {page.used + page.granted, page.limit, collector_->evicted_blocks(),
            collector_->evicted_bytes()};
}

void Directory::on_work(const std::function<void()> &wake) {
    if (quota_) quota_->on_work(wake);
}

void Directory::stop_waiting() {
    if (quota_) quota_->close();
}

void Directory::tidy() {
    const std::optional<Maker> mine = maker();
    if (BlockIndex *index = this->index()) index->tidy(mine ? &*mine : nullptr);
    if (!quota_) return;
    quota_->tick();
    hotness_->tick();
}

void Directory::collect(const std::atomic<bool> &stop) {
    if (collector_) collector_->work(stop);
}

int64_t Directory::walk(const std::atomic<bool> &stop) {
    const std::optional<Maker> mine = maker();
    BlockIndex *index = this->index();
    if (!index) return kWalkPauseNs;
    index->tidy(mine ? &*mine : nullptr, !mine);  // who does not write has no thread for tidy
    return index->walk(stop, mine ? &*mine : nullptr, log_);
}

namespace {

// Directories share the capacity evenly, as blocks are spread over them.
void share_capacity(Wanted &wanted, size_t directories) {
    const uint64_t all = wanted.quota.capacity;
    if (!all) return;
    wanted.quota.capacity = all / directories;
    const uint64_t least = 4 * wanted.block_bytes;
    if (wanted.quota.capacity >= least) return;
    throw Error(UCM_INVALID,
                "posix_capacity_gb: " + std::to_string(all) + " bytes for " +
                    std::to_string(directories) + " directories leave " +
                    std::to_string(wanted.quota.capacity) + " each, less than 4 blocks of " +
                    std::to_string(wanted.block_bytes) + "; give " +
                    std::to_string(double(least * directories) / double(1 << 30)) + " or more");
}

}  // namespace

Directories::Directories(const ucm_value &paths, Wanted wanted, const Logger &log) {
    if (paths.count == 0)
        throw Error(UCM_INVALID, "storage_backends names no directory; give at least one");
    share_capacity(wanted, paths.count);
    for (size_t i = 0; i < paths.count; i++)
        all_.push_back(std::make_unique<Directory>(paths.strings[i], wanted, log));
    check_distinct();
    if (wanted.layout) return;
    std::vector<std::string> here;
    for (const auto &directory : all_) here.push_back(directory->path());
    finder_ = std::make_unique<SpaceFinder>(here, wanted.space, log);
}

void Directories::check_distinct() {
    for (size_t i = 0; i < all_.size(); i++)
        for (size_t k = 0; k < i; k++)
            if (all_[i]->path() == all_[k]->path() ||
                (all_[i]->identified() && all_[k]->identified() && all_[i]->id() == all_[k]->id()))
                throw Error(UCM_INVALID, "storage_backends: " + all_[i]->path() + " and " +
                                             all_[k]->path() +
                                             " are one directory or copies of one; name it once");
}

bool Directories::direct() const {
    for (auto &directory : all_)
        if (!directory->direct()) return false;
    return true;
}

Directory *Directories::of(const BlockId &id) {
    if (!complete_.load(std::memory_order_acquire)) {
        std::lock_guard<std::mutex> hold(mutex_);
        if (!complete_.load(std::memory_order_relaxed)) {
            known_.clear();
            ids_.clear();
            for (auto &directory : all_) {
                if (!directory->identified()) continue;
                known_.push_back(directory.get());
                ids_.push_back(directory->id());
            }
            if (known_.empty()) return nullptr;
            if (known_.size() < all_.size()) return known_[place_block(ids_, id)];
            complete_.store(true, std::memory_order_release);
        }
    }
    return known_[place_block(ids_, id)];
}

bool Directories::attend() {
    const std::string space = finder_ ? finder_->current() : "";
    bool walk = false;
    for (auto &directory : all_) walk = directory->attend(space) || walk;
    return walk;
}

bool Directories::look_again() {
    if (!finder_ || !finder_->look_again()) return false;
    attend();
    return true;
}

Directories::Known Directories::known() const {
    Known known;
    for (auto &directory : all_)
        if (const BlockIndex *index = directory->index()) {
            known.blocks += index->blocks();
            known.listed += index->listed();
            known.folders += BlockIndex::kFolders;
        }
    return known;
}

std::string Directories::find(const BlockId &id) {
    const Directory *directory = of(id);
    if (!directory) return "";
    if (!finder_) return directory->block_path(id);
    const std::string space = finder_->current();
    return space.empty() ? "" : directory->path() + "/" + space + "/" + block_name(id);
}

void Directories::tidy() {
    for (auto &directory : all_) directory->tidy();
}

int64_t Directories::walk(const std::atomic<bool> &stop) {
    int64_t pause_ns = kWalkPauseNs;
    for (auto &directory : all_) pause_ns = std::min(pause_ns, directory->walk(stop));
    return pause_ns;
}

void Directories::collect(const std::atomic<bool> &stop) {
    for (auto &directory : all_) directory->collect(stop);
}

QuotaNumbers Directories::quota_numbers() const {
    QuotaNumbers sum;
    for (auto &directory : all_) {
        const QuotaNumbers one = directory->quota_numbers();
        sum.used += one.used;
        sum.limit += one.limit;
        sum.evicted_blocks += one.evicted_blocks;
        sum.evicted_bytes += one.evicted_bytes;
    }
    return sum;
}

void Directories::on_work(const std::function<void()> &wake) {
    for (auto &directory : all_) directory->on_work(wake);
}

void Directories::stop_waiting() {
    for (auto &directory : all_) directory->stop_waiting();
}

uint64_t Directories::total_bytes() const {
    uint64_t total = 0;
    for (auto &directory : all_) {
        struct statvfs st{};
        if (::statvfs(directory->path().c_str(), &st) == 0)
            total += uint64_t(st.f_blocks) * st.f_frsize;
    }
    return total;
}

}  // namespace ucm::files
