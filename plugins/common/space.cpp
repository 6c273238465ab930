// SPDX-License-Identifier: MIT
#include "space.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <set>

#include "block_file.h"
#include "clock.h"
#include "files.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ucm {
namespace {

constexpr char kVersionLine[] = "ucm space 1\n";
constexpr size_t kManifestBytes = 16384, kHexDigits = 32;
constexpr size_t kListedSpaces = 4096, kToldSpaces = 3;
constexpr int64_t kLookEveryNs = 100000000;
constexpr size_t kSweptFiles = 10000;  // by one opening

std::string hex(const SpaceId &id) {
    BlockId same{};
    std::memcpy(same.bytes, id.data(), id.size());
    return same.hex();
}

SpaceId hash_of(const std::string &lines) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(lines.data(), lines.size()));
    SpaceId id;
    static_assert(sizeof canonical.digest == sizeof id);
    std::memcpy(id.data(), canonical.digest, id.size());
    return id;
}

struct Manifest {
    bool whole = false;  // false: none, or torn
    std::string lines;
};

Manifest read_manifest(const std::string &space) {
    const std::string path = space + "/space";
    std::string text;
    if (const int error = read_file(path, kManifestBytes, text); error != 0) {
        if (status_of_errno(error, UCM_NOT_FOUND) == UCM_NOT_FOUND) return {};
        throw Error(UCM_UNAVAILABLE,
                    "cannot read " + path + ": " + errno_text(error) + who_owns(path, error),
                    error);
    }
    const size_t head = sizeof kVersionLine - 1, line = text.find('\n');
    if (line == std::string::npos || text.compare(0, 10, kVersionLine, 10) != 0) return {};
    if (text.compare(0, head, kVersionLine) != 0)
        throw Error(UCM_INCOMPATIBLE, path + " says '" +
                                          text.substr(0, std::min(line, size_t(40))) +
                                          "', which this version does not read");
    const size_t end = text.find("\n\n", head);
    if (end == std::string::npos) return {};
    return {true, text.substr(head, end + 1 - head)};
}

std::string value_of(const std::string &lines, const std::string &key) {
    const std::string start = key + "=";
    for (size_t at = 0; at < lines.size(); at = lines.find('\n', at) + 1)
        if (lines.compare(at, start.size(), start) == 0)
            return lines.substr(at + start.size(), lines.find('\n', at) - at - start.size());
    return "";
}

constexpr const char *kKeys[] = {"namespace",        "model",        "fingerprint",
                                 "shards_per_block", "raw_capacity", "encoding"};

// "model 'a' there and 'b' here, ...", of the lines that differ.
std::string difference(const std::string &there, const std::string &here) {
    std::string text;
    for (const char *key : kKeys) {
        const std::string one = value_of(there, key), other = value_of(here, key);
        if (one == other) continue;
        text += (text.empty() ? "" : ", ") + std::string(key) + " '" + one + "' there and '" +
                other + "' here";
    }
    return text.empty() ? "lines that this version does not know" : text;
}

// The spaces of a namespace that are what their names say: name and lines.
std::vector<std::pair<std::string, std::string>> spaces_in(const std::string &namespace_path) {
    std::vector<std::pair<std::string, std::string>> spaces;
    Dir dir(opendir(namespace_path.c_str()), closedir);
    if (!dir && status_of_errno(errno, UCM_NOT_FOUND) != UCM_NOT_FOUND) {
        const int error = errno;
        throw Error(UCM_UNAVAILABLE,
                    "cannot read " + namespace_path + ": " + errno_text(error) +
                        who_owns(namespace_path, error),
                    error);
    }
    for_each_name(dir.get(), [&](const std::string &name) {
        if (!is_hex(name, kHexDigits) || spaces.size() == kListedSpaces) return;
        Manifest manifest = read_manifest(namespace_path + "/" + name);
        if (manifest.whole && hex(hash_of(manifest.lines)) == name)
            spaces.emplace_back(name, std::move(manifest.lines));
    });
    return spaces;
}

// A network file system may say for seconds that there is nothing at a path where another host has
// made a folder. Making one asks the server, and ends that.
void ask_server(const std::string &path) {
    struct stat st{};
    if (::stat(path.c_str(), &st) != 0 && errno == ENOENT && ::mkdir(path.c_str(), 0700) == 0)
        ::rmdir(path.c_str());
}

std::string time_text() {
    const time_t now = time(nullptr);
    struct tm parts{};
    char text[32];
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &parts));
    return text;
}

