// SPDX-License-Identifier: MIT
#include "access.h"

#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "block_file.h"

namespace ucm {
namespace {

constexpr size_t kNameRoom = 65536;  // of one entry of the user and group databases

bool is_number(const std::string &text) {
    return text.size() < 10 &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

gid_t find_group(const std::string &text) {
    if (is_number(text)) return gid_t(std::stoul(text));
    std::vector<char> room(kNameRoom);
    struct group entry{}, *found = nullptr;
    const int error = getgrnam_r(text.c_str(), &entry, room.data(), room.size(), &found);
    if (found) return found->gr_gid;
    throw Error(UCM_INVALID,
                "file_group: there is no group '" + text + "'; give the name or number of one",
                error);
}

bool in_group(gid_t group) {
    if (::geteuid() == 0 || ::getegid() == group) return true;
    std::vector<gid_t> groups(size_t(std::max(0, ::getgroups(0, nullptr))));
    const int n = ::getgroups(int(groups.size()), groups.data());
    return std::find(groups.begin(), groups.begin() + std::max(0, n), group) !=
           groups.begin() + std::max(0, n);
}

std::string user_name(uid_t user) {
    std::vector<char> room(kNameRoom);
    struct passwd entry{}, *found = nullptr;
    getpwuid_r(user, &entry, room.data(), room.size(), &found);
    return found ? found->pw_name : std::to_string(user);
}

std::string group_name(gid_t group) {
    std::vector<char> room(kNameRoom);
    struct group entry{}, *found = nullptr;
    getgrgid_r(group, &entry, room.data(), room.size(), &found);
    return found ? found->gr_name : std::to_string(group);
}

// umask(2) can only be read by changing it, for all threads.
mode_t process_umask() {
    std::string text;
    if (read_file("/proc/self/status", 4096, text) != 0) return 0777;
    const size_t at = text.find("\nUmask:");
    return at == std::string::npos ? 0777 : mode_t(std::strtoul(&text[at + 7], nullptr, 8));
}

}  // namespace

Access::Access(const std::string &mode, const std::string &wanted_group) {
    if (mode == "0640") {
        file = 0640;
        folder = 02750;
    } else if (mode == "0660") {
        file = 0660;
        folder = 02770;
    } else if (mode != "0600") {
        throw Error(UCM_INVALID, "file_mode: '" + mode + "' is not one of 0600, 0640, 0660");
    }
    if (wanted_group.empty()) {
        plain = file == 0600 && (process_umask() & 0700) == 0;
        return;
    }
    group = find_group(wanted_group);
    if (!in_group(group))
        throw Error(UCM_INVALID, "file_group: this process is not in group '" + wanted_group +
                                     "'; add its user " + user_name(::geteuid()) +
                                     " to that group, or leave file_group out");
}

int Access::apply(int fd) const {
    if (plain) return 0;
    // Changing the group may clear mode bits, so the mode comes second.
    if (group != gid_t(-1) && ::fchown(fd, uid_t(-1), group) != 0) return errno;
    return ::fchmod(fd, file) == 0 ? 0 : errno;
}

int Access::make_folder(const std::string &path) const {
    if (::mkdir(path.c_str(), 0700) != 0) return errno;
    if (plain) return 0;
    int error = 0;
    if (group != gid_t(-1) && ::chown(path.c_str(), uid_t(-1), group) != 0) error = errno;
    if (error == 0 && ::chmod(path.c_str(), folder) != 0) error = errno;
    if (error != 0) ::rmdir(path.c_str());
    return error;
}

void Access::write_file(const std::string &path, const std::string &text, bool sync) const {
    int error = 0;
    const int fd =
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) error = errno;
    if (error == 0) error = apply(fd);
    for (size_t done = 0; error == 0 && done < text.size();) {
        const ssize_t put = ::write(fd, text.data() + done, text.size() - done);
        if (put > 0) done += size_t(put);
        if (put == 0 || (put < 0 && errno != EINTR)) error = put == 0 ? EIO : errno;
    }
    if (error == 0 && sync && ::fsync(fd) != 0) error = errno;
    if (fd >= 0 && ::close(fd) != 0 && error == 0) error = errno;
    if (error != 0)
        throw Error(status_of_errno(error, UCM_UNAVAILABLE),
                    "cannot write " + path + ": " + errno_text(error), error);
}

int read_file(const std::string &path, size_t most, std::string &out) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return errno;
    int error = 0;
    size_t have = 0;
    out.resize(most);
    while (error == 0 && have < most) {
        const ssize_t got = ::read(fd, &out[have], most - have);
        if (got == 0) break;
        if (got > 0) have += size_t(got);
        if (got < 0 && errno != EINTR) error = errno;
    }
    out.resize(have);
    ::close(fd);
    return error;
}

int sync_folder(const std::string &path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return errno;
    const int error = ::fsync(fd) == 0 ? 0 : errno;
    ::close(fd);
    return error;
}

std::string who_owns(const std::string &path, int error) {
    if (error != EACCES && error != EPERM) return "";
    // The deepest that can be looked at is what stands in the way, or the path itself.
    std::string seen;
    struct stat st{}, next{};
    for (size_t at = path.find('/', 1);; at = path.find('/', at + 1)) {
        if (::stat(path.substr(0, at).c_str(), &next) != 0) break;
        seen = path.substr(0, at);
        st = next;
        if (at == std::string::npos) break;
    }
    if (seen.empty()) return "";
    char mode[8];
    snprintf(mode, sizeof mode, "%04o", unsigned(st.st_mode & 07777));
    return "; " + seen + " belongs to " + user_name(st.st_uid) + ", group " +
           group_name(st.st_gid) + ", with mode " + mode +
           ": run as that user, or have it made with file_mode \"0640\" or \"0660\" and a "
           "file_group that this process is in";
}

}  // namespace ucm
