// SPDX-License-Identifier: MIT
#include "gc.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <queue>
#include <set>

#include "block_file.h"
#include "clock.h"
#include "failpoint.h"
#include "files.h"
#include "hotness.h"
#include "space.h"

namespace ucm {
namespace {

constexpr size_t kCandidates = 131072;
constexpr size_t kDepthsRead = 16384;  // at a time
constexpr size_t kBatch = 32;
constexpr int64_t kKeepLock = 10 * kSecond;  // and with it the candidates
constexpr int64_t kHopeless = 30 * kSecond, kOldest = 30 * kDay;
constexpr size_t kIdDigits = 2 * UCM_BLOCK_ID_BYTES;

BlockId id_of(const std::string &hex) {
    BlockId id{};
    for (size_t i = 0; i < hex.size(); i++) {
        const char c = hex[i];
        const int digit = c <= '9' ? c - '0' : c - 'a' + 10;
        id.bytes[i / 2] = uint8_t(id.bytes[i / 2] << 4 | digit);
    }
    return id;
}

bool is_namespace(const std::string &name) {
    return !name.empty() && name.size() <= 64 && name[0] != '.' && name[0] != '-';
}

// "<namespace>.<space>.<the rest>", of files that are kept aside.
bool is_of_space(const std::string &name) {
    const size_t last = name.rfind('.');
    return last != std::string::npos && last > kIdDigits + 1 && name[last - kIdDigits - 1] == '.' &&
           is_hex(name.substr(last - kIdDigits, kIdDigits), kIdDigits);
}

bool regular(int folder, const std::string &name, struct stat &st) {
    return ::fstatat(folder, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode);
}

uint32_t depth_of(const std::string &path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return 0;
    uint32_t depth = 0;
    if (::pread(fd, &depth, sizeof depth, kDepthAt) != ssize_t(sizeof depth)) depth = 0;
    ::close(fd);
    return depth == kUnknownDepth ? 0 : depth;
}

int age_class(int64_t age_ns) {
    const double age_s = std::max(1.0, double(age_ns) / double(kSecond));
    return int(std::floor(2 * std::log2(age_s)));
}

}  // namespace

uint64_t file_bytes(const struct stat &st) {
    return std::max<uint64_t>(uint64_t(st.st_blocks) * 512, uint64_t(st.st_size));
}

// One look at everything of ours in a directory.
struct Collector::Walk {
    struct Hotter {
        bool operator()(const Candidate &a, const Candidate &b) const {
            return a.stamp_ns < b.stamp_ns;
        }
    };

    Walk(const std::atomic<bool> &s, int64_t no_later) : stop(s), no_later_ns(no_later) {}

    void run(const std::string &directory, const std::vector<std::string> &writers) {
        living.insert(writers.begin(), writers.end());
        each_in(AT_FDCWD, directory, [&](int folder, const std::string &name) {
            if (name == ".ucm") {
                own(folder);
            } else if (is_namespace(name)) {
                each_in(folder, name, [&](int here, const std::string &space) {
                    if (is_hex(space, kIdDigits)) blocks(here, name, space);
                });
            }
        });
    }

    void add(int folder, const std::string &name) {
        struct stat st{};
        if (regular(folder, name, st)) bytes += file_bytes(st);
    }

    void add_all(int parent, const std::string &folder) {
        each_in(parent, folder, [&](int here, const std::string &name) { add(here, name); });
    }

    void own(int parent) {
        each_in(parent, ".ucm", [&](int folder, const std::string &name) {
            add(folder, name);  // format, ledger and the like
            if (name == "quarantine") add_all(folder, name);
            if (name == "writers")
                each_in(folder, name, [&](int writers, const std::string &writer) {
                    if (!living.count(writer)) return add_all(writers, writer);
                    each_in(writers, writer, [&](int here, const std::string &file) {
                        if (file == "lock") add(here, file);
                    });
                });
            if (name == "trash")
                each_in(folder, name, [&](int trash, const std::string &removed) {
                    if (is_of_space(removed)) blocks(trash, "", removed);
                });
        });
    }

    // Of a space, or of one in the trash, whose blocks are no candidates.
    void blocks(int parent, const std::string &label, const std::string &space) {
        const auto number = uint32_t(spaces.size());
        if (!label.empty()) spaces.push_back(label + "/" + space);
        each_in(parent, space, [&](int folder, const std::string &name) {
            if (!is_hex(name, 3)) return add(folder, name);
            each_in(folder, name, [&](int here, const std::string &file) {
                struct stat st{};
                if (stop || !is_hex(file, kIdDigits) || !regular(here, file, st)) return;
                bytes += file_bytes(st);
                files++;
                if (!label.empty())
                    consider({number, 0, id_of(file), modified_ns(st), file_bytes(st)});
            });
        });
    }