void check_line(const char *option, const std::string &value) {
    for (const char c : value)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
            throw Error(UCM_INVALID,
                        std::string(option) + ": it has a control character; use plain text");
}

// Deletes what a space is made of, and nothing else.
class Sweeper {
  public:
    void sweep(int parent, const std::string &name) {
        each_in(parent, name, [&](int folder, const std::string &entry) {
            if (is_hex(entry, 3) && left_ > 0) {
                each_in(folder, entry, [&](int blocks, const std::string &file) {
                    if (is_hex(file, kHexDigits) && left_ > 0) {
                        left_--;
                        ::unlinkat(blocks, file.c_str(), 0);
                    }
                });
                ::unlinkat(folder, entry.c_str(), AT_REMOVEDIR);
            } else if (entry == "space" || entry == "recent") {
                ::unlinkat(folder, entry.c_str(), 0);
            }
        });
        ::unlinkat(parent, name.c_str(), AT_REMOVEDIR);
    }

  private:
    size_t left_ = kSweptFiles;
};

}  // namespace

void SpaceIdentity::check() const {
    constexpr char kLetters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    if (label.empty() || label.size() > 64 || label[0] == '.' || label[0] == '-' ||
        label.find_first_not_of(kLetters) != std::string::npos)
        throw Error(UCM_INVALID, "namespace: '" + label +
                                     "' is not allowed; take 1 to 64 letters, digits, '.', '_' and "
                                     "'-', not beginning with '.' or '-'");
    check_line("model", model);
    check_line("fingerprint", fingerprint);
    if (model.size() > 256) throw Error(UCM_INVALID, "model: more than 256 bytes are too long");
    if (fingerprint.size() > 1024)
        throw Error(UCM_INVALID, "fingerprint: more than 1024 bytes are too long");
}

std::string SpaceIdentity::lines() const {
    const std::string values[] = {
        label,   model, fingerprint, std::to_string(shards_per_block), std::to_string(raw_capacity),
        encoding};
    std::string text;
    for (size_t i = 0; i < std::size(kKeys); i++)
        if (!values[i].empty()) text += std::string(kKeys[i]) + "=" + values[i] + "\n";
    return text;
}

SpaceId SpaceIdentity::id() const {
    return hash_of(lines());
}

Space::Space(const std::string &directory, const SpaceIdentity &identity)
    : lines_(identity.lines()),
      below_(identity.label + "/" + hex(identity.id())),
      namespace_path_(directory + "/" + identity.label),
      path_(directory + "/" + below_),
      name_(identity.label + "." + hex(identity.id())),
      id_(identity.id()) {}

bool Space::there() const {
    const Manifest manifest = read_manifest(path_);
    if (!manifest.whole) return false;
    if (manifest.lines == lines_) return true;
    throw Error(UCM_INCOMPATIBLE, path_ + " is another space, which was moved there: " +
                                      difference(manifest.lines, lines_) + "; remove it");
}

void Space::ensure(WriterFolder &writer, const Access &access, const char *software) const {
    const std::string text =
        kVersionLine + lines_ + "\ncreated=" + time_text() + "\nsoftware=" + software + "\n";
    // Others may make and remove it meanwhile.
    for (int turn = 0; turn < 10; turn++) {
        if (there()) return;
        const std::string aside = writer.temporary("space");
        int error = access.make_folder(aside);
        if (error == ENOENT) {
            writer.renew();
            continue;
        }
        if (error != 0)
            throw Error(status_of_errno(error, UCM_UNAVAILABLE),
                        "cannot make " + aside + ": " + errno_text(error), error);
        bool done = false;
        try {
            access.write_file(aside + "/space", text, true);
            sync_folder(aside);
            done = put_in_place(aside, writer, access);
        } catch (...) {
            ::unlink((aside + "/space").c_str());
            ::rmdir(aside.c_str());
            throw;
        }
        if (done) return;
        ::unlink((aside + "/space").c_str());
        ::rmdir(aside.c_str());
    }
    throw Error(UCM_UNAVAILABLE, "cannot make " + path_ + "; is something deleting in it?");
}