    void consider(Candidate candidate) {
        // A time that cannot be says nothing.
        if (candidate.stamp_ns > no_later_ns) candidate.stamp_ns = 0;
        if (coldest.size() == kCandidates) {
            if (candidate.stamp_ns >= coldest.top().stamp_ns) return;
            coldest.pop();
        }
        coldest.push(candidate);
    }

    const std::atomic<bool> &stop;
    const int64_t no_later_ns;
    std::set<std::string> living;
    uint64_t bytes = 0, files = 0;
    std::vector<std::string> spaces;
    std::priority_queue<Candidate, std::vector<Candidate>, Hotter> coldest;
};

struct Collector::Round {
    uint64_t freed = 0, blocks = 0;
    uint64_t batch = 0;
    std::vector<int64_t> ages_ns;
    int64_t now_ns = 0, start_ns = 0;
    size_t vanished = 0, refused = 0;
    int error = 0;
    std::string refused_path;
};

Collector::Collector(const std::string &directory, Quota &quota, WriterFolder &writer,
                     const Access &access, const Logger &log, Evicted evicted)
    : directory_(directory),
      quota_(quota),
      log_(log),
      evicted_(std::move(evicted)),
      lock_(directory + "/.ucm/gc", writer, access) {}

// How much must go, after which there is some time until the next round.
uint64_t Collector::excess(const LedgerPage &page, bool full) const {
    const QuotaOptions &options = quota_.options();
    if (page.limit == 0 || !options.collects) return 0;
    const double start = options.trigger * double(page.limit);
    const double used = double(page.used), granted = double(page.granted);
    double keep = used;
    if (full) keep = used * (1 - options.recycle);
    if (used + granted > start || page.wanted) {
        keep = std::min(keep, start * (1 - options.recycle) - granted);
        keep = std::min(keep, double(page.limit) - double(page.wanted) - granted);
    }
    return keep >= used ? 0 : uint64_t(used - std::max(0.0, keep));
}

bool Collector::due(const LedgerPage &page) const {
    if (page.limit == 0) return false;
    if (page.flags & kCountFirst || (page.wanted && page.flags & kTooHigh)) return true;
    if (monotonic_ns() < hopeless_until_ns_ && page.added == hopeless_added_) return false;
    return excess(page, full_) > 0;
}

bool Collector::lock() {
    if (!locked_) locked_ = lock_.try_lock(0) == 0;
    if (locked_) UCM_FAILPOINT("gc.locked");
    return locked_;
}

void Collector::work(const std::atomic<bool> &stop) {
    if (due(quota_.now()) && lock()) {
        collect(stop);
        worked_ns_ = monotonic_ns();
    }
    // Whoever has it goes on, as it knows what is cold.
    const int64_t keep_ns = quota_.options().collects ? kKeepLock : 0;
    if (!locked_ || monotonic_ns() - worked_ns_ < keep_ns) return;
    lock_.unlock();
    locked_ = false;
}

void Collector::collect(const std::atomic<bool> &stop) {
    quota_.bury_dead();
    LedgerPage page = quota_.now();
    if (!due(page)) return;
    Round round;
    round.start_ns = monotonic_ns();
    const bool full = full_.exchange(false);
    const bool known = page.rounds == my_round_ && !(queue_.empty() && ready_.empty());
    if (!known || page.flags & (kCountFirst | kTooHigh)) {
        sweep();
        if (!count(stop, quota_.stamp_ns())) return;
        page = quota_.now();
    }
    const uint64_t bytes = excess(page, full);
    if (bytes > 0) {
        round.now_ns = quota_.stamp_ns();
        evict(bytes, round, stop);
        // What was listed is used up; the rest is younger.
        if (round.freed < bytes && !stop && known && count(stop, round.now_ns))
            evict(excess(quota_.now(), full), round, stop);
    }
    int64_t age_ns = 0;
    if (!round.ages_ns.empty()) {
        const auto middle = round.ages_ns.begin() + std::ptrdiff_t(round.ages_ns.size() / 2);
        std::nth_element(round.ages_ns.begin(), middle, round.ages_ns.end());
        age_ns = std::clamp<int64_t>(*middle, 1, kOldest);
    }
    const bool hopeless = bytes > 0 && round.freed == 0;
    quota_.end_round(round.vanished > 0, hopeless, age_ns);
    page = quota_.seen();
    my_round_ = page.rounds;
    hopeless_until_ns_ = hopeless ? monotonic_ns() + kHopeless : 0;
    hopeless_added_ = page.added;
    tell(round);
}

// What nobody can use goes first.
void Collector::sweep() const {
    sweep_trash(directory_);
    sweep_writers(directory_);
    if (!quota_.options().collects) return;
    each_in(AT_FDCWD, directory_ + "/.ucm/quarantine", [&](int folder, const std::string &name) {
        if (is_of_space(name)) ::unlinkat(folder, name.c_str(), 0);
    });
}

bool Collector::count(const std::atomic<bool> &stop, int64_t clock_ns) {
    LedgerCount count;
    if (quota_.begin_count(count) != 0) return false;
    Walk walk(stop, clock_ns + kDay);
    walk.run(directory_, count.writers);
    if (stop) {
        quota_.too_high();
        return false;
    }
    UCM_FAILPOINT("gc.walked");
    if (quota_.end_count(count, walk.bytes) != 0) return false;
    UCM_FAILPOINT("gc.counted");
    spaces_ = std::move(walk.spaces);
    std::vector<Candidate> all;
    for (; !walk.coldest.empty(); walk.coldest.pop()) all.push_back(walk.coldest.top());
    choose(all, clock_ns);
    return true;
}

void Collector::choose(std::vector<Candidate> &all, int64_t now_ns) {
    queue_.clear();
    ready_.clear();
    for (const Candidate &each : all) queue_.emplace_back(age_class(now_ns - each.stamp_ns), each);
    std::sort(queue_.begin(), queue_.end(), [](const auto &a, const auto &b) {
        if (a.first != b.first) return a.first < b.first;
        return a.second.stamp_ns > b.second.stamp_ns;
    });
}

// Of those that are about equally cold, the ends of prefixes go before their beginnings.
void Collector::prepare() {
    const int turn = queue_.back().first;
    while (!queue_.empty() && queue_.back().first == turn && ready_.size() < kDepthsRead) {
        ready_.push_back(queue_.back().second);
        ready_.back().depth = depth_of(path_of(ready_.back()));
        queue_.pop_back();
    }
    std::sort(ready_.begin(), ready_.end(), [](const Candidate &a, const Candidate &b) {
        if (a.depth != b.depth) return a.depth < b.depth;
        return a.stamp_ns > b.stamp_ns;
    });
}

std::string Collector::path_of(const Candidate &candidate) const {
    return directory_ + "/" + spaces_[candidate.space] + "/" + block_name(candidate.id);
}

void Collector::evict(uint64_t bytes, Round &round, const std::atomic<bool> &stop) {
    const uint64_t goal = round.freed + bytes;
    while (round.freed < goal && !stop) {
        if (ready_.empty()) {
            if (queue_.empty()) break;
            prepare();
        }
        const Candidate candidate = ready_.back();
        ready_.pop_back();
        evict_one(candidate, round);
        if (round.blocks % kBatch == 0) hand_in(round);
    }
    hand_in(round);
}

void Collector::evict_one(const Candidate &candidate, Round &round) {
    const std::string path = path_of(candidate);
    struct stat st{};
    if (::lstat(path.c_str(), &st) != 0) {
        round.vanished += errno == ENOENT;
        return;
    }
    const int64_t stamp_ns = modified_ns(st);
    if (stamp_ns != candidate.stamp_ns && candidate.stamp_ns != 0) return;  // used since
    UCM_FAILPOINT("gc.before_evict");
    if (::unlink(path.c_str()) != 0) {
        if (errno == ENOENT) {
            round.vanished++;
        } else if (round.refused++ == 0) {
            round.error = errno;
            round.refused_path = path;
        }
        return;
    }
    UCM_FAILPOINT("gc.evicted");
    const uint64_t bytes = std::min(candidate.bytes, file_bytes(st));
    round.freed += bytes;
    round.batch += bytes;
    round.blocks++;
    if (candidate.stamp_ns) round.ages_ns.push_back(std::max<int64_t>(0, round.now_ns - stamp_ns));
    evicted_blocks_++;
    evicted_bytes_ += bytes;
    evicted_(spaces_[candidate.space], candidate.id);
}

void Collector::hand_in(Round &round) {
    if (round.batch == 0) return;
    if (quota_.freed(round.batch) != 0) quota_.too_high();
    round.batch = 0;
}

void Collector::tell(const Round &round) const {
    if (round.refused > 0)
        log_.write(UCM_LOG_ERROR, "cannot evict %zu blocks: %s: %s%s", round.refused,
                   round.refused_path.c_str(), errno_text(round.error).c_str(),
                   who_owns(round.refused_path, round.error).c_str());
    if (round.blocks > 0)
        log_.write(UCM_LOG_INFO, "%s: evicted %llu blocks, %.1f MiB, in %.0f ms",
                   directory_.c_str(), static_cast<unsigned long long>(round.blocks),
                   double(round.freed) / double(1 << 20),
                   double(monotonic_ns() - round.start_ns) / 1e6);
}

}  // namespace ucm