// False: look again, others are at work there.
bool Space::put_in_place(const std::string &aside, WriterFolder &writer,
                         const Access &access) const {
    int error = ::rename(aside.c_str(), path_.c_str()) == 0 ? 0 : errno;
    if (error == ENOENT) {
        error = place_folder(namespace_path_, writer, access);
        if (error == 0) error = ::rename(aside.c_str(), path_.c_str()) == 0 ? 0 : errno;
    }
    if (error == ENOTEMPTY || error == EEXIST) ask_server(path_);
    if ((error == ENOTEMPTY || error == EEXIST) && !there()) {
        // A power cut or a hand has taken the manifest; the blocks are good.
        const std::string from = aside + "/space", to = path_ + "/space";
        error = ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
    }
    if (error == 0) return true;
    if (error == ENOTEMPTY || error == EEXIST || error == ENOENT) return false;
    throw Error(status_of_errno(error) == UCM_NO_SPACE ? UCM_NO_SPACE : UCM_UNAVAILABLE,
                "cannot make " + path_ + ": " + errno_text(error) + who_owns(path_, error), error);
}

void Space::tell_neighbours(const Logger &log) const {
    if (!log.wants(UCM_LOG_INFO)) return;
    const auto others = spaces_in(namespace_path_);
    if (others.empty()) return;
    std::string text;
    for (size_t i = 0; i < others.size() && i < kToldSpaces; i++)
        text += "; " + others[i].first + ": " + difference(others[i].second, lines_);
    if (others.size() > kToldSpaces)
        text += "; and " + std::to_string(others.size() - kToldSpaces) + " more";
    log.write(UCM_LOG_INFO, "%s is new and empty. Others of its namespace%s", path_.c_str(),
              text.c_str());
}

SpaceFinder::SpaceFinder(std::vector<std::string> directories, const SpaceIdentity &wanted,
                         const Logger &log)
    : directories_(std::move(directories)), wanted_(wanted), log_(log) {
    std::lock_guard<std::mutex> hold(mutex_);
    current_ = look();
    looked_ns_ = monotonic_ns();
}

std::string SpaceFinder::current() {
    std::lock_guard<std::mutex> hold(mutex_);
    return current_;
}

bool SpaceFinder::look_again() {
    std::lock_guard<std::mutex> hold(mutex_);
    if (monotonic_ns() - looked_ns_ < kLookEveryNs) return false;
    looked_ns_ = monotonic_ns();
    std::string found = look();
    std::swap(found, current_);
    return found != current_;
}

std::string SpaceFinder::look() {
    std::set<std::string> found;
    for (const std::string &directory : directories_)
        for (const auto &[name, lines] : spaces_in(directory + "/" + wanted_.label))
            if (value_of(lines, "model") == wanted_.model &&
                (wanted_.fingerprint.empty() ||
                 value_of(lines, "fingerprint") == wanted_.fingerprint))
                found.insert(name);
    if (found.size() == 1) return wanted_.label + "/" + *found.begin();
    if (found.size() > 1 && !warned_) {
        std::string names;
        size_t told = 0;
        for (const std::string &name : found)
            if (told++ < 2 * kToldSpaces) names += " " + name;
        log_.write(UCM_LOG_WARN,
                   "lookups miss, because namespace '%s' has %zu spaces of model '%s':%s; give the "
                   "sizes, so that one of them is meant",
                   wanted_.label.c_str(), found.size(), wanted_.model.c_str(), names.c_str());
        warned_ = true;
    }
    return "";
}

int place_folder(const std::string &path, WriterFolder &writer, const Access &access) {
    if (access.plain) {
        if (::mkdir(path.c_str(), access.folder) == 0) return 0;
        if (errno != EEXIST) return errno;
    }
    std::string aside = writer.temporary("folder");
    int error = access.make_folder(aside);
    if (error == ENOENT) {
        writer.renew();
        aside = writer.temporary("folder");
        error = access.make_folder(aside);
    }
    if (error != 0) return error;
    if (::rename(aside.c_str(), path.c_str()) == 0) return 0;
    error = errno;
    ::rmdir(aside.c_str());
    if (error == ENOTEMPTY || error == EEXIST) ask_server(path);
    // A link to a folder elsewhere is as good.
    struct stat st{};
    if (error != ENOENT && ::stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) return 0;
    return error;
}

void sweep_trash(const std::string &directory, int64_t age_ns) {
    Sweeper sweeper;
    each_in(AT_FDCWD, directory + "/.ucm/trash", [&](int fd, const std::string &name) {
        struct stat st{};
        if (::fstatat(fd, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(st.st_mode))
            return;
        const int64_t changed_ns = int64_t(st.st_ctim.tv_sec) * 1000000000 + st.st_ctim.tv_nsec;
        if (clock_ns(CLOCK_REALTIME) - changed_ns > age_ns) sweeper.sweep(fd, name);
    });
}

}  // namespace ucm
